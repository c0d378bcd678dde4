"""Which layer of a teacher to distil: a short trial of each, and what it is worth."""

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.backbones.projections import block_calls, check_layer
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.backbones.traces import forgotten_gradients
from keras_minilmv2.data.packing import corpus_errors
from keras_minilmv2.data.pipeline import as_dataset, sample
from keras_minilmv2.distillation.candidates import LayerCandidates
from keras_minilmv2.distillation.objectives import objective_for
from keras_minilmv2.downstream.registry import get_task
from keras_minilmv2.runs.directory import NEW, RunDirectory, RunKind
from keras_minilmv2.runs.examples import (
    NUM_PROJECTION_EXAMPLES,
    PREPARED,
    held_out_batches,
    make_examples,
    with_segment_ids,
)
from keras_minilmv2.runs.fine_tune import FineTuningSettings, fine_tune
from keras_minilmv2.runs.grid import NoFiniteLossError
from keras_minilmv2.runs.models import load_teacher, make_student, recipe_optimizer
from keras_minilmv2.runs.recipes import Recipe
from keras_minilmv2.runs.report import (
    OUTPUTS,
    Report,
    describe,
    model_name,
    rows_table,
)
from keras_minilmv2.runs.settings import not_compared
from keras_minilmv2.training.progress import ProgressLine
from keras_minilmv2.utils.checksums import sha256
from keras_minilmv2.utils.files import (
    check_directory,
    read_json,
    replacing_file,
    write_json,
    writing,
)
from keras_minilmv2.utils.seeds import set_seed
from keras_minilmv2.utils.tables import count, percent


@dataclass(frozen=True, kw_only=True)
class LayerSettings(Recipe):
    """What must be the same for trials of one directory to be compared: the recipe.

    Args:
        layers: tuple of int, those that are tried.
        teacher_sha256: str, of the teacher's weights.
    """

    # Which layer is what is sought.
    teacher_layer: int = not_compared()
    layers: tuple[int, ...]
    teacher_sha256: str

    @classmethod
    def from_fields(cls, fields, source=None):
        """As `Settings` does; reads the layout of earlier versions too."""
        fields = {"teacher_layer": 1, **fields.get("settings", fields)}
        return super().from_fields(fields, source)


KIND = RunKind(
    name="layers",
    settings_class=LayerSettings,
    settings_file="settings.json",
    outputs=("settings.json", PREPARED, "losses.json", "curve.png", *OUTPUTS),
)


