"""Gates on heads and neurons, against scaled weights and loops in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import CLASSES, SIZES, make_backbone, make_inputs, others_slow

from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.flat_blocks import with_flat_blocks
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.downstream.classifiers import text_classifier
from keras_minilmv2.downstream.span_model import SpanModel
from keras_minilmv2.heads.gates import (
    checked_mask,
    gate_shapes,
    gated_encoder,
    gated_model,
    ones_gates,
)
from keras_minilmv2.heads.pruning import prune_heads

LAYERS, HEADS, NEURONS = (
    SIZES[name] for name in ("num_layers", "num_heads", "intermediate_dim")
)


def random_gates(batch, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "head_gate": generator.normal(size=(batch, LAYERS, HEADS)).astype("float32"),
        "neuron_gate": generator.normal(size=(batch, LAYERS, NEURONS)).astype(
            "float32"
        ),
    }


def flat(outputs):
    return [np.asarray(tf.cast(x, "float32")) for x in tf.nest.flatten(outputs)]


def run(model, inputs, how, training=False):
    if how == "eager":
        return flat(model(inputs, training=training))

    @tf.function(jit_compile=how == "xla", autograph=False)
    def function(inputs):
        return model(inputs, training=training)

    return flat(function(inputs))


def scale_weights(block, head_gate, neuron_gate):
    """Puts gates into the matrices that read the heads and neurons."""
    output = attention_of(block).output_dense.kernel
    output.assign(output * head_gate[:, None, None])
    narrow = block._feedforward_output_dense.kernel
    narrow.assign(narrow * neuron_gate[:, None])


@pytest.mark.parametrize(
    "how", ["eager", pytest.param("graph", marks=pytest.mark.slow), "xla"]
)
@pytest.mark.parametrize("name", others_slow(CLASSES))
def test_gates_of_one_leave_every_bit(name, how):
    backbone = make_backbone(name)
    inputs = make_inputs(backbone)
    gated = gated_encoder(backbone)
    ours = run(gated, {**inputs, **ones_gates(gated, 8)}, how)
    theirs = run(with_flat_blocks(backbone), inputs, how)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    keras.tree.assert_same_structure(gated.output, backbone.output)
    assert {id(v) for v in gated.weights} == {id(v) for v in backbone.weights}
    # The backbone's own call adds in another order.
    for a, b in zip(ours, flat(backbone(inputs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float64"])
def test_gates_of_one_leave_every_bit_in_every_dtype(policy):
    backbone = make_backbone("bert", dtype=policy)
    inputs = make_inputs(backbone)
    gated = gated_encoder(backbone)
    outputs = gated({**inputs, **ones_gates(gated)})
    assert outputs["pooled_output"].dtype == policy.removeprefix("mixed_")
    for a, b in zip(
        flat(outputs), flat(with_flat_blocks(backbone)(inputs)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_gates_act_under_dropout():
    backbone = make_backbone("bert", dropout=0.3)
    inputs = make_inputs(backbone)
    gated = gated_encoder(backbone)
    seeds = [v for v in backbone.variables if "seed" in v.path]
    assert seeds
    before = [np.asarray(v) for v in seeds]
    ours = flat(gated({**inputs, **ones_gates(gated)}, training=True))
    again = flat(gated({**inputs, **ones_gates(gated)}, training=True))
    assert np.abs(ours[0] - again[0]).max() > 0.1
    for variable, value in zip(seeds, before, strict=True):
        variable.assign(value)
    theirs = flat(with_flat_blocks(backbone)(inputs, training=True))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", [n for n in CLASSES if "albert" not in n])
def test_a_gate_multiplies_its_head_or_neuron(name):
    backbone = make_backbone(name)
    inputs = make_inputs(backbone)
    gates = random_gates(1)
    ours = run(gated_encoder(backbone), {**inputs, **gates}, "graph")
    for layer, (block, _) in enumerate(block_calls(backbone)):
        scale_weights(
            block, gates["head_gate"][0, layer], gates["neuron_gate"][0, layer]
        )
    for a, b in zip(ours, flat(backbone(inputs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", ["albert", "albert_groups"])
def test_albert_has_a_gate_for_each_application(name):
    backbone = make_backbone(name)
    inputs = make_inputs(backbone)
    gated = gated_encoder(backbone)
    runs = [block for block, _ in block_calls(backbone)]
    gates = random_gates(1)
    by_application = flat(gated({**inputs, **gates}))
    for name in gates:
        for layer, block in enumerate(runs):
            gates[name][:, layer] = gates[name][:, runs.index(block)]
    by_block = flat(gated({**inputs, **gates}))
    assert np.abs(by_block[0] - by_application[0]).max() > 0.1
    for block in {id(block): block for block in runs}.values():
        layer = runs.index(block)
        scale_weights(
            block, gates["head_gate"][0, layer], gates["neuron_gate"][0, layer]
        )
    for a, b in zip(by_block, flat(backbone(inputs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_each_example_has_its_gates_and_its_length():
    backbone = make_backbone("roberta")
    inputs = make_inputs(backbone)
    gates = random_gates(8)
    gated = gated_encoder(backbone)
    (together,) = flat(gated({**inputs, **gates}))
    for row in range(8):
        length = int(inputs["padding_mask"][row].sum())
        alone = {name: x[row : row + 1, :length] for name, x in inputs.items()}
        alone |= {name: gate[row : row + 1] for name, gate in gates.items()}
        (expected,) = flat(gated(alone))
        np.testing.assert_allclose(together[row, :length], expected[0], atol=2e-5)


def test_a_layer_without_gates_keeps_the_biases_of_its_outputs():
    backbone = make_backbone("distil_bert", num_layers=1)
    inputs = make_inputs(backbone)
    gated = gated_encoder(backbone)
    zeros = {name: 0.0 * gate for name, gate in ones_gates(gated).items()}
    (ours,) = flat(gated({**inputs, **zeros}))
    ((block, x),) = block_calls(backbone)
    x = np.asarray(keras.Model(backbone.input, x)(inputs))
    x = block._self_attention_layer_norm(x + attention_of(block).output_dense.bias)
    x = block._feedforward_layer_norm(x + block._feedforward_output_dense.bias)
    np.testing.assert_allclose(ours, x, atol=1e-5)


def softmax(row):
    row = np.exp(row - row.max())
    return row / row.sum()


def test_inner_values_are_those_of_loops():
    backbone = make_backbone("bert", num_layers=2, dtype="float64")
    inputs = make_inputs(backbone, batch=3)
    gates = {
        name: gate[:, :2].astype("float64") for name, gate in random_gates(3).items()
    }
    names = ("heads", "neurons", "attention_entropy")
    inner = gated_model(backbone, inner=names)({**inputs, **gates})["inner"]
    assert [list(layer) for layer in inner] == [list(names)] * 2
    block, x = block_calls(backbone)[0]
    x = np.asarray(keras.Model(backbone.input, x)(inputs))
    attention = attention_of(block)
    q, k, v = (
        np.einsum("bld,dhc->blhc", x, np.asarray(dense.kernel)) + np.asarray(dense.bias)
        for dense in (attention.query_dense, attention.key_dense, attention.value_dense)
    )
    head_dim = q.shape[-1]
    for row in range(3):
        length = int(inputs["padding_mask"][row].sum())
        for head in range(HEADS):
            entropies = []
            for token in range(length):
                p = softmax(k[row, :length, head] @ q[row, token, head] / head_dim**0.5)
                entropies.append(-np.sum(p * np.log(p)))
                expected = gates["head_gate"][row, 0, head] * p @ v[row, :length, head]
                channels = slice(head * head_dim, (head + 1) * head_dim)
                np.testing.assert_allclose(
                    inner[0]["heads"][row, token, channels], expected, rtol=1e-10
                )
            np.testing.assert_allclose(
                inner[0]["attention_entropy"][row, head],
                np.mean(entropies),
                rtol=1e-5,
            )
    heads = np.asarray(inner[0]["heads"])
    output = attention.output_dense
    kernel = np.asarray(output.kernel).reshape(heads.shape[-1], -1)
    y = block._self_attention_layer_norm(x + heads @ kernel + np.asarray(output.bias))
    wide = np.asarray(block._feedforward_intermediate_dense(y))
    np.testing.assert_allclose(
        inner[0]["neurons"], wide * gates["neuron_gate"][:, 0][:, None], atol=1e-10
    )


def test_the_gated_encoder_returns_what_its_output_matrices_are_given():
    backbone = make_backbone("albert")
    inputs = make_inputs(backbone)
    gated = gated_encoder(backbone, return_inner=True)
    found = gated({**inputs, **ones_gates(gated)})
    assert list(found["outputs"]) == list(backbone.output)
    assert len(found["inner"]) == LAYERS
    assert [x.shape for x in found["inner"][3].values()] == [(8, 12, 24), (8, 12, 32)]
    assert gated.output["inner"][0]["heads"].shape == (None, None, 24)


@pytest.mark.parametrize("name", CLASSES)
def test_a_classifier_has_gates(name):
    classifier = text_classifier(make_backbone(name), num_outputs=3, seed=0)
    inputs = make_inputs(classifier.backbone)
    for model in (classifier, with_flat_blocks(classifier)):
        gated = gated_model(model)
        (ours,) = flat(gated({**inputs, **ones_gates(gated)}))
        np.testing.assert_array_equal(ours, with_flat_blocks(classifier)(inputs))
        (other,) = flat(gated({**inputs, **random_gates(1)}))
        assert np.abs(ours - other).max() > 1e-3


def test_a_span_model_has_gates():
    model = SpanModel(make_backbone("bert"))
    inputs = make_inputs(model.backbone)
    inputs["answer_mask"] = inputs["padding_mask"]
    gated = gated_model(model)
    ours = gated({**inputs, **ones_gates(gated)})
    theirs = model.with_flat_blocks()(inputs)
    for side in ("start_logits", "end_logits"):
        np.testing.assert_array_equal(ours[side], theirs[side])
    other = gated({**inputs, **random_gates(1)})
    assert np.abs(np.asarray(other["end_logits"] - ours["end_logits"])).max() > 1e-3


def test_an_encoder_that_is_called_twice_has_one_set_of_gates():
    backbone = make_backbone("roberta")
    inputs = {
        name: keras.Input(x.shape[1:], name=name, dtype="int32")
        for name, x in backbone.input.items()
    }
    both = keras.ops.stack([backbone(inputs), backbone(inputs)])
    gated = gated_model(keras.Model(inputs, both))
    assert gate_shapes(gated)["head_gate"] == (LAYERS, HEADS)
    first, second = gated({**make_inputs(backbone), **random_gates(1)})
    np.testing.assert_array_equal(first, second)


def test_models_without_gates_are_refused():
    backbone = make_backbone("bert")
    with pytest.raises(ValueError, match="`gated` must .* without head_gate and neur"):
        gate_shapes(backbone)
    with pytest.raises(TypeError, match="`model` must be a functional .* type Sequen"):
        gated_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    inputs = {"x": keras.Input((3,), name="x")}
    with pytest.raises(ValueError, match="must have encoder blocks .* with none"):
        gated_model(keras.Model(inputs, keras.layers.Dense(2)(inputs["x"])))
    with pytest.raises(TypeError, match="`backbone` must be one of BertBackbone"):
        gated_encoder(keras.Sequential([keras.Input((3,))]))
    block, _ = block_calls(backbone)[1]
    block._feedforward_intermediate_dense.quantize("int8")
    with pytest.raises(ValueError, match="must have encoder blocks .* is quantized or"):
        gated_encoder(backbone)
    with pytest.raises(ValueError, match="`inner` must be one of heads, neurons"):
        gated_model(backbone, inner=("queries",))


def test_masks_are_checked():
    np.testing.assert_array_equal(
        checked_mask("head_mask", None, (2, 3)), np.ones((2, 3))
    )
    with pytest.raises(ValueError, match=r"`head_mask` must have shape \(2, 3\)"):
        checked_mask("head_mask", np.ones((3, 2)), (2, 3))
    with pytest.raises(ValueError, match="values 0 and 1 only. .* with 0.5"):
        checked_mask("head_mask", [[1.0, 0.5]], (1, 2))


def test_pruned_encoders_have_gates_for_what_is_left():
    backbone = make_backbone("bert")
    head_mask, neuron_mask = np.ones((LAYERS, HEADS)), np.ones((LAYERS, NEURONS))
    head_mask[0], head_mask[1, 1:] = 0, 0
    neuron_mask[2], neuron_mask[1, 5:] = 0, 0
    pruned = prune_heads(backbone, head_mask, neuron_mask)
    gated = gated_encoder(pruned, return_inner=True)
    inputs = make_inputs(pruned)
    found = gated({**inputs, **ones_gates(gated)})
    for a, b in zip(flat(found["outputs"]), flat(pruned(inputs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    inner = [(x["heads"].shape[-1], x["neurons"].shape[-1]) for x in found["inner"]]
    assert inner == [(0, NEURONS), (6, 5), (24, 0), (24, NEURONS)]
    gates = ones_gates(gated)
    gates["head_gate"][:, 3, 2] = 0
    head_mask[3, 2] = 0
    smaller = prune_heads(backbone, head_mask, neuron_mask)
    outputs = flat(gated({**inputs, **gates})["outputs"])
    for a, b in zip(outputs, flat(smaller(inputs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
