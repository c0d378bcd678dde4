"""Orders of removal, against sorting by hand, and curves of made-up metrics."""

import numpy as np
import pytest

from keras_minilmv2.heads.orders import (
    RemovalCurve,
    RemovalOrder,
    ablation_order,
    depth_order,
    hies_scores,
    iterative_order,
    joined,
    order_by_scores,
    random_order,
    removal_curve,
    reversed_order,
)

SCORES = np.array([[0.3, 0.1, 0.5], [0.2, 0.6, 0.4]])
LOWEST_FIRST = [(0, 1), (1, 0), (0, 0), (1, 2), (0, 2), (1, 1)]


def sequence(order):
    """Heads in the order in which they go, one in each step."""
    assert all(len(step) == 1 for step in order.removed())
    return [step[0] for step in order.removed()]


def test_heads_with_the_lowest_scores_go_first():
    order = order_by_scores("absolute", SCORES)
    assert sequence(order) == LOWEST_FIRST
    assert order.head_masks.shape == (7, 2, 3)
    assert (order.head_masks[0] == 1).all()
    assert (order.head_masks[-1] == 0).all()
    np.testing.assert_allclose(order.shares, np.arange(7) / 6)
    assert order.neuron_masks is None


def test_equal_scores_keep_their_order():
    assert sequence(order_by_scores("flat", np.zeros((2, 2)))) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


def test_shared_heads_go_from_all_layers_of_their_block():
    order = order_by_scores("shared", SCORES, block_of_layer=[0, 1, 0])
    assert order.head_masks.shape == (7, 3, 3)
    assert order.removed()[0] == [(0, 1), (2, 1)]
    assert order.removed()[1] == [(1, 0)]
    np.testing.assert_array_equal(order.head_masks[:, 0], order.head_masks[:, 2])


def test_reversed_removes_first_what_went_last():
    order = reversed_order(order_by_scores("absolute", SCORES))
    assert sequence(order) == LOWEST_FIRST[::-1]
    assert order.name == "absolute, reversed"
    assert sequence(reversed_order(order)) == LOWEST_FIRST


def test_random_orders_depend_on_the_seed_alone():
    one, again, other = (random_order((2, 3), seed) for seed in (1, 1, 2))
    assert sequence(one) == sequence(again) != sequence(other)
    assert sorted(sequence(one)) == sorted(LOWEST_FIRST)


def test_the_nearest_step_is_found():
    order = order_by_scores("absolute", SCORES)
    mask, neurons = order.at(0.4)
    np.testing.assert_array_equal(mask, [[1, 0, 1], [0, 1, 1]])
    assert neurons is None
    assert order.at(0.0)[0].all()
    assert not order.at(1.0)[0].any()
    with pytest.raises(ValueError, match="`share` must be .* at most 1. .* share=1.5"):
        order.at(1.5)


