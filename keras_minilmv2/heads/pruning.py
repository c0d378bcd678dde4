"""Encoders that are really smaller: heads and neurons removed, not masked."""

import numpy as np

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.layer_counts import check_shared
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.pruned import layer_counts, prune


def prune_heads(backbone, head_mask, neuron_mask=None):
    """Builds an encoder without some of the heads and neurons of another one.

    It computes what the given one computes with the outputs of the removed heads and
    neurons at 0:

        attention(x) = sum_h m_h W_o,h head_h(x) + b_o
        feed_forward(x) = sum_n m_n W_2,n gelu(W_1,n x + b_1,n) + b_2

    and has no weights for those whose mask is 0. A layer without heads adds its output
    bias `b_o`, one without neurons its second bias `b_2`; both keep their norms.

    The result is a keras-nlp backbone of the family: it saves to a preset, and once
    `keras_minilmv2` is imported `from_preset` of keras-hub reads it; it can be
    fine-tuned, exported, distilled from and trained as a student. Its `num_heads` and
    `intermediate_dim` stay those of the encoder it was, so that `hidden_dim /
    num_heads` is the width of a head; `head_counts` and `neuron_counts`, tuples of
    int, say what each layer has.

    Args:
        backbone: a keras-nlp backbone of a supported family, pruned before or not. It
            is left as it is.
        head_mask: 0, 1 or bool, a row for each layer with a value for each head that
            the layer has, 1 to keep it: an array `(num_layers, num_heads)`, or, where
            layers differ after an earlier pruning, a sequence of rows as long as
            `head_counts` says. Layers count as they run; those of ALBERT that share a
            block's weights need the same row.
        neuron_mask: the same of feed-forward neurons, `(num_layers,
            intermediate_dim)`. Defaults to keeping all.

    Returns:
        A new backbone of the same family, dtype policy, form of GELU and epsilon.

    Raises:
        TypeError: if the backbone is of no supported family, or a mask has no numbers.
        ValueError: if a mask has another shape, values other than 0 and 1, or
            different rows for layers that share a block; or the backbone is gated or
            quantized.

    Example:

    ```python
    importance = km.head_importance(classifier, dataset, task)
    scores = importance.heads.scores()  # (num_layers, num_heads)
    smaller = km.prune_heads(classifier.backbone, scores >= np.median(scores))
    km.save_student(smaller, tokenizer, "out/smaller")
    ```

    Reference:
        [Michel et al., 2019](https://arxiv.org/abs/1905.10650), section 4.
    """
    family_of(backbone)
    head_counts, neuron_counts = layer_counts(backbone)
    blocks = [id(block) for block, _ in block_calls(backbone)]
    kept_heads = _kept("head_mask", head_mask, head_counts, "head", blocks)
    if neuron_mask is None:
        kept_neurons = [np.arange(count) for count in neuron_counts]
    else:
        kept_neurons = _kept(
            "neuron_mask", neuron_mask, neuron_counts, "neuron", blocks
        )
    return prune(backbone, kept_heads, kept_neurons)


def _kept(argument, mask, counts, what, blocks):
    """The places of the ones in each row of a mask.

    Args:
        argument: str, the name of the mask.
        mask: what was given as the mask.
        counts: tuple of int, values that each row must have.
        what: str, what a value stands for.
        blocks: list of the block that each layer runs with.
    """
    rows = mask if isinstance(mask, list | tuple) else np.asarray(mask)
    shape = getattr(rows, "shape", None)
    if shape == () or (shape is None and not all(np.ndim(row) for row in rows)):
        rows = []
    rows = [np.asarray(row) for row in rows]
    for row in rows:
        if row.dtype.kind not in "biuf":
            raise TypeError(
                f"`{argument}` must be of numbers 0 and 1 or bool. "
                f"Received: {argument} with values of dtype {row.dtype}."
            )
    if [row.shape for row in rows] != [(count,) for count in counts]:
        raise ValueError(
            f"`{argument}` must have a row for each layer, with a value for each "
            f"{what} that the layer has: {_shown(counts)}. Received: {argument} "
            f"{_shape(mask, rows)}."
        )
    for layer, row in enumerate(rows, start=1):
        wrong = row[(row != 0) & (row != 1)]
        if len(wrong):
            raise ValueError(
                f"`{argument}` must have no values but 0 and 1. "
                f"Received: {wrong[0]} in layer {layer}."
            )
    check_shared(argument, [row.astype(bool).tolist() for row in rows], blocks)
    return [np.flatnonzero(row) for row in rows]


def _shown(counts):
    if len(set(counts)) == 1:
        return f"({len(counts)}, {counts[0]})"
    return f"{len(counts)} rows of {', '.join(map(str, counts))}"


def _shape(mask, rows):
    if hasattr(mask, "shape"):
        return f"of shape {tuple(mask.shape)}"
    return f"with {len(rows)} rows of {', '.join(str(row.size) for row in rows)}"
