"""Fine-tuning runs: from a model and a task to a directory with scores in it."""

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import keras_hub
import numpy as np

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.backbones.flat_blocks import with_flat_blocks
from keras_minilmv2.backbones.loading import load_tokenizer
from keras_minilmv2.downstream.classifiers import (
    text_classifier,
    text_preprocessor,
)
from keras_minilmv2.downstream.fine_tuning import (
    decide,
    encode,
    predict,
    task_loss,
    train,
    training_epochs,
)
from keras_minilmv2.downstream.metrics import main_metric, task_metrics
from keras_minilmv2.downstream.tasks import (
    get_task,
    has_split,
    load_examples,
    write_predictions,
)
from keras_minilmv2.runs.directory import check_outside
from keras_minilmv2.runs.fine_tuning_report import write_report
from keras_minilmv2.runs.grid import FinishedCells, Result, grid_cells
from keras_minilmv2.runs.grid_runs import (
    as_values,
    begin,
    check_directory,
    check_evaluation_dir,
    check_room,
    check_settings,
    check_some_finished,
    load_model,
    percent,
    read_notes,
    run_cells,
    sha256,
    write_json,
    writing,
)
from keras_minilmv2.runs.report import describe
from keras_minilmv2.training.callbacks import ProgressLine
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.utils.files import replacing_directory
from keras_minilmv2.utils.hardware import hardware

# Examples of a batch that is not trained on.
_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class FineTuning:
    """What a run leaves in memory.

    Args:
        task: `Task`.
        output_dir: path.
        cell: `Cell` of the best run, whose model was kept.
        results: dict of `Result` by `Cell`.
        evaluations: dict of `Evaluation` by split, of the best run.
    """

    task: object
    output_dir: Path
    cell: object
    results: dict
    evaluations: dict


