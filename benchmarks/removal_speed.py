"""Sentences per second of encoders that lost attention heads, really and by masks.

    python benchmarks/removal_speed.py [--repeats N]

Three encoders of random weights take turns: the whole one, the whole one with the
heads' outputs multiplied by 0, and the one without these heads. The ceiling is what
operations alone promise: those of the whole encoder's layers by those of the pruned
one's. Needs a quiet machine.
"""

import argparse
import datetime
import statistics

import keras_hub
import numpy as np
import tensorflow as tf
from shapes import BASE, SMALL

from keras_minilmv2.heads.costs import operation_costs, random_batch
from keras_minilmv2.heads.gates import gated_encoder, ones_gates
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import count, markdown_table
from keras_minilmv2.utils.throughput import seconds_per_batch

LENGTH = 128
# Encoders, and heads that each layer keeps.
KEPT = (("6x384", SMALL, 6), ("6x384", SMALL, 3), ("12x768", BASE, 1))
BATCH_SIZES = (1, 16, 64)


def encoder(shape):
    """BERT of a shape, with random weights."""
    return keras_hub.models.BertBackbone(
        vocabulary_size=30_522,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        hidden_dim=shape.hidden_dim,
        intermediate_dim=shape.intermediate_dim,
        max_sequence_length=512,
    )


def measured(name, shape, kept, repeats):
    """Rows of a table."""
    whole = encoder(shape)
    head_mask = np.zeros((shape.num_layers, shape.num_heads), "int32")
    # Spread over the layer, as importance would.
    head_mask[:, np.linspace(0, shape.num_heads - 1, kept).round().astype(int)] = 1
    pruned, masked = prune_heads(whole, head_mask), gated_encoder(whole)
    costs = operation_costs(whole, LENGTH)
    neurons = np.full(shape.num_layers, shape.intermediate_dim)
    ceiling = costs.total(np.full(shape.num_layers, shape.num_heads), neurons)
    ceiling /= costs.total(head_mask.sum(axis=1), neurons)
    gates = ones_gates(masked)
    gates["head_gate"][:] = head_mask
    gates = {name: tf.constant(gate) for name, gate in gates.items()}
    models = {"whole": whole, "pruned": pruned}
    models["masked"] = lambda inputs, training: masked(
        {**inputs, **gates}, training=training
    )
    for batch_size in BATCH_SIZES:
        batch = random_batch(whole, batch_size, LENGTH)
        number = repeats * (5 if batch_size == 1 else 1)
        seconds = seconds_per_batch(models, batch, number)
        speeds = {
            model: batch_size / statistics.median(times)
            for model, times in seconds.items()
        }
        of = {
            model: statistics.median(
                a / b for a, b in zip(seconds[model], seconds["pruned"], strict=True)
            )
            for model in ("whole", "masked")
        }
        yield [
            f"{name}, {head_mask.sum()} of {head_mask.size} heads",
            count(pruned.count_params()),
            str(batch_size),
            *(f"{speeds[model]:.1f}" for model in ("whole", "masked", "pruned")),
            f"{of['whole']:.2f}",
            f"{of['masked']:.2f}",
            f"{ceiling:.2f}",
        ]


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    header = ["encoder", "parameters", "batch", "whole", "masked", "pruned"]
    header += ["times the whole", "times the masked", "ceiling"]
    rows = [row for each in KEPT for row in measured(*each, options.repeats)]
    print(f"{hardware()}, {datetime.date.today()}, {LENGTH} tokens, sentences/s\n")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
