"""Encoder blocks over one matrix of tokens, for speed.

A keras-nlp block keeps `(batch, length, hidden_dim)` throughout. Its attention's
projections are then products with one matrix for each sequence, whose weight gradients
are formed for each sequence and summed, and reshapes stand between a product and its
bias and activation, so that TensorFlow cannot fuse them. Over `(batch * length,
hidden_dim)` all that falls away.

Reads private names of Keras' `MultiHeadAttention` and keras-nlp's `TransformerEncoder`;
checked on Keras 3.15 and keras-nlp 0.32.
"""

import keras
import keras_hub
from keras import ops

from keras_minilmv2.backbones.attention import QKVAttention, attention_of
from keras_minilmv2.backbones.elementwise import activate, drop
from keras_minilmv2.backbones.output_bias import OutputBias

_PLAIN_ATTENTION = keras.layers.MultiHeadAttention, QKVAttention, OutputBias


def can_be_flat(block):
    """Whether `FlatBlocks` computes what the block computes."""
    if type(block) is not keras_hub.layers.TransformerEncoder:
        return False
    attention = attention_of(block)
    layers = _dense_layers(block)
    if not isinstance(attention, OutputBias):
        layers += *_projections(attention), attention.output_dense
    return (
        type(attention) in _PLAIN_ATTENTION
        and not block.normalize_first
        and all(layer.quantization_mode is None for layer in layers)
    )


def block_sizes(block):
    """Numbers of heads and of feed-forward neurons of an encoder block."""
    attention, (wide, narrow) = attention_of(block), _dense_layers(block)
    return (
        0 if isinstance(attention, OutputBias) else attention.num_heads,
        0 if isinstance(narrow, OutputBias) else wide.units,
    )


def output_matrices(block):
    """The layers that hold a block's two output matrices: of heads, and of neurons."""
    return {
        "heads": attention_of(block).output_dense,
        "neurons": _dense_layers(block)[1],
    }


def with_flat_blocks(model):
    """Builds a model of the same weights whose encoder blocks are flat, for training.

    Args:
        model: a functional Keras model, such as a keras-nlp task model without a
            preprocessor, around a keras-nlp backbone. It is left as it is. Blocks for
            which `can_be_flat` is false stay what they are.

    Returns:
        A functional Keras model of the same inputs and outputs, not compiled.
    """

    def share(layer):
        return with_flat_blocks(layer) if isinstance(layer, keras.Model) else layer

    def call(layer, *args, **kwargs):
        if can_be_flat(layer):
            layer = FlatBlocks([layer])
        return layer(*args, **kwargs)

    # A clone of a compiled model would be compiled, with moments that nobody uses.
    model = keras.Model(model.input, model.output)
    return keras.models.clone_model(model, clone_function=share, call_function=call)


class FlatBlocks(keras.layers.Layer):
    """Runs encoder blocks, with their own weights, over one matrix of tokens.

    Args:
        blocks: list of built keras-nlp `TransformerEncoder` layers for which
            `can_be_flat` is true, in the order in which they run; one may stand in it
            several times.
        **kwargs: as for `keras.layers.Layer`.
    """

    def __init__(self, blocks, **kwargs):
        super().__init__(dtype=blocks[0].dtype_policy, **kwargs)
        self.blocks = list(blocks)
        self.built = True

    def call(self, x, padding_mask, training=None):
        """Runs the blocks one after the other.

        Args:
            x: float, `(batch, length, hidden_dim)`.
            padding_mask: int or bool, `(batch, length)`; 0 is padding.
            training: bool. Whether dropout acts.

        Returns:
            The last block's output, shaped as `x`.
        """
        return self._run(x, padding_mask, training)

    def _run(self, x, padding_mask, training, gates=None, read=None):
        """Runs the blocks as `call` does, perhaps with gates.

        `gates` is a list by block of pairs, head gate `(batch, heads)` and neuron gate
        `(batch, intermediate_dim)`. `read` is called after each block with attention
        weights, heads and neurons, as `_block` returns them, and the length.
        """
        shape = ops.shape(x)
        # As Keras' softmax: -1e9 is infinite in float16.
        smallest = -3e4 if self.compute_dtype == "float16" else -1e9
        hidden = ops.cast(ops.logical_not(ops.cast(padding_mask, "bool")), x.dtype)
        # (batch, 1, 1, length)
        bias = ops.multiply(hidden, ops.cast(smallest, x.dtype))[:, None, None, :]
        x = ops.reshape(x, (-1, x.shape[-1]))
        for number, block in enumerate(self.blocks):
            gate = None if gates is None else gates[number]
            x, *inside = _block(block, x, bias, shape[1], training, gate)
            if read is not None:
                read(*inside, shape[1])
        return ops.reshape(x, (-1, shape[1], x.shape[-1]))

    def compute_output_spec(self, x, padding_mask, training=None):
        """Shape and dtype of `x`."""
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)


