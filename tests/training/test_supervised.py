"""The training step on models of a few weights, held against NumPy."""

import json

import keras
import numpy as np
import pytest

from keras_minilmv2.downstream.registry import TASKS
from keras_minilmv2.training.supervised import train, training_step


def test_a_step_follows_the_gradient():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(6, 3)).astype("float32")
    targets = generator.normal(size=6).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    kernel, bias = model.get_weights()
    error = inputs @ kernel[:, 0] + bias[0] - targets
    seen = []
    losses = train(
        training_step(model, TASKS["stsb"].loss, keras.optimizers.SGD(0.1)),
        [[(inputs[:4], targets[:4])], [(inputs[4:], targets[4:])]],
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    assert losses[0] == pytest.approx(np.mean(error[:4] ** 2), rel=1e-5)
    kernel -= 0.1 * 2 * np.mean(error[:4, None] * inputs[:4], axis=0)[:, None]
    bias -= 0.1 * 2 * np.mean(error[:4])
    error = inputs[4:] @ kernel[:, 0] + bias[0] - targets[4:]
    assert losses[1] == pytest.approx(np.mean(error**2), rel=1e-5)
    assert seen == [(1, losses[0]), (2, losses[1])]


def test_an_epochs_loss_is_the_mean_over_its_examples():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.set_weights([np.zeros((1, 1)), np.zeros(1)])
    ones = np.ones((3, 1), "float32")
    targets = np.float32([1, 1, 4])
    batches = [(ones[:2], targets[:2]), (ones[2:], targets[2:])]
    loss = TASKS["stsb"].loss
    step = training_step(model, loss, keras.optimizers.SGD(1e-9))
    (mean,) = train(step, [batches])
    assert mean == pytest.approx((1 + 1 + 16) / 3, rel=1e-4)


def test_adam_moves_rows_of_an_embedding_that_a_batch_does_not_have():
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="int32"),
            keras.layers.Embedding(4, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.Adam(0.1)
    rows = []
    for token in (1, 2):
        batch = np.full((2, 1), token, "int32"), np.ones(2, "float32")
        train(training_step(model, TASKS["stsb"].loss, optimizer), [[batch]])
        rows.append(np.array(model.layers[0].embeddings))
    moved = np.abs(rows[1] - rows[0]).max(axis=1) > 1e-3
    assert moved.tolist() == [False, True, True, False]


def test_a_loss_that_is_not_finite_ends_training():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    good = np.ones((1, 1), "float32"), np.ones(1, "float32")
    bad = good[0], np.float32([np.inf])
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        train(
            training_step(model, TASKS["stsb"].loss, keras.optimizers.SGD(0.1)),
            [[good, bad]],
        )


@pytest.mark.parametrize("stopped", [1, 2, 3, 5])
def test_training_goes_on_where_it_was(stopped):
    taken = []

    def step(inputs, targets):
        taken.append(float(inputs[0]))
        return inputs.mean()

    def epochs():
        for begin in (0, 3):
            yield [(np.float32([begin + i]), None) for i in range(3)]

    states = {}
    whole = train(step, epochs(), keep=lambda n, state: states.update({n: state}))
    assert whole == [1.0, 4.0]
    taken.clear()
    seen = []
    state = json.loads(json.dumps(states[stopped]))
    again = train(step, epochs(), on_step=lambda n, loss: seen.append(n), start=state)
    assert again == whole
    assert taken == [float(n) for n in range(stopped, 6)]
    assert seen == list(range(stopped + 1, 7))
