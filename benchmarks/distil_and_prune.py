"""Distilled, pruned, and both in each order: students of one size.

    python benchmarks/distil_and_prune.py --corpus DIR --glue DIR --output-dir out/both

The teacher of the demo, 6x384; every student is 3x384, starts with the teacher's layers
1, 3 and 6, and keeps 12 of the 24 heads of its first two layers: the last layer's heads
have no part in the relation loss.

    distilled              random heads removed, then distilled
    pruned                 heads chosen by importance, not distilled
    pruned, distilled      heads chosen by importance, then distilled
    distilled, pruned      distilled with all heads, then heads chosen by importance
    pruned while distilled gates of `HeadSubset`, bounded, trained with the student

Importance is E |dL/dg| of the relation loss against the teacher, without labels. Every
distillation has as many steps. Held-out relation loss, STS-B by the cosine of mean
hidden states, and scores of fine-tuning are measured as `weighted_relations.py` does.
The same command resumes after the cells that are finished.
"""

import argparse
import dataclasses
import datetime
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from downstream import embeddings_score
from weighted_relations import TASKS, table, task_scores, with_prepared

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.data.pipeline import sample, training_batches
from keras_minilmv2.data.shards import PreparedExamples
from keras_minilmv2.heads.importance import head_importance
from keras_minilmv2.heads.orders import order_by_scores
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.subset import HeadSubset, TemperatureSchedule
from keras_minilmv2.heads.subset_training import SubsetTraining
from keras_minilmv2.runs.demo import demo_recipe
from keras_minilmv2.runs.directory import RunDirectory, RunKind
from keras_minilmv2.runs.distill import distill
from keras_minilmv2.runs.examples import held_out_batches, with_segment_ids
from keras_minilmv2.runs.grid import Result, run_grid
from keras_minilmv2.runs.models import make_distiller, recipe_optimizer, write_student
from keras_minilmv2.runs.settings import Settings
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.utils.files import replacing_file, write_json
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import count

ARMS = (
    *("distilled", "pruned", "pruned, distilled", "distilled, pruned"),
    "pruned while distilled",
)
# Of the layers before the last.
KEPT = 12
NUM_IMPORTANCE_EXAMPLES = 256
GATES_LEARNING_RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class ArmSettings(Settings):
    """What all cells in the output directory share."""

    corpus: str
    glue: str
    steps: int
    tasks: tuple[str, ...]
    num_train_examples: int | None


@dataclass(frozen=True, order=True)
class ArmCell:
    """One student: its arm, and its seed."""

    arm: str
    seed: int

    def __str__(self):
        return f"{self.arm}, seed {self.seed}"

    @property
    def name(self):
        """The name of its directories."""
        return f"{self.arm.replace(', ', '_').replace(' ', '_')}_{self.seed}"


KIND = RunKind(
    name="distil_and_prune",
    settings_class=ArmSettings,
    settings_file="settings.json",
    outputs=(
        *("settings.json", "prepared", "cells", "students", "starts"),
        *("fine_tuned", "rows.json", "table.md"),
    ),
    evidence=("settings.json",),
    last="",
)


