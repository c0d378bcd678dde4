"""Encoder blocks with a gate on every head and every feed-forward neuron.

Reads Keras' graph of a functional model; checked on Keras 3.15 and keras-nlp 0.32.
"""

import keras
import keras_hub
from keras import ops

from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.flat_blocks import FlatBlocks, block_sizes, can_be_flat

# What can be read of each block: what its two output matrices are given, after the
# gates, what its feed-forward part is given, and the entropy of its attention.
INNER = ("heads", "neurons", "feed_forward_input", "attention_entropy")


class GatedBlocks(FlatBlocks):
    """Runs encoder blocks, with their own weights, with gates as inputs.

        MHA(x) = W_o [g_1 head_1(x), ..., g_H head_H(x)] + b_o
        FFN(x) = W_2 (g * act(W_1 x + b_1)) + b_2

    With gates of 1 it computes what `FlatBlocks` does, to the bit.

    Args:
        blocks: list of blocks, as for `FlatBlocks`.
        first_layer: int, from 0. Index into the gates of the first block.
        inner: names out of `INNER` of what is read of each block.
        **kwargs: as for `keras.layers.Layer`.
    """

    def __init__(self, blocks, first_layer=0, inner=(), **kwargs):
        super().__init__(blocks, **kwargs)
        self.first_layer = first_layer
        self.inner = tuple(inner)

    def call(self, x, padding_mask, head_gate, neuron_gate, training=None):
        """Runs the blocks one after the other.

        Args:
            x: float, `(batch, length, hidden_dim)`.
            padding_mask: int or bool, `(batch, length)`; 0 is padding.
            head_gate: float, `(batch, num_layers, num_heads)`, or of one row, which is
                that of all examples. Layers with fewer heads read the first of them.
            neuron_gate: float, `(batch, num_layers, intermediate_dim)`; likewise.
            training: bool. Whether dropout acts.

        Returns:
            The last block's output, shaped as `x`, and a list by block of dicts of
            what is read: `"heads"`, `"neurons"` and `"feed_forward_input"` `(batch,
            length, channels)`, `"attention_entropy"` `(batch, num_heads)`, in nats,
            the mean over real tokens.
        """
        found = []

        def read(weights, heads, neurons, middle, length):
            def by_example(tokens):
                if tokens is None:
                    return ops.zeros((*ops.shape(x)[:2], 0), self.compute_dtype)
                return ops.reshape(tokens, (-1, length, tokens.shape[-1]))

            readers = {
                "heads": lambda: by_example(heads),
                "neurons": lambda: by_example(neurons),
                "feed_forward_input": lambda: by_example(middle),
                "attention_entropy": lambda: _entropy(weights, padding_mask),
            }
            found.append({name: readers[name]() for name in self.inner})

        gates = [
            (head_gate[:, layer, :num_heads], neuron_gate[:, layer, :num_neurons])
            for layer, (num_heads, num_neurons) in enumerate(
                map(block_sizes, self.blocks), start=self.first_layer
            )
        ]
        x = self._run(x, padding_mask, training, gates, read if self.inner else None)
        return x, found

    def compute_output_spec(self, x, padding_mask, *gates, **kwargs):
        """Shapes and dtype of what `call` returns."""

        def spec(*shape):
            return keras.KerasTensor(shape, dtype=self.compute_dtype)

        def inner(block):
            num_heads, num_neurons = block_sizes(block)
            channels = num_heads * attention_of(block).key_dim if num_heads else 0
            specs = {
                "heads": spec(*x.shape[:-1], channels),
                "neurons": spec(*x.shape[:-1], num_neurons),
                "feed_forward_input": spec(*x.shape),
                "attention_entropy": spec(x.shape[0], num_heads),
            }
            return {name: specs[name] for name in self.inner}

        return spec(*x.shape), [inner(b) for b in self.blocks if self.inner]


def blocks_in(model):
    """Lists the encoder blocks of a functional model in the order in which they run.

    Args:
        model: a functional Keras model that is or holds an encoder. One that is called
            several times is listed once.

    Returns:
        list of keras-nlp `TransformerEncoder` layers; one that runs several times, as
        ALBERT's, stands in it as often.
    """
    blocks, seen = [], set()
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            operation = node.operation
            if isinstance(operation, FlatBlocks):
                blocks += operation.blocks
            elif isinstance(operation, keras_hub.layers.TransformerEncoder):
                blocks.append(operation)
            elif isinstance(operation, keras.Model) and id(operation) not in seen:
                seen.add(id(operation))
                blocks += blocks_in(operation)
    return blocks


def with_gated_blocks(model, inputs, head_gate, neuron_gate, inner=()):
    """Calls a functional model with gates in its encoder blocks.

    Args:
        model: a functional Keras model that is or holds an encoder, whose blocks
            `can_be_flat`. It is left as it is.
        inputs: its inputs, symbolic.
        head_gate: symbolic gate, as `GatedBlocks` takes it. Layers count within the
            encoder.
        neuron_gate: likewise.
        inner: as for `GatedBlocks`.

    Returns:
        The outputs, symbolic, and the list of what is read of each block.
    """
    done, found = 0, []

    def call(layer, *args, **kwargs):
        nonlocal done
        if isinstance(layer, keras.Model):
            outputs, more = with_gated_blocks(
                layer, args[0], head_gate, neuron_gate, inner
            )
            found.extend(more)
            return outputs
        if isinstance(layer, FlatBlocks):
            blocks = layer.blocks
        elif can_be_flat(layer):
            blocks = [layer]
        else:
            return layer(*args, **kwargs)
        gated = GatedBlocks(blocks, done, inner)
        done += len(blocks)
        outputs, more = gated(
            *args, **kwargs, head_gate=head_gate, neuron_gate=neuron_gate
        )
        found.extend(more)
        return outputs

    outputs = model._run_through_graph(inputs, call_fn=call)
    return outputs, found


def _entropy(weights, padding_mask):
    """Mean entropy of the rows of real tokens, `(batch, heads)`, in nats."""
    if weights is None:
        return ops.zeros((ops.shape(padding_mask)[0], 0), "float32")
    weights = ops.cast(weights, "float32")
    tiny = ops.cast(1e-30, weights.dtype)
    rows = -ops.sum(weights * ops.log(ops.maximum(weights, tiny)), axis=-1)
    real = ops.cast(ops.cast(padding_mask, "bool"), weights.dtype)
    number = ops.maximum(ops.sum(real, axis=-1, keepdims=True), 1.0)
    return ops.sum(rows * real[:, None, :], axis=-1) / number
