"""Compression of a fine-tuned model in minutes: fewer heads and neurons."""

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.preset_files import weight_bytes
from keras_minilmv2.backbones.pruned import is_pruned, layer_counts
from keras_minilmv2.backbones.traces import forgotten_gradients
from keras_minilmv2.downstream.saved import load_fine_tuned
from keras_minilmv2.downstream.tasks import score_columns
from keras_minilmv2.heads.budget import (
    BUDGETS,
    check_speedup,
    encoder_costs,
    gradual_importance,
    keep_within,
)
from keras_minilmv2.heads.costs import parameter_costs
from keras_minilmv2.heads.importance import head_importance
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.refit import refit_outputs
from keras_minilmv2.runs.directory import FINISHED, RunDirectory, RunKind
from keras_minilmv2.runs.evaluate import EVALUATION_FILES, write_evaluations
from keras_minilmv2.runs.grid import Cell
from keras_minilmv2.runs.report import OUTPUTS, Report, describe, model_name
from keras_minilmv2.runs.settings import Settings, not_compared
from keras_minilmv2.runs.supervised import (
    calibration_batches,
    evaluate_saved,
    load_dev_splits,
    save_task_model,
    task_of,
    with_backbone,
)
from keras_minilmv2.runs.teacher import compared_relations, train_with_teacher
from keras_minilmv2.utils.checks import check_choice, check_int, check_number
from keras_minilmv2.utils.checksums import sha256
from keras_minilmv2.utils.files import (
    check_directory,
    read_json,
    replacing_file,
    write_json,
    writing,
)
from keras_minilmv2.utils.tables import clock, count, megabytes, percent

_PICTURE = "layers.png"
_SCORES = "scores.json"
# Least squares stop reading there: the matrix has an unknown a neuron and channel.
_TOKENS_PER_NEURON = 20


@dataclass(frozen=True, kw_only=True)
class CompressionSettings(Settings):
    """How a fine-tuned model is made smaller.

    Args:
        speedup: float above 1. How many times faster the encoder must be; with another
            budget, how many times fewer operations, or parameters of its layers.
        budget: str. `"latency"`: the time of this machine, measured; `"operations"` or
            `"parameters"`: counted.
        latency_batch_size: int, sequences of the inputs whose latency, or operations,
            count.
        latency_length: int, tokens of these.
        heads_only: bool. Whether all neurons stay.
        num_calibration_examples: int. Training examples that importance and least
            squares are computed on, drawn by the seed. Least squares read no more than
            20 tokens for each neuron of a layer.
        num_rounds: int. Steps of equal factors to the asked speed; importance is
            computed again, and matrices are fitted, before each.
        least_squares: bool. Whether the output matrices of what is left are fitted to
            what the whole model computes.
        penalty: float. Of the least squares; see `heads.search.OutputFit`.
        seed: int.
        epochs: int. Of fine-tuning afterwards; 0 for none.
        learning_rate: float, its peak.
        batch_size: int. Its batches; defaults to the task's.
        num_train_examples: int. Fine-tune on N examples. Defaults to all.
        distill: float from 0 to 1. The share of the fine-tuning loss that compares the
            outputs with those of the whole model; the rest is the task's.
        relation_weight: float. Of the relation loss, which fine-tuning adds: between
            the queries, keys and values of the whole model's last layer and those of
            the smaller one's; of an earlier layer if the last one has no heads left.

    Raises:
        ValueError, TypeError: if a value is out of its range or of another type.
    """

    # Budget.
    speedup: float = 2.0
    budget: str = "latency"
    latency_batch_size: int = 32
    latency_length: int = 128
    heads_only: bool = False
    # Search.
    num_calibration_examples: int = 2_048
    num_rounds: int = 3
    least_squares: bool = True
    penalty: float = 1e-2
    seed: int = 0
    # Fine-tuning.
    epochs: int = 0
    learning_rate: float = 5e-5
    batch_size: int | None = None
    num_train_examples: int | None = None
    distill: float = 0.5
    relation_weight: float = 0.0

    def check(self):
        """Raises unless all values are in their ranges."""
        check_number(above=1, speedup=self.speedup)
        check_choice(BUDGETS, budget=self.budget)
        for name in ("latency_batch_size", "latency_length"):
            check_int(**{name: getattr(self, name)})
        for name in ("num_calibration_examples", "num_rounds"):
            check_int(**{name: getattr(self, name)})
        check_number(least=0, penalty=self.penalty)
        check_int(least=0, below=2**32, seed=self.seed)
        check_int(least=0, epochs=self.epochs)
        check_number(above=0, learning_rate=self.learning_rate)
        for name in ("batch_size", "num_train_examples"):
            if getattr(self, name) is not None:
                check_int(**{name: getattr(self, name)})
        check_number(least=0, most=1, distill=self.distill)
        check_number(least=0, relation_weight=self.relation_weight)


