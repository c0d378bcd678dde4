"""Fine-tuning runs: from a model and a task to a directory with scores in it."""

import contextlib
import dataclasses
import datetime
import errno
import gc
import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from keras_minilmv2.backbones.families import family_of, uses_segment_ids
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.evaluation.classifiers import (
    CLASSIFIERS,
    text_classifier,
    text_preprocessor,
)
from keras_minilmv2.evaluation.fine_tuning import (
    decide,
    encode,
    predict,
    task_loss,
    train,
    training_epochs,
)
from keras_minilmv2.evaluation.grid import (
    Cell,
    FinishedCells,
    Result,
    best_cell,
    best_summary,
    grid_cells,
    summaries,
)
from keras_minilmv2.evaluation.metrics import main_metric, task_metrics
from keras_minilmv2.evaluation.tasks import (
    get_task,
    has_split,
    load_examples,
    write_predictions,
)
from keras_minilmv2.files import remove, replacing_directory, replacing_file
from keras_minilmv2.report import describe, hardware, model_name
from keras_minilmv2.tables import markdown_table
from keras_minilmv2.training.callbacks import ProgressLine, clock
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.version import __version__

# What a run writes; overwriting a run removes these and nothing else.
OUTPUTS = (
    "settings.json",
    "cells",
    "model",
    "predictions",
    "metrics.json",
    "report.md",
)

# Where the data and the model lay does not matter, what was in them does.
_NOT_COMPARED = ("model", "data_dir")
# Bytes of a preset that are not weights: vocabulary, settings.
_MARGIN = 20_000_000
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
        if self.metrics is None:
            return f"{where}: no labels"
        values = (f"{name} {_percent(v)}" for name, v in self.metrics.items())
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
        _values(learning_rate, task.learning_rates if grid else task.learning_rate),
        _values(epochs, task.epochs if grid else task.epochs[0]),
        _values(seed, 0),
    )
    batch_size = task.batch_size if batch_size is None else batch_size
    _check_numbers(batch_size, num_train_examples, warmup_fraction, weight_decay)
    _check_directory(output_dir)
    backbone, tokenizer = _load(model, tokenizer, dtype_policy)
    preprocessor = text_preprocessor(
        backbone,
        tokenizer,
        task.sequence_length if sequence_length is None else sequence_length,
    )
    data = {"data_dir": data_dir, "tfds_data_dir": tfds_data_dir}
    train_examples = load_examples(task, "train", **data)
    train_examples = _some(train_examples, num_train_examples)
    dev_examples = load_examples(task, task.dev_split, **data)
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
    _begin(output_dir, settings, finished, cells, overwrite)
    say(
        f"{describe(backbone)}; {task.title}: {len(train_examples):,} training "
        f"examples, {len(dev_examples):,} of {task.dev_split}."
    )
    results = _run_cells(setup, cells, finished, output_dir, say)
    best = best_cell(results)
    if best is None:
        raise RuntimeError(
            "The loss was not finite in any run. Try a lower learning rate, or "
            "mixed_bfloat16 in place of mixed_float16."
        )
    saved = _load_classifier(output_dir / "model")
    evaluations = {
        split: _evaluate(saved, task, split, load_examples(task, split, **data))
        for split in task.splits
        if split.startswith("dev") and has_split(task, split, data_dir)
    }
    run = FineTuning(task, output_dir, best, results, evaluations)
    with _writing(output_dir):
        _write_evaluations(output_dir, evaluations.values(), dataclasses.asdict(best))
        _write_report(run, setup, settings)
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
    notes = _read_notes(path)
    if task is None and not notes:
        raise ValueError(
            "`task` must be given for a model that does not say its own. "
            f"Received: task=None, model={path}."
        )
    task = get_task(notes["task"] if task is None else task)
    split = task.dev_split if split is None else split
    if output_dir is not None:
        _check_evaluation_dir(Path(output_dir), overwrite)
    examples = load_examples(task, split, data_dir, tfds_data_dir)
    classifier = _load_classifier(path)
    _check_labels(task, path, notes, classifier)
    evaluation = _evaluate(classifier, task, split, examples)
    if output_dir is not None:
        with _writing(output_dir):
            _write_evaluations(Path(output_dir), [evaluation])
    return evaluation


def _values(given, default):
    value = default if given is None else given
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def _check_numbers(batch_size, num_train_examples, warmup_fraction, weight_decay):
    for name, value in (
        ("batch_size", batch_size),
        ("num_train_examples", num_train_examples),
    ):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}.")
    if not 0 <= warmup_fraction < 1:
        raise ValueError(
            "`warmup_fraction` must be at least 0 and below 1. "
            f"Received: warmup_fraction={warmup_fraction}."
        )
    if not weight_decay >= 0:
        raise ValueError(
            f"`weight_decay` must be at least 0. Received: weight_decay={weight_decay}."
        )


