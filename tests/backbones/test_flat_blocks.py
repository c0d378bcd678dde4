"""Blocks over one matrix of tokens are the blocks of keras-nlp."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import CLASSES, make_backbone, make_inputs

from keras_minilmv2.backbones import projections
from keras_minilmv2.backbones.attention import QKVAttention, attention_of
from keras_minilmv2.backbones.elementwise import activate, drop
from keras_minilmv2.backbones.flat_blocks import (
    FlatBlocks,
    can_be_flat,
    with_flat_blocks,
)
from keras_minilmv2.backbones.projections import block_calls, qkv_model
from keras_minilmv2.downstream.classifiers import text_classifier


def as_keras_has_it(monkeypatch, backbone, layer):
    with monkeypatch.context() as patch:
        patch.setattr(projections, "can_be_flat", lambda block: False)
        return qkv_model(backbone, layer)


def with_gradients(model, inputs, training):
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=training)
        loss = sum(tf.reduce_sum(tf.cast(x, "float32") ** 2) for x in outputs.values())
    variables = model.trainable_variables
    gradients = tape.gradient(loss, variables)
    # ELECTRA's classifier does not use the pooler.
    return outputs, {
        v.path: tf.convert_to_tensor(g)
        for v, g in zip(variables, gradients, strict=True)
        if g is not None
    }


def check_gradients(ours, theirs):
    """Equal but for rounding, which a bias of keys has nothing else of."""
    assert set(ours) == set(theirs)
    largest = max(float(tf.reduce_max(tf.abs(each))) for each in theirs.values())
    for path, gradient in theirs.items():
        np.testing.assert_allclose(ours[path], gradient, atol=1e-5 * largest)


@pytest.mark.parametrize("name", CLASSES)
def test_vectors_and_gradients_are_those_of_keras(monkeypatch, name):
    backbone = make_backbone(name)
    inputs = make_inputs(backbone)
    theirs, their_gradients = with_gradients(
        as_keras_has_it(monkeypatch, backbone, 4), inputs, training=False
    )
    ours, our_gradients = with_gradients(qkv_model(backbone, 4), inputs, training=False)
    real = np.asarray(inputs["padding_mask"]).astype(bool)
    for key in theirs:
        np.testing.assert_allclose(ours[key][real], theirs[key][real], atol=2e-5)
    check_gradients(our_gradients, their_gradients)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_compiled_activation_has_the_gradients_of_the_plain_one(monkeypatch, name):
    backbone = make_backbone(name)
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    inputs = make_inputs(backbone)
    theirs, their_gradients = with_gradients(
        as_keras_has_it(monkeypatch, backbone, 3), inputs, training=True
    )
    ours, our_gradients = with_gradients(qkv_model(backbone, 3), inputs, training=True)
    np.testing.assert_allclose(ours["query"], theirs["query"], atol=2e-5)
    check_gradients(our_gradients, their_gradients)


@pytest.mark.parametrize("name", CLASSES)
def test_a_classifier_is_the_same_with_flat_blocks(name):
    classifier = text_classifier(make_backbone(name), num_outputs=3, seed=0)
    flat = with_flat_blocks(classifier)
    assert any(isinstance(x, FlatBlocks) for x in flat._flatten_layers())
    # As the classifier is; moments that nobody uses would take memory.
    assert not flat.compiled
    inputs = make_inputs(classifier.backbone)
    (theirs, their_gradients), (ours, our_gradients) = (
        with_gradients(
            keras.Model(model.input, {"logits": model.output}), inputs, training=False
        )
        for model in (classifier, flat)
    )
    np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=2e-5)
    check_gradients(our_gradients, their_gradients)


def test_an_activation_gives_its_value_and_slope_in_training():
    x = tf.linspace(-4.0, 4.0, 33)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        plain = keras.activations.gelu(x)
        compiled = activate(keras.activations.gelu, x, training=True)
    np.testing.assert_allclose(compiled, plain, atol=1e-6)
    np.testing.assert_allclose(
        tape.gradient(compiled, x), tape.gradient(plain, x), atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [128, 127])
def test_dropout_drops_its_share_and_keeps_the_mean(width, dtype):
    layer = keras.layers.Dropout(0.1, seed=3)
    x = tf.ones((2_000, width), dtype)
    dropped = tf.cast(drop(layer, x, training=True), "float32").numpy()
    values = np.unique(dropped)
    assert len(values) == 2
    np.testing.assert_allclose(values, [0.0, 1 / 0.9], rtol=1e-2)
    share = np.mean(dropped == 0)
    # Five standard deviations of a share of 254,000 elements.
    assert abs(share - 0.1) < 5 * np.sqrt(0.09 / dropped.size)
    # Rows and columns alike.
    assert np.abs(np.mean(dropped == 0, axis=0) - 0.1).max() < 0.05
    again = tf.cast(drop(layer, x, training=True), "float32").numpy()
    assert 0.15 < np.mean(dropped != again) < 0.21


def test_dropout_passes_gradients_where_it_passes_values():
    layer = keras.layers.Dropout(0.5, seed=3)
    x = tf.random.stateless_normal((64, 64), (1, 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = drop(layer, x, training=True)
    gradient = tape.gradient(y, x)
    np.testing.assert_allclose(gradient * x, y, atol=1e-6)


def test_dropout_follows_its_seed():
    x = tf.ones((8, 64))
    ours, same = (
        drop(keras.layers.Dropout(0.5, seed=7), x, training=True) for _ in range(2)
    )
    np.testing.assert_array_equal(ours, same)


def test_dropout_does_nothing_at_rate_zero_or_in_inference():
    x = tf.ones((8, 64))
    assert drop(keras.layers.Dropout(0.0), x, training=True) is x
    assert drop(keras.layers.Dropout(0.5), x, training=False) is x


class NoAttention(QKVAttention):
    def _compute_attention(self, *args, **kwargs):
        heads, scores = super()._compute_attention(*args, **kwargs)
        return 0.0 * heads, scores


def test_a_block_with_another_attention_is_left_as_it_is():
    backbone = make_backbone("bert")
    inputs = make_inputs(backbone)
    block = block_calls(backbone)[1][0]
    assert can_be_flat(block)
    before = qkv_model(backbone, 4)(inputs)["query"]
    block._tracker.unlock()
    block._self_attention_layer = NoAttention.adopt(attention_of(block))
    assert not can_be_flat(block)
    after = qkv_model(backbone, 4)(inputs)["query"]
    assert np.abs(np.asarray(after) - np.asarray(before)).max() > 1e-3


def test_lengths_that_differ_from_call_to_call():
    backbone = make_backbone("bert")
    model = qkv_model(backbone, 3)
    function = tf.function(lambda inputs: model(inputs, training=False))
    long = make_inputs(backbone)
    short = {name: value[:1, :5] for name, value in long.items()}
    assert function(short)["query"].shape[:2] == (1, 5)
    assert function(long)["query"].shape[:2] == long["token_ids"].shape


def test_the_layer_says_its_shape():
    backbone = make_backbone("bert")
    blocks = [block for block, _ in block_calls(backbone)[:2]]
    hidden_dim = backbone.hidden_dim
    spec = FlatBlocks(blocks)(
        keras.KerasTensor((None, None, hidden_dim)),
        keras.KerasTensor((None, None), "int32"),
    )
    assert spec.shape == (None, None, hidden_dim)
