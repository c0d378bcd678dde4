import keras
import numpy as np
import pytest

import keras_minilmv2 as km
from keras_minilmv2.training.schedule import WarmupLinearDecay


def test_rate_rises_to_the_peak_and_falls_to_zero():
    schedule = WarmupLinearDecay(6e-4, warmup_steps=4, total_steps=12)
    rates = [float(schedule(step)) for step in range(14)]
    rise = [6e-4 * n / 4 for n in (1, 2, 3, 4)]
    fall = [6e-4 * n / 8 for n in range(8, 0, -1)]
    np.testing.assert_allclose(rates, [*rise, *fall, 0, 0], rtol=1e-6, atol=1e-12)


def test_rate_without_warmup_starts_at_the_peak():
    assert float(WarmupLinearDecay(1.0, 0, 10)(0)) == 1.0


def test_rate_is_exact_enough_at_the_end_of_a_long_run():
    schedule = WarmupLinearDecay(6e-4, 4_000, 1_000_000)
    expected = 6e-4 / (1_000_000 - 4_000)
    assert float(schedule(999_999)) == pytest.approx(expected, rel=1e-4)


def test_optimizer_survives_serialization():
    optimizer = km.adamw(6e-4, warmup_steps=10, total_steps=100)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == optimizer.get_config()


def test_one_update_is_adamw_written_out():
    """Decoupled decay on the matrix and not on the bias; clipping over both."""
    kernel = keras.Variable(np.ones((2, 2)), name="kernel")
    bias = keras.Variable(np.ones(2), name="bias")
    gradients = [np.full((2, 2), 3.0, "float32"), np.full(2, 2.0, "float32")]
    optimizer = km.adamw(
        0.1, warmup_steps=2, total_steps=10, weight_decay=0.5, epsilon=1e-6
    )
    optimizer.build([kernel, bias])
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients])
    rate = 0.1 / 2
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients))
    for variable, gradient, decay in (
        (kernel, gradients[0], 0.5),
        (bias, gradients[1], 0),
    ):
        clipped = gradient / norm
        # First update: both moments, corrected for their bias, are the gradient's.
        step = clipped / (np.abs(clipped) + 1e-6)
        expected = 1 - rate * decay - rate * step
        np.testing.assert_allclose(np.asarray(variable), expected, rtol=1e-4)


def test_norms_and_biases_do_not_decay():
    names = ["kernel", "embeddings", "bias", "gamma", "beta", "position_embeddings"]
    # Of a head over the vocabulary.
    names.append("output_bias")
    variables = [keras.Variable([1.0], name=name) for name in names]
    optimizer = km.adamw(0.1, 0, 10, weight_decay=0.5)
    optimizer.build(variables)
    optimizer.apply([keras.ops.zeros((1,)) for _ in names])
    values = [float(variable.value[0]) for variable in variables]
    np.testing.assert_allclose(values, [0.95, 0.95, 1, 1, 1, 0.95, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0, 10), "`peak_learning_rate` must be a finite number above 0"),
        ((float("nan"), 0, 10), "`peak_learning_rate` must be a finite number above 0"),
        ((1.0, -1, 10), "`warmup_steps` must be at least 0 and below"),
        ((1.0, 10, 10), "warmup_steps=10, total_steps=10"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        km.adamw(*arguments)
