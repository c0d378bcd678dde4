"""Fine-tuning: from a model and a task to a directory with a model and its scores."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.hugging_face.tokenizers import split_words_like_gpt2
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.downstream.registry import get_trained_task
from keras_minilmv2.downstream.tasks import Task, score_columns
from keras_minilmv2.runs.directory import (
    FINISHED,
    RunDirectory,
    RunKind,
)
from keras_minilmv2.runs.evaluate import EVALUATION_FILES, given, write_evaluations
from keras_minilmv2.runs.grid import (
    CELLS,
    Cell,
    FinishedCells,
    Result,
    add_grid,
    check_some_finished,
    grid_cells,
    run_grid,
)
from keras_minilmv2.runs.recipes import DTYPE_POLICIES
from keras_minilmv2.runs.report import OUTPUTS, Report, describe, model_name
from keras_minilmv2.runs.settings import Settings, not_compared
from keras_minilmv2.runs.supervised import (
    evaluate_saved,
    load_dev_splits,
    save_task_model,
    train_and_score,
)
from keras_minilmv2.utils.checks import check_choice, check_int, check_number
from keras_minilmv2.utils.checksums import sha256
from keras_minilmv2.utils.files import (
    check_directory,
    writing,
)
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.seeds import set_seed
from keras_minilmv2.utils.tables import percent


@dataclass(frozen=True, kw_only=True)
class FineTuningSettings(Settings):
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
        strict: bool. Of question answering alone: whether an answer that is not at its
            `answer_start` is an error.
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
    learning_rate: tuple[float, ...] | None = None
    epochs: tuple[int, ...] | None = None
    seed: tuple[int, ...] = (0,)
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
        for name in ("learning_rate", "epochs", "seed"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, list | tuple):
                value = tuple(value) if isinstance(value, range) else (value,)
                object.__setattr__(self, name, value)
        super().__post_init__()

    def check(self):
        """Raises unless all values are in their ranges."""
        for name in (
            *("batch_size", "sequence_length", "doc_stride"),
            *("num_train_examples", "num_dev_examples"),
        ):
            if getattr(self, name) is not None:
                check_int(**{name: getattr(self, name)})
        check_number(least=0, below=1, warmup_fraction=self.warmup_fraction)
        check_number(least=0, weight_decay=self.weight_decay)
        check_choice(DTYPE_POLICIES, dtype_policy=self.dtype_policy)

    def cells(self, task):
        """The cells of the grid for a task."""
        rates = task.learning_rates if self.grid else (task.learning_rate,)
        epochs = task.epochs if self.grid else task.epochs[:1]
        return grid_cells(
            rates if self.learning_rate is None else self.learning_rate,
            epochs if self.epochs is None else self.epochs,
            self.seed,
        )

    def task_options(self):
        """Those that are options of the task, a dict by name."""
        options = {
            name: getattr(self, name)
            for name in ("sequence_length", "doc_stride", "strict")
        }
        return given(options)

    @classmethod
    def _noun(cls):
        return "Fine-tuning"


@dataclass(frozen=True, kw_only=True)
class _Compared(Settings):
    """What must be the same for runs of one directory to be compared.

    Where model and data lay does not matter, what was in them does.
    """

    task: str
    model: str = not_compared()
    data_dir: str | None = not_compared(default=None)
    weights_sha256: str
    data_sha256: str
    num_train_examples: int
    batch_size: int
    sizes: dict[str, int]
    warmup_fraction: float
    weight_decay: float
    dtype_policy: str

    @classmethod
    def from_fields(cls, fields, source=None):
        """As `Settings` does; reads the layout of earlier versions too."""
        # The checksum of the data covers what is dropped here.
        dropped = ("num_dev_examples", "num_left_out")
        fields = {name: v for name, v in fields.items() if name not in dropped}
        known = cls.field_types()
        sizes = {name: v for name, v in fields.items() if name not in known}
        if "sizes" not in fields:
            fields = {name: v for name, v in fields.items() if name in known}
            fields["sizes"] = sizes
        return super().from_fields(fields, source)

    @classmethod
    def _noun(cls):
        return "The settings of a fine-tuning"


KIND = RunKind(
    name="finetune",
    settings_class=_Compared,
    settings_file="settings.json",
    outputs=("settings.json", CELLS, "model", *EVALUATION_FILES, *OUTPUTS),
    evidence=("settings.json",),
)


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
    format, `report.md`, `report.json`, `settings.json` and `cells/` (the result of
    each run). Test splits are for `evaluate_model`.

    In a directory with runs of the same model, data and other settings, the missing
    runs are run, and all runs in it count. If none is missing, the finished run is
    returned.

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
    task, output_dir = get_trained_task(task), Path(output_dir)
    check_directory("output_dir", output_dir)
    settings = settings or FineTuningSettings()
    settings.field_types(changes)
    settings = dataclasses.replace(settings, **changes)
    cells = settings.cells(task)
    backbone, tokenizer = load_model(model, tokenizer, settings.dtype_policy)
    task = task.with_options(backbone, **settings.task_options())
    setup, dev_splits = _prepare(
        task, settings, backbone, tokenizer, data_dir, tfds_data_dir, progress_stream
    )
    with RunDirectory.open(
        output_dir,
        _compared(setup, model, data_dir),
        KIND,
        overwrite,
        reads={"model": model if isinstance(model, str | os.PathLike) else None},
    ) as directory:
        directory.start()
        finished = directory.state == FINISHED
        if finished and set(cells) <= set(FinishedCells(output_dir / CELLS).load()):
            log(f"Finished already: {output_dir}.")
        else:
            if finished:
                directory.reopen()
            finished = False
            log(
                f"{describe(backbone)}; {task.title}: {len(setup.train_examples):,} "
                f"training {task.unit}, {len(setup.dev_examples):,} of "
                f"{task.dev_split}; on {hardware()}."
            )
            if skipped := setup.train_examples.skipped:
                log(f"Training {task.unit}: {skipped}.")
        results = run_grid(
            output_dir,
            cells,
            lambda cell: _run_cell(setup, cell),
            save_model=lambda model, cell, path: save_task_model(
                task, model, tokenizer, path, {"cell": dataclasses.asdict(cell)}
            ),
            metric=f"{task.dev_split} {task.main_metric}",
            log=(lambda line: None) if finished else log,
        )
        best = check_some_finished(results)
        evaluations = evaluate_saved(task, output_dir / "model", dev_splits)
        run = FineTuning(task, output_dir, best, results, evaluations)
        if not finished:
            with writing(output_dir):
                cell = dataclasses.asdict(best)
                write_evaluations(output_dir, evaluations.values(), cell)
                _report(run, setup, directory.settings).save(
                    sum(result.seconds for result in results.values())
                )
            directory.finish()
    for evaluation in evaluations.values():
        log(str(evaluation))
    return run


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


def _prepare(
    task, settings, backbone, tokenizer, data_dir, tfds_data_dir, progress_stream
):
    """Reads the data; returns the `_Setup` and dict of dev examples by split."""
    train_examples = task.load("train", data_dir, tfds_data_dir)
    if settings.num_train_examples is not None:
        train_examples = train_examples.sample(settings.num_train_examples)
    dev_splits = load_dev_splits(task, data_dir, tfds_data_dir)
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


def _compared(setup, model, data_dir):
    """What must be the same for runs to be compared, and where it came from."""
    task, settings = setup.task, setup.settings
    named = isinstance(model, str | os.PathLike)
    return _Compared(
        task=task.name,
        model=str(model) if named else setup.backbone.name,
        data_dir=None if data_dir is None else str(data_dir),
        weights_sha256=sha256(*setup.backbone.get_weights()),
        data_sha256=sha256(*setup.train.identity(), *setup.dev.identity()),
        num_train_examples=len(setup.train_examples),
        batch_size=setup.batch_size,
        sizes={name: getattr(task, name) for name in task.sizes},
        warmup_fraction=settings.warmup_fraction,
        weight_decay=settings.weight_decay,
        dtype_policy=settings.dtype_policy,
    )


def _run_cell(setup, cell):
    """Trains and evaluates; returns the `Result` and the model."""
    started = time.perf_counter()
    task, settings = setup.task, setup.settings
    model = task.model(setup.backbone, cell.seed, settings.dtype_policy)
    model, losses, metrics = train_and_score(
        task,
        model,
        setup.train,
        setup.dev,
        setup.dev_examples,
        cell,
        batch_size=setup.batch_size,
        warmup_fraction=settings.warmup_fraction,
        weight_decay=settings.weight_decay,
        dtype_policy=settings.dtype_policy,
        progress_stream=setup.progress_stream,
    )
    score = metrics.get(task.main_metric)
    return Result(score, metrics, losses, time.perf_counter() - started), model


def _report(run, setup, compared):
    """The `Report`: the scores, how they were chosen, and on what."""
    task, cell = run.task, run.cell
    metric = task.main_metric
    score = run.evaluations[task.dev_split].metrics[metric]
    report = Report(run.output_dir, f"{model_name(compared.model)} on {task.title}")
    report.text(
        f"{metric.capitalize()} on {task.dev_split}: {percent(score)}. All scores are "
        "times 100."
    )
    rows = task.table(list(run.evaluations.values()))
    formats = dict.fromkeys(score_columns(rows), percent)
    report.table("scores", rows, formats=formats)
    missing = [
        split
        for split in task.splits
        if split.startswith("dev") and split not in run.evaluations
    ]
    if missing:
        report.text(f"Not measured, as there is no file: {', '.join(missing)}.")
    if len(run.results) > 1:
        add_grid(report, run.results, metric, task.dev_split)
    report.fact(
        "model", compared.model, f"{compared.model}, {describe(setup.backbone)}"
    )
    number = f"{compared.num_train_examples:,}"
    published = getattr(task, "num_train", None)
    if published and published != compared.num_train_examples:
        number += f" of {published:,}"
    if skipped := setup.train_examples.skipped:
        number += f"; {skipped}"
    report.fact(f"training {task.unit}", compared.num_train_examples, number)
    report.fact("data", compared.data_dir or "TFDS")
    for name, value in dataclasses.asdict(cell).items():
        report.fact(name.replace("_", " "), value, f"{value:g}")
    report.fact("batch size", compared.batch_size)
    reaching = np.mean(setup.train.lengths == setup.train.sequence_length)
    for name, value in compared.sizes.items():
        shown = f"{value} tokens"
        if name == "sequence_length":
            shown += f", which {100 * reaching:.1f}% of the training rows reach"
        report.fact(name.replace("_", " "), value, shown)
    report.fact("warm-up", compared.warmup_fraction, f"{compared.warmup_fraction:g}")
    report.fact("weight decay", compared.weight_decay, f"{compared.weight_decay:g}")
    losses = run.results[cell].losses
    report.fact(
        "training loss by epoch", losses, ", ".join(f"{loss:.4f}" for loss in losses)
    )
    report.fact("runs", len(run.results))
    report.fact("precision", compared.dtype_policy)
    report.closing(
        "The model is in `model/`, which `keras_minilmv2.load_saved` reads; a text "
        "classifier is a preset of `keras_hub.models.TextClassifier`. Its predictions "
        "are in `predictions/`, all metrics in `metrics.json`, the result of each run "
        "in `cells/`. For a test split: `keras-minilmv2 evaluate`."
    )
    return report
