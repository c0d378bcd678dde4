"""Fine-tuning: from a model and a task to a directory with a model and its scores."""

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import keras

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.hugging_face.tokenizers import split_words_like_gpt2
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.downstream.batches import training_epochs
from keras_minilmv2.downstream.registry import TASKS, get_task
from keras_minilmv2.downstream.saved import NOTES_FILE, load_fine_tuned
from keras_minilmv2.downstream.tasks import Task
from keras_minilmv2.runs.fine_tuning_report import write_report
from keras_minilmv2.runs.grid import Cell, FinishedCells, Result, grid_cells
from keras_minilmv2.runs.grid_runs import (
    as_values,
    begin,
    check_directory,
    check_evaluation_dir,
    check_room,
    check_some_finished,
    run_cells,
    sha256,
    write_json,
    writing,
)
from keras_minilmv2.runs.recipes import DTYPE_POLICIES
from keras_minilmv2.runs.report import describe
from keras_minilmv2.training.callbacks import ProgressLine
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.training.supervised import NotFiniteError, train
from keras_minilmv2.utils.checks import check_choice, check_int, check_number
from keras_minilmv2.utils.files import check_outside, replacing_directory
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.seeds import set_seed


@dataclass(frozen=True, kw_only=True)
class FineTuningSettings:
    """How a task is fine-tuned.

    `learning_rate`, `epochs` and `seed` may have several values: each combination is
    one run.

    Args:
        learning_rate: float or sequence of float. The peak. Defaults to the task's.
        epochs: int or sequence of int. Defaults to the first of the task's.
        seed: int or sequence of int.
        grid: bool. Whether learning rate and epochs, where not given, are all of the
            paper's for the task.
        batch_size: int, texts or windows. Defaults to the task's.
        sequence_length: int, tokens. Longer texts are truncated; contexts of questions
            are cut into windows of this length. Defaults to the task's.
        doc_stride: int, tokens from the start of one window of a context to the next.
            Of question answering alone; defaults to the task's.
        strict: bool. Of question answering alone: whether an answer that is not where
            the file says is an error.
        num_train_examples: int. Train on N examples, drawn once for all seeds. Defaults
            to all.
        num_dev_examples: int. Score N examples of each language, drawn once. Defaults
            to all.
        warmup_fraction: float, of all steps.
        weight_decay: float.
        dtype_policy: str, such as `"mixed_bfloat16"`. The policy of training; models
            are evaluated and saved in float32.

    Raises:
        ValueError, TypeError: if a value is out of its range or of another type.
    """

    # Grid.
    learning_rate: float | tuple | None = None
    epochs: int | tuple | None = None
    seed: int | tuple = 0
    grid: bool = False
    # Data.
    sequence_length: int | None = None
    doc_stride: int | None = None
    strict: bool = False
    num_train_examples: int | None = None
    num_dev_examples: int | None = None
    # Optimizer.
    batch_size: int | None = None
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    dtype_policy: str = "float32"

    def __post_init__(self):
        for name in (
            "batch_size",
            "sequence_length",
            "doc_stride",
            "num_train_examples",
            "num_dev_examples",
        ):
            if getattr(self, name) is not None:
                check_int(**{name: getattr(self, name)})
        check_number(least=0, below=1, warmup_fraction=self.warmup_fraction)
        check_number(least=0, weight_decay=self.weight_decay)
        check_choice(DTYPE_POLICIES, dtype_policy=self.dtype_policy)

    def cells(self, task):
        """The cells of the grid for a task."""
        rates = task.learning_rates if self.grid else task.learning_rate
        epochs = task.epochs if self.grid else task.epochs[0]
        return grid_cells(
            as_values(self.learning_rate, rates),
            as_values(self.epochs, epochs),
            as_values(self.seed, 0),
        )

    def task_options(self):
        """Those that are options of the task, a dict by name."""
        options = {
            name: getattr(self, name)
            for name in ("sequence_length", "doc_stride", "strict")
        }
        return _given(options)


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

    task: Task
    output_dir: Path
    cell: Cell
    results: dict
    evaluations: dict


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What all cells of a run share."""

    task: Task
    settings: FineTuningSettings
    backbone: object
    tokenizer: object
    train_examples: object
    dev_examples: object
    train: object  # Features
    dev: object
    progress_stream: object

    @property
    def batch_size(self):
        return self.settings.batch_size or self.task.batch_size

    @property
    def num_rows(self):
        return len(self.train.training_rows())


def fine_tune(
    model,
    task,
    output_dir,
    settings=None,
    *,
    data_dir=None,
    tfds_data_dir=None,
    tokenizer=None,
    overwrite=False,
    progress_stream=None,
    log=print,
    **changes,
):
    """Fine-tunes an encoder on a task, once or with a grid of settings.

    The best run is the one with the highest main metric on the dev split. The
    directory then holds `model/` (the best run's model, which `load_saved` reads; that
    of a classification task is a preset of `keras_hub.models.TextClassifier`),
    `metrics.json` and `predictions/` of it on the dev splits, in the task's official
    format, `report.md`, `settings.json` and `cells/` (the result of each run). Test
    splits are for `evaluate_model`.

    In a directory with runs of the same model, data and other settings, the missing
    runs are run; all runs in it count.

    Args:
        model: str or path of a preset, as for `load_backbone`, or a keras-nlp
            backbone, which is not changed.
        task: str, a name in `downstream.registry.TASKS`, or a `Task`.
        output_dir: str or path. Made if missing.
        settings: `FineTuningSettings`. Defaults to the task's.
        data_dir: str or path of the task's published files, as for `Task.load`. None
            for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        tokenizer: keras-nlp tokenizer, needed with a backbone.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        log: function that is called with each line of information.
        **changes: fields of `FineTuningSettings` that replace those of `settings`.

    Returns:
        `FineTuning`.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence names
            it. Settings and data are checked before anything is written.
        RuntimeError: if the loss of every run was not finite.
    """
    task, output_dir = get_task(task), Path(output_dir)
    settings = dataclasses.replace(settings or FineTuningSettings(), **changes)
    cells = settings.cells(task)
    if "train" not in task.splits:
        trained = [name for name, other in TASKS.items() if "train" in other.splits]
        check_choice(trained, task=task.name)
    check_directory(output_dir)
    check_outside("model", model, output_dir)
    backbone, tokenizer = load_model(model, tokenizer, settings.dtype_policy)
    task = task.with_options(backbone, **settings.task_options())
    setup, dev_splits = _prepare(
        task, settings, backbone, tokenizer, data_dir, tfds_data_dir, progress_stream
    )
    facts = _facts(setup, model, data_dir)
    finished = FinishedCells(output_dir / "cells")
    begin(output_dir, facts, finished, cells, overwrite)
    log(
        f"{describe(backbone)}; {task.title}: {len(setup.train_examples):,} training "
        f"{task.unit}, {len(setup.dev_examples):,} of {task.dev_split}; "
        f"on {hardware()}."
    )
    if skipped := setup.train_examples.skipped:
        log(f"Training {task.unit}: {skipped}.")
    results = run_cells(
        output_dir,
        cells,
        finished,
        lambda cell: _run_cell(setup, cell),
        lambda model, cell, path: _save(setup, model, cell, path),
        f"{task.dev_split} {task.main_metric}",
        log,
    )
    best = check_some_finished(results)
    saved = load_fine_tuned(output_dir / "model")
    evaluations = {
        split: _evaluate(saved, task, split, examples)
        for split, examples in dev_splits.items()
    }
    run = FineTuning(task, output_dir, best, results, evaluations)
    with writing(output_dir):
        _write_evaluations(output_dir, evaluations.values(), dataclasses.asdict(best))
        write_report(run, setup, facts)
    for evaluation in evaluations.values():
        log(str(evaluation))
    return run


def evaluate_model(
    model,
    task=None,
    *,
    data_dir=None,
    tfds_data_dir=None,
    split=None,
    output_dir=None,
    num_examples=None,
    languages=None,
    strict=False,
    overwrite=False,
):
    """Evaluates a fine-tuned model on one split of a task.

    Args:
        model: str or path. What `fine_tune` wrote, or the `model` in it.
        task: str or `Task`. Defaults to the one the model was fine-tuned on. A model
            of SQuAD may be evaluated on `"mlqa"`.
        data_dir: str or path of the task's published files. None for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        split: str. Defaults to the task's dev split.
        output_dir: str or path of a new or empty directory for `metrics.json` and
            `predictions/`; None writes nothing.
        num_examples: int. Score N examples of each language, drawn once. Defaults to
            all.
        languages: sequence of str. Of MLQA alone; defaults to all that there are files
            of.
        strict: bool. Of question answering alone: whether an answer that is not where
            the file says is an error.
        overwrite: bool. Whether another evaluation there may be replaced.

    Returns:
        `Evaluation`.

    Raises:
        ValueError, TypeError, OSError: if there is no such model, task, split or data,
            or the model is not one for the task.
    """
    if num_examples is not None:
        check_int(num_examples=num_examples)
    saved = load_fine_tuned(model)
    if task is None and saved.task is None:
        raise ValueError(
            "`task` must be given for a model that does not name its own. "
            f"Received: task=None, model={model}."
        )
    task = get_task(saved.task if task is None else task)
    task.check_model(saved.model, saved.notes)
    options = _given({"languages": languages, "strict": strict})
    task = task.with_options(saved.backbone, **saved.sizes, **options)
    split = task.dev_split if split is None else split
    if output_dir is not None:
        check_evaluation_dir(Path(output_dir), overwrite)
    examples = task.load(split, data_dir, tfds_data_dir)
    if num_examples is not None:
        examples = examples.sample(num_examples)
    evaluation = _evaluate(saved, task, split, examples)
    if output_dir is not None:
        with writing(output_dir):
            _write_evaluations(Path(output_dir), [evaluation])
    return evaluation


def load_model(model, tokenizer, dtype_policy):
    """The encoder and tokenizer of a preset, or those that were given."""
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise ValueError(
                "`tokenizer` must not be given where `model` is a preset. "
                f"Received: model={model}, tokenizer={tokenizer!r}."
            )
        # What the preset has no weights for is drawn: the same in every process.
        set_seed(0)
        return load_backbone(model, dtype=dtype_policy), load_tokenizer(model)
    family_of(model)
    if tokenizer is None:
        raise ValueError(
            "`tokenizer` must be given with a backbone. Received: tokenizer=None."
        )
    # Eager calls of a tokenizer that keras-nlp itself has loaded differ from those of
    # the saved one.
    return model, split_words_like_gpt2(tokenizer)


def _given(options):
    """Those that were given: not None and not False."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and value is not False
    }


