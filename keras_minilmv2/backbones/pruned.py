"""Encoders whose layers have fewer heads and neurons than their class builds.

A pruned encoder's class is a subclass of its family's keras-nlp class, with the number
of heads and neurons of each layer among its arguments. It is built at full size, and
the dense layers of its blocks are then replaced. Once this module is imported,
keras-hub's `from_preset` takes a pruned preset for one of the family's.

Reads private attributes of Keras' layers, of keras-nlp's `TransformerEncoder` and
`KerasPresetLoader`; checked on Keras 3.15 and keras-nlp 0.32.
"""

import functools

import keras
import keras_hub
import numpy as np
from keras import ops
from keras_hub.src.utils.preset_utils import KerasPresetLoader

from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.families import FAMILIES, family_of
from keras_minilmv2.backbones.flat_blocks import block_sizes, can_be_flat
from keras_minilmv2.backbones.layer_counts import (
    FORMAT_VERSION,
    check_counts,
    check_format_version,
)
from keras_minilmv2.backbones.output_bias import OutputBias
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.variants import set_variant, variant_of

_PROJECTIONS = "query_dense", "key_dense", "value_dense"
_HEADS, _NEURONS = "heads", "neurons"


def _pruned_class(family):
    """The class of a family's pruned encoders."""
    parent = family.backbone_class

    class Pruned(parent):
        """An encoder whose layers have fewer heads and neurons.

        `num_heads` and `intermediate_dim` are those of the encoder that it was; the
        width of a head is `hidden_dim / num_heads` still.

        Args:
            *args: as for the family's class.
            head_counts: sequence of int, heads of each layer, as the layers run.
            neuron_counts: sequence of int, feed-forward neurons of each layer.
            format_version: int. Of these arguments.
            **kwargs: as for the family's class.

        Raises:
            TypeError, ValueError: as `check_counts` does.
        """

        unpruned_class = parent

        def __init__(
            self,
            *args,
            head_counts,
            neuron_counts,
            format_version=FORMAT_VERSION,
            **kwargs,
        ):
            check_format_version(format_version)
            super().__init__(*args, **kwargs)
            counts = {"head_counts": head_counts, "neuron_counts": neuron_counts}
            check_counts(family, super().get_config(), **counts)
            calls = zip(block_calls(self), head_counts, neuron_counts, strict=True)
            for (block, _), num_heads, num_neurons in calls:
                _shrink(block, num_heads, num_neurons)
            self.head_counts = tuple(head_counts)
            self.neuron_counts = tuple(neuron_counts)

        def get_config(self):
            """The arguments of the constructor."""
            return {
                **super().get_config(),
                "head_counts": list(self.head_counts),
                "neuron_counts": list(self.neuron_counts),
                "format_version": FORMAT_VERSION,
            }

        @classmethod
        def from_config(cls, config):
            """Builds the encoder of a config, if its format is known."""
            # First: a newer format may have other arguments.
            check_format_version(config.get("format_version"))
            return super().from_config(config)

    Pruned.__name__ = Pruned.__qualname__ = f"Pruned{parent.__name__}"
    return keras.saving.register_keras_serializable(package="keras_minilmv2")(Pruned)


_CLASSES = {family.name: _pruned_class(family) for family in FAMILIES}


def is_pruned(backbone):
    """Whether layers of a backbone have fewer heads or neurons than its class builds.

    Args:
        backbone: a keras-nlp backbone.
    """
    return isinstance(backbone, tuple(_CLASSES.values()))


def layer_counts(backbone):
    """Counts the heads and the neurons of each layer.

    Args:
        backbone: a keras-nlp backbone of a supported family, pruned or not.

    Returns:
        tuple of two tuples of int, heads and neurons, one for each layer as they run.
    """
    sizes = (block_sizes(block) for block, _ in block_calls(backbone))
    return tuple(zip(*sizes, strict=True))


def layer_width(backbone, layer):
    """Channels of a layer's queries: its heads times their width.

    Args:
        backbone: a keras-nlp backbone of a supported family.
        layer: int, from 1.
    """
    head_dim = backbone.hidden_dim // backbone.num_heads
    return layer_counts(backbone)[0][layer - 1] * head_dim


