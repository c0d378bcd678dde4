import keras
import keras_hub
import numpy as np
import pytest

from keras_minilmv2.backbones.attention import (
    GatedAttention,
    QKVAttention,
    attention_of,
    replace_attention,
)
from keras_minilmv2.backbones.projections import block_calls

SHAPE = 2, 5, 12


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=SHAPE).astype("float32")


@pytest.fixture
def plain(x):
    attention = keras.layers.MultiHeadAttention(num_heads=3, key_dim=4, dropout=0.1)
    attention(x, x)
    return attention


@pytest.mark.parametrize("attention_class", [QKVAttention, GatedAttention])
def test_subclass_computes_what_plain_attention_does(attention_class, plain, x):
    adopted = attention_class.adopt(plain)
    mask = np.tril(np.ones((1, 5, 5), bool))
    np.testing.assert_array_equal(
        adopted(x, x, attention_mask=mask), plain(x, x, attention_mask=mask)
    )
    shared = {id(weight) for weight in plain.weights}
    assert shared <= {id(weight) for weight in adopted.weights}


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


def test_gate_multiplies_the_output_of_its_head(plain, x):
    gated = GatedAttention.adopt(plain)
    gate = np.array([0.5, 0.0, 2.0], "float32")
    gated.head_gate.assign(gate)
    kernel = np.asarray(plain.output_dense.kernel)
    output = gated(x, x)
    plain.output_dense.kernel.assign(kernel * gate[:, None, None])
    np.testing.assert_allclose(output, plain(x, x), atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        QKVAttention(num_heads=3, key_dim=4, dropout=0.2),
        GatedAttention(num_heads=3, key_dim=4, train_gate=True),
    ],
    ids=["qkv", "gated"],
)
def test_layers_survive_saving(layer, x, tmp_path):
    inputs = keras.Input(SHAPE[1:])
    model = keras.Model(inputs, layer(inputs, inputs))
    if isinstance(layer, GatedAttention):
        layer.head_gate.assign([1.0, 0.5, 0.0])
        assert "head_gate" in [weight.name for weight in layer.trainable_weights]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), model(x))
    assert again.layers[1].get_config() == layer.get_config()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("attention_class", [QKVAttention, GatedAttention])
def test_layers_follow_the_dtype_policy(attention_class, policy, x):
    layer = attention_class(num_heads=3, key_dim=4, dtype=policy)
    assert keras.backend.standardize_dtype(layer(x, x).dtype) == policy[6:]
    assert {weight.dtype for weight in layer.weights} == {"float32"}


def test_gate_is_not_trained_by_default(x):
    layer = GatedAttention(num_heads=3, key_dim=4)
    layer(x, x)
    assert [w.name for w in layer.non_trainable_weights] == ["head_gate"]


def test_gates_of_one_leave_a_backbone_as_it_was(tmp_path):
    backbone = keras_hub.models.RobertaBackbone(
        vocabulary_size=20,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=8,
    )
    inputs = {
        "token_ids": np.arange(10, dtype="int32").reshape(2, 5),
        "padding_mask": np.array([[1] * 5, [1, 1, 0, 0, 0]], "int32"),
    }
    before = np.asarray(backbone(inputs))
    num_weights = len(backbone.weights)
    gated = [
        replace_attention(block, GatedAttention) for block, _ in block_calls(backbone)
    ]
    np.testing.assert_array_equal(backbone(inputs), before)
    assert len(backbone.weights) == num_weights + 2
    gated[1].head_gate.assign([0.0, 1.0])
    assert np.abs(np.asarray(backbone(inputs)) - before).max() > 1e-4
    assert attention_of(block_calls(backbone)[1][0]) is gated[1]


def test_attention_that_is_not_built_is_refused():
    attention = keras.layers.MultiHeadAttention(2, 4, name="raw")
    with pytest.raises(ValueError, match="must be built .* attention='raw'"):
        QKVAttention.adopt(attention)
