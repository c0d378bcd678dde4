"""New output matrices for an encoder that lost heads and neurons, by least squares."""

import numpy as np
import tensorflow as tf

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.flat_blocks import output_matrices
from keras_minilmv2.backbones.gated_blocks import GatedBlocks
from keras_minilmv2.backbones.projections import block_calls, hidden_states_model
from keras_minilmv2.backbones.variants import rebuild
from keras_minilmv2.heads.search import OutputFit


def refit_outputs(backbone, head_mask, neuron_mask, batches, *, penalty=1e-2):
    """An encoder whose output matrices make up for what the masks remove.

    Layer after layer, first the attention's matrix, then the feed-forward one: with
    `X` what is left of the matrix' inputs and `r` the residual stream in the encoder
    that lost the units, the new matrix `W` and bias `b` make `r + X W + b` the nearest,
    in squares over real tokens, to the same sum in the whole encoder. So later layers
    make up for what earlier ones could not. A layer that keeps nothing has a new bias.

    Hidden states of all batches are held in memory, and twice those of a layer: 16
    bytes for a token and channel.

    Args:
        backbone: keras-nlp backbone of a family whose layers share no weights. It is
            not changed.
        head_mask: `(num_layers, num_heads)` of 0 and 1.
        neuron_mask: `(num_layers, intermediate_dim)` of 0 and 1.
        batches: iterable of the backbone's inputs, dicts of int arrays.
        penalty: float; see `OutputFit.solve`.

    Returns:
        Backbone of the same sizes, with new output matrices whose rows of removed
        units are as they were. `prune_heads` takes them away.

    Raises:
        ValueError: if the family shares weights between layers, or there is no batch.

    Reference:
        Park et al., 2024, [arXiv:2308.03449](https://arxiv.org/abs/2308.03449) fit
        the same sums layer by layer.
    """
    if family_of(backbone).shares_blocks:
        raise ValueError(
            "`backbone` must not share weights between layers: a matrix of "
            f"{family_of(backbone).name} cannot be fitted to one of them. Received: "
            f"backbone={backbone.name!r}."
        )
    refitted = rebuild(backbone)
    refitted.set_weights(backbone.get_weights())
    inputs = hidden_states_model(backbone, [0])
    states = []
    for batch in batches:
        x = inputs(batch, training=False)["layer_0"].numpy()
        states.append([x, x, np.asarray(batch["padding_mask"], "int32")])
    if not states:
        raise ValueError("`batches` must not be empty. Received: 0 batches.")
    head_dim = backbone.hidden_dim // backbone.num_heads
    layers = zip(block_calls(backbone), block_calls(refitted), strict=True)
    for layer, ((whole, _), (block, _)) in enumerate(layers):
        masks = [np.asarray(mask[layer], bool) for mask in (head_mask, neuron_mask)]
        gates = [tf.cast(mask, "float32")[None, None] for mask in masks]
        ones = [tf.ones_like(gate) for gate in gates]
        kept = {"heads": np.repeat(masks[0], head_dim), "neurons": masks[1]}
        run_whole = _runner(whole, gates, tuple(kept))
        wanted = []
        for state in states:
            found = [x.numpy() for x in run_whole(state[0], state[2], *ones)]
            state[0] = found[0]
            wanted.append([sums[state[2].astype(bool)] for sums in found[1:]])
        for place, (kind, inner) in enumerate(kept.items()):
            run_block = _runner(block, gates, (kind,), sums=False)
            matrix = output_matrices(block)[kind]
            kernel, bias = _rows(matrix)
            fit = OutputFit(kernel[inner], bias)
            for (_, x, mask), sums in zip(states, wanted, strict=True):
                real = mask.astype(bool)
                stream, found = (y.numpy()[real] for y in run_block(x, mask, *gates))
                fit.add(found[:, inner], sums[place] - stream)
            kernel[inner], bias = fit.solve(penalty)
            matrix.kernel.assign(kernel.reshape(matrix.kernel.shape))
            matrix.bias.assign(bias)
        run_block = _runner(block, gates)
        for state in states:
            state[1] = run_block(state[1], state[2], *gates)[0].numpy()
    return refitted


def _runner(block, gates, kinds=(), sums=True):
    """A compiled function of one block.

    Returns its output, and for each kind the residual stream plus what its output
    matrix gives; without `sums` no output, and of one kind the residual stream and what
    its matrix is given.
    """
    names = {"heads": ("heads",), "neurons": ("feed_forward_input", "neurons")}
    layer = GatedBlocks([block], inner=tuple(n for kind in kinds for n in names[kind]))
    old = [_rows(output_matrices(block)[kind]) for kind in kinds]
    width = output_matrices(block)["heads"].bias.shape[-1]
    # One graph for batches of all shapes.
    signature = [
        tf.TensorSpec((None, None, width), "float32"),
        tf.TensorSpec((None, None), "int32"),
        *(tf.TensorSpec(gate.shape, gate.dtype) for gate in gates),
    ]

    @tf.function(input_signature=signature)
    def run(x, padding_mask, head_gate, neuron_gate):
        y, inner = layer(x, padding_mask, head_gate, neuron_gate, training=False)
        if not kinds:
            return (y,)
        (found,) = inner
        streams = {"heads": x, "neurons": found.get("feed_forward_input")}
        parts = [(streams[kind], found[kind]) for kind in kinds]
        if not sums:
            return parts[0]
        return y, *(
            stream + tf.matmul(value, kernel) + bias
            for (stream, value), (kernel, bias) in zip(parts, old, strict=True)
        )

    return run


def _rows(matrix):
    """A copy of a kernel as `(inputs, outputs)`, and its bias."""
    kernel = np.array(matrix.kernel)
    return kernel.reshape(-1, kernel.shape[-1]), np.array(matrix.bias)