def _check_directory(path):
    """Raises unless a path is free for a directory, or holds outputs of a run."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"`output_dir` must be a directory. Received: output_dir={path}, a file."
        )
    names = _names(path)
    if names and "settings.json" not in names:
        raise FileExistsError(
            "`output_dir` must be empty or new. "
            f"Received: output_dir={path}, which holds {', '.join(names[:3])}."
        )


def _check_evaluation_dir(path, overwrite):
    names = _names(path)
    if names and not (overwrite and set(names) <= {"metrics.json", "predictions"}):
        raise FileExistsError(
            "`output_dir` must be empty or new, or hold another evaluation and "
            "--overwrite be given. "
            f"Received: output_dir={path}, which holds {', '.join(names[:3])}."
        )


def _names(path):
    if not path.is_dir():
        return []
    return sorted(e.name for e in path.iterdir() if not e.name.startswith("."))


def _load(model, tokenizer, dtype_policy):
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise ValueError(
                "`tokenizer` must be left out where `model` is a preset. "
                f"Received: model={model}, tokenizer={tokenizer!r}."
            )
        return load_backbone(model, dtype=dtype_policy), load_tokenizer(model)
    family_of(model)
    if tokenizer is None:
        raise ValueError(
            "`tokenizer` must be given with a backbone. Received: tokenizer=None."
        )
    return model, tokenizer


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
        "weights_sha256": _sha256(*setup.backbone.get_weights()),
        "data_sha256": _sha256(
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


def _sha256(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _begin(output_dir, settings, finished, cells, overwrite):
    """Makes the directory ready; raises if it holds another run or a finished one."""
    path = output_dir / "settings.json"
    if path.is_file() and not overwrite:
        found = _read_json(path)
        differing = [
            name
            for name in settings
            if name not in _NOT_COMPARED and found.get(name) != settings[name]
        ]
        if differing:
            raise FileExistsError(
                "`output_dir` must not hold a run of another model, other data or "
                f"other settings. Received: output_dir={output_dir}, which differs in "
                f"{', '.join(differing)}. Pass --overwrite to replace it, or name "
                "another directory."
            )
        if set(cells) <= set(finished.load()) and (output_dir / "report.md").is_file():
            raise FileExistsError(
                "`output_dir` must not hold a finished run. Received: "
                f"output_dir={output_dir}. Pass --overwrite to replace it, or name "
                "another directory."
            )
        return
    with _writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            remove(output_dir / name)
        _write_json(path, settings)


def _run_cells(setup, cells, finished, output_dir, say):
    """Runs what is not finished; keeps the model of the best run in `model/`.

    Runs that another grid in the same directory finished count too.
    """
    results = finished.load()
    notes = _read_notes(output_dir / "model")
    if notes and Cell(**notes["cell"]) not in results:
        # Its model was saved and its result was not.
        cells = list(dict.fromkeys([Cell(**notes["cell"]), *cells]))
    if results:
        say(f"Finished runs in {output_dir}: {len(results)}.")
    missing = [cell for cell in cells if cell not in results]
    for number, cell in enumerate(missing, start=1):
        say(f"Run {number} of {len(missing)}: {cell}.")
        result, classifier = _run_cell(setup, cell)
        results[cell] = result
        with _writing(output_dir):
            # The model first: a cell whose result is there is not run again.
            if best_cell(results) == cell:
                _save_classifier(setup, classifier, cell, output_dir / "model")
            finished.save(cell, result)
        if result.score is None:
            say("  The loss was not finite.")
        else:
            say(
                f"  {setup.task.dev_split} {main_metric(setup.task)} "
                f"{_percent(result.score)}, {clock(result.seconds)}"
            )
        del classifier
        gc.collect()  # a Keras model is a cycle, and a grid has many
    return dict(sorted(results.items()))


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
            classifier,
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
    # HDF5 writes errors of its own for a full disk, and again when Python ends.
    if shutil.disk_usage(path.parent).free < 4 * classifier.count_params() + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with replacing_directory(path) as fresh:
        classifier.save_to_preset(str(fresh))
        notes = {
            "task": task.name,
            "label_names": task.label_names,
            "cell": dataclasses.asdict(cell),
        }
        _write_json(fresh / "fine_tuning.json", notes)


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
    return _load_classifier(path), _read_notes(path)


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


def _read_notes(path):
    """What `_save_classifier` wrote beside a model; {} for a model from elsewhere."""
    file = path / "fine_tuning.json"
    return _read_json(file) if file.is_file() else {}


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
    _write_json(
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


def _write_report(run, setup, settings):
    """Writes `report.md`: the scores, how they were chosen, and on what."""
    task, results = run.task, run.results
    metric = main_metric(task)
    evaluation = run.evaluations[task.dev_split]
    parts = [
        f"# {model_name(settings['model'])} on {task.title}",
        f"{metric.capitalize()} on {task.dev_split}: "
        f"{_percent(evaluation.metrics[metric])}. All scores are times 100.",
        _score_table(run),
    ]
    missing = [
        split
        for split in task.splits
        if split.startswith("dev") and split not in run.evaluations
    ]
    if missing:
        parts.append(f"Not measured, as there is no file: {', '.join(missing)}.")
    if len(results) > 1:
        parts += _grid_parts(run)
    parts += [
        markdown_table(["setting", "value"], _facts(run, setup, settings)),
        "The model is in `model/`, a keras-nlp preset: "
        "`keras_hub.models.TextClassifier.from_preset` reads it"
        + _import_note(setup.backbone)
        + ". Its predictions are in `predictions/`, all metrics in `metrics.json`, the "
        "result of each run in `cells/`. For a test split: `keras-minilmv2 evaluate`.",
    ]
    with replacing_file(run.output_dir / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _score_table(run):
    task = run.task
    if not task.languages:
        rows = [
            [
                split,
                f"{len(evaluation.examples):,}",
                *(_percent(evaluation.metrics[name]) for name in task.metrics),
            ]
            for split, evaluation in run.evaluations.items()
        ]
        return markdown_table(["split", "examples", *task.metrics], rows)
    metric = main_metric(task)
    rows = [["mean of languages"], *([language] for language in task.languages)]
    for evaluation in run.evaluations.values():
        names = [metric, *(f"{metric}_{language}" for language in task.languages)]
        for row, name in zip(rows, names, strict=True):
            known = name in evaluation.metrics
            row.append(_percent(evaluation.metrics[name]) if known else "not measured")
    header = ["language", *(f"{split} {metric}" for split in run.evaluations)]
    return markdown_table(header, rows)


def _grid_parts(run):
    best = best_summary(run.results)
    deviation = "" if best.deviation is None else f" ± {_percent(best.deviation)}"
    rows = [
        [
            f"{summary.learning_rate:g}",
            str(summary.epochs),
            str(len(summary.scores)),
            "" if summary.mean is None else _percent(summary.mean),
            "" if summary.deviation is None else _percent(summary.deviation),
            str(summary.num_diverged),
        ]
        for summary in summaries(run.results)
    ]
    header = ["learning rate", "epochs", "runs", "mean", "deviation", "diverged"]
    metric, split = main_metric(run.task), run.task.dev_split
    return [
        f"Best setting by mean {metric} on {split}: learning rate "
        f"{best.learning_rate:g}, epochs {best.epochs}: {_percent(best.mean)}"
        f"{deviation} over {len(best.scores)} seeds. `model/` is the best of "
        f"{len(run.results)} runs: {run.cell}. It was chosen on {split}, so its score "
        "there is on the high side.",
        f"{metric.capitalize()} on {split}, mean and sample standard deviation over "
        "seeds:",
        markdown_table(header, rows),
    ]


def _facts(run, setup, settings):
    task, cell = run.task, run.cell
    result = run.results[cell]
    number = f"{settings['num_train_examples']:,}"
    if task.num_train and task.num_train != settings["num_train_examples"]:
        number += f" of {task.num_train:,}"
    reaching = np.mean(setup.train.lengths == setup.train.sequence_length)
    facts = [
        ["model", f"{settings['model']}, {describe(setup.backbone)}"],
        ["training examples", number],
        ["data", settings["data_dir"] or "TFDS"],
        [
            "learning rate, epochs, seed",
            f"{cell.learning_rate:g}, {cell.epochs}, {cell.seed}",
        ],
        ["batch size", f"{setup.batch_size}"],
        [
            "sequence length",
            f"{setup.train.sequence_length} tokens, which {100 * reaching:.1f}% of the "
            "training examples reach",
        ],
        ["warm-up, weight decay", f"{setup.warmup_fraction}, {setup.weight_decay}"],
        ["training loss by epoch", ", ".join(f"{x:.4f}" for x in result.losses)],
        ["runs", f"{len(run.results)}"],
        ["precision", setup.dtype_policy],
        ["hardware", hardware()],
        ["wall time", clock(sum(result.seconds for result in run.results.values()))],
        ["date", datetime.date.today().isoformat()],
        [
            "versions",
            f"keras-minilmv2 {__version__}, Keras {keras.__version__}, TensorFlow "
            f"{tf.__version__}, keras-hub {keras_hub.__version__}",
        ],
    ]
    num_broken = setup.train_examples.num_broken + setup.dev_examples.num_broken
    if num_broken:
        facts.insert(2, ["rows left out, too few columns", f"{num_broken}"])
    return facts


def _import_note(backbone):
    """What must be imported first for a classifier that keras-hub does not have."""
    module = CLASSIFIERS[family_of(backbone).backbone_class].__module__
    if not module.startswith("keras_minilmv2"):
        return ""
    return f" after `import {module}`"


def _percent(value):
    return f"{100 * value:.2f}"


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, as it was written.") from error


def _write_json(path, values):
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def _writing(output_dir):
    """An error of a write says that it is the output directory's."""
    try:
        yield
    except OSError as error:
        raise OSError(
            "`output_dir` must be writable and have room. Received: "
            f"output_dir={output_dir} ({error.strerror or error})."
        ) from error