@dataclass(frozen=True, kw_only=True)
class _Compared(CompressionSettings):
    """What must be the same for a directory to hold this run."""

    task: str
    model: str = not_compared()
    data_dir: str | None = not_compared()
    weights_sha256: str
    data_sha256: str

    @classmethod
    def _noun(cls):
        return "The settings of a compression"


KIND = RunKind(
    name="compress",
    settings_class=_Compared,
    settings_file="settings.json",
    outputs=(
        *("settings.json", "model", "importance.npz", _PICTURE, _SCORES),
        *EVALUATION_FILES,
        *OUTPUTS,
    ),
    evidence=("settings.json",),
)


@dataclass(frozen=True)
class Compression:
    """What a run found.

    Args:
        output_dir: path.
        scores: dict of float: the main metric on the dev split of the `"whole"` model,
            of the `"pruned"` one (masks alone), `"fitted"` (least squares) and
            `"fine_tuned"`; those that were computed.
        speedup: float, delivered, in the unit of the budget.
        head_counts: tuple of int by layer.
        neuron_counts: tuple of int by layer.
        seconds: dict of float by part of the work.
    """

    output_dir: Path
    scores: dict
    speedup: float
    head_counts: tuple
    neuron_counts: tuple
    seconds: dict


def compress(
    model,
    output_dir,
    settings=None,
    *,
    task=None,
    data_dir=None,
    tfds_data_dir=None,
    overwrite=False,
    progress_stream=None,
    log=print,
    **changes,
):
    """Makes a fine-tuned model smaller and faster, without training or with a little.

    1. The Fisher information of heads and feed-forward neurons on training examples.
    2. The heads and neurons of every layer that keep the most of it within the budget;
       the budget is met by measuring the result, not only by the table it is planned
       with.
    3. Least squares: new output matrices, so that each layer gives what it gave.
    4. If asked for, fine-tuning with the whole model as a teacher: of outputs, and of
       relations.

    The directory then holds `model/`, of the same kind as the given one, `metrics.json`
    and `predictions/` of it on the dev splits, `importance.npz`, `layers.png`,
    `report.md`, `report.json`, `scores.json` and `settings.json`.

    Args:
        model: str or path. What `fine_tune` wrote, or the `model` in it.
        output_dir: str or path. Made if missing.
        settings: `CompressionSettings`.
        task: str or `Task`. Defaults to the one the model was fine-tuned on.
        data_dir: str or path of the task's published files. None for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        log: function that is called with each line of information.
        **changes: fields of `CompressionSettings` that replace those of `settings`.

    Returns:
        `Compression`. A finished run is returned.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence names
            it. Nothing is written before the settings and data are checked.
    """
    settings = settings or CompressionSettings()
    settings.field_types(changes)
    settings = dataclasses.replace(settings, **changes)
    check_directory("output_dir", output_dir)
    saved = load_fine_tuned(model)
    task = task_of(saved, task, model).with_options(saved.backbone, **saved.sizes)
    _check_model(saved.backbone, settings)
    setup = _prepare(saved, task, settings, data_dir, tfds_data_dir, log)
    setup = dataclasses.replace(setup, progress_stream=progress_stream)
    compared = _Compared(
        **dataclasses.asdict(settings),
        task=task.name,
        model=str(model),
        data_dir=None if data_dir is None else str(data_dir),
        weights_sha256=sha256(*saved.model.get_weights()),
        data_sha256=sha256(*setup.train.identity(), *setup.dev.identity()),
    )
    with RunDirectory.open(
        output_dir, compared, KIND, overwrite, reads={"model": model}
    ) as directory:
        if directory.state == FINISHED:
            log(f"Finished already: {output_dir}.")
            return _load(directory.path)
        with forgotten_gradients():
            found = _search(setup)
            directory.start()
            return _finish(setup, found, directory, compared)


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What all parts of the work share."""

    saved: object
    task: object
    settings: CompressionSettings
    train: object  # Features
    calibration: list
    dev: object
    dev_splits: dict
    log: object
    progress_stream: object = None


@dataclass(frozen=True)
class _Found:
    """What the search found; `model` is the smaller one."""

    importance: object
    kept: object
    scores: dict
    seconds: dict
    model: object


def _check_model(backbone, settings):
    if is_pruned(backbone):
        raise ValueError(
            "`model` must have all heads and neurons of its layers; compress the model "
            "that it was made from. Received: a pruned "
            f"{family_of(backbone).name} encoder."
        )
    if settings.latency_length > backbone.max_sequence_length:
        raise ValueError(
            "`latency_length` must not be beyond the position table of the model. "
            f"Received: latency_length={settings.latency_length}, "
            f"max_sequence_length={backbone.max_sequence_length}."
        )


def _prepare(saved, task, settings, data_dir, tfds_data_dir, log):
    """Reads the data."""
    train_examples = task.load("train", data_dir, tfds_data_dir)
    dev_splits = load_dev_splits(task, data_dir, tfds_data_dir)
    train = task.features(train_examples, saved.backbone, saved.tokenizer)
    number, num_rows = settings.num_calibration_examples, len(train.training_rows())
    if number > num_rows:
        raise ValueError(
            "`num_calibration_examples` must not exceed the training examples. "
            f"Received: num_calibration_examples={number:,}, training rows="
            f"{num_rows:,}."
        )
    return _Setup(
        saved=saved,
        task=task,
        settings=settings,
        train=train,
        calibration=calibration_batches(train, number, (settings.seed, 1)),
        dev=task.features(dev_splits[task.dev_split], saved.backbone, saved.tokenizer),
        dev_splits=dev_splits,
        log=log,
    )


def _search(setup):
    """Finds the smaller encoder, and fits it."""
    settings, task, saved, log = setup.settings, setup.task, setup.saved, setup.log
    backbone, seconds = saved.backbone, {}
    log(f"{describe(backbone)}, {task.title}.")
    scores = {"whole": _score(setup, saved.model)}
    inputs = {
        "batch_size": settings.latency_batch_size,
        "sequence_length": settings.latency_length,
    }
    only = {"heads_only": settings.heads_only}
    with _timed(seconds, "costs"):
        costs = encoder_costs(backbone, settings.budget, **inputs)
    check_speedup(backbone, costs, settings.speedup, **only)

    measure, refit = importance_and_fit(
        task,
        saved.model,
        setup.calibration,
        least_squares=settings.least_squares,
        penalty=settings.penalty,
        seed=settings.seed,
        **only,
    )
    measure = _timed(seconds, "importance")(measure)
    refit = _timed(seconds, "least squares")(refit)
    rounds = gradual_importance(
        measure, refit, backbone, costs, settings.speedup, settings.num_rounds, **only
    )
    log(
        f"Importance of {settings.num_calibration_examples:,} training examples, "
        f"{settings.num_rounds} times: {clock(seconds['importance'])}."
    )
    with _timed(seconds, "search"):
        kept = keep_within(
            backbone,
            rounds[-1],
            costs,
            settings.speedup,
            **inputs,
            **only,
            on_try=lambda number, planned, measured: log(
                f"Try {number}: planned {planned:.2f} times as fast, measured "
                f"{measured:.2f}."
            ),
        )
    masks = kept.head_mask, kept.neuron_mask
    model = with_backbone(task, saved.model, prune_heads(backbone, *masks))
    if settings.epochs and settings.relation_weight:
        layer, num_relation_heads = compared_relations(backbone, model.backbone)
        log(f"Relation loss: layer {layer}, {num_relation_heads} relation heads.")
    scores["pruned"] = _score(setup, model)
    fitted = refit(*masks)
    if fitted is not backbone:
        model = with_backbone(task, saved.model, prune_heads(fitted, *masks))
        scores["fitted"] = _score(setup, model)
    shown = ", ".join(f"{name} {percent(score)}" for name, score in scores.items())
    log(f"{task.dev_split} {task.main_metric}: {shown}.")
    return _Found(rounds[0], kept, scores, seconds, model)


def importance_and_fit(
    task,
    model,
    batches,
    *,
    heads_only=False,
    least_squares=True,
    penalty=1e-2,
    seed=0,
):
    """The two functions of a fine-tuned model that `gradual_importance` takes.

    Args:
        task: `Task` with its options.
        model: Keras model of the task.
        batches: sequence of pairs of inputs and targets, in random order; matrices are
            fitted to the first 20 tokens for each neuron of a layer.
        heads_only: bool. Whether all neurons stay.
        least_squares: bool. Whether the output matrices are fitted; those of families
            that share weights between layers never are.
        penalty: float; see `heads.search.OutputFit`.
        seed: int.

    Returns:
        tuple of functions: of an encoder and its masks, or None, `HeadImportance`; of
        masks, the encoder with fitted matrices.
    """
    backbone = model.backbone
    inputs, tokens = [], 0
    for batch, _ in batches:
        if tokens < _TOKENS_PER_NEURON * backbone.intermediate_dim:
            inputs.append({name: batch[name] for name in backbone.input})
            tokens += int(np.sum(batch["padding_mask"]))

    def measure(encoder, head_mask, neuron_mask):
        return head_importance(
            model if encoder is backbone else with_backbone(task, model, encoder),
            batches,
            task,
            head_mask=head_mask,
            neuron_mask=neuron_mask,
            fisher_blocks=("heads",) if heads_only else ("heads", "neurons"),
            seed=seed,
        )

    def refit(head_mask, neuron_mask):
        if not least_squares or family_of(backbone).shares_blocks:
            return backbone
        return refit_outputs(backbone, head_mask, neuron_mask, inputs, penalty=penalty)

    return measure, refit


@contextlib.contextmanager
def _timed(seconds, name):
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def _score(setup, model):
    task = setup.task
    examples = setup.dev_splits[task.dev_split]
    found = task.evaluate(model, setup.dev, task.dev_split, examples)
    return found.metrics[task.main_metric]


def _fine_tune(setup, model):
    """Trains the smaller model with the whole one as a teacher."""
    settings, task = setup.settings, setup.task
    generator = np.random.default_rng((settings.seed, 2))
    rows = generator.permutation(setup.train.training_rows())
    return train_with_teacher(
        task,
        model,
        setup.saved.model,
        setup.train,
        Cell(settings.learning_rate, settings.epochs, settings.seed),
        distill=settings.distill,
        relation_weight=settings.relation_weight,
        rows=rows[: settings.num_train_examples],
        batch_size=settings.batch_size or task.batch_size,
        progress_stream=setup.progress_stream,
    )


def _finish(setup, found, directory, compared):
    """Fine-tunes, evaluates, and writes everything."""
    settings, task, path = setup.settings, setup.task, directory.path
    model, scores, seconds = found.model, dict(found.scores), dict(found.seconds)
    losses = []
    if settings.epochs:
        with _timed(seconds, "fine-tuning"):
            losses = _fine_tune(setup, model)
        scores["fine_tuned"] = _score(setup, model)
    counts = layer_counts(model.backbone)
    compression = Compression(path, scores, found.kept.delivered, *counts, seconds)
    with writing(path):
        found.importance.save(path / "importance.npz")
        # The cell of a fine-tuning is what the model was trained by.
        notes = {"cell": setup.saved.notes.get("cell")}
        save_task_model(task, model, setup.saved.tokenizer, path / "model", notes)
        evaluations = evaluate_saved(task, path / "model", setup.dev_splits).values()
        write_evaluations(path, evaluations)
        values = dataclasses.asdict(compression)
        del values["output_dir"]
        write_json(path / _SCORES, values)
        with replacing_file(path / _PICTURE) as temporary:
            _picture(setup.saved.backbone, counts).savefig(temporary, format="png")
        report = _report(setup, compression, found, compared, evaluations, losses)
        report.save(sum(seconds.values()))
    directory.finish()
    for evaluation in evaluations:
        setup.log(str(evaluation))
    return compression


def _load(path):
    found = read_json(path / _SCORES)
    for name in ("head_counts", "neuron_counts"):
        found[name] = tuple(found[name])
    return Compression(path, **found)


def _picture(backbone, counts):
    """Bars of the heads and neurons that every layer keeps."""
    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    sizes = backbone.num_heads, backbone.intermediate_dim
    axes = figure.subplots(1, 2)
    for ax, kept, size, name in zip(
        axes, counts, sizes, ("heads", "feed-forward neurons"), strict=True
    ):
        layers = np.arange(1, len(kept) + 1)
        ax.bar(layers, size, color="0.9", label="removed")
        ax.bar(layers, kept, color="C0", label="kept")
        for layer, number in zip(layers, kept, strict=True):
            ax.text(layer, number, f"{number:,}", ha="center", va="bottom", fontsize=8)
        ax.set(xlabel="layer", ylabel=name, xticks=layers, ylim=(0, 1.12 * size))
    axes[0].legend(loc="upper right", ncols=2, frameon=False, fontsize=8)
    figure.suptitle("What every layer keeps")
    return figure


def _report(setup, compression, found, compared, evaluations, losses):
    """The `Report`: asked and delivered, size and scores before and after."""
    settings, task, saved = setup.settings, setup.task, setup.saved
    whole, scores = saved.backbone, compression.scores
    smaller = found.model.backbone
    report = Report(
        compression.output_dir,
        f"{model_name(compared.model)} on {task.title}, {settings.speedup:g} times "
        f"{'faster' if settings.budget == 'latency' else 'smaller'}",
    )
    last = list(scores)[-1]
    unit = {
        "latency": "faster than the whole encoder, measured at "
        f"{settings.latency_batch_size} x {settings.latency_length} tokens",
        "operations": f"fewer operations, at {settings.latency_length} tokens",
        "parameters": "fewer parameters in its layers",
    }[settings.budget]
    report.text(
        f"Asked: {settings.speedup:.2f} times {unit}; delivered: "
        f"{compression.speedup:.2f}. {task.main_metric.capitalize()} on "
        f"{task.dev_split}: {percent(scores[last])}, of the whole model "
        f"{percent(scores['whole'])}. All scores are times 100."
    )
    labels = {
        "whole": "whole model",
        "pruned": "heads and neurons removed",
        "fitted": "least squares",
        "fine_tuned": "fine-tuned",
    }
    report.table(
        "scores",
        [
            {"model": labels[name], f"{task.dev_split} {task.main_metric}": score}
            for name, score in scores.items()
        ],
        formats={f"{task.dev_split} {task.main_metric}": percent},
    )
    report.table(
        "sizes",
        [
            {
                "model": name,
                "parameters": encoder.count_params(),
                "of the layers": _layer_parameters(encoder),
                "float32 bytes": 4 * encoder.count_params(),
                "heads": sum(layer_counts(encoder)[0]),
                "neurons": sum(layer_counts(encoder)[1]),
            }
            for name, encoder in {"whole": whole, "smaller": smaller}.items()
        ],
        formats={
            "parameters": count,
            "of the layers": count,
            "float32 bytes": megabytes,
        },
    )
    report.picture(_PICTURE, "Heads and neurons of each layer")
    rows = task.table(list(evaluations))
    report.text("The smaller model on all dev splits:")
    report.table("evaluations", rows, dict.fromkeys(score_columns(rows), percent))
    report.fact("model", compared.model, f"{compared.model}, {describe(whole)}")
    report.fact("data", compared.data_dir or "TFDS")
    for name, value in dataclasses.asdict(settings).items():
        if value is not None:
            shown = f"{value:g}" if isinstance(value, float) else None
            report.fact(name.replace("_", " "), value, shown)
    report.fact("planned speed", round(found.kept.planned, 4))
    for name, value in compression.seconds.items():
        report.fact(f"seconds of {name}", round(value, 1), clock(value))
    if losses:
        report.fact("training loss by epoch", losses)
        if settings.relation_weight:
            layer, num_relation_heads = compared_relations(whole, smaller)
            report.fact(
                "relation loss",
                [layer, num_relation_heads],
                f"layer {layer}, {num_relation_heads} relation heads",
            )
    size = weight_bytes(compression.output_dir / "model")
    report.fact("weights on disk", size, megabytes(size))
    report.closing(
        "The model is in `model/`, which `keras_minilmv2.load_saved` reads, and "
        "keras-hub's `from_preset` once `keras_minilmv2` is imported."
    )
    return report


def _layer_parameters(encoder):
    costs = parameter_costs(encoder)
    return int(costs.total(*layer_counts(encoder)))
