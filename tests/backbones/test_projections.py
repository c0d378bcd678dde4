import keras_hub
import numpy as np
import pytest
from families import CLASSES, SIZES, make_backbone, make_inputs

from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.projections import block_calls, qkv_model


def parameters_of(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.weights)


@pytest.mark.parametrize("name", CLASSES)
def test_a_backbone_has_a_block_call_for_each_layer(name):
    backbone = make_backbone(name)
    calls = block_calls(backbone)
    assert len(calls) == SIZES["num_layers"]
    num_blocks = {"albert": 1, "albert_groups": 2}.get(name, 4)
    assert len({id(block) for block, _ in calls}) == num_blocks


@pytest.mark.parametrize("layer", [1, 3, 4])
@pytest.mark.parametrize("name", CLASSES)
def test_projections_are_those_of_the_layer(name, layer):
    """The block's input, computed by running one block after the other."""
    backbone = make_backbone(name)
    inputs = make_inputs(backbone)
    vectors = qkv_model(backbone, layer)(inputs)
    calls = block_calls(backbone)
    # A model of layer 1 ends below the first block: its input is the embedding.
    x = keras_model_to(backbone, calls[0][1])(inputs)
    for block, _ in calls[: layer - 1]:
        x = block(x, padding_mask=inputs["padding_mask"])
    attention = attention_of(calls[layer - 1][0])
    assert set(vectors) == {"query", "key", "value"}
    for key in vectors:
        assert vectors[key].shape == (8, 12, 4, 6)
        expected = getattr(attention, f"{key}_dense")(x)
        np.testing.assert_allclose(vectors[key], expected, atol=1e-5)


def keras_model_to(backbone, tensor):
    import keras

    return keras.Model(backbone.input, tensor)


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("name", CLASSES)
def test_nothing_above_the_projections_is_in_the_graph(name, layer):
    backbone = make_backbone(name)
    model = qkv_model(backbone, layer)
    calls = block_calls(backbone)
    below = {id(block) for block, _ in calls[: layer - 1]}
    blocks = [
        each
        for each in model._flatten_layers()
        if isinstance(each, keras_hub.layers.TransformerEncoder)
    ]
    assert {id(block) for block in blocks} == below
    # Embeddings, whole blocks below, three projections, and not one weight more.
    attention = attention_of(calls[layer - 1][0])
    dense = (attention.query_dense, attention.key_dense, attention.value_dense)
    owners = {id(each): each for each in blocks}
    held = {id(weight) for block in owners.values() for weight in block.weights}
    held |= {id(weight) for each in dense for weight in each.weights}
    for each in backbone.layers:
        is_block = isinstance(each, keras_hub.layers.TransformerEncoder)
        if not is_block and each.name != "pooled_dense":
            held |= {id(weight) for weight in each.weights}
    assert {id(weight) for weight in model.weights} == held


def test_building_a_model_leaves_the_backbone_as_it_was(tmp_path):
    backbone = make_backbone("bert")
    inputs = make_inputs(backbone)
    before = np.asarray(backbone(inputs)["sequence_output"])
    num_weights = len(backbone.weights)
    qkv_model(backbone, 2)
    qkv_model(backbone, 4)
    assert len(backbone.weights) == num_weights
    backbone.save_to_preset(str(tmp_path))
    again = keras_hub.models.Backbone.from_preset(str(tmp_path))
    np.testing.assert_array_equal(again(inputs)["sequence_output"], before)


def test_a_backbone_inside_a_task_has_the_same_blocks():
    backbone = make_backbone("bert")
    keras_hub.models.BertTextClassifier(backbone, num_classes=2)
    assert len(block_calls(backbone)) == 4


@pytest.mark.parametrize("layer", [0, -1, 5])
def test_layers_that_are_not_there_are_refused(layer):
    with pytest.raises(
        ValueError,
        match=rf"`layer` must be between 1 and .* layer={layer}, num_layers=4",
    ):
        qkv_model(make_backbone("bert"), layer)


@pytest.mark.parametrize("layer", [2.0, "2", None, True])
def test_layers_that_are_no_int_are_refused(layer):
    with pytest.raises(TypeError, match="`layer` must be an int"):
        qkv_model(make_backbone("bert"), layer)
