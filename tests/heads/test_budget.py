"""Budgets: what can be had, and importance on the way to it."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from families import make_backbone

from keras_minilmv2.heads.budget import (
    check_speedup,
    gradual_importance,
    keep_within,
)
from keras_minilmv2.heads.costs import operation_costs

LAYERS, HEADS, NEURONS = 4, 4, 64


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("bert", intermediate_dim=NEURONS)


def measured(head_mask, neuron_mask, seed):
    """An importance, none of what is removed."""
    rng = np.random.default_rng(seed)
    heads, neurons = rng.random((LAYERS, HEADS)), rng.random((LAYERS, NEURONS)) / 20
    if head_mask is not None:
        heads, neurons = heads * head_mask, neurons * neuron_mask
    return SimpleNamespace(
        heads=SimpleNamespace(fisher=heads),
        neurons=SimpleNamespace(fisher=neurons),
        shared_heads=None,
        shared_neurons=None,
        head_blocks=None,
        neuron_blocks=None,
        block_of_layer=np.arange(LAYERS),
    )


def test_rounds_come_near_a_budget_by_equal_factors(backbone):
    costs, fitted, seen = operation_costs(backbone, 32), [], []

    def refit(head_mask, neuron_mask):
        fitted.append((head_mask, neuron_mask))
        return f"encoder {len(fitted)}"

    def measure(encoder, head_mask, neuron_mask):
        seen.append(encoder)
        return measured(head_mask, neuron_mask, len(seen))

    found = gradual_importance(measure, refit, backbone, costs, 8.0, 3)
    assert seen == [backbone, "encoder 1", "encoder 2"]
    kept = keep_within(backbone, found[-1], costs, 8.0)
    masks = [*fitted, (kept.head_mask, kept.neuron_mask)]
    whole = costs.total([HEADS] * LAYERS, [NEURONS] * LAYERS)
    for wanted, (heads, neurons) in zip((2, 4, 8), masks, strict=True):
        speed = whole / costs.total(heads.sum(1), neurons.sum(1))
        # The next neuron would be too much.
        assert wanted <= speed < 1.1 * wanted
    for before, after in itertools.pairwise(masks):
        for more, fewer in zip(before, after, strict=True):
            assert (fewer <= more).all()
    # What is removed was chosen by the importance of its own round.
    first = measured(None, None, 1).heads.fisher
    assert first[masks[0][0] == 1].min() > np.median(first[masks[0][0] == 0])


def test_one_round_measures_the_whole_encoder_alone(backbone):
    costs, seen = operation_costs(backbone, 32), []

    def measure(*arguments):
        seen.append(arguments)
        return measured(None, None, 0)

    found = gradual_importance(measure, None, backbone, costs, 2.0, 1)
    assert seen == [(backbone, None, None)]
    assert len(found) == 1


def test_a_speed_that_cannot_be_had_names_the_highest(backbone):
    costs = operation_costs(backbone, 32)
    check_speedup(backbone, costs, 1e6)
    head, neuron = costs.heads[-1], costs.neurons[-1]
    most = (head + neuron) / neuron
    check_speedup(backbone, costs, most, heads_only=True)
    message = rf"`speedup` .*every head gives.* the most is {most:.2f}\."
    with pytest.raises(ValueError, match=message):
        check_speedup(backbone, costs, most + 0.1, heads_only=True)
    with pytest.raises(ValueError, match=message):
        keep_within(
            backbone, measured(None, None, 0), costs, most + 0.1, heads_only=True
        )