def main():
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--corpus", "--glue", "--output-dir"):
        parser.add_argument(name, required=True, type=Path, metavar="DIR")
    parser.add_argument("--steps", type=int, default=500, metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--num-train-examples", type=int, metavar="N")
    options = parser.parse_args()
    settings = ArmSettings(
        corpus=str(options.corpus),
        glue=str(options.glue),
        steps=options.steps,
        tasks=tuple(options.tasks),
        num_train_examples=options.num_train_examples,
    )
    recipe = dataclasses.replace(
        demo_recipe(total_steps=options.steps),
        student_hidden_dim=384,
        student_intermediate_dim=1_536,
        student_initialization="layers:1,3,6",
    )
    with RunDirectory.open(options.output_dir, settings, KIND) as output:
        output.start()
        recipe = with_prepared(recipe, options)
        cells = [ArmCell(arm, seed) for seed in options.seeds for arm in options.arms]
        results = run_grid(
            output.path,
            cells,
            lambda cell: (run_cell(cell, recipe, options), None),
            metric="STS-B cosine",
            cell_class=ArmCell,
        )
        write({cell: results[cell] for cell in cells}, recipe, options)


class Arm:
    """One student on its way; every stage is a preset."""

    def __init__(self, cell, recipe, options):
        self.recipe = dataclasses.replace(recipe, seed=cell.seed)
        self.cell, self.options = cell, options
        self.examples = {
            part: PreparedExamples(options.output_dir / "prepared", part)
            for part in ("train", "held_out")
        }
        self.teacher = load_backbone(recipe.teacher)
        self.tokenizer = load_tokenizer(recipe.teacher)

    def path(self, kind):
        """Where a stage of it is kept."""
        return self.options.output_dir / kind / self.cell.name

    def start(self):
        """The student before any training."""
        path = self.path("starts") / "whole"
        if not path.exists():
            write_student(self.recipe, path)
        return path

    def distilled(self, begin):
        """A preset, distilled."""
        initialization = f"preset:{begin}"
        recipe = dataclasses.replace(self.recipe, student_initialization=initialization)
        if not distill(recipe, self.path("students")).finished:
            raise SystemExit(1)
        return self.path("students") / "student"

    def pruned(self, begin, mask):
        """A preset without the heads of the first layers that a mask removes."""
        path = self.path("starts") / "pruned"
        student = load_backbone(begin)
        mask = np.concatenate([mask, np.ones((1, mask.shape[1]))]).astype("int32")
        save_student(prune_heads(student, mask), self.tokenizer, path, overwrite=True)
        return path

    def distiller(self, student):
        """The distiller of a student of this teacher."""
        return make_distiller(self.teacher, student, self.recipe, self.tokenizer)

    def random_mask(self):
        """As many heads as are kept, by chance."""
        kept = np.random.default_rng(self.cell.seed).permutation(24)[:KEPT]
        return np.isin(np.arange(24), kept).reshape(2, 12)

    def important(self, begin):
        """The mask of the heads that the relation loss depends on most."""
        rows = sample(
            self.examples["train"], NUM_IMPORTANCE_EXAMPLES, seed=self.cell.seed
        )
        rows = with_segment_ids(self.teacher, rows)
        batches = [
            {name: x[i : i + 32] for name, x in rows.items()}
            for i in range(0, NUM_IMPORTANCE_EXAMPLES, 32)
        ]
        distiller = self.distiller(load_backbone(begin))
        importance = head_importance(
            distiller, batches, neurons=False, fisher_blocks=()
        )
        scores = importance.heads.scores()[:2]
        return order_by_scores("importance", scores).head_masks[24 - KEPT]

    def pruned_while_distilled(self):
        """Trains gates with the student, and removes what they close."""
        recipe, student = self.recipe, load_backbone(self.start())
        steps = recipe.total_steps
        training = SubsetTraining(
            self.distiller(student),
            HeadSubset(2, 12, KEPT, variant="bounded", seed=self.cell.seed),
            None,
            recipe_optimizer(recipe),
            adamw(GATES_LEARNING_RATE, 0, steps, weight_decay=0.0),
            TemperatureSchedule(10.0, 0.01, max(1, int(0.8 * steps)), steps),
        )
        batches = training_batches(
            self.examples["train"],
            recipe.batch_size,
            seed=recipe.seed,
            segment_ids=uses_segment_ids(student),
        )
        for step, batch in zip(range(1, steps + 1), batches, strict=False):
            loss = training.step(batch)
            if step % max(1, steps // 10) == 0:
                print(f"{step:,} of {steps:,}: loss {loss:.4f}", flush=True)
        path = self.path("starts") / "gated"
        save_student(student, self.tokenizer, path, overwrite=True)
        return self.pruned(path, training.masks()[0])

    def run(self):
        """The path of the finished student."""
        arm = self.cell.arm
        if arm == "pruned while distilled":
            return self.pruned_while_distilled()
        if arm == "distilled":
            return self.distilled(self.pruned(self.start(), self.random_mask()))
        if arm == "distilled, pruned":
            whole = self.distilled(self.start())
            return self.pruned(whole, self.important(whole))
        pruned = self.pruned(self.start(), self.important(self.start()))
        return pruned if arm == "pruned" else self.distilled(pruned)


def run_cell(cell, recipe, options):
    """Makes and scores one student; a `Result`."""
    started = time.perf_counter()
    arm = Arm(cell, recipe, options)
    path = arm.run()
    seconds = time.perf_counter() - started
    student = load_backbone(path)
    held_out = held_out_batches(arm.recipe, arm.teacher, arm.examples["held_out"])
    found = arm.distiller(student).evaluate(held_out, verbose=0, return_dict=True)
    metrics = {
        "held_out_loss": found["loss"],
        "embeddings": embeddings_score(path, options.glue),
        **task_scores(path, cell, options),
        "parameters": student.count_params(),
        "training_seconds": seconds,
    }
    return Result(metrics["embeddings"], metrics, [], time.perf_counter() - started)


def write(results, recipe, options):
    """Writes `rows.json` and `table.md`."""
    rows = [
        {**dataclasses.asdict(cell), **result.metrics, "seconds": result.seconds}
        for cell, result in results.items()
    ]
    tokens = options.steps * recipe.batch_size * recipe.sequence_length
    write_json(options.output_dir / "rows.json", rows)
    sizes = sorted({count(row["parameters"]) for row in rows})
    text = (
        f"{table(rows, options.tasks, 'arm', 'distilled')}\n\n"
        f"{', '.join(sizes)} parameters; {options.steps:,} steps, {count(tokens)} "
        f"tokens of {options.corpus.name}; mean and sample standard deviation over "
        f"seeds {', '.join(map(str, options.seeds))}, below them those of the "
        f"differences from `distilled` with the same seed. {hardware()}, "
        f"{datetime.date.today()}.\n"
    )
    with replacing_file(options.output_dir / "table.md") as path:
        path.write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    main()