def _prepare(
    task, settings, backbone, tokenizer, data_dir, tfds_data_dir, progress_stream
):
    """Reads the data; returns the `_Setup` and dict of dev examples by split."""
    train_examples = task.load("train", data_dir, tfds_data_dir)
    if settings.num_train_examples is not None:
        train_examples = train_examples.sample(settings.num_train_examples)
    dev_splits = {
        split: task.load(split, data_dir, tfds_data_dir)
        for split in task.splits
        if split == task.dev_split
        or (split.startswith("dev") and task.has_split(split, data_dir))
    }
    if settings.num_dev_examples is not None:
        dev_splits = {
            split: examples.sample(settings.num_dev_examples)
            for split, examples in dev_splits.items()
        }
    dev_examples = dev_splits[task.dev_split]
    setup = _Setup(
        task=task,
        settings=settings,
        backbone=backbone,
        tokenizer=tokenizer,
        train_examples=train_examples,
        dev_examples=dev_examples,
        train=task.features(train_examples, backbone, tokenizer),
        dev=task.features(dev_examples, backbone, tokenizer),
        progress_stream=progress_stream,
    )
    # Raises if there is nothing to train on.
    setup.train.training_rows()
    return setup, dev_splits


def _facts(setup, model, data_dir):
    """What must be the same for runs to be compared, and where it came from."""
    task, settings = setup.task, setup.settings
    named = isinstance(model, str | os.PathLike)
    return {
        "task": task.name,
        "model": str(model) if named else setup.backbone.name,
        "data_dir": None if data_dir is None else str(data_dir),
        "weights_sha256": sha256(*setup.backbone.get_weights()),
        "data_sha256": sha256(*setup.train.identity(), *setup.dev.identity()),
        "num_train_examples": len(setup.train_examples),
        "batch_size": setup.batch_size,
        **{name: getattr(task, name) for name in task.sizes},
        "warmup_fraction": settings.warmup_fraction,
        "weight_decay": settings.weight_decay,
        "dtype_policy": settings.dtype_policy,
    }


