import keras
import numpy as np
import pytest

from keras_minilmv2.backbones.attention import QKVAttention

SHAPE = 2, 5, 12


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=SHAPE).astype("float32")


@pytest.fixture
def plain(x):
    attention = keras.layers.MultiHeadAttention(num_heads=3, key_dim=4, dropout=0.1)
    attention(x, x)
    return attention


def test_subclass_computes_what_plain_attention_does(plain, x):
    adopted = QKVAttention.adopt(plain)
    mask = np.tril(np.ones((1, 5, 5), bool))
    np.testing.assert_array_equal(
        adopted(x, x, attention_mask=mask), plain(x, x, attention_mask=mask)
    )
    shared = {id(weight) for weight in plain.weights}
    assert shared == {id(weight) for weight in adopted.weights}


def test_projections_are_those_that_attention_uses(plain, x):
    attention = QKVAttention.adopt(plain)
    output, vectors = attention(x, x, return_projections=True)
    np.testing.assert_allclose(output, plain(x, x), atol=1e-6)
    for name, dense in (
        ("query", plain.query_dense),
        ("key", plain.key_dense),
        ("value", plain.value_dense),
    ):
        assert vectors[name].shape == (2, 5, 3, 4)
        kernel, bias = (np.asarray(weight) for weight in dense.weights)
        expected = np.einsum("bld,dhc->blhc", x, kernel) + bias
        np.testing.assert_allclose(vectors[name], expected, atol=1e-5)


def test_projections_can_be_had_in_a_functional_model(x):
    inputs = keras.Input(SHAPE[1:])
    outputs = QKVAttention(num_heads=3, key_dim=4)(
        inputs, inputs, return_projections=True
    )
    model = keras.Model(inputs, outputs)
    output, vectors = model(x)
    assert output.shape == SHAPE
    assert vectors["key"].shape == (2, 5, 3, 4)


def test_projections_exclude_other_options(plain, x):
    with pytest.raises(ValueError, match="`return_projections` cannot be combined"):
        QKVAttention.adopt(plain)(
            x, x, return_projections=True, return_attention_scores=True
        )


def test_layer_survives_saving(x, tmp_path):
    layer = QKVAttention(num_heads=3, key_dim=4, dropout=0.2)
    inputs = keras.Input(SHAPE[1:])
    model = keras.Model(inputs, layer(inputs, inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), model(x))
    assert again.layers[1].get_config() == layer.get_config()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_layer_follows_the_dtype_policy(policy, x):
    layer = QKVAttention(num_heads=3, key_dim=4, dtype=policy)
    assert keras.backend.standardize_dtype(layer(x, x).dtype) == policy[6:]
    assert {weight.dtype for weight in layer.weights} == {"float32"}


def test_attention_that_is_not_built_is_refused():
    attention = keras.layers.MultiHeadAttention(2, 4, name="raw")
    with pytest.raises(ValueError, match="must be built .* attention='raw'"):
        QKVAttention.adopt(attention)
