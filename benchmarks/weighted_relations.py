"""Relation heads weighted by the teacher's head importance, against unweighted ones.

    python benchmarks/weighted_relations.py --corpus DIR --glue DIR --tuned DIR
        --output-dir out/weighted

Distils the demo's teacher, 6x384, to its student, 3x192, with the same steps, data and
seeds for each kind of weights:

    none     1 for each relation head, as in the paper
    change   how much the teacher's sentence embeddings change without a head of the
             distilled layer: E_x |z(x) - z_without_h(x)|^2 / |z(x)|^2, z the mean of
             the last hidden states of real tokens, over sequences of the corpus
    task     E_x |dL(x)/dg_h| of the same layer of the teacher fine-tuned on a task
             (`--tuned`, what `keras-minilmv2 finetune` wrote of it)

and measures the unweighted relation loss on held-out text, STS-B by the cosine of mean
hidden states without fine-tuning, and the scores of fine-tuning. Writes `table.md` and
`rows.json`. The same command resumes after the cells that are finished.
"""

import argparse
import dataclasses
import datetime
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from downstream import TITLES, embeddings_score
from downstream import run as run_command

from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.data.pipeline import sample
from keras_minilmv2.data.shards import PreparedExamples
from keras_minilmv2.distillation.head_weights import relation_head_weights
from keras_minilmv2.downstream.batches import training_epochs
from keras_minilmv2.downstream.saved import load_fine_tuned
from keras_minilmv2.heads.gates import gated_encoder, ones_gates
from keras_minilmv2.heads.importance import head_importance
from keras_minilmv2.runs.demo import demo_recipe, packaged_teacher
from keras_minilmv2.runs.directory import RunDirectory, RunKind
from keras_minilmv2.runs.distill import distill
from keras_minilmv2.runs.examples import with_segment_ids
from keras_minilmv2.runs.fine_tune import fine_tune
from keras_minilmv2.runs.grid import Result, run_grid
from keras_minilmv2.runs.models import make_distiller
from keras_minilmv2.runs.settings import Settings
from keras_minilmv2.runs.supervised import task_of
from keras_minilmv2.training.supervised import compiled
from keras_minilmv2.utils.files import read_json, replacing_file, write_json
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import count, markdown_table

KINDS = ("none", "change", "task")
# Epochs, and training examples where not all of them.
TASKS = {"sst2": (1, 16_000), "mrpc": (3, None)}
LEARNING_RATE = 3e-4
NUM_CHANGE_EXAMPLES = 128
NUM_TASK_EXAMPLES = 2_048
# What every row has beside the scores of tasks, how it is shown, and its factor.
MEASURES = {"held_out_loss": ("relation loss", 1), "embeddings": ("STS-B cosine", 100)}


@dataclass(frozen=True, kw_only=True)
class WeightedSettings(Settings):
    """What all cells in the output directory share."""

    corpus: str
    glue: str
    tuned: str | None
    steps: int
    tasks: tuple[str, ...]
    num_train_examples: int | None


@dataclass(frozen=True, order=True)
class WeightedCell:
    """One distillation.

    Args:
        weights: str, one of `KINDS`.
        seed: int, of the student, the order of the data, and fine-tuning.
    """

    weights: str
    seed: int

    def __str__(self):
        return f"weights {self.weights}, seed {self.seed}"

    @property
    def name(self):
        """The name of its directories."""
        return f"{self.weights}_{self.seed}"


KIND = RunKind(
    name="weighted_relations",
    settings_class=WeightedSettings,
    settings_file="settings.json",
    outputs=(
        *("settings.json", "prepared", "importance.json", "cells"),
        *("students", "fine_tuned", "rows.json", "table.md"),
    ),
    evidence=("settings.json",),
    last="",
)