@dataclass(frozen=True)
class LayerTrial:
    """What a trial of one layer came to.

    Args:
        layer: int, from 1.
        loss_before: float, nats, on held-out text, before training.
        loss_after: float.
        scores: tuple of float, the task's main metric on its dev split, by seed;
            without those whose loss was not finite.
    """

    layer: int
    loss_before: float
    loss_after: float
    scores: tuple

    @property
    def mean(self):
        """The mean score over seeds, or None if the loss of none was finite."""
        return float(np.mean(self.scores)) if self.scores else None

    @property
    def deviation(self):
        """The sample standard deviation over seeds, or None of one seed."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None


def choose_layer(
    recipe,
    output_dir,
    task,
    *,
    layers=None,
    data_dir=None,
    tfds_data_dir=None,
    num_train_examples=2_000,
    epochs=3,
    learning_rate=1e-4,
    seed=(0, 1),
    progress_stream=None,
    log=print,
):
    """Distils some layers of a teacher for a while and fine-tunes each student.

    The losses against different layers do not compare; the scores do. The directory
    then holds `layer_N/student` (a keras-nlp preset) and `layer_N/probe-*` (as
    `fine_tune` writes it, named by task and data), `report.md` and `curve.png`. Given
    the same settings again, an interrupted trial is resumed with the scores that are
    missing.

    Args:
        recipe: `Recipe`. Its `total_steps` are the budget of each layer;
            `teacher_layer` is not used. All students are trained side by side on one
            device: take a batch of a size that fits.
        output_dir: str or path. Made if missing.
        task: str, a name in `downstream.registry.TASKS`, or a `Task`.
        layers: sequence of int, from 1. Defaults to the upper half of the teacher's.
        data_dir: str or path of the task's published files; None for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        num_train_examples: int, of the task.
        epochs: int.
        learning_rate: float.
        seed: int or sequence of int, of fine-tuning.
        progress_stream: text stream of the progress line. Defaults to standard error.
        log: function of a line of information.

    Returns:
        list of `LayerTrial`, by layer; the best by mean score is the answer.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence names
            it. The task's data are read before anything is distilled.
        RuntimeError: if the loss of a layer, or of every probe, was not finite.
    """
    task = get_task(task)
    check_directory("output_dir", output_dir)
    objective_for(
        recipe.objective, lambda each: each.compares_layers, "to choose a layer"
    )
    for name, known in (
        ("accumulation_steps", (1,)),
        ("strategy", ("auto", "one_device")),
    ):
        if getattr(recipe, name) not in known:
            raise ValueError(
                f"`{name}` must be {' or '.join(map(str, known))} to choose a layer, "
                "which trains all students on one device. "
                f"Received: {name}={getattr(recipe, name)!r}."
            )
    if recipe.relation_head_weights is not None:
        raise ValueError(
            "`relation_head_weights` must be None to choose a layer: they belong to "
            "the heads of one. Received: a recipe with "
            f"{len(recipe.relation_head_weights)} of them."
        )
    started = time.perf_counter()
    probe_settings = FineTuningSettings(
        learning_rate=learning_rate,
        epochs=epochs,
        seed=seed,
        num_train_examples=num_train_examples,
        dtype_policy=recipe.dtype_policy,
    )
    cells = probe_settings.cells(task)
    set_seed(recipe.seed)
    teacher, tokenizer = load_teacher(recipe)
    depth = len(block_calls(teacher))
    layers = sorted(set(range(depth // 2 + 1, depth + 1) if layers is None else layers))
    for layer in layers:
        check_layer("layers", layer, depth)
    data = {"data_dir": data_dir, "tfds_data_dir": tfds_data_dir}
    checksum = sha256(
        *(
            array
            for split in ("train", task.dev_split)
            for array in _as_bytes(task.load(split, **data))
        )
    )
    settings = LayerSettings(
        **{**dataclasses.asdict(recipe), "layers": tuple(layers)},
        teacher_sha256=sha256(*teacher.get_weights()),
    )
    students = tuple(_name(layer) for layer in layers)
    kind = dataclasses.replace(
        KIND, outputs=(*KIND.outputs, *students), evidence=students
    )
    with RunDirectory.open(
        output_dir,
        settings,
        kind,
        reads={"teacher": recipe.teacher, "corpus": recipe.corpus},
        accepts=(PREPARED,),
    ) as directory:
        losses = _losses_found(directory)
        if losses is None:
            losses = _distilled(
                recipe, directory, teacher, tokenizer, layers, progress_stream, log
            )
        else:
            log(f"Resumes with the students in {directory.path}.")
        directory.reopen()
        trials = []
        for layer in layers:
            log(f"Layer {layer}: fine-tunes on {task.title}.")
            path = directory.path / _name(layer)
            # One directory for each probe; the rest of its settings are its cells.
            name = f"probe-{task.name}-{num_train_examples}-{checksum[:8]}"
            scores = ()
            # A diverged probe is recorded in its cell.
            with contextlib.suppress(NoFiniteLossError):
                probe = fine_tune(
                    path / "student",
                    task,
                    path / name,
                    probe_settings,
                    **data,
                    sequence_length=min(
                        task.sequence_length, teacher.max_sequence_length
                    ),
                    progress_stream=progress_stream,
                    log=lambda line: None,
                )
                scores = [probe.results[cell].score for cell in cells]
                scores = tuple(score for score in scores if score is not None)
            trials.append(LayerTrial(layer, *losses[str(layer)], scores))
            log(f"  {_score(trials[-1])}")
        with writing(directory.path):
            probe = {"num_train_examples": num_train_examples, "epochs": epochs}
            report = _report(recipe, directory.path, task, teacher, trials, **probe)
            report.save(time.perf_counter() - started)
        directory.finish()
    return trials


def best_trial(trials):
    """The trial with the highest mean score.

    Raises:
        RuntimeError: if none has one.
    """
    scored = [trial for trial in trials if trial.mean is not None]
    if not scored:
        raise NoFiniteLossError(
            "The loss of every probe was not finite. Try a lower learning rate."
        )
    return max(scored, key=lambda trial: trial.mean)


def trial_table(trials, task):
    """The scores of all layers, as Markdown."""
    return rows_table(_rows(trials, task), _formats(task))


def _rows(trials, task):
    return [
        {
            "layer": trial.layer,
            "loss before": trial.loss_before,
            "loss after": trial.loss_after,
            f"{get_task(task).main_metric}, mean": "diverged"
            if trial.mean is None
            else trial.mean,
            "deviation": trial.deviation,
            "runs": len(trial.scores),
        }
        for trial in trials
    ]


def _formats(task):
    losses = dict.fromkeys(("loss before", "loss after"), "{:.4f}".format)
    scores = (f"{get_task(task).main_metric}, mean", "deviation")
    return {**losses, **dict.fromkeys(scores, percent)}


def _as_bytes(examples):
    """Texts and labels of examples as arrays."""
    for texts in examples.texts:
        yield np.frombuffer("\n".join(texts).encode(), "uint8")
    yield examples.labels


def _score(trial):
    if trial.mean is None:
        return "The loss was not finite."
    deviation = "" if trial.deviation is None else f" ± {percent(trial.deviation)}"
    return f"{percent(trial.mean)}{deviation}"


def _name(layer):
    """The directory of a layer's student and its probes."""
    return f"layer_{layer}"


