"""The part of an encoder up to the queries, keys and values of one layer.

Reads Keras' graph of a functional model; checked on Keras 3.15 and keras-nlp 0.32.
"""

import keras
import keras_hub

from keras_minilmv2.backbones.attention import QKVAttention, attention_of
from keras_minilmv2.backbones.flat_blocks import FlatBlocks, can_be_flat


def block_calls(backbone):
    """Lists the encoder blocks of a backbone in the order in which they run.

    ALBERT runs one block many times; it is then listed once per run.

    Args:
        backbone: a keras-nlp backbone.

    Returns:
        list of pairs of a `TransformerEncoder` and its symbolic input, a `KerasTensor`
        of shape `(batch, length, hidden_dim)`.
    """
    # Depth counts down from the inputs: only this walk tells ALBERT's runs apart.
    return [
        (node.operation, node.input_tensors[0])
        for depth in sorted(backbone._nodes_by_depth, reverse=True)
        for node in backbone._nodes_by_depth[depth]
        if isinstance(node.operation, keras_hub.layers.TransformerEncoder)
    ]


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
        ValueError: if `layer` is below 1 or above the depth of the backbone.

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828).
    """
    calls = block_calls(backbone)
    check_layer("layer", layer, len(calls))
    block, block_input = calls[layer - 1]
    below = [block for block, _ in calls[: layer - 1]]
    if below and all(map(can_be_flat, below)):
        first_input = calls[0][1]
        block_input = FlatBlocks(below)(first_input, backbone.input["padding_mask"])
    vectors = QKVAttention.adopt(attention_of(block)).project(block_input)
    return keras.Model(
        backbone.input,
        {name: vectors[name] for name in projections},
        name=f"{backbone.name}_layer_{layer}_qkv",
    )