def main():
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--corpus", "--glue", "--output-dir"):
        parser.add_argument(name, required=True, type=Path, metavar="DIR")
    parser.add_argument("--tuned", type=Path, metavar="DIR", help="for weights `task`")
    parser.add_argument("--steps", type=int, default=1_000, metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--weights", nargs="+", choices=KINDS, help="default: all")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--num-train-examples", type=int, metavar="N", help="of each task, at most"
    )
    options = parser.parse_args()
    if options.weights is None:
        options.weights = [k for k in KINDS if k != "task" or options.tuned]
    if "task" in options.weights and options.tuned is None:
        parser.error("--tuned must be given for weights of a task")
    settings = WeightedSettings(
        corpus=str(options.corpus),
        glue=str(options.glue),
        tuned=None if options.tuned is None else str(options.tuned),
        steps=options.steps,
        tasks=tuple(options.tasks),
        num_train_examples=options.num_train_examples,
    )
    with RunDirectory.open(options.output_dir, settings, KIND) as output:
        output.start()
        recipe = with_prepared(demo_recipe(total_steps=options.steps), options)
        weights = {kind: weights_of(kind, recipe, options) for kind in options.weights}
        # Seed by seed: a run that is stopped has compared some.
        cells = [WeightedCell(k, seed) for seed in options.seeds for k in weights]
        results = run_grid(
            output.path,
            cells,
            lambda cell: (run_cell(cell, recipe, weights[cell.weights], options), None),
            metric="STS-B cosine",
            cell_class=WeightedCell,
        )
        write({cell: results[cell] for cell in cells}, weights, recipe, options)


def with_prepared(recipe, options):
    """A recipe over the corpus, which is prepared once for all cells."""
    prepared = options.output_dir / "prepared"
    if not prepared.exists():
        run_command(
            *("prepare", options.corpus, "--tokenizer", recipe.teacher),
            *("--sequence-length", recipe.sequence_length, "--output-dir", prepared),
            *("--held-out-every", recipe.held_out_every),
        )
    return dataclasses.replace(recipe, corpus=(str(prepared),), held_out_examples=256)


def weights_of(kind, recipe, options):
    """Weights of the relation heads; the importance is measured once and kept."""
    if kind == "none":
        return None
    path = options.output_dir / "importance.json"
    kept = read_json(path) if path.exists() else {}
    if kind not in kept:
        print(f"Measures the importance of heads: {kind}.", flush=True)
        measure = {"change": embedding_changes, "task": task_importance}[kind]
        kept[kind] = [float(value) for value in measure(recipe, options)]
        write_json(path, kept)
    return relation_head_weights(kept[kind], recipe.num_relation_heads)


def embedding_changes(recipe, options):
    """How much sentence embeddings change without a head of the distilled layer."""
    teacher = load_backbone(recipe.teacher)
    examples = PreparedExamples(options.output_dir / "prepared", "train")
    chosen = sample(examples, NUM_CHANGE_EXAMPLES, seed=recipe.seed)
    batch = with_segment_ids(teacher, chosen)
    gated = gated_encoder(teacher)
    run = compiled(lambda inputs: gated(inputs, training=False)["sequence_output"])

    def embeddings(head=None):
        gates = ones_gates(gated)
        if head is not None:
            gates["head_gate"][:, recipe.teacher_layer - 1, head] = 0
        parts = []
        for first in range(0, len(batch["token_ids"]), 32):
            part = {name: x[first : first + 32] for name, x in batch.items()}
            states = run({**part, **gates}).numpy()
            mask = part["padding_mask"][..., None]
            parts.append((states * mask).sum(axis=1) / mask.sum(axis=1))
        return np.concatenate(parts)

    whole = embeddings()
    sizes = np.square(whole).sum(axis=1)
    return [
        np.mean(np.square(embeddings(head) - whole).sum(axis=1) / sizes)
        for head in range(teacher.num_heads)
    ]