def _losses_found(directory):
    """The losses of students that are there, by layer; None where they are not."""
    path = directory.path / "losses.json"
    if path.is_file():
        return read_json(path)
    # Earlier versions wrote them with the settings.
    path = directory.path / directory.kind.settings_file
    return read_json(path).get("losses") if directory.state != NEW else None


@forgotten_gradients()
def _distilled(recipe, directory, teacher, tokenizer, layers, stream, log):
    """Distils all layers; returns held-out losses before and after by layer."""
    examples = make_examples(recipe, tokenizer, directory, log)
    first = None
    if recipe.initialization.needs_examples:
        with corpus_errors(*examples.values()):
            batch = sample(examples["train"], NUM_PROJECTION_EXAMPLES)
            first = with_segment_ids(teacher, batch)
    candidates = LayerCandidates(
        teacher,
        {layer: make_student(teacher, recipe, first) for layer in layers},
        recipe.num_relation_heads,
        recipe.relation_weights,
        lambda: recipe_optimizer(recipe),
    )
    directory.start()
    # `start` has moved them.
    examples = make_examples(recipe, tokenizer, directory, log)
    with corpus_errors(*examples.values()):
        held_out = held_out_batches(recipe, teacher, examples["held_out"])
        log(
            f"Teacher: {describe(teacher)}; layers {', '.join(map(str, layers))}, "
            f"{recipe.total_steps:,} updates each."
        )
        before = _held_out_losses(candidates, held_out)
        dataset = as_dataset(
            examples["train"],
            recipe.batch_size,
            seed=recipe.seed,
            segment_ids=uses_segment_ids(teacher),
        )
        progress = ProgressLine(
            recipe.total_steps, recipe.batch_size * recipe.sequence_length, stream
        )
        progress.start()
        try:
            candidates.train(
                dataset.take(recipe.total_steps),
                lambda step, losses: progress.update(
                    step, {f"layer {layer}": loss for layer, loss in losses.items()}
                ),
            )
        finally:
            progress.close()
        after = _held_out_losses(candidates, held_out)
    for layer, loss in after.items():
        if not math.isfinite(loss):
            raise RuntimeError(
                f"The loss of layer {layer} was not finite. Try a lower "
                "peak_learning_rate."
            )
    losses = {str(layer): [before[layer], after[layer]] for layer in layers}
    with writing(directory.path):
        for layer, distiller in candidates.distillers.items():
            path = directory.path / _name(layer) / "student"
            save_student(distiller.student, tokenizer, path)
        write_json(directory.path / "losses.json", losses)
    return losses


def _held_out_losses(candidates, held_out):
    return {
        layer: distiller.evaluate(held_out, return_dict=True, verbose=0)["loss"]
        for layer, distiller in candidates.distillers.items()
    }


def _report(recipe, output_dir, task, teacher, trials, num_train_examples, epochs):
    """Draws `curve.png`; returns the `Report`."""
    best = best_trial(trials)
    tokens = recipe.total_steps * recipe.batch_size * recipe.sequence_length
    report = Report(output_dir, f"Layers of {model_name(recipe.teacher)}")
    report.text(
        f"Best by the probe: layer {best.layer}, {_score(best)}. The losses of "
        "different layers do not compare: each is against another target."
    )
    report.table("layers", _rows(trials, task), formats=_formats(task))
    report.picture("curve.png", "Score by layer")
    report.fact("teacher", recipe.teacher, f"{recipe.teacher}, {describe(teacher)}")
    report.fact("student initialized from", recipe.initialization.description())
    report.fact(
        "distillation of each layer",
        recipe.total_steps,
        f"{recipe.total_steps:,} updates, {count(tokens)} tokens",
    )
    report.fact(
        "probe",
        task.name,
        f"{task.title}, {num_train_examples:,} training examples at most, {epochs} "
        "epochs",
    )
    report.fact("seed of distillation", recipe.seed, f"{recipe.seed}, 1 run a layer")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scored = [trial for trial in trials if trial.mean is not None]
    axes.errorbar(
        [trial.layer for trial in scored],
        [100 * trial.mean for trial in scored],
        [100 * (trial.deviation or 0.0) for trial in scored],
        marker="o",
        capsize=3,
    )
    axes.set_xlabel("teacher layer")
    axes.set_ylabel(f"{task.title} {task.main_metric}, x 100")
    axes.set_title(f"Students of {model_name(recipe.teacher)}, {count(tokens)} tokens")
    axes.set_xticks([trial.layer for trial in trials])
    axes.grid(alpha=0.3)
    with replacing_file(output_dir / "curve.png") as temporary:
        figure.savefig(temporary, format="png")
    return report