def _run_cell(setup, cell):
    """Trains and evaluates; returns the `Result` and the model."""
    started = time.perf_counter()
    task, settings = setup.task, setup.settings
    model = task.model(setup.backbone, cell.seed, settings.dtype_policy)
    total_steps = cell.epochs * math.ceil(setup.num_rows / setup.batch_size)
    optimizer = adamw(
        cell.learning_rate,
        int(settings.warmup_fraction * total_steps),
        total_steps,
        weight_decay=settings.weight_decay,
    )
    if settings.dtype_policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    rows = setup.train.training_rows()
    tokens = setup.train.padded_lengths(rows).mean() * setup.batch_size
    progress = ProgressLine(total_steps, tokens, setup.progress_stream)
    progress.start()
    losses, metrics = [], {}
    try:
        losses = train(
            task.training_model(model),
            task.loss,
            optimizer,
            training_epochs(setup.train, setup.batch_size, cell.epochs, cell.seed),
            on_step=lambda step, loss: progress.update(step, {"loss": loss}),
        )
        model = _in_float32(task, model)
        metrics = task.evaluate(
            model, setup.dev, task.dev_split, setup.dev_examples
        ).metrics
    except NotFiniteError:
        # The last update may spoil the weights: only the outputs show it.
        losses = []
    finally:
        progress.close()
    score = metrics.get(task.main_metric)
    return Result(score, metrics, losses, time.perf_counter() - started), model


