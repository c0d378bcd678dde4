"""What heads and neurons of an encoder cost: seconds, operations or parameters."""

import statistics
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import isotonic_regression

from keras_minilmv2.backbones.families import (
    family_of,
    uses_segment_ids,
    vocabulary_size,
)
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.utils.checks import check_int
from keras_minilmv2.utils.throughput import seconds_per_batch

# Layers of the encoders that are timed: embeddings weigh less, and memory stays small.
_TIMED_LAYERS = 2


@dataclass(frozen=True)
class Costs:
    """What one layer costs by what it keeps; the same for all layers.

    Args:
        unit: str, what is counted: `"seconds"`, `"operations"` or `"parameters"`.
        base: float. What the encoder costs without heads and neurons.
        heads: float64 `(num_heads + 1,)`, of 0, 1, ... heads in a layer; the first
            is 0.
        neuron_counts: int `(choices,)`, ascending, from 0 to all neurons of a layer.
        neurons: float64 `(choices,)`, the costs of these counts; the first is 0.
    """

    unit: str
    base: float
    heads: np.ndarray
    neuron_counts: np.ndarray
    neurons: np.ndarray

    def total(self, head_counts, neuron_counts):
        """What an encoder costs.

        Args:
            head_counts: int `(num_layers,)`.
            neuron_counts: int `(num_layers,)`; between two measured ones the cost is
                interpolated.
        """
        neurons = np.interp(neuron_counts, self.neuron_counts, self.neurons)
        return float(
            self.base + self.heads[np.asarray(head_counts)].sum() + neurons.sum()
        )


def operation_costs(backbone, sequence_length):
    """Floating-point operations of one sequence, matrix products alone.

    Two for a multiplication and an addition. A head costs `8 d_k d` a token for its
    four matrices and `4 d_k` for each pair of tokens; a neuron `4 d` a token.

    Args:
        backbone: keras-nlp backbone of a supported family.
        sequence_length: int, tokens.
    """
    check_int(sequence_length=sequence_length)
    width, head_dim = backbone.hidden_dim, backbone.hidden_dim // backbone.num_heads
    head = 8 * head_dim * width * sequence_length + 4 * head_dim * sequence_length**2
    return _straight("operations", 0.0, backbone, head, 4 * width * sequence_length)


def parameter_costs(backbone):
    """Parameters of the layers, without embeddings and pooler.

    A head has `4 d_k d + 3 d_k`, a neuron `2 d + 1`; what is left of a layer, two
    norms and two biases, has `6 d`. ALBERT's are counted for each layer that runs.
    """
    width, head_dim = backbone.hidden_dim, backbone.hidden_dim // backbone.num_heads
    base = 6.0 * width * len(block_calls(backbone))
    head = 4 * head_dim * width + 3 * head_dim
    return _straight("parameters", base, backbone, head, 2 * width + 1)


def _straight(unit, base, backbone, head, neuron):
    counts = _grid(backbone.intermediate_dim, backbone.intermediate_dim // 96)
    heads = head * np.arange(backbone.num_heads + 1.0)
    return Costs(unit, base, heads, counts, neuron * counts.astype("float64"))


def _grid(number, step):
    """From 0 to a number, and the number itself."""
    return np.unique([*range(0, number, max(step, 1)), number])


def measured_costs(backbone, batch_size, sequence_length, *, rounds=7):
    """Seconds of one batch on this machine, by what a layer keeps.

    Encoders of two layers and of the backbone's widths take turns: with 0, 1, ...
    heads in every layer and all neurons, and with 24ths of the neurons and all heads.
    A layer's seconds are half the difference to the encoder without; a curve through
    their medians, see `fitted_costs`. `base` is that of the backbone itself, measured
    without heads and neurons.

    Args:
        backbone: keras-nlp backbone of a supported family.
        batch_size: int, sequences.
        sequence_length: int, tokens.
        rounds: int. How often every encoder runs.
    """
    check_int(batch_size=batch_size, sequence_length=sequence_length, rounds=rounds)
    num_heads, num_neurons = backbone.num_heads, backbone.intermediate_dim
    neuron_counts = _grid(num_neurons, num_neurons // 24)
    small = student_backbone(
        backbone,
        num_layers=_TIMED_LAYERS,
        num_heads=num_heads,
        hidden_dim=backbone.hidden_dim,
        intermediate_dim=num_neurons,
        seed=0,
    )
    models = {("heads", n): pruned_to(small, n, num_neurons) for n in range(num_heads)}
    models |= {("neurons", n): pruned_to(small, num_heads, n) for n in neuron_counts}
    models["bare"] = pruned_to(backbone, 0, 0)
    batch = random_batch(backbone, batch_size, sequence_length)
    seconds = seconds_per_batch(models, batch, rounds)
    seconds["heads", num_heads] = seconds["neurons", num_neurons]

    def layer(kind, counts):
        times = np.array([seconds[kind, n] for n in counts]).T
        return fitted_costs(counts, (times - times[:, :1]) / _TIMED_LAYERS)

    return Costs(
        "seconds",
        statistics.median(seconds["bare"]),
        layer("heads", np.arange(num_heads + 1)),
        neuron_counts,
        layer("neurons", neuron_counts),
    )


def fitted_costs(counts, seconds):
    """What counts cost, from rounds of noisy measurements: a straight line or steps.

    The line goes through 0; the steps are the isotonic regression of the medians, and
    are taken only where they predict a round from the other rounds better than the line
    does, by the sum of absolute errors. Steps that are noise would make counts at their
    upper ends look cheap.

    Args:
        counts: int `(choices,)`, ascending from 0.
        seconds: float `(rounds, choices)`; the first column is 0.

    Returns:
        float64 `(choices,)`, which never falls, from 0.
    """
    counts = np.asarray(counts, "float64")

    def line(rounds):
        slope = counts @ np.median(rounds, axis=0) / (counts @ counts)
        return max(slope, 0.0) * counts

    def steps(rounds):
        return isotonic_regression(np.median(rounds, axis=0), y_min=0)

    def error(fit):
        return sum(
            np.abs(fit(np.delete(seconds, left_out, axis=0)) - times).sum()
            for left_out, times in enumerate(seconds)
        )

    if len(seconds) < 2:
        return line(seconds)
    return min(line, steps, key=error)(seconds)


def pruned_to(backbone, num_heads, num_neurons):
    """The encoder with the first heads and neurons of every layer alone."""
    layers = len(block_calls(backbone))
    head_mask = np.arange(backbone.num_heads) < num_heads
    neuron_mask = np.arange(backbone.intermediate_dim) < num_neurons
    return prune_heads(
        backbone,
        np.tile(head_mask, (layers, 1)).astype("int32"),
        np.tile(neuron_mask, (layers, 1)).astype("int32"),
    )


def random_batch(backbone, batch_size, sequence_length):
    """Sequences of random tokens without padding, the inputs of an encoder."""
    family_of(backbone)
    shape = batch_size, sequence_length
    generator = np.random.default_rng(0)
    batch = {
        "token_ids": generator.integers(0, vocabulary_size(backbone), shape, "int32"),
        "padding_mask": np.ones(shape, "int32"),
    }
    if uses_segment_ids(backbone):
        batch["segment_ids"] = np.zeros(shape, "int32")
    return batch
