"""Which layer of a teacher to distil: a short trial of each, and what it is worth."""

import contextlib
import dataclasses
import datetime
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.backbones.projections import block_calls, check_layer
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.data.packing import corpus_errors
from keras_minilmv2.data.pipeline import as_dataset, sample
from keras_minilmv2.distillation.candidates import LayerCandidates
from keras_minilmv2.distillation.objectives import objective_for
from keras_minilmv2.downstream.metrics import main_metric
from keras_minilmv2.downstream.tasks import get_task, load_examples
from keras_minilmv2.runs.distill import (
    NUM_PROJECTION_EXAMPLES,
    held_out_batches,
    load_teacher,
    make_examples,
    make_student,
    recipe_optimizer,
    with_segment_ids,
)
from keras_minilmv2.runs.fine_tune import fine_tune
from keras_minilmv2.runs.grid import FinishedCells, grid_cells
from keras_minilmv2.runs.grid_runs import (
    NoFiniteLossError,
    as_values,
    check_counts,
    check_no_file,
    read_json,
    sha256,
    visible_names,
    writing,
)
from keras_minilmv2.runs.report import describe, model_name
from keras_minilmv2.training.progress import ProgressLine
from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.seeds import set_seed
from keras_minilmv2.utils.tables import count, markdown_table


