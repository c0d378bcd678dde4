"""A step of training with gates on heads, against the same step of fine-tuning.

    python benchmarks/subset_steps.py [--repeats N]

BERT 6x384 of random weights with two classes, float32, batch 32. The steps take turns;
the ratio of each pair of neighbours counts, and the table has their median. Needs a
quiet machine.
"""

import argparse
import datetime
import statistics
import time

import keras
import numpy as np
from removal_speed import encoder
from shapes import SMALL

from keras_minilmv2.downstream.registry import TASKS
from keras_minilmv2.heads.costs import random_batch
from keras_minilmv2.heads.l0_gates import L0Gates
from keras_minilmv2.heads.subset import VARIANTS, HeadSubset, TemperatureSchedule
from keras_minilmv2.heads.subset_training import SubsetTraining
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.training.supervised import training_step
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import markdown_table

TASK = TASKS["sst2"]
BATCH_SIZE, LENGTHS, KEPT = 32, (32, 128), (12, 36)
PLAIN = "fine-tuning"


def steps_of(shape, kept):
    """Step functions by name, each with a model of its own."""
    backbone = encoder(shape)
    sizes = shape.num_layers, shape.num_heads, kept

    def model():
        return TASK.training_model(TASK.model(backbone, seed=0))

    def gated(gates, joint):
        return SubsetTraining(
            model(),
            gates,
            TASK.loss,
            adamw(1e-5, 10, 1_000) if joint else None,
            adamw(0.1, 0, 1_000, weight_decay=0.0),
            TemperatureSchedule(10.0, 0.01, 800, 1_000),
        ).step

    steps = {PLAIN: training_step(model(), TASK.loss, adamw(1e-5, 10, 1_000))}
    for variant in VARIANTS:
        steps[f"joint {variant}"] = gated(HeadSubset(*sizes, variant=variant), True)
    steps["joint l0"] = gated(L0Gates(*sizes, cooldown_steps=800), True)
    steps["pipelined bounded"] = gated(HeadSubset(*sizes, variant="bounded"), False)
    return steps, backbone


def ratios(steps, batch, repeats):
    """Seconds of each step by that of fine-tuning before it, and the latter's."""
    found, plain = {name: [] for name in steps if name != PLAIN}, []

    def seconds(name):
        started = time.perf_counter()
        float(steps[name](*batch))
        return time.perf_counter() - started

    for name in steps:
        seconds(name)  # compiles
    for _ in range(repeats):
        for name, values in found.items():
            before = seconds(PLAIN)
            values.append(seconds(name) / before)
            plain.append(before)
    return found, plain


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    rows = []
    for kept in KEPT:
        steps, backbone = steps_of(SMALL, kept)
        for length in LENGTHS:
            labels = np.arange(BATCH_SIZE, dtype="int32") % 2
            batch = random_batch(backbone, BATCH_SIZE, length), labels
            found, plain = ratios(steps, batch, options.repeats)
            milliseconds = f"{1_000 * statistics.median(plain):.0f}"
            row = [str(kept), f"{BATCH_SIZE} x {length}", milliseconds]
            row += [f"{statistics.median(values):.2f}" for values in found.values()]
            rows.append(row)
            print(row, flush=True)
        del steps
        keras.backend.clear_session()
    header = ["heads kept", "batch x length", f"{PLAIN}, ms", *found]
    print(markdown_table(header, rows))
    print(f"{hardware()}, {datetime.date.today()}")


if __name__ == "__main__":
    main()
