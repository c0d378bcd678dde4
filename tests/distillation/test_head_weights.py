"""From the importance of attention heads to weights of relation heads."""

import numpy as np
import pytest

import keras_minilmv2 as km


def test_a_relation_head_inside_an_attention_head_has_its_importance():
    importance = np.arange(1.0, 13.0)
    weights = km.relation_head_weights(importance, 48)
    np.testing.assert_allclose(weights, np.repeat(importance, 4) / 6.5, rtol=1e-12)


@pytest.mark.parametrize("num_relation_heads", [1, 2, 3, 4, 6, 8, 24])
def test_weights_are_means_over_channels(num_relation_heads):
    importance = np.random.default_rng(0).uniform(size=4)
    weights = km.relation_head_weights(importance, num_relation_heads)
    # 24 channels: 6 to an attention head.
    channels = [importance[channel // 6] for channel in range(24)]
    width = 24 // num_relation_heads
    expected = [
        np.mean(channels[first : first + width]) / np.mean(channels)
        for first in range(0, 24, width)
    ]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert np.mean(weights) == pytest.approx(1.0, rel=1e-12)


def test_a_relation_head_across_two_attention_heads_has_its_share_of_both():
    weights = km.relation_head_weights([3.0, 0.0], 3)
    np.testing.assert_allclose(weights, [2.0, 1.0, 0.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones((6, 12)), "that of one layer. Received: head_importance of shape"),
        ([1.0, -0.5], "finite values of at least 0. Received: -0.5"),
        ([1.0, np.nan], "finite values of at least 0. Received: nan"),
        ([0.0, 0.0], "a value above 0. Received: 2 values, none above 0"),
        ([], "`head_importance` must have a value above 0. Received: 0 values"),
    ],
)
def test_wrong_importance_is_refused(importance, message):
    with pytest.raises(ValueError, match=message):
        km.relation_head_weights(importance, 4)


def test_a_number_of_relation_heads_must_be_an_int():
    with pytest.raises(TypeError, match="`num_relation_heads` must be an int"):
        km.relation_head_weights([1.0, 2.0], 4.0)
