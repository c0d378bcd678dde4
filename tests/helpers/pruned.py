"""Masks of heads and neurons, and what a model computes that is masked with them."""

import numpy as np

from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.variants import rebuild
from keras_minilmv2.heads.pruning import prune_heads


def make_masks(backbone):
    """Masks that leave no head in a layer, one in another, and no neuron in a third.

    Where layers share a block, each block loses some of its heads and neurons.
    """
    depth = len(block_calls(backbone))
    head_mask = np.ones((depth, backbone.num_heads), int)
    neuron_mask = np.ones((depth, backbone.intermediate_dim), int)
    if family_of(backbone).shares_blocks:
        head_mask[:, 1] = neuron_mask[:, ::3] = 0
        if backbone.num_groups > 1:
            head_mask[: depth // 2] = neuron_mask[depth // 2 :] = 0
        return head_mask, neuron_mask
    head_mask[0] = 0
    head_mask[-1, 1] = 0
    neuron_mask[-1, ::3] = 0
    if depth > 2:
        head_mask[1] = np.arange(backbone.num_heads) == 2
        neuron_mask[1] = 0
    return head_mask, neuron_mask


def make_pruned(backbone):
    return prune_heads(backbone, *make_masks(backbone))


def masked(backbone, head_mask, neuron_mask=None):
    """A copy of full shape, without the rows of the matrices that a mask is 0 for."""
    copy = rebuild(backbone)
    copy.set_weights(backbone.get_weights())
    for layer, (block, _) in enumerate(block_calls(copy)):
        rows = [(attention_of(block).output_dense.kernel, head_mask[layer])]
        if neuron_mask is not None:
            kernel = block._feedforward_output_dense.kernel
            rows.append((kernel, neuron_mask[layer]))
        for kernel, mask in rows:
            values = np.array(kernel)
            values[np.asarray(mask) == 0] = 0
            kernel.assign(values)
    return copy