@dataclass(frozen=True)
class LayerTrial:
    """What a trial of one layer came to.

    Args:
        layer: int, from 1.
        loss_before: float, nats, on held-out text, before training.
        loss_after: float.
        scores: tuple of float, the task's main metric on its dev split, by seed;
            those whose loss was not finite are left out.
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
    say=print,
):
    """Distils some layers of a teacher for a while and fine-tunes each student.

    The losses against different layers do not compare; the scores do. The directory
    then holds `layer_N/student` (a keras-nlp preset) and `layer_N/probe-*` (as
    `fine_tune` writes it, named by task and data), `report.md` and `curve.png`. Given
    the same settings again, an interrupted trial goes on with the scores that are
    missing.

    Args:
        recipe: `Recipe`. Its `total_steps` are the budget of each layer;
            `teacher_layer` is not used. All students are trained side by side on one
            device: take a batch of a size that fits.
        output_dir: str or path. Made if missing.
        task: str, a name in `evaluation.tasks.TASKS`, or a `Task`.
        layers: sequence of int, from 1. Defaults to the upper half of the teacher's.
        data_dir: str or path of the task's published files; None for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        num_train_examples: int, of the task.
        epochs: int.
        learning_rate: float.
        seed: int or sequence of int, of fine-tuning.
        progress_stream: text stream of the progress line. Defaults to standard error.
        say: function that is called with each line of information.

    Returns:
        list of `LayerTrial`, by layer; the best by mean score is the answer.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence says
            what. The task's data are read before anything is distilled.
        RuntimeError: if the loss of a layer, or of every probe, was not finite.
    """
    task, output_dir = get_task(task), Path(output_dir)
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
    cells = grid_cells((learning_rate,), (epochs,), as_values(seed, 0))
    check_counts(num_train_examples=num_train_examples)
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
            for array in _as_bytes(load_examples(task, split, **data))
        )
    )
    losses = _distilled(
        recipe, output_dir, teacher, tokenizer, layers, progress_stream, say
    )
    trials = []
    for layer in layers:
        say(f"Layer {layer}: fine-tunes on {task.title}.")
        # One directory for each probe; the rest of its settings are its cells.
        name = f"probe-{task.name}-{num_train_examples}-{checksum[:8]}"
        probe = output_dir / f"layer_{layer}" / name
        finished = FinishedCells(probe / "cells")
        if not set(cells) <= set(finished.load()):
            # Of a probe that diverged, the cells say so.
            with contextlib.suppress(NoFiniteLossError):
                fine_tune(
                    output_dir / f"layer_{layer}" / "student",
                    task,
                    probe,
                    **data,
                    learning_rate=learning_rate,
                    epochs=epochs,
                    seed=seed,
                    num_train_examples=num_train_examples,
                    sequence_length=min(
                        task.sequence_length, teacher.max_sequence_length
                    ),
                    dtype_policy=recipe.dtype_policy,
                    progress_stream=progress_stream,
                    say=lambda line: None,
                )
        results = finished.load()
        scores = [results[cell].score for cell in cells]
        scores = tuple(score for score in scores if score is not None)
        trials.append(LayerTrial(layer, *losses[str(layer)], scores))
        say(f"  {_score(trials[-1])}")
    _write(recipe, output_dir, task, teacher, trials, num_train_examples, epochs)
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
    metric = main_metric(get_task(task))
    return markdown_table(
        ["layer", "loss before", "loss after", f"{metric}, mean", "deviation", "runs"],
        [
            [
                str(trial.layer),
                f"{trial.loss_before:.4f}",
                f"{trial.loss_after:.4f}",
                "diverged" if trial.mean is None else f"{100 * trial.mean:.2f}",
                "" if trial.deviation is None else f"{100 * trial.deviation:.2f}",
                str(len(trial.scores)),
            ]
            for trial in trials
        ],
    )


def _as_bytes(examples):
    """Texts and labels of examples as arrays."""
    for texts in examples.texts:
        yield np.frombuffer("\n".join(texts).encode(), "uint8")
    yield examples.labels


def _score(trial):
    if trial.mean is None:
        return "The loss was not finite."
    deviation = "" if trial.deviation is None else f" ± {100 * trial.deviation:.2f}"
    return f"{100 * trial.mean:.2f}{deviation}"


def _distilled(recipe, output_dir, teacher, tokenizer, layers, stream, say):
    """Held-out losses before and after by layer; students are written."""
    settings = dataclasses.asdict(recipe) | {"layers": layers}
    settings["teacher_sha256"] = sha256(*teacher.get_weights())
    del settings["teacher_layer"]
    # As JSON gives it back.
    settings = json.loads(json.dumps(settings))
    path = output_dir / "settings.json"
    if path.is_file():
        known = read_json(path)
        if known.get("settings") == settings:
            say(f"Goes on with the students in {output_dir}.")
            return known["losses"]
        raise FileExistsError(
            "`output_dir` must not hold a trial of other settings. "
            f"Received: output_dir={output_dir}."
        )
    check_no_file(output_dir)
    names = visible_names(output_dir)
    # What a run that ended before it wrote its settings has left.
    left = {path.name for path in output_dir.glob("layer_*")}
    if set(names) - {"prepared"} - left:
        raise FileExistsError(
            "`output_dir` must be empty or new. "
            f"Received: output_dir={output_dir}, which holds {', '.join(names[:3])}."
        )
    examples = make_examples(recipe, tokenizer, output_dir, say=say)
    with corpus_errors(*examples.values()):
        held_out = held_out_batches(recipe, teacher, examples["held_out"])
        first = None
        if recipe.initialization.needs_examples:
            batch = sample(examples["train"], NUM_PROJECTION_EXAMPLES)
            first = with_segment_ids(teacher, batch)
        candidates = LayerCandidates(
            teacher,
            {layer: make_student(teacher, recipe, first) for layer in layers},
            recipe.num_relation_heads,
            recipe.relation_weights,
            lambda: recipe_optimizer(recipe),
        )
        directories = {layer: output_dir / f"layer_{layer}" for layer in layers}
        # What cannot be written shows before hours are spent.
        with writing(output_dir):
            for directory in directories.values():
                directory.mkdir(parents=True, exist_ok=True)
        say(
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
    for layer, distiller in candidates.distillers.items():
        save_student(distiller.student, tokenizer, directories[layer] / "student")
    with replacing_file(path) as temporary:
        temporary.write_text(
            json.dumps({"settings": settings, "losses": losses}, indent=2) + "\n"
        )
    return losses


def _held_out_losses(candidates, held_out):
    return {
        layer: distiller.evaluate(held_out, return_dict=True, verbose=0)["loss"]
        for layer, distiller in candidates.distillers.items()
    }


def _write(recipe, output_dir, task, teacher, trials, num_train_examples, epochs):
    """Writes `report.md` and `curve.png`."""
    best = best_trial(trials)
    tokens = recipe.total_steps * recipe.batch_size * recipe.sequence_length
    facts = [
        ["teacher", f"{recipe.teacher}, {describe(teacher)}"],
        ["student begins from", recipe.initialization.description()],
        [
            "distillation of each layer",
            f"{recipe.total_steps:,} updates, {count(tokens)} tokens",
        ],
        [
            "probe",
            f"{task.title}, {num_train_examples:,} training examples at most, "
            f"{epochs} epochs",
        ],
        ["seed of distillation, runs", f"{recipe.seed}, 1 a layer"],
        ["hardware", hardware()],
        ["date", datetime.date.today().isoformat()],
    ]
    text = "\n\n".join(
        [
            f"# Layers of {model_name(recipe.teacher)}",
            f"Best by the probe: layer {best.layer}, {_score(best)}. The losses of "
            "different layers do not compare: each is against another target.",
            trial_table(trials, task),
            "![Score by layer](curve.png)",
            markdown_table(["setting", "value"], facts),
        ]
    )
    with replacing_file(output_dir / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
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
    axes.set_ylabel(f"{task.title} {main_metric(task)}, x 100")
    axes.set_title(f"Students of {model_name(recipe.teacher)}, {count(tokens)} tokens")
    axes.set_xticks([trial.layer for trial in trials])
    axes.grid(alpha=0.3)
    with replacing_file(output_dir / "curve.png") as temporary:
        figure.savefig(temporary, format="png")