@pytest.mark.parametrize("heads_per_step", [1, 2, 4])
def test_scores_are_computed_again_after_each_step(heads_per_step):
    masks = []

    def scores_of(mask):
        masks.append(mask)
        return np.where(mask == 1, SCORES, -9)

    order = iterative_order("iterative", scores_of, (2, 3), heads_per_step)
    assert len(masks) == -(-6 // heads_per_step)
    assert [int((mask == 0).sum()) for mask in masks] == list(
        range(0, 6, heads_per_step)
    )
    # Each step looks at one mask; within a step the lowest of its scores go.
    assert sequence(order) == LOWEST_FIRST


def test_scores_that_depend_on_what_is_left_change_the_order():
    def scores_of(mask):
        # The best head of a layer is worthless alone.
        alone = (mask.sum(axis=1, keepdims=True) == 1) & (mask == 1)
        return np.where(alone, 0.0, SCORES)

    order = iterative_order("iterative", scores_of, (2, 3))
    # 0.3 leaves (0, 2) alone, which goes before 0.4.
    assert sequence(order) == [(0, 1), (1, 0), (0, 0), (0, 2), (1, 2), (1, 1)]


def test_iterative_scores_of_shared_heads_see_masks_of_layers():
    shapes = []

    def scores_of(mask):
        shapes.append(mask.shape)
        np.testing.assert_array_equal(mask[0], mask[1])
        return SCORES[:1]

    order = iterative_order("iterative", scores_of, (1, 3), block_of_layer=[0, 0])
    assert shapes == [(2, 3)] * 3
    assert order.removed()[0] == [(0, 1), (1, 1)]


def test_scores_that_are_wrong_are_refused():
    with pytest.raises(ValueError, match="`scores` must be finite .* 1 not finite"):
        order_by_scores("absolute", [[1.0, np.nan]])
    with pytest.raises(ValueError, match=r"`scores` must be .* of shape \(2,\)"):
        order_by_scores("absolute", [1.0, 2.0])
    with pytest.raises(ValueError, match=r"`scores_of` must return .* shape \(2, 3\)"):
        iterative_order("iterative", lambda mask: SCORES[:1], (2, 3))
    with pytest.raises(ValueError, match="`heads_per_step` must be an int of at least"):
        iterative_order("iterative", lambda mask: SCORES, (2, 3), 0)


def metric(head_mask, neuron_mask):
    """A metric in which every head has its worth."""
    assert neuron_mask is None
    return float((head_mask * SCORES).sum())


def test_ablation_removes_first_what_is_missed_least():
    assert sequence(ablation_order(metric, (2, 3))) == LOWEST_FIRST
    shared = ablation_order(
        lambda mask, _: float((mask * SCORES[[0, 1, 0]]).sum()), (2, 3), [0, 1, 0]
    )
    # Heads of the first block count twice.
    assert shared.removed()[0] in ([(0, 1), (2, 1)], [(1, 0)])
    assert shared.removed()[-1] == [(0, 2), (2, 2)]


def test_depth_removes_whole_layers():
    order = depth_order(num_heads=2, intermediate_dim=3, layers=[2, 0, 1])
    backwards = reversed_order(order, "first layers first")
    expected = depth_order(2, 3, [1, 0, 2])
    np.testing.assert_array_equal(backwards.head_masks, expected.head_masks)
    np.testing.assert_array_equal(backwards.neuron_masks, expected.neuron_masks)
    assert order.removed() == [[(2, 0), (2, 1)], [(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    assert order.neuron_masks.shape == (4, 3, 3)
    heads, neurons = order.at(0.3)
    np.testing.assert_array_equal(heads, [[1, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(neurons, [[1] * 3, [1] * 3, [0] * 3])
    for layers in ([0, 0, 1], [1, 2], []):
        with pytest.raises(ValueError, match="`layers` must be all layers, from 0"):
            depth_order(2, 3, layers)


def test_hies_mixes_importance_and_entropy():
    entropy = np.array([[2.0, 1.0, 0.5], [0.0, 1.5, 1.0]])
    expected = [
        [
            0.7 * (0.3 - 0.1) / 0.5 + 0.3 * (1 - 2.0 / 2.0),
            0.7 * 0.0 + 0.3 * (1 - 1.0 / 2.0),
            0.7 * (0.5 - 0.1) / 0.5 + 0.3 * (1 - 0.5 / 2.0),
        ],
        [
            0.7 * (0.2 - 0.1) / 0.5 + 0.3 * 1.0,
            0.7 * 1.0 + 0.3 * (1 - 1.5 / 2.0),
            0.7 * (0.4 - 0.1) / 0.5 + 0.3 * (1 - 1.0 / 2.0),
        ],
    ]
    np.testing.assert_allclose(hies_scores(SCORES, entropy, 0.7), expected)
    # All of it importance: its order.
    whole = order_by_scores("HIES", hies_scores(SCORES, entropy, 1.0))
    assert sequence(whole) == LOWEST_FIRST
    # A removed head is no part of the ranges.
    mask = np.array([[1, 0, 1], [1, 1, 1]])
    masked = hies_scores(SCORES, entropy, 1.0, mask)
    assert masked[0, 1] == 0
    np.testing.assert_allclose(masked[0, 0], (0.3 - 0.2) / 0.4)
    with pytest.raises(ValueError, match="`alpha` must be .* alpha=2"):
        hies_scores(SCORES, entropy, 2)
    with pytest.raises(ValueError, match=r"`entropy` must have the shape"):
        hies_scores(SCORES, entropy[:1], 0.5)


def test_a_curve_has_the_metric_at_each_share():
    calls = []

    def counted(head_mask, neuron_mask):
        calls.append(head_mask)
        return metric(head_mask, neuron_mask)

    order = order_by_scores("absolute", SCORES)
    curve = removal_curve(counted, order, [0.0, 0.5, 0.52, 1.0])
    np.testing.assert_allclose(curve.scores, [[2.1, 1.5, 1.5, 0.0]], atol=1e-6)
    np.testing.assert_allclose(curve.removed, [[0, 0.5, 0.5, 1]])
    assert len(calls) == 3
    assert np.isnan(curve.deviation).all()
    assert np.isnan(curve.band()[0]).all()
    with pytest.raises(ValueError, match="`metric` must return finite scores"):
        removal_curve(lambda *_: np.nan, order, [0.5])
    with pytest.raises(ValueError, match="`shares` must be at least one number"):
        removal_curve(metric, order, [])


def test_curves_of_several_seeds_have_a_band():
    curves = [
        removal_curve(metric, random_order((2, 3), s), [0, 0.5]) for s in range(4)
    ]
    curve = joined(curves, "random, 4 seeds")
    scores = np.array([each.scores[0] for each in curves])
    assert curve.scores.shape == (4, 2)
    np.testing.assert_allclose(curve.mean, scores.mean(axis=0))
    np.testing.assert_allclose(curve.deviation, scores.std(axis=0, ddof=1))
    low, high = curve.band()
    # Student's t with 3 degrees of freedom.
    half = 3.182446 * scores[:, 1].std(ddof=1) / 2
    np.testing.assert_allclose([low[1], high[1]], curve.mean[1] + [-half, half])
    np.testing.assert_allclose(low[0], high[0])
    other = RemovalCurve("other", np.array([0.1]), np.zeros((1, 1)), np.zeros((1, 1)))
    for wrong in ([], [curve, other]):
        with pytest.raises(ValueError, match="`curves` must be at least one"):
            joined(wrong)


def test_an_order_keeps_removed_what_is_removed():
    masks = np.ones((3, 1, 2), "float32")
    masks[1, 0, 0] = 0
    with pytest.raises(
        ValueError, match="`head_masks` must remove a head in each step"
    ):
        RemovalOrder("back", masks)
    with pytest.raises(ValueError, match="name='idle'"):
        RemovalOrder("idle", np.ones((2, 1, 2), "float32"))