class QKVProjections(keras.layers.Layer):
    """Queries, keys and values of an attention layer, with its own weights.

    Args:
        attention: a built `keras.layers.MultiHeadAttention`. What is not projected is
            no part of this layer.
        projections: names out of `"query"`, `"key"` and `"value"`.
        **kwargs: as for `keras.layers.Layer`.
    """

    def __init__(self, attention, projections, **kwargs):
        super().__init__(dtype=attention.dtype_policy, **kwargs)
        attention = QKVAttention.adopt(attention)
        self.dense = {name: getattr(attention, f"{name}_dense") for name in projections}
        self.num_heads, self.head_dim = attention.num_heads, attention.key_dim
        self.built = True

    def call(self, x):
        """Projects.

        Args:
            x: float, `(batch, length, hidden_dim)`.

        Returns:
            dict by name of `(batch, length, num_heads, head_dim)`.
        """
        shape = -1, ops.shape(x)[1], self.num_heads, self.head_dim
        tokens = ops.reshape(x, (-1, x.shape[-1]))
        return {
            name: dense(x)
            if dense.quantization_mode is not None
            else ops.reshape(_dense(tokens, dense), shape)
            for name, dense in self.dense.items()
        }

    def compute_output_spec(self, x):
        """Shapes and dtype of the projections."""
        shape = (*x.shape[:-1], self.num_heads, self.head_dim)
        return {
            name: keras.KerasTensor(shape, dtype=self.compute_dtype)
            for name in self.dense
        }


def _block(block, x, bias, length, training, gate=None):
    """One block, over tokens `(batch * length, hidden_dim)`.

    Returns its output, its attention weights `(batch, heads, length, length)`, what
    its two output matrices are given, heads and neurons, `(batch * length, channels)`,
    and what its feed-forward part is given. What a block without heads or neurons
    lacks is None.
    """
    attention, weights, heads, neurons = attention_of(block), None, None, None
    if isinstance(attention, OutputBias):
        y = attention(x)
    else:
        weights, heads = _heads(attention, x, bias, length, training)
        if gate is not None:
            heads = _gated(heads, gate[0], length)
        y = _dense(heads, attention.output_dense)
    y = drop(block._self_attention_dropout, y, training)
    middle = block._self_attention_layer_norm(ops.add(y, x))
    wide, narrow = _dense_layers(block)
    if isinstance(narrow, OutputBias):
        y = narrow(middle)
    else:
        y = ops.add(ops.matmul(middle, wide.kernel), wide.bias)
        neurons = activate(wide.activation, y, training)
        if gate is not None:
            neurons = _gated(neurons, gate[1], length)
        y = narrow(neurons)
    y = drop(block._feedforward_dropout, y, training)
    x = block._feedforward_layer_norm(ops.add(y, middle))
    return x, weights, heads, neurons, middle


def _heads(attention, x, bias, length, training):
    """Attention weights, and the heads' outputs `(batch * length, channels)`."""
    num_heads, head_dim = attention.num_heads, attention.key_dim
    query, key, value = (
        # (batch, heads, length, head_dim)
        ops.transpose(
            ops.reshape(_dense(x, layer), (-1, length, num_heads, head_dim)),
            (0, 2, 1, 3),
        )
        for layer in _projections(attention)
    )
    # The scale stands where TensorFlow fuses it, and the bias, with the product.
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    scale = ops.convert_to_tensor(head_dim**-0.5, scores.dtype)
    scores = ops.multiply(scores, scale)
    weights = ops.softmax(ops.add(scores, bias))
    dropped = drop(attention._dropout_layer, weights, training)
    heads = ops.transpose(ops.matmul(dropped, value), (0, 2, 1, 3))
    return weights, ops.reshape(heads, (-1, num_heads * head_dim))


def _gated(x, gate, length):
    """Tokens times a gate `(batch, gates)`, each for an equal share of the channels."""
    channels, num_gates = x.shape[-1], gate.shape[-1]
    # (batch, length, gates, channels of a gate)
    x = ops.reshape(x, (-1, length, num_gates, channels // num_gates))
    return ops.reshape(ops.multiply(x, gate[:, None, :, None]), (-1, channels))


def _dense(x, layer):
    """An `EinsumDense` of attention, as a product of two matrices."""
    kernel = ops.reshape(layer.kernel, (x.shape[-1], -1))
    return ops.add(ops.matmul(x, kernel), ops.reshape(layer.bias, (-1,)))


def _projections(attention):
    return attention.query_dense, attention.key_dense, attention.value_dense


def _dense_layers(block):
    return block._feedforward_intermediate_dense, block._feedforward_output_dense
