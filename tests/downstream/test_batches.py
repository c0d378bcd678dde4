"""Batches of like lengths, and the outputs for all of them."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_minilmv2.downstream.batches import plan_batches, predict, training_epochs
from keras_minilmv2.downstream.texts import EncodedTexts


def of_lengths(lengths, sequence_length=64):
    """Texts whose tokens are all the number of their text."""
    numbers = np.repeat(np.arange(len(lengths)), lengths).astype("int32")
    return EncodedTexts(numbers, None, lengths, sequence_length, pad_id=-1)


def test_batches_hold_every_text_once_at_its_length():
    generator = np.random.default_rng(0)
    texts = of_lengths(generator.integers(1, 65, 101))
    lengths = texts.padded_lengths()
    batches = plan_batches(lengths, 8, np.random.default_rng(0))
    assert len(batches) == math.ceil(101 / 8)
    assert sorted(np.concatenate([i for i, _ in batches])) == list(range(101))
    assert sorted({len(indices) for indices, _ in batches}) == [101 % 8, 8]
    for indices, length in batches:
        batch = texts.inputs(indices, length)
        assert length % texts.length_step == 0
        np.testing.assert_array_equal(
            batch["padding_mask"].sum(axis=1), texts.lengths[indices]
        )
        own = np.where(batch["padding_mask"], indices[:, None], -1)
        np.testing.assert_array_equal(batch["token_ids"], own)
    # Most of a batch is text.
    padding = sum(length * len(i) for i, length in batches) / texts.lengths.sum()
    assert padding < 1.4


def test_no_batch_is_longer_than_the_position_table():
    assert of_lengths([3, 17, 20], 20).padded_lengths().tolist() == [16, 20, 20]


def test_epochs_depend_on_the_seed_and_differ():
    texts = of_lengths(np.full(40, 5))
    texts.labels = np.arange(40)

    def drawn(seed):
        epochs = training_epochs(texts, 8, 2, seed)
        return [np.concatenate([labels for _, labels in epoch]) for epoch in epochs]

    one, same, other = drawn(0), drawn(0), drawn(1)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], other[0])
    assert sorted(one[1]) == list(range(40))


def test_one_graph_serves_batches_of_every_size():
    traced = []

    class Counts(keras.layers.Layer):
        def call(self, inputs):
            traced.append(inputs.shape)
            return tf.cast(inputs[:, :1], "float32")

    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    model = keras.Model(inputs, Counts()(inputs["token_ids"]))
    traced.clear()
    texts = of_lengths([3, 20, 40, 1, 64])
    outputs = predict(model, texts, batch_size=2)
    assert outputs[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(traced) == 1
