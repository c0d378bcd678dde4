"""Costs of heads and neurons."""

import numpy as np
import pytest
from families import make_backbone

from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.heads.costs import (
    fitted_costs,
    measured_costs,
    operation_costs,
    parameter_costs,
    random_batch,
)
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.planning.costs import _forward_operations
from keras_minilmv2.planning.shapes import encoder_shape


@pytest.mark.parametrize("name", ["bert", "albert", "electra_small"])
def test_parameters_are_those_of_pruned_encoders(name):
    backbone = make_backbone(name)
    costs = parameter_costs(backbone)
    heads, neurons = np.ones((4, 4)), np.ones((4, 32))
    heads[:, :3], neurons[:, :12] = 0, 0
    pruned = prune_heads(backbone, heads, neurons)
    runs = 1 if name != "albert" else 4
    removed = costs.total([4] * 4, [32] * 4) - costs.total([1] * 4, [20] * 4)
    assert backbone.count_params() - pruned.count_params() == removed / runs
    blocks = sum(block.count_params() for block, _ in block_calls(backbone))
    assert costs.total([4] * 4, [32] * 4) == blocks


def test_operations_are_those_that_a_plan_counts():
    backbone = make_backbone("bert")
    costs = operation_costs(backbone, sequence_length=10)
    shape = encoder_shape(backbone)
    # From the second layer to the third's projections: one layer. A plan counts the
    # softmax too, 5 operations for an entry.
    layer = _forward_operations(shape, 3, 0, 1, 10) - _forward_operations(
        shape, 2, 0, 1, 10
    )
    assert costs.total([4], [32]) == layer - 5 * 4 * 10 * 10
    assert costs.total([0], [0]) == 0


@pytest.mark.slow
def test_measured_costs_rise():
    backbone = make_backbone("bert", hidden_dim=64, intermediate_dim=256)
    costs = measured_costs(backbone, batch_size=8, sequence_length=16, rounds=3)
    assert costs.base > 0
    assert costs.heads.shape == (5,)
    assert costs.neuron_counts[[0, -1]].tolist() == [0, 256]
    for table in (costs.heads, costs.neurons):
        assert table[0] == 0
        assert (np.diff(table) >= 0).all()
    between = costs.total([4] * 4, [costs.neuron_counts[3] + 1] * 4)
    assert costs.total([4] * 4, [costs.neuron_counts[3]] * 4) <= between


def test_costs_of_noise_are_a_line_and_real_steps_stay():
    counts = np.arange(0, 13)
    noise = np.random.default_rng(0).normal(0, 0.02, (7, 13)) * (counts > 0)
    # 3 in 100 of each count, with noise of two thirds of that.
    found = fitted_costs(counts, 0.03 * counts + noise)
    np.testing.assert_allclose(found / counts.clip(1), 0.03 * (counts > 0), rtol=0.05)
    steps = np.ceil(counts / 4) * 0.12
    found = fitted_costs(counts, steps + noise)
    np.testing.assert_allclose(found, steps, atol=0.02)
    assert (np.diff(found) >= 0).all()
    # Of one round there is nothing to compare.
    np.testing.assert_allclose(fitted_costs(counts, 0.5 * counts[None]), 0.5 * counts)


def test_a_random_batch_has_the_inputs_of_the_encoder():
    for name in ("bert", "roberta"):
        backbone = make_backbone(name)
        batch = random_batch(backbone, 2, 8)
        assert set(batch) == set(backbone.input)
        assert batch["padding_mask"].all()