def last_layer_with_heads(backbone):
    """The highest layer that has an attention head, counted from 1; 0 if none has.

    Args:
        backbone: a keras-nlp backbone of a supported family.
    """
    head_counts = layer_counts(backbone)[0]
    return max((n for n, heads in enumerate(head_counts, 1) if heads), default=0)


def prune(backbone, kept_heads, kept_neurons):
    """Builds an encoder of some heads and neurons of another one.

    Args:
        backbone: a keras-nlp backbone of a supported family. Left as it is.
        kept_heads: sequence of int arrays, the places of the heads that stay, one for
            each layer; equal for layers that share a block.
        kept_neurons: the same of neurons.

    Returns:
        A backbone of the same family, dtype and variant.

    Raises:
        ValueError: if a block is gated or quantized.
    """
    blocks = [block for block, _ in block_calls(backbone)]
    if not all(map(can_be_flat, blocks)):
        raise ValueError(
            "`backbone` must have the blocks of its class, neither gated nor "
            f"quantized. Received: backbone={backbone.name!r} with others."
        )
    counts = (tuple(map(len, kept)) for kept in (kept_heads, kept_neurons))
    pruned_class, config = counted(family_of(backbone), backbone.get_config(), *counts)
    pruned = pruned_class.from_config(config)
    set_variant(pruned, variant_of(backbone))
    _copy_outside_blocks(backbone, pruned)
    layers = zip(block_calls(pruned), blocks, kept_heads, kept_neurons, strict=True)
    for (small, _), large, heads, neurons in layers:
        kept = {_HEADS: heads, _NEURONS: neurons}
        for ours, theirs, axis, what in _pairs(small, large):
            values = ops.convert_to_numpy(theirs)
            if what is not None:
                values = np.take(values, kept[what], axis)
            ours.assign(values)
    return pruned


def counted(family, config, head_counts, neuron_counts):
    """The class and the arguments of an encoder with these heads and neurons.

    Args:
        family: `Family`.
        config: dict. Arguments of the family's class, pruned or not.
        head_counts: sequence of int, heads of each layer.
        neuron_counts: sequence of int, neurons of each layer.

    Returns:
        tuple of a class and a dict: the family's own class where every layer has all
        heads and neurons.
    """
    config = unpruned(config)
    is_full = set(head_counts) == {config["num_heads"]}
    if is_full and set(neuron_counts) == {config["intermediate_dim"]}:
        return family.backbone_class, config
    counts = {"head_counts": list(head_counts), "neuron_counts": list(neuron_counts)}
    return _CLASSES[family.name], {**config, **counts, "format_version": FORMAT_VERSION}


def unpruned(config):
    """The arguments of an encoder of full shape, out of those of a pruned one."""
    pruned = ("head_counts", "neuron_counts", "format_version")
    return {name: value for name, value in config.items() if name not in pruned}


def dense_copy(backbone):
    """Builds an encoder of full shape that computes what a pruned one computes.

    The weights of heads and neurons that are gone are 0.

    Args:
        backbone: a pruned backbone.

    Returns:
        A backbone of the family's own keras-nlp class.
    """
    config = unpruned(backbone.get_config())
    dense = family_of(backbone).backbone_class.from_config(config)
    set_variant(dense, variant_of(backbone))
    _copy_outside_blocks(backbone, dense)
    for (small, _), (large, _) in zip(
        block_calls(backbone), block_calls(dense), strict=True
    ):
        for variable in large.weights:
            variable.assign(ops.zeros_like(variable))
        for ours, theirs, axis, _ in _pairs(small, large):
            values = np.zeros(theirs.shape)
            places = [slice(None)] * values.ndim
            if axis is not None:
                places[axis] = slice(ours.shape[axis])
            values[tuple(places)] = ops.convert_to_numpy(ours)
            theirs.assign(values)
    return dense


def _copy_outside_blocks(source, target):
    for old, new in zip(source.layers, target.layers, strict=True):
        if not isinstance(old, keras_hub.layers.TransformerEncoder):
            for theirs, ours in zip(old.weights, new.weights, strict=True):
                ours.assign(theirs)


