"""Scores and speed of fine-tuned models made smaller, over speeds, seeds and methods.

    python benchmarks/compression.py plan DIRECTORY --data GLUE_DATA MODEL
    python benchmarks/compression.py scores DIRECTORY --data GLUE_DATA MODEL [MODEL ...]
    python benchmarks/compression.py speeds DIRECTORY MODEL

Each MODEL is what `keras-minilmv2 finetune` wrote with one seed; all have the same
shape. `plan` measures the table of costs, and for each speed how fast the table must
say an encoder is so that it is as fast as asked; `speeds` runs every encoder that
`scores` chose in turns with the whole one. `plan` and `speeds` need a quiet machine.

The methods, all with the importance of 2,048 training examples:

    heads and neurons    what `keras-minilmv2 compress` does
    first layers         the last layers dropped: the depth baseline
    heads only           all neurons stay
    one round            `compress --num-rounds 1`
    masks                the heads and neurons of one round, without least squares

Scores are those of the dev split, without training and after one epoch with the whole
model as teacher. A finished measurement is not made again. Writes `compression.json`
and `compression.md` to DIRECTORY.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.downstream.saved import load_fine_tuned
from keras_minilmv2.heads.budget import (
    encoder_costs,
    gradual_importance,
    keep_within,
)
from keras_minilmv2.heads.costs import Costs, random_batch
from keras_minilmv2.heads.importance import head_importance
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.runs.compress import CompressionSettings, importance_and_fit
from keras_minilmv2.runs.grid import CELLS, Cell, FinishedCells, Result, run_grid
from keras_minilmv2.runs.models import truncated
from keras_minilmv2.runs.supervised import (
    calibration_batches,
    task_of,
    with_backbone,
)
from keras_minilmv2.runs.teacher import train_with_teacher
from keras_minilmv2.utils.files import read_json, replacing_file, write_json
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import markdown_table
from keras_minilmv2.utils.throughput import seconds_per_batch

SPEEDUPS = (1.25, 1.5, 2.0, 3.0)
METHODS = ("heads and neurons", "first layers", "heads only", "one round", "masks")
TUNED = ("heads and neurons", "first layers")
BATCH_SIZE, LENGTH = 32, 128
NUM_CALIBRATION, LEARNING_RATE, DISTILL = 2_048, 1e-4, 0.5
# Runs of each encoder beside the whole one.
REPEATS = 15


@dataclass(frozen=True, order=True)
class CompressionCell:
    """One measurement: a model made smaller."""

    task: str
    seed: int
    method: str
    speedup: float
    epochs: int

    def __str__(self):
        trained = f", {self.epochs} epoch" if self.epochs else ""
        return f"{self.task}, seed {self.seed}, {self.method}, {self.speedup}{trained}"


class Compressed:
    """Everything about one fine-tuned model."""

    def __init__(self, path, data_dir, costs, planned, num_train_examples):
        saved = load_fine_tuned(path)
        task = task_of(saved, None, path).with_options(saved.backbone, **saved.sizes)
        self.task, self.saved, self.seed = task, saved, saved.notes["cell"]["seed"]
        self.num_train_examples = num_train_examples
        # Speeds are measured afterwards: costs that are not seconds are only planned.
        self.costs = dataclasses.replace(costs, unit="measured before")
        self.planned = planned
        self.dev_examples = task.load(task.dev_split, data_dir)
        self.dev = task.features(self.dev_examples, saved.backbone, saved.tokenizer)
        train_examples = task.load("train", data_dir)
        self.train = task.features(train_examples, saved.backbone, saved.tokenizer)
        self.calibration = calibration_batches(
            self.train, NUM_CALIBRATION, (self.seed, 1)
        )
        self.importance, self.masks = None, {}

    def encoder(self, method, speedup):
        """The smaller encoder, and the seconds that finding it took."""
        backbone, started = self.saved.backbone, time.perf_counter()
        if method == "first layers":
            number = max(1, round(backbone.num_layers / speedup))
            return truncated(backbone, number), time.perf_counter() - started
        heads_only = method == "heads only"
        measure, refit = importance_and_fit(
            self.task,
            self.saved.model,
            self.calibration,
            heads_only=heads_only,
            seed=self.seed,
        )
        key = heads_only, speedup, method not in ("one round", "masks")
        if key not in self.masks:
            target = self.planned[plan_name(method, speedup)]
            rounds = gradual_importance(
                measure if heads_only else self._measured(measure),
                refit,
                backbone,
                self.costs,
                target,
                CompressionSettings.num_rounds if key[-1] else 1,
                heads_only=heads_only,
            )
            kept = keep_within(
                backbone, rounds[-1], self.costs, target, heads_only=heads_only
            )
            self.masks[key] = kept.head_mask, kept.neuron_mask
        masks = self.masks[key]
        if method != "masks":
            backbone = refit(*masks)
        return prune_heads(backbone, *masks), time.perf_counter() - started

    def _measured(self, measure):
        """The same function, which measures the whole encoder once."""

        def importance(encoder, head_mask, neuron_mask):
            if head_mask is not None:
                return measure(encoder, head_mask, neuron_mask)
            if self.importance is None:
                self.importance = measure(encoder, None, None)
            return self.importance

        return importance

    def run(self, cell):
        """Measures a cell."""
        started = time.perf_counter()
        if cell.method == "whole":
            model, seconds = self.saved.model, 0.0
        else:
            encoder, seconds = self.encoder(cell.method, cell.speedup)
            model = with_backbone(self.task, self.saved.model, encoder)
        metrics = {"search_seconds": seconds}
        if cell.epochs:
            begin = time.perf_counter()
            rows = np.random.default_rng((self.seed, 2)).permutation(
                self.train.training_rows()
            )
            train_with_teacher(
                self.task,
                model,
                self.saved.model,
                self.train,
                Cell(LEARNING_RATE, cell.epochs, self.seed),
                distill=DISTILL,
                rows=rows[: self.num_train_examples],
                batch_size=self.task.batch_size,
            )
            metrics["training_seconds"] = time.perf_counter() - begin
        found = self.task.evaluate(
            model, self.dev, self.task.dev_split, self.dev_examples
        )
        heads, neurons = layer_counts(model.backbone)
        metrics |= {"heads": list(heads), "neurons": list(neurons)}
        metrics["parameters"] = model.backbone.count_params()
        score = found.metrics[self.task.main_metric]
        return Result(score, metrics, [], time.perf_counter() - started), None

    def cells(self, tuned):
        """Those of this model: the speeds that it can have.

        Args:
            tuned: list of float. The speeds that are fine-tuned too.
        """
        settings = [("whole", 1.0, 0)]
        for method in METHODS:
            settings += itertools.product((method,), SPEEDUPS, (0,))
            settings += itertools.product(
                (method,) if method in TUNED else (), tuned, (1,)
            )
        return [
            CompressionCell(self.task.name, self.seed, method, speedup, epochs)
            for method, speedup, epochs in settings
            if method in ("whole", "first layers")
            or plan_name(method, speedup) in self.planned
        ]


def plan_name(method, speedup):
    """What a method and a speed are called in the plan."""
    return f"{'heads only' if method == 'heads only' else 'all'} {speedup}"


def plan(options):
    """Measures costs, and what to plan for each speed."""
    saved = load_fine_tuned(options.models[0])
    backbone, found = saved.backbone, {"hardware": hardware(), "rows": []}
    task = task_of(saved, None, options.models[0])
    task = task.with_options(backbone, **saved.sizes)
    train = task.features(task.load("train", options.data), backbone, saved.tokenizer)
    batches = calibration_batches(train, NUM_CALIBRATION, (0, 1))
    importance = head_importance(
        saved.model, batches, task, fisher_blocks=("heads", "neurons")
    )
    for batch_size in (1, BATCH_SIZE):
        started = time.perf_counter()
        costs = encoder_costs(backbone, "latency", batch_size, LENGTH)
        seconds = time.perf_counter() - started
        print(f"{batch_size} x {LENGTH}: costs measured in {seconds:.0f} s")
        planned, encoders = {}, {}
        methods = METHODS[0], "heads only"
        for method, speedup in itertools.product(methods, SPEEDUPS):
            name = plan_name(method, speedup)
            try:
                kept = keep_within(
                    backbone,
                    importance,
                    costs,
                    speedup,
                    batch_size=batch_size,
                    sequence_length=LENGTH,
                    heads_only=method == "heads only",
                )
            except ValueError as error:
                print(f"{name}: {error}")
                continue
            planned[name] = kept.planned
            encoders[name] = prune_heads(backbone, kept.head_mask, kept.neuron_mask)
            print(f"{name}: planned {kept.planned:.3f}, measured {kept.delivered:.3f}")
        delivered = times_faster(backbone, encoders, batch_size)
        for name, value in delivered.items():
            speedup = float(name.split()[-1])
            row = [f"{batch_size} x {LENGTH}", name, f"{planned[name]:.3f}"]
            found["rows"].append([*row, f"{value:.3f}", f"{value / speedup - 1:+.1%}"])
    found |= {"planned": planned, "seconds": seconds}
    found["costs"] = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in dataclasses.asdict(costs).items()
    }
    write_json(options.directory / "plan.json", found)
    header = ["inputs", "asked", "planned", "delivered", "off"]
    print(markdown_table(header, found["rows"]))


def times_faster(backbone, encoders, batch_size):
    """How many times faster than a backbone encoders are, each in turns with it.

    Args:
        backbone: keras-nlp backbone.
        encoders: dict by name of others.
        batch_size: int, sequences.

    Returns:
        dict of float by name, the median ratio.
    """
    found = {}
    batch = random_batch(backbone, batch_size, LENGTH)
    repeats = REPEATS if batch_size > 1 else 10 * REPEATS
    # Two at a time: encoders of other sizes in between change what memory is at hand,
    # and the whole one suffers most.
    for name, encoder in encoders.items():
        models = {"whole": backbone, "smaller": encoder}
        pairs = zip(*seconds_per_batch(models, batch, repeats).values(), strict=True)
        found[name] = statistics.median(whole / smaller for whole, smaller in pairs)
    return found


def scores(options):
    """Measures the scores that are missing."""
    found = read_json(options.directory / "plan.json")
    costs = Costs(
        **{
            name: np.array(value) if isinstance(value, list) else value
            for name, value in found["costs"].items()
        }
    )
    for path in options.models:
        model = Compressed(
            path, options.data, costs, found["planned"], options.num_train_examples
        )
        run_grid(
            options.directory,
            model.cells(options.tuned),
            model.run,
            cell_class=CompressionCell,
        )
    write(options.directory)


def speeds(options):
    """Measures how fast the encoders are that were scored."""
    backbone = load_fine_tuned(options.models[0]).backbone
    encoders = {}
    for result in finished(options.directory).values():
        counts = result.metrics["heads"], result.metrics["neurons"]
        name = json.dumps(counts)
        if len(counts[0]) < backbone.num_layers:
            encoders[name] = truncated(backbone, len(counts[0]))
        else:
            masks = (
                (np.arange(size) < np.array(kept)[:, None]).astype("int32")
                for size, kept in zip(
                    (backbone.num_heads, backbone.intermediate_dim), counts, strict=True
                )
            )
            encoders[name] = prune_heads(backbone, *masks)
    found = times_faster(backbone, encoders, BATCH_SIZE)
    write_json(options.directory / "speeds.json", found)
    write(options.directory)


def finished(directory):
    """All results so far."""
    return FinishedCells(directory / CELLS, CompressionCell).load()


def write(directory):
    """Writes the tables of what is measured."""
    results = finished(directory)
    path = directory / "speeds.json"
    measured = read_json(path) if path.exists() else {}
    groups = {}
    for cell, result in results.items():
        key = cell.task, cell.method, cell.speedup, cell.epochs
        groups.setdefault(key, {})[cell.seed] = result
    rows = []
    for (task, method, speedup, epochs), of in sorted(groups.items(), key=_place):
        whole = groups[task, "whole", 1.0, 0]
        points = [100 * result.score for result in of.values()]
        losses = [100 * (of[seed].score - whole[seed].score) for seed in of]
        names = [
            json.dumps((r.metrics["heads"], r.metrics["neurons"])) for r in of.values()
        ]
        delivered = [measured[name] for name in names if name in measured]
        minutes = [r.metrics.get("training_seconds", 0) / 60 for r in of.values()]
        rows.append(
            [
                *(task, method, f"{speedup:g}", str(epochs), str(len(of))),
                _mean(delivered, 2),
                _mean([r.metrics["parameters"] / 1e6 for r in of.values()], 1),
                _mean(points, 2),
                _mean(losses, 2),
                _mean(minutes, 1) if epochs else "0",
            ]
        )
    header = ["task", "method", "asked", "epochs", "seeds", "delivered"]
    header += ["parameters, M", "score", "change", "minutes"]
    text = markdown_table(header, rows)
    write_json(
        directory / "compression.json",
        [dict(zip(header, r, strict=True)) for r in rows],
    )
    with replacing_file(directory / "compression.md") as temporary:
        temporary.write_text(f"{hardware()}, {datetime.date.today()}\n\n{text}\n")
    print(text)


def _place(group):
    (task, method, speedup, epochs), _ = group
    return task, epochs, ("whole", *METHODS).index(method), speedup


def _mean(values, digits):
    if not values:
        return "not measured"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean}±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main():
    """Runs a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("plan", "scores", "speeds"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--num-train-examples", type=int)
    parser.add_argument(
        "--tuned", type=float, nargs="*", default=SPEEDUPS, help="speeds, of `scores`"
    )
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    {"plan": plan, "scores": scores, "speeds": speeds}[options.part](options)


if __name__ == "__main__":
    main()
