"""Encoders, and models around them, with a gate on every head and neuron."""

import keras
import numpy as np
from keras import ops

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.flat_blocks import block_sizes, can_be_flat
from keras_minilmv2.backbones.gated_blocks import (
    INNER,
    blocks_in,
    with_gated_blocks,
)
from keras_minilmv2.utils.checks import check_choice

HEAD_GATE, NEURON_GATE = "head_gate", "neuron_gate"


def gated_encoder(backbone, return_inner=False):
    """Builds an encoder of the same weights with gates as inputs.

        MHA(x) = W_o [g_1 head_1(x), ..., g_H head_H(x)] + b_o
        FFN(x) = W_2 (g * act(W_1 x + b_1)) + b_2

    with gates of each example, layer and head or neuron. A gate of 0 removes its head
    or neuron; a derivative with respect to it is that head's or neuron's importance
    for an example.

    With gates of 1 the outputs in inference are, to the bit, those of the backbone with
    blocks over one matrix of tokens, as this package trains it; those of its own call
    differ by rounding. In mixed precision gates are cast to the compute dtype.

    Args:
        backbone: a keras-nlp backbone of one of the six families. ALBERT's block has a
            gate for each time it is applied.
        return_inner: bool. Whether the model also returns what the output matrices of
            each layer are given, after the gates.

    Returns:
        Functional `keras.Model` of the backbone's inputs and of `"head_gate"`,
        `(batch, num_layers, num_heads)`, and `"neuron_gate"`, `(batch, num_layers,
        intermediate_dim)`; one row stands for all examples. Its outputs have the
        structure of the backbone's. With `return_inner` they are the value `"outputs"`
        of a dict, whose value `"inner"` is a list by layer of dicts of `"heads"`,
        `(batch, length, num_heads * head_dim)`, and `"neurons"`, `(batch, length,
        intermediate_dim)`.

    Raises:
        TypeError: if the backbone is of no supported family.
        ValueError: if its blocks are quantized or otherwise not those of its class.

    Example:

    ```python
    gated = gated_encoder(backbone)
    gates = ones_gates(gated, batch_size=1)
    gates["head_gate"][:, 0, 3] = 0.0  # the fourth head of the first layer
    gated({**inputs, **gates})
    ```

    Reference:
        [Michel et al., 2019](https://arxiv.org/abs/1905.10650).
    """
    family_of(backbone)
    return gated_model(backbone, inner=("heads", "neurons") if return_inner else ())


def gated_model(model, inner=(), sizes_of=None):
    """Builds a model of the same weights with gates in its encoder.

    Args:
        model: a functional Keras model that is or holds an encoder of the package, such
            as a `keras_hub.models.TextClassifier` or what `Task.training_model`
            returns, with a dict as input; or a `SpanModel`. It is left as it is.
        inner: names out of `"heads"`, `"neurons"`, `"feed_forward_input"` and
            `"attention_entropy"` of what is returned of each layer, the last one as
            `(batch, num_heads)`, in nats, the mean over real tokens.
        sizes_of: an encoder that has the sizes of the gates, where `model` has its
            first layers only. Defaults to `model`.

    Returns:
        Functional `keras.Model`; see `gated_encoder`.

    Raises:
        TypeError: if it is not such a model.
        ValueError: if it has no encoder blocks, or such as cannot have gates.
    """
    for name in inner:
        check_choice(INNER, inner=name)
    if hasattr(model, "with_flat_blocks"):
        model = model.with_flat_blocks()
    if not _is_functional(model):
        raise TypeError(
            "`model` must be a functional Keras model with a dict as input, or a "
            f"SpanModel. Received: model of type {type(model).__name__}."
        )
    blocks = blocks_in(model if sizes_of is None else sizes_of)
    refused = [
        block for block in (*blocks, *blocks_in(model)) if not can_be_flat(block)
    ]
    if not blocks or refused:
        reason = (
            f"a block {refused[0].name!r} that is quantized or not as keras-nlp has it"
            if refused
            else "none"
        )
        raise ValueError(
            "`model` must have encoder blocks whose heads can have gates. "
            f"Received: model={model.name!r} with {reason}."
        )
    num_heads, intermediate_dim = map(max, zip(*map(block_sizes, blocks), strict=True))
    inputs = {
        name: keras.Input(x.shape[1:], dtype=x.dtype, name=name)
        for name, x in model.input.items()
    }
    gates = {
        name: keras.Input(
            (len(blocks), size), dtype=blocks[0].variable_dtype, name=name
        )
        for name, size in ((HEAD_GATE, num_heads), (NEURON_GATE, intermediate_dim))
    }
    outputs, found = with_gated_blocks(model, inputs, *gates.values(), inner)
    if inner:
        outputs = {"outputs": outputs, "inner": found}
    return keras.Model({**inputs, **gates}, outputs, name=f"{model.name}_gated")


def gate_shapes(gated):
    """Shapes of a gated model's gates without the batch.

    Returns:
        dict of `(num_layers, num_heads)` and `(num_layers, intermediate_dim)` by
        `"head_gate"` and `"neuron_gate"`.

    Raises:
        ValueError: if the model has no gates.
    """
    inputs = gated.input if _is_functional(gated) else {}
    missing = [name for name in (HEAD_GATE, NEURON_GATE) if name not in inputs]
    if missing:
        raise ValueError(
            "`gated` must be a model with gates, as gated_encoder and gated_model "
            f"return it. Received: {type(gated).__name__} {gated.name!r} without "
            f"{' and '.join(missing)}."
        )
    return {name: tuple(inputs[name].shape[1:]) for name in (HEAD_GATE, NEURON_GATE)}


def block_of_layer(model):
    """The index of each layer's block, in the order in which blocks first run.

    Args:
        model: a functional Keras model that is or holds an encoder.

    Returns:
        int `(num_layers,)`; layers of ALBERT that share a block have the same.
    """
    ids = [id(block) for block in blocks_in(model)]
    first = list(dict.fromkeys(ids))
    return np.array([first.index(each) for each in ids])


def ones_gates(gated, batch_size=1):
    """Gates that leave everything as it is.

    Args:
        gated: a model with gates.
        batch_size: int. A single row is that of all examples.

    Returns:
        dict of float32 arrays by name.
    """
    shapes = gate_shapes(gated)
    return {n: np.ones((batch_size, *s), "float32") for n, s in shapes.items()}


def checked_mask(name, mask, shape):
    """A mask as float32, checked.

    Args:
        name: str. The argument.
        mask: array of 0, removed, and 1, kept, or None for all kept.
        shape: tuple of int that it must have.

    Raises:
        ValueError: if the mask has another shape or another value.
    """
    if mask is None:
        return np.ones(shape, "float32")
    mask = np.asarray(ops.convert_to_numpy(mask))
    if mask.shape != tuple(shape):
        raise ValueError(
            f"`{name}` must have shape {tuple(shape)}. "
            f"Received: {name} of shape {mask.shape}."
        )
    others = sorted({float(x) for x in np.unique(mask)} - {0.0, 1.0})
    if others:
        raise ValueError(
            f"`{name}` must have values 0 and 1 only. Received: {name} with "
            f"{others[0]:g}."
        )
    return mask.astype("float32")


def _is_functional(model):
    return isinstance(model, keras.Model) and isinstance(
        getattr(model, "input", None), dict
    )
