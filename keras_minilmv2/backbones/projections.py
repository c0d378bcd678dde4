"""The part of an encoder up to the queries, keys and values of one layer.

Reads Keras' graph of a functional model; checked on Keras 3.15 and keras-nlp 0.32.
"""

import keras
import keras_hub

from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.flat_blocks import (
    FlatBlocks,
    QKVProjections,
    can_be_flat,
)
from keras_minilmv2.backbones.gated_blocks import blocks_in
from keras_minilmv2.backbones.output_bias import OutputBias


def block_calls(backbone):
    """Lists the encoder blocks of a backbone in the order in which they run.

    ALBERT runs one block many times; it is then listed once per run.

    Args:
        backbone: a keras-nlp backbone.

    Returns:
        list of pairs of a `TransformerEncoder` and its symbolic input, a `KerasTensor`
        of shape `(batch, length, hidden_dim)`.
    """
    nodes = _block_nodes(backbone)
    return [(node.operation, node.input_tensors[0]) for node in nodes]


def check_layer(argument, layer, num_layers):
    """Raises unless `layer` counts one of `num_layers` layers, from 1."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(
            f"`{argument}` must be an int. Received: {argument}={layer!r} "
            f"of type {type(layer).__name__}."
        )
    if not 1 <= layer <= num_layers:
        raise ValueError(
            f"`{argument}` must be between 1 and the number of layers; layers count "
            f"from 1. Received: {argument}={layer}, num_layers={num_layers}."
        )


def qkv_model(backbone, layer, projections=("query", "key", "value")):
    """Builds a model that ends in one layer's queries, keys and values.

    The model shares the backbone's weights and holds nothing above these three
    projections: neither the attention of `layer` nor any later layer.

    Args:
        backbone: a keras-nlp backbone with self-attention encoder blocks.
        layer: int. Counts from 1, as in the paper.
        projections: names of those that the model has. Defaults to all three.

    Returns:
        `keras.Model` from the backbone's inputs to a dict of `"query"`, `"key"` and
        `"value"`, each `(batch, length, num_heads, head_dim)` in the compute dtype.

    Raises:
        TypeError: if `layer` is not an int.
        ValueError: if `layer` is below 1 or above the depth of the backbone, or has no
            heads left.

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828).
    """
    model = qkv_models(backbone, [layer], projections)
    (vectors,) = model.output.values()
    return keras.Model(
        backbone.input, vectors, name=f"{backbone.name}_layer_{layer}_qkv"
    )


def qkv_models(backbone, layers, projections=("query", "key", "value")):
    """Builds a model of several layers' queries, keys and values; see `qkv_model`.

    Args:
        backbone: a keras-nlp backbone with self-attention encoder blocks.
        layers: ascending list of int, from 1.
        projections: names of those that the model has.

    Returns:
        `keras.Model` from the backbone's inputs to a dict of dicts; the layers are
        str there.
    """
    calls = block_calls(backbone)
    for layer in layers:
        check_layer("layer", layer, len(calls))
    project = {
        layer: _projections(layer, calls[layer - 1][0], projections) for layer in layers
    }
    states = _states(backbone, [layer - 1 for layer in layers])
    outputs = {
        str(layer): project[layer](block_input)
        for layer, block_input in zip(layers, states, strict=True)
    }
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_qkv")


def _projections(layer, block, projections):
    """`QKVProjections` of a block, which is that of a layer."""
    attention = attention_of(block)
    if isinstance(attention, OutputBias):
        raise ValueError(
            "`layer` must be one that has attention heads. "
            f"Received: layer={layer}, whose heads were all removed."
        )
    return QKVProjections(attention, projections)


def with_projections(model, layer, projections=("query", "key", "value")):
    """Builds a model of the same weights that also has one layer's projections.

    They are computed of what the layer is given in the same pass, after its dropout.

    Args:
        model: a functional Keras model that is or holds an encoder, each of whose
            blocks is a layer of its own, as `Task.training_model` returns it. It is
            left as it is.
        layer: int, from 1.
        projections: names of those that the model has.

    Returns:
        `keras.Model` of the model's inputs to a dict of its `"outputs"` and of
        `"projections"`, a dict of `"query"`, `"key"` and `"value"`, each `(batch,
        length, num_heads, head_dim)` in the compute dtype, and of `"padding_mask"`.

    Raises:
        TypeError, ValueError: as `qkv_model` does.
    """
    blocks = blocks_in(model)
    check_layer("layer", layer, len(blocks))
    project = _projections(layer, blocks[layer - 1], projections)
    num_calls, vectors = 0, {}

    def call(operation, *args, **kwargs):
        nonlocal num_calls
        if isinstance(operation, keras.Model):
            return operation._run_through_graph(args[0], call_fn=call)
        if isinstance(operation, FlatBlocks | keras_hub.layers.TransformerEncoder):
            num_calls += 1
            if num_calls == layer:
                vectors.update(project(args[0]))
        return operation(*args, **kwargs)

    outputs = model._run_through_graph(model.input, call_fn=call)
    vectors["padding_mask"] = model.input["padding_mask"]
    return keras.Model(model.input, {"outputs": outputs, "projections": vectors})


def hidden_states_model(backbone, layers):
    """Builds a model that ends in the hidden states of some layers.

    The model shares the backbone's weights and holds nothing above the last of them.

    Args:
        backbone: a keras-nlp backbone with self-attention encoder blocks.
        layers: ascending list of int. 0 is what the first block is given, the
            embeddings; a block's output counts from 1.

    Returns:
        `keras.Model` from the backbone's inputs to a dict by `"layer_N"` of hidden
        states, each `(batch, length, hidden_dim)` in the compute dtype.

    Raises:
        ValueError: if a layer is below 0 or above the depth of the backbone, or the
            layers are not ascending.
    """
    depth = len(block_calls(backbone))
    if list(layers) != sorted(set(layers)) or not all(0 <= n <= depth for n in layers):
        raise ValueError(
            "`layers` must be ascending, from 0 for the embeddings to the number of "
            f"layers. Received: layers={list(layers)}, num_layers={depth}."
        )
    states = _states(backbone, layers)
    return keras.Model(
        backbone.input,
        {f"layer_{n}": state for n, state in zip(layers, states, strict=True)},
        name=f"{backbone.name}_hidden_states",
    )


def _block_nodes(backbone):
    # Depth counts down from the inputs: only this walk tells ALBERT's runs apart.
    return [
        node
        for depth in sorted(backbone._nodes_by_depth, reverse=True)
        for node in backbone._nodes_by_depth[depth]
        if isinstance(node.operation, keras_hub.layers.TransformerEncoder)
    ]


def _states(backbone, layers):
    """Hidden states, symbolic, after ascending numbers of blocks."""
    nodes = _block_nodes(backbone)
    blocks = [node.operation for node in nodes]
    embeddings = nodes[0].input_tensors[0]
    if not all(map(can_be_flat, blocks[: layers[-1]])):
        outputs = [embeddings, *(node.outputs[0] for node in nodes)]
        return [outputs[layer] for layer in layers]
    x, done, states = embeddings, 0, []
    for layer in layers:
        if layer > done:
            x = FlatBlocks(blocks[done:layer])(x, backbone.input["padding_mask"])
        states.append(x)
        done = layer
    return states
