"""Heads and neurons to keep so that an encoder is as fast, or as small, as asked."""

import statistics
from dataclasses import dataclass

import numpy as np

from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.heads.costs import (
    measured_costs,
    operation_costs,
    parameter_costs,
    random_batch,
)
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.search import BudgetError, choose_masks
from keras_minilmv2.utils.checks import check_choice
from keras_minilmv2.utils.throughput import seconds_per_batch

BUDGETS = ("latency", "operations", "parameters")
# Tries to meet the asked speed, how near is near enough, and runs of each measurement.
_MOST_TRIES, _NEAR, _REPEATS = 5, 0.015, 15


@dataclass(frozen=True, eq=False)
class Kept:
    """What an encoder keeps.

    Args:
        head_mask: int32 `(num_layers, num_heads)` of 0 and 1.
        neuron_mask: int32 `(num_layers, intermediate_dim)` of 0 and 1.
        planned: float. How many times as fast, or as small, the table of costs says
            that it is.
        delivered: float. The same, measured beside the whole encoder; of counted
            budgets what is planned.
    """

    head_mask: np.ndarray
    neuron_mask: np.ndarray
    planned: float
    delivered: float


def encoder_costs(backbone, budget, batch_size, sequence_length):
    """The `Costs` of a budget's kind.

    Args:
        backbone: keras-nlp backbone of a supported family.
        budget: str. `"latency"`, `"operations"` or `"parameters"`.
        batch_size: int, sequences whose latency counts.
        sequence_length: int, tokens of these.
    """
    check_choice(BUDGETS, budget=budget)
    if budget == "operations":
        return operation_costs(backbone, sequence_length)
    if budget == "parameters":
        return parameter_costs(backbone)
    return measured_costs(backbone, batch_size, sequence_length)


def planned_masks(backbone, importance, costs, speedup, *, heads_only=False):
    """The heads and neurons that keep the most Fisher information within a budget.

    Args:
        backbone: keras-nlp backbone of a supported family, not pruned.
        importance: `HeadImportance`; see `keep_within`.
        costs: `Costs` of the encoder.
        speedup: float above 1. How many times less it must cost by `costs`.
        heads_only: bool. Whether all neurons stay.

    Returns:
        tuple of int32 masks, `(num_layers, num_heads)` and `(num_layers,
        intermediate_dim)`.

    Raises:
        BudgetError: if the encoder costs more without any of them.
    """
    heads = importance.shared_heads or importance.heads
    neurons = importance.shared_neurons or importance.neurons
    masks = choose_masks(
        heads.fisher,
        None if heads_only else neurons.fisher,
        costs,
        costs.total(*layer_counts(backbone)) / speedup,
        head_products=importance.head_blocks,
        neuron_products=importance.neuron_blocks,
        num_runs=np.bincount(importance.block_of_layer),
    )
    return tuple(mask[importance.block_of_layer] for mask in masks)


def check_speedup(backbone, costs, speedup, *, heads_only=False):
    """Raises unless a speed can be had, by what an encoder costs.

    Args: as for `planned_masks`.

    Raises:
        ValueError: if the encoder is not that fast without any head and neuron; the
            sentence has the highest speed.
    """
    heads, neurons = layer_counts(backbone)
    heads, neurons = np.array(heads), np.array(neurons)
    kept = neurons if heads_only else np.zeros_like(neurons)
    whole = costs.total(heads, neurons)
    least = costs.total(np.zeros_like(heads), kept)
    if whole / speedup < least:
        raise ValueError(
            "`speedup` must not be above what removing every head"
            f"{'' if heads_only else ' and neuron'} gives. Received: "
            f"speedup={speedup:g}, the most is {whole / least:.2f}."
        )


def gradual_importance(
    measure, refit, backbone, costs, speedup, num_rounds, *, heads_only=False
):
    """Importance on the way to a budget, measured again after each part of it.

    Round r of R removes what a budget of `speedup^(r / R)` has no place for, fits the
    output matrices of what is left, and measures importance without what is removed.
    Units that stood in for each other count once one of them is gone. What a round
    removes has no importance afterwards.

    Args:
        measure: function of an encoder, a head mask and a neuron mask, or None for no
            masks, that returns `HeadImportance`.
        refit: function of both masks that returns the encoder with fitted matrices.
        backbone: keras-nlp backbone, as for `planned_masks`.
        costs: `Costs` of the encoder.
        speedup: float above 1.
        num_rounds: int, R. 1 measures the whole encoder alone.
        heads_only: bool. Whether all neurons stay.

    Returns:
        list of `HeadImportance`: the first of the whole encoder, the last for
        `keep_within`.
    """
    found = [measure(backbone, None, None)]
    for number in range(1, num_rounds):
        part = speedup ** (number / num_rounds)
        masks = planned_masks(backbone, found[-1], costs, part, heads_only=heads_only)
        found.append(measure(refit(*masks), *masks))
    return found


def keep_within(
    backbone,
    importance,
    costs,
    speedup,
    *,
    batch_size=32,
    sequence_length=128,
    heads_only=False,
    on_try=None,
):
    """Chooses the heads and neurons that keep the most Fisher information.

    With measured costs the encoder that was chosen is built and runs in turns with the
    whole one. Where it is not as fast as asked, to 1.5 in 100, another one is planned
    for a speed that is corrected by the ratio, up to four times; the nearest counts.

    Args:
        backbone: keras-nlp backbone of a supported family, not pruned.
        importance: `HeadImportance`. Where it has blocks of the Fisher information,
            they decide which heads, or neurons, of a layer are kept.
        costs: `Costs` of the encoder.
        speedup: float above 1. How many times less it must cost.
        batch_size: int, sequences of the measurement.
        sequence_length: int, tokens of these.
        heads_only: bool. Whether all neurons stay.
        on_try: function of the number of a measurement, the planned and the measured
            speed.

    Returns:
        `Kept`.

    Raises:
        ValueError: if the encoder is not that fast without any head and neuron; the
            sentence has the highest speed.
    """
    check_speedup(backbone, costs, speedup, heads_only=heads_only)
    whole = costs.total(*layer_counts(backbone))
    batch = random_batch(backbone, batch_size, sequence_length)
    target, best = speedup, None
    for number in range(1, _MOST_TRIES + 1):
        try:
            masks = planned_masks(
                backbone, importance, costs, target, heads_only=heads_only
            )
        except BudgetError:
            # A speed that measuring made higher than what can be had.
            break
        planned = whole / costs.total(*(mask.sum(axis=1) for mask in masks))
        if costs.unit != "seconds":
            return Kept(*masks, planned, planned)
        models = {"whole": backbone, "smaller": prune_heads(backbone, *masks)}
        seconds = seconds_per_batch(models, batch, _REPEATS)
        delivered = statistics.median(map(lambda a, b: a / b, *seconds.values()))
        if on_try is not None:
            on_try(number, planned, delivered)
        kept = Kept(*masks, planned, delivered)
        best = min(
            filter(None, (best, kept)), key=lambda k: abs(k.delivered / speedup - 1)
        )
        if abs(delivered / speedup - 1) < _NEAR:
            break
        target *= speedup / delivered
    return best
