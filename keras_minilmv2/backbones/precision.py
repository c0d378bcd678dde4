"""Mixed precision without casting what need not be cast in every step.

Reads private names of Keras' layers and variables; checked on Keras 3.15.
"""

import keras
from keras import ops

from keras_minilmv2.backbones.variants import rebuild


def cast_once(backbone):
    """A backbone for inference whose weights have the dtype it computes in.

    Under a mixed policy Keras casts every float32 weight in every step, which pays
    for weights that change only.

    Args:
        backbone: a keras-nlp backbone.

    Returns:
        A copy with weights of the compute dtype; the backbone itself where they have
        it already, or where its layers are not those of its class.
    """
    policy = backbone.dtype_policy
    if policy.compute_dtype == policy.variable_dtype:
        return backbone
    copy = rebuild(backbone, dtype=policy.compute_dtype)
    if len(copy.variables) != len(backbone.variables):
        return backbone
    for theirs, ours in zip(copy.variables, backbone.variables, strict=True):
        theirs.assign(ops.cast(ours.value, theirs.dtype))
    return copy


def look_up_before_casting(backbone):
    """Makes embedding layers cast the rows they look up, not their whole table.

    Gradients of a token's many occurrences are then summed in float32, too.

    Args:
        backbone: a keras-nlp backbone. Changed in place; it computes the same.
    """
    for layer in backbone.layers:
        for part in layer._flatten_layers():
            if isinstance(part, keras.layers.Embedding):
                part._embeddings._autocast = False
