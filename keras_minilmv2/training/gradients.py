"""Gradients as the papers' Adam wants them."""

import tensorflow as tf


def dense(gradient, variable):
    """A gradient without holes: Adam then moves every row of an embedding.

    Without XLA an embedding's gradient has the touched rows only and Keras' optimizers
    leave the others alone; with XLA it is dense. The papers' Adam is dense.

    Args:
        gradient: tensor or `tf.IndexedSlices`.
        variable: what it is the gradient of.

    Returns:
        A tensor of the variable's shape.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(
        gradient.values, gradient.indices, variable.shape[0]
    )