def _in_float32(task, model):
    """The same model; keras-hub 0.32 cannot load one of mixed precision."""
    if model.backbone.dtype_policy.name == "float32":
        return model
    twin = task.model(model.backbone, seed=0, dtype="float32")
    twin.set_weights(model.get_weights())
    return twin


def _save(setup, model, cell, path):
    check_room(path.parent, model.count_params())
    # Model and notes appear together.
    with replacing_directory(path) as fresh:
        setup.task.save_model(model, setup.tokenizer, fresh)
        notes = {**setup.task.notes(), "cell": dataclasses.asdict(cell)}
        write_json(fresh / NOTES_FILE, notes)


def _evaluate(saved, task, split, examples):
    features = task.features(examples, saved.backbone, saved.tokenizer)
    return task.evaluate(saved.model, features, split, examples)


def _write_evaluations(output_dir, evaluations, cell=None):
    """Writes `predictions/` and `metrics.json`."""
    with replacing_directory(output_dir / "predictions") as fresh:
        for evaluation in evaluations:
            evaluation.task.write(
                evaluation.split, evaluation.examples, evaluation.predictions, fresh
            )
    task = next(iter(evaluations)).task
    write_json(
        output_dir / "metrics.json",
        {
            "task": task.name,
            "main_metric": task.main_metric,
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