@dataclass(frozen=True)
class Evaluation:
    """Predictions for one split, and what they are worth.

    Args:
        task: `Task`.
        split: str.
        examples: `Examples`.
        predictions: `(examples,)`, int class or float score.
        metrics: dict of float by name, or None where the labels are not known.
    """

    task: object
    split: str
    examples: object
    predictions: np.ndarray
    metrics: dict | None

    def __str__(self):
        where = f"{self.task.title} {self.split}, {len(self.examples):,} examples"
        if self.examples.num_broken:
            where += (
                f" ({self.examples.num_broken:,} rows with too few columns left out)"
            )
        if self.metrics is None:
            return f"{where}: no labels"
        values = (f"{name} {percent(v)}" for name, v in self.metrics.items())
        return f"{where}: {', '.join(values)}"


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What all cells of a run share."""

    task: object
    backbone: object
    preprocessor: object
    train_examples: object
    dev_examples: object
    train: object  # EncodedTexts
    dev: object
    batch_size: int
    warmup_fraction: float
    weight_decay: float
    dtype_policy: str
    progress_stream: object


def fine_tune(
    model,
    task,
    output_dir,
    *,
    data_dir=None,
    tokenizer=None,
    learning_rate=None,
    epochs=None,
    seed=0,
    grid=False,
    batch_size=None,
    sequence_length=None,
    warmup_fraction=0.1,
    weight_decay=0.01,
    num_train_examples=None,
    dtype_policy="float32",
    tfds_data_dir=None,
    overwrite=False,
    progress_stream=None,
    say=print,
):
    """Fine-tunes an encoder on a task, once or with a grid of settings.

    `learning_rate`, `epochs` and `seed` may have several values: each combination is
    one run. The best run is the one with the highest main metric on the dev split.
    The directory then holds `model/` (the best run's model, a keras-nlp preset that
    `keras_hub.models.TextClassifier.from_preset` reads), `metrics.json` and
    `predictions/` of it on the dev splits, in the format of GLUE's submissions,
    `report.md`, `settings.json` and `cells/` (the result of each run). Test splits are
    for `evaluate_model`.

    A directory with runs of the same model, data and other settings goes on with the
    runs that are missing; all runs in it count.

    Args:
        model: str or path of a preset, as for `load_backbone`, or a keras-nlp
            backbone, which is left as it is.
        task: str, a name in `evaluation.tasks.TASKS`, or a `Task`.
        output_dir: str or path. Made if missing.
        data_dir: str or path of the task's published files, as for `load_examples`.
            None for TFDS.
        tokenizer: keras-nlp tokenizer, needed with a backbone.
        learning_rate: float or sequence of float. The peak. Defaults to 3e-5.
        epochs: int or sequence of int. Defaults to the first of the paper's for the
            task.
        seed: int or sequence of int.
        grid: bool. Whether learning rate and epochs, where not given, are all of the
            paper's for the task.
        batch_size: int. Defaults to the paper's.
        sequence_length: int, tokens. Longer texts are truncated. Defaults to the
            paper's.
        warmup_fraction: float, of all steps.
        weight_decay: float.
        num_train_examples: int. Train on so many, drawn once for all seeds. Defaults
            to all.
        dtype_policy: str, such as `"mixed_bfloat16"`. The policy of training; models
            are evaluated and saved in float32.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        say: function that is called with each line of information.

    Returns:
        `FineTuning`.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence says
            what. Settings and data are checked before anything is written.
        RuntimeError: if the loss of every run was not finite.
    """
    task, output_dir = get_task(task), Path(output_dir)
    cells = grid_cells(
        as_values(learning_rate, task.learning_rates if grid else task.learning_rate),
        as_values(epochs, task.epochs if grid else task.epochs[0]),
        as_values(seed, 0),
    )
    batch_size = task.batch_size if batch_size is None else batch_size
    check_settings(
        batch_size, num_train_examples, warmup_fraction, weight_decay, dtype_policy
    )
    check_directory(output_dir)
    check_outside("model", model, output_dir)
    backbone, tokenizer = load_model(model, tokenizer, dtype_policy)
    preprocessor = text_preprocessor(
        backbone,
        tokenizer,
        task.sequence_length if sequence_length is None else sequence_length,
    )
    data = {"data_dir": data_dir, "tfds_data_dir": tfds_data_dir}
    train_examples = load_examples(task, "train", **data)
    train_examples = _some(train_examples, num_train_examples)
    dev_splits = {
        split: load_examples(task, split, **data)
        for split in task.splits
        if split == task.dev_split
        or (split.startswith("dev") and has_split(task, split, data_dir))
    }
    dev_examples = dev_splits[task.dev_split]
    setup = _Setup(
        task=task,
        backbone=backbone,
        preprocessor=preprocessor,
        train_examples=train_examples,
        dev_examples=dev_examples,
        train=_encode(train_examples, preprocessor, backbone),
        dev=_encode(dev_examples, preprocessor, backbone),
        batch_size=batch_size,
        warmup_fraction=warmup_fraction,
        weight_decay=weight_decay,
        dtype_policy=dtype_policy,
        progress_stream=progress_stream,
    )
    settings = _settings(setup, model, data_dir)
    finished = FinishedCells(output_dir / "cells")
    begin(output_dir, settings, finished, cells, overwrite)
    say(
        f"{describe(backbone)}; {task.title}: {len(train_examples):,} training "
        f"examples, {len(dev_examples):,} of {task.dev_split}; on {hardware()}."
    )
    results = run_cells(
        output_dir,
        cells,
        finished,
        lambda cell: _run_cell(setup, cell),
        lambda classifier, cell, path: _save_classifier(setup, classifier, cell, path),
        f"{task.dev_split} {main_metric(task)}",
        say,
    )
    best = check_some_finished(results)
    saved = _load_classifier(output_dir / "model")
    evaluations = {
        split: _evaluate(saved, task, split, examples)
        for split, examples in dev_splits.items()
    }
    run = FineTuning(task, output_dir, best, results, evaluations)
    with writing(output_dir):
        _write_evaluations(output_dir, evaluations.values(), dataclasses.asdict(best))
        write_report(run, setup, settings)
    for evaluation in evaluations.values():
        say(str(evaluation))
    return run


def evaluate_model(
    model,
    task=None,
    *,
    data_dir=None,
    split=None,
    output_dir=None,
    tfds_data_dir=None,
    overwrite=False,
):
    """Evaluates a fine-tuned model on one split of a task.

    Args:
        model: str or path. What `fine_tune` wrote, or the `model` in it.
        task: str or `Task`. Defaults to the one the model was fine-tuned on.
        data_dir: str or path of the task's published files. None for TFDS.
        split: str. Defaults to the task's dev split.
        output_dir: str or path of a new or empty directory for `metrics.json` and
            `predictions/`; None writes nothing.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        overwrite: bool. Whether another evaluation there may be replaced.

    Returns:
        `Evaluation`.

    Raises:
        ValueError, OSError: if there is no such model, task, split or data, or the
            model has other labels than the task.
    """
    path = _model_dir(model)
    notes = read_notes(path)
    if task is None and not notes:
        raise ValueError(
            "`task` must be given for a model that does not say its own. "
            f"Received: task=None, model={path}."
        )
    task = get_task(notes["task"] if task is None else task)
    split = task.dev_split if split is None else split
    if output_dir is not None:
        check_evaluation_dir(Path(output_dir), overwrite)
    examples = load_examples(task, split, data_dir, tfds_data_dir)
    classifier = _load_classifier(path)
    _check_labels(task, path, notes, classifier)
    evaluation = _evaluate(classifier, task, split, examples)
    if output_dir is not None:
        with writing(output_dir):
            _write_evaluations(Path(output_dir), [evaluation])
    return evaluation


def _some(examples, number):
    """So many examples, the same for every seed; all if there are not more."""
    if number is None or number >= len(examples):
        return examples
    order = np.random.default_rng(0).permutation(len(examples))
    return examples.take(order[:number])


def _encode(examples, preprocessor, backbone):
    return encode(examples.texts, preprocessor, uses_segment_ids(backbone))


def _settings(setup, model, data_dir):
    """What must be the same for runs to be compared, and where it came from."""
    named = isinstance(model, str | os.PathLike)
    return {
        "task": setup.task.name,
        "model": str(model) if named else setup.backbone.name,
        "data_dir": None if data_dir is None else str(data_dir),
        "weights_sha256": sha256(*setup.backbone.get_weights()),
        "data_sha256": sha256(
            *(setup.train.token_ids, setup.train.lengths, setup.train_examples.labels),
            *(setup.dev.token_ids, setup.dev.lengths, setup.dev_examples.labels),
        ),
        "num_train_examples": len(setup.train_examples),
        "batch_size": setup.batch_size,
        "sequence_length": setup.train.sequence_length,
        "warmup_fraction": setup.warmup_fraction,
        "weight_decay": setup.weight_decay,
        "dtype_policy": setup.dtype_policy,
    }


def _run_cell(setup, cell):
    """Trains and evaluates; returns the `Result` and the classifier."""
    started = time.perf_counter()
    task = setup.task
    classifier = text_classifier(
        setup.backbone, task.num_outputs, cell.seed, setup.dtype_policy
    )
    total_steps = cell.epochs * math.ceil(len(setup.train) / setup.batch_size)
    optimizer = adamw(
        cell.learning_rate,
        int(setup.warmup_fraction * total_steps),
        total_steps,
        weight_decay=setup.weight_decay,
    )
    if setup.dtype_policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    tokens = setup.train.padded_lengths().mean() * setup.batch_size
    progress = ProgressLine(total_steps, tokens, setup.progress_stream)
    progress.start()
    epochs = training_epochs(
        setup.train,
        setup.train_examples.labels,
        setup.batch_size,
        cell.epochs,
        cell.seed,
    )
    try:
        losses = train(
            with_flat_blocks(classifier),
            task_loss(task),
            optimizer,
            epochs,
            on_step=lambda step, loss: progress.update(step, {"loss": loss}),
        )
        classifier = _in_float32(classifier)
        outputs = predict(classifier, setup.dev, _EVALUATION_BATCH)
        diverged = not np.isfinite(outputs).all()
    except FloatingPointError:
        diverged = True
    finally:
        progress.close()
    seconds = time.perf_counter() - started
    if diverged:
        return Result(None, {}, [], seconds), classifier
    metrics = _evaluation(task, task.dev_split, setup.dev_examples, outputs).metrics
    return Result(metrics[main_metric(task)], metrics, losses, seconds), classifier


def _in_float32(classifier):
    """The same classifier; keras-hub 0.32 cannot load one of mixed precision."""
    if classifier.backbone.dtype_policy.name == "float32":
        return classifier
    twin = text_classifier(
        classifier.backbone, classifier.num_classes, seed=0, dtype="float32"
    )
    twin.set_weights(classifier.get_weights())
    return twin


def _evaluate(classifier, task, split, examples):
    """Evaluates a classifier that has its preprocessor."""
    encoded = _encode(examples, classifier.preprocessor, classifier.backbone)
    outputs = predict(classifier, encoded, _EVALUATION_BATCH)
    return _evaluation(task, split, examples, outputs)


def _evaluation(task, split, examples, outputs):
    predictions = decide(task, outputs)
    metrics = None
    if examples.labels is not None:
        metrics = task_metrics(task, examples.labels, predictions, examples.languages)
    return Evaluation(task, split, examples, predictions, metrics)


def _save_classifier(setup, classifier, cell, path):
    task = setup.task
    classifier.preprocessor = setup.preprocessor
    check_room(path.parent, classifier.count_params())
    with replacing_directory(path) as fresh:
        classifier.save_to_preset(str(fresh))
        notes = {
            "task": task.name,
            "label_names": task.label_names,
            "cell": dataclasses.asdict(cell),
        }
        write_json(fresh / "fine_tuning.json", notes)


def is_classifier(model):
    """Whether a path is of a directory that `fine_tune` wrote, or the `model` in it."""
    return bool(_model_dirs(model))


def load_classifier(model):
    """Loads a fine-tuned classifier.

    Args:
        model: str or path. What `fine_tune` wrote, or the `model` in it.

    Returns:
        tuple of a `keras_hub.models.TextClassifier` with its preprocessor, and a dict
        of `"task"` and `"label_names"`, empty for a model from elsewhere.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it cannot be read.
    """
    path = _model_dir(model)
    return _load_classifier(path), read_notes(path)


def _model_dirs(model):
    path = Path(model).expanduser()
    candidates = (path, path / "model")
    return [path for path in candidates if (path / "task.json").is_file()]


def _model_dir(model):
    if paths := _model_dirs(model):
        return paths[0]
    raise FileNotFoundError(
        "`model` must be a directory that `keras-minilmv2 finetune` wrote. "
        f"Received: model={model}, without a task.json."
    )


def _load_classifier(path):
    try:
        classifier = keras_hub.models.TextClassifier.from_preset(str(path))
    except Exception as error:
        # keras and h5py raise OSError, KeyError, ValueError and TypeError here.
        raise ValueError(
            "`model` must hold a text classifier that can be read. "
            f"Received: model={path} ({str(error).splitlines()[0]})."
        ) from error
    # keras-hub's own splits words of RoBERTa in another way outside of tf.data.
    classifier.preprocessor = text_preprocessor(
        classifier.backbone,
        load_tokenizer(path),
        classifier.preprocessor.sequence_length,
    )
    return classifier


def _check_labels(task, path, notes, classifier):
    names = notes.get("label_names", task.label_names)
    names = tuple(names) if names else None
    if names != task.label_names or classifier.num_classes != task.num_outputs:
        ours = ", ".join(task.label_names or ["a score"])
        theirs = ", ".join(names or ["a score"])
        raise ValueError(
            f"`task` must have the labels of the model. Received: task={task.name!r} "
            f"with {ours}, model={path} with {theirs} and {classifier.num_classes} "
            "outputs."
        )


def _write_evaluations(output_dir, evaluations, cell=None):
    """Writes `predictions/` and `metrics.json`."""
    with replacing_directory(output_dir / "predictions") as fresh:
        for evaluation in evaluations:
            write_predictions(
                evaluation.task,
                evaluation.split,
                evaluation.examples,
                evaluation.predictions,
                fresh / evaluation.split,
            )
    task = next(iter(evaluations)).task
    write_json(
        output_dir / "metrics.json",
        {
            "task": task.name,
            "main_metric": main_metric(task),
            **(cell or {}),
            "splits": {
                evaluation.split: {
                    "num_examples": len(evaluation.examples),
                    "metrics": evaluation.metrics,
                }
                for evaluation in evaluations
            },
        },
    )