def _shrink(block, num_heads, num_neurons):
    """Replaces the layers of a block by some with fewer heads and neurons.

    Their weights are drawn anew. A block that has these numbers stays as it is.
    """
    width = block._self_attention_layer_norm.gamma.shape[0]
    shape = None, None, width
    # The names of weights have the block's in front.
    with block._open_name_scope():
        if num_heads != block_sizes(block)[0]:
            attention = attention_of(block)
            if num_heads:
                fewer = {**attention.get_config(), "num_heads": num_heads}
                smaller = keras.layers.MultiHeadAttention.from_config(fewer)
                smaller.build(shape, shape)
            else:
                smaller = _output_bias(attention, shape)
            _replace(block, "_self_attention_layer", smaller)
        if num_neurons != block_sizes(block)[1]:
            wide = block._feedforward_intermediate_dense
            narrow = block._feedforward_output_dense
            if num_neurons:
                config = {**wide.get_config(), "units": num_neurons}
                wide = keras.layers.Dense.from_config(config)
                wide.build(shape)
                narrow = keras.layers.Dense.from_config(narrow.get_config())
                narrow.build((None, None, num_neurons))
            else:
                # `set_variant` sets an activation, which nothing runs.
                wide = keras.layers.Identity(name=wide.name, dtype=wide.dtype_policy)
                wide.build(shape)
                narrow = _output_bias(narrow, shape)
            _replace(block, "_feedforward_intermediate_dense", wide)
            _replace(block, "_feedforward_output_dense", narrow)


def _output_bias(layer, shape):
    bias = OutputBias(name=layer.name, dtype=layer.dtype_policy)
    bias.build(shape)
    return bias


def _replace(block, attribute, layer):
    """Puts a layer in the place of another one, also in the order of the weights."""
    # A built layer refuses new sub-layers; this one takes the place of an old one.
    block._tracker.replace_tracked_value("layers", getattr(block, attribute), layer)
    setattr(block, attribute, layer)


def _pairs(small, large):
    """Pairs the weights of two blocks, one with some of the other's heads and neurons.

    Yields:
        tuple of the small block's weight, the large one's, the axis along which the
        small one is shorter, and what it counts there; twice None for weights of
        equal shape.
    """
    for name in ("_self_attention_layer_norm", "_feedforward_layer_norm"):
        for ours, theirs in zip(
            getattr(small, name).weights, getattr(large, name).weights, strict=True
        ):
            yield ours, theirs, None, None
    ours, theirs = attention_of(small), attention_of(large)
    yield _bias(ours), _bias(theirs), None, None
    if not isinstance(ours, OutputBias):
        for name in _PROJECTIONS:
            one, other = getattr(ours, name), getattr(theirs, name)
            # (hidden_dim, heads, head_dim) and (heads, head_dim)
            yield one.kernel, other.kernel, 1, _HEADS
            yield one.bias, other.bias, 0, _HEADS
        # (heads, head_dim, hidden_dim)
        yield ours.output_dense.kernel, theirs.output_dense.kernel, 0, _HEADS
    ours, theirs = small._feedforward_output_dense, large._feedforward_output_dense
    yield ours.bias, theirs.bias, None, None
    if not isinstance(ours, OutputBias):
        yield ours.kernel, theirs.kernel, 0, _NEURONS
        ours = small._feedforward_intermediate_dense
        theirs = large._feedforward_intermediate_dense
        yield ours.kernel, theirs.kernel, 1, _NEURONS
        yield ours.bias, theirs.bias, 0, _NEURONS


def _bias(attention):
    """The output bias of an attention layer with or without heads."""
    layer = attention if isinstance(attention, OutputBias) else attention.output_dense
    return layer.bias


def _of_the_family(check_backbone_class):
    @functools.wraps(check_backbone_class)
    def check(loader):
        """The class that tasks and preprocessors know."""
        found = check_backbone_class(loader)
        return getattr(found, "unpruned_class", found)

    return check


KerasPresetLoader.check_backbone_class = _of_the_family(
    KerasPresetLoader.check_backbone_class
)
