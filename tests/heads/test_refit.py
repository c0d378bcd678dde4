"""Output matrices by least squares, on small encoders."""

import numpy as np
import pytest
from families import make_backbone, make_inputs

from keras_minilmv2.backbones.flat_blocks import output_matrices
from keras_minilmv2.backbones.projections import block_calls, hidden_states_model
from keras_minilmv2.heads.gates import gated_encoder
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.refit import refit_outputs


def batches(backbone, number=6):
    return [make_inputs(backbone, batch=16, seed=seed) for seed in range(number)]


def masks(backbone, seed=0):
    generator = np.random.default_rng(seed)
    heads = (generator.random((backbone.num_layers, backbone.num_heads)) < 0.6) * 1
    neurons = generator.random((backbone.num_layers, backbone.intermediate_dim)) < 0.6
    return heads, neurons * 1


def error(backbone, other, seed):
    """Mean squared difference of the last hidden states of real tokens."""
    inputs = make_inputs(backbone, batch=32, seed=seed)
    last = [backbone.num_layers]
    ours, theirs = (
        hidden_states_model(each, last)(inputs)[f"layer_{last[0]}"].numpy()
        for each in (backbone, other)
    )
    real = inputs["padding_mask"].astype(bool)
    return float(np.square(ours - theirs)[real].mean())


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_with_new_matrices_is_nearer_to_the_whole_one(name):
    """On batches that the matrices were not fitted on."""
    backbone = make_backbone(name)
    before = [np.array(w) for w in backbone.weights]
    kept = masks(backbone)
    pruned = prune_heads(backbone, *kept)
    refitted = prune_heads(refit_outputs(backbone, *kept, batches(backbone)), *kept)
    assert refitted.head_counts == pruned.head_counts
    assert error(backbone, refitted, 99) < 0.6 * error(backbone, pruned, 99)
    for old, weight in zip(before, backbone.weights, strict=True):
        np.testing.assert_array_equal(old, np.array(weight))


def test_the_first_matrix_solves_the_equations_of_the_residual_stream():
    """The first attention sees the same stream on both sides: plain least squares."""
    backbone = make_backbone("bert")
    kept = masks(backbone)
    refitted = refit_outputs(backbone, *kept, batches(backbone), penalty=0)
    block, _ = block_calls(backbone)[0]
    kernel = np.array(output_matrices(block)["heads"].kernel, "float64")
    kernel = kernel.reshape(-1, kernel.shape[-1])
    inner = np.repeat(kept[0][0].astype(bool), 6)
    gated = gated_encoder(backbone, return_inner=True)
    rows = []
    for batch in batches(backbone):
        ones = {
            "head_gate": np.ones((1, 4, 4)),
            "neuron_gate": np.ones((1, 4, 32)),
        }
        heads = gated({**batch, **ones})["inner"][0]["heads"].numpy()
        rows.append(heads[batch["padding_mask"].astype(bool)])
    x = np.concatenate(rows).astype("float64")
    left = np.concatenate([x[:, inner], np.ones((len(x), 1))], axis=1)
    wanted, *_ = np.linalg.lstsq(left, x @ kernel, rcond=None)
    block, _ = block_calls(refitted)[0]
    got = np.array(output_matrices(block)["heads"].kernel).reshape(kernel.shape)
    np.testing.assert_allclose(got[inner], wanted[:-1], atol=2e-3)
    np.testing.assert_array_equal(got[~inner], kernel[~inner].astype("float32"))


def test_nothing_removed_leaves_all_as_it_is():
    backbone = make_backbone("bert")
    ones = np.ones((4, 4)), np.ones((4, 32))
    refitted = refit_outputs(backbone, *ones, batches(backbone, 2))
    for old, new in zip(backbone.weights, refitted.weights, strict=True):
        np.testing.assert_allclose(np.array(old), np.array(new), atol=1e-4)


def test_layers_without_anything_have_a_new_bias():
    backbone = make_backbone("bert")
    heads, neurons = np.ones((4, 4)), np.ones((4, 32))
    heads[1], neurons[2] = 0, 0
    pruned = prune_heads(backbone, heads, neurons)
    refitted = refit_outputs(backbone, heads, neurons, batches(backbone))
    refitted = prune_heads(refitted, heads, neurons)
    assert error(backbone, refitted, 99) < error(backbone, pruned, 99)


def test_what_cannot_be_fitted_is_refused():
    albert, bert = make_backbone("albert"), make_backbone("bert")
    ones = np.ones((4, 4)), np.ones((4, 32))
    with pytest.raises(ValueError, match="share weights between layers.*ALBERT"):
        refit_outputs(albert, *ones, batches(albert, 1))
    with pytest.raises(ValueError, match="`batches` must not be empty"):
        refit_outputs(bert, *ones, [])