def task_importance(recipe, options):
    """Absolute importance in the same layer of the teacher fine-tuned on a task."""
    saved = load_fine_tuned(options.tuned)
    teacher = load_backbone(recipe.teacher)
    shapes = [(len(block_calls(b)), b.num_heads) for b in (saved.backbone, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`tuned` must be the teacher, fine-tuned. Received: layers and heads "
            f"{shapes[0]}, the teacher's {shapes[1]}."
        )
    task = task_of(saved, None, options.tuned)
    task = task.with_options(saved.backbone, **saved.sizes)
    examples = task.load("train", options.glue)
    features = task.features(examples, saved.backbone, saved.tokenizer)
    rows = np.random.default_rng(0).permutation(features.training_rows())
    batches = next(training_epochs(features, 32, 1, 0, rows[:NUM_TASK_EXAMPLES]))
    importance = head_importance(saved.model, batches, task, neurons=False)
    return importance.heads.absolute[recipe.teacher_layer - 1]


def run_cell(cell, recipe, weights, options):
    """Distils and scores one student; a `Result`."""
    started = time.perf_counter()
    recipe = dataclasses.replace(recipe, seed=cell.seed, relation_head_weights=weights)
    path = options.output_dir / "students" / cell.name
    run = distill(recipe, path)
    if not run.finished:
        raise SystemExit(1)
    distilled = time.perf_counter() - started
    unweighted = dataclasses.replace(recipe, relation_head_weights=None)
    distiller = make_distiller(run.teacher, run.student, unweighted, run.tokenizer)
    metrics = {
        "held_out_loss": distiller.evaluate(run.held_out, verbose=0, return_dict=True)[
            "loss"
        ],
        "embeddings": embeddings_score(path / "student", options.glue),
    }
    metrics |= task_scores(path / "student", cell, options)
    metrics["distillation_seconds"] = distilled
    seconds = time.perf_counter() - started
    return Result(metrics["embeddings"], metrics, seconds=seconds)


def task_scores(path, cell, options):
    """Scores of a student fine-tuned on each task, by the task's name."""
    scores = {}
    for name in options.tasks:
        epochs, number = TASKS[name]
        numbers = [n for n in (number, options.num_train_examples) if n is not None]
        tuned = fine_tune(
            path,
            name,
            options.output_dir / "fine_tuned" / name / cell.name,
            data_dir=options.glue,
            learning_rate=LEARNING_RATE,
            epochs=epochs,
            seed=cell.seed,
            num_train_examples=min(numbers, default=None),
        )
        (only,) = tuned.results.values()
        scores[name] = only.score
    return scores


def write(results, weights, recipe, options):
    """Writes `rows.json` and `table.md`."""
    rows = [
        {**dataclasses.asdict(cell), **result.metrics, "seconds": result.seconds}
        for cell, result in results.items()
    ]
    tokens = options.steps * recipe.batch_size * recipe.sequence_length
    facts = {
        "teacher": Path(packaged_teacher()).parent.name,
        "corpus": str(options.corpus),
        "steps": options.steps,
        "tokens": tokens,
        "seeds": options.seeds,
        "tasks": {name: TASKS[name] for name in options.tasks},
        "num_train_examples": options.num_train_examples,
        "weights_of_relation_heads": weights,
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
    }
    with replacing_file(options.output_dir / "rows.json") as path:
        path.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    note = (
        f"{options.steps:,} steps, {count(tokens)} tokens of {options.corpus.name}; "
        f"seeds {', '.join(map(str, options.seeds))}; mean and sample standard "
        "deviation, below them the mean and deviation of the differences from no "
        f"weights with the same seed. {facts['hardware']}, {facts['date']}."
    )
    text = f"{table(rows, options.tasks)}\n\n{note}\n"
    with replacing_file(options.output_dir / "table.md") as path:
        path.write_text(text)
    print(text, flush=True)


def table(rows, tasks, column="weights", baseline="none"):
    """Means and deviations over seeds, and those of paired differences, as Markdown.

    Args:
        rows: list of dicts.
        tasks: names of the tasks they have scores of.
        column: str, the key of what is compared.
        baseline: str, the value that differences are taken from.
    """
    measures = {**MEASURES, **{name: (TITLES[name], 100) for name in tasks}}
    kinds = list(dict.fromkeys(row[column] for row in rows))

    def values(kind, name):
        found = (row for row in rows if row[column] == kind)
        return {row["seed"]: measures[name][1] * row[name] for row in found}

    def differences(kind, name):
        others = values(baseline, name)
        return [
            value - others[seed]
            for seed, value in values(kind, name).items()
            if seed in others
        ]

    lines = []
    for kind in kinds:
        seeds = len(values(kind, "embeddings"))
        shown = [_mean(values(kind, name).values(), name) for name in measures]
        lines.append([kind, seeds, *shown])
        if kind != baseline and baseline in kinds:
            shown = [_mean(differences(kind, name), name, "+") for name in measures]
            lines.append([f"{kind} - {baseline}", seeds, *shown])
    header = [column, "seeds", *(title for title, _ in measures.values())]
    return markdown_table(header, lines)


def _mean(values, name, sign=""):
    values, digits = list(values), 4 if name == "held_out_loss" else 1
    text = f"{statistics.fmean(values):{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text


if __name__ == "__main__":
    main()
