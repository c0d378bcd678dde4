"""Dropout and activations of a block, faster than op by op on TensorFlow and a CPU.

On GPUs and TPUs, where the whole step is compiled, and on JAX they are Keras' own.
"""

import functools

import keras

from keras_minilmv2.utils.devices import runs_on_accelerator

_VALUES = 2**16


def drop(layer, x, training):
    """What a dropout layer does, with its rate rounded to a multiple of `2**-16`.

    Keras draws a float for each element: 4% of a step in float32 and 6% in mixed
    bfloat16. 16 random bits decide as well whether an element stays.

    Args:
        layer: `keras.layers.Dropout`. Its seed generator is used.
        x: float tensor.
        training: bool. Whether dropout acts.

    Returns:
        Tensor shaped as `x`, of the same mean.
    """
    threshold = round(layer.rate * _VALUES)
    if not training or threshold == 0:
        return x
    if layer.noise_shape is not None or threshold == _VALUES or not _on_cpu():
        return layer(x, training=training)
    import tensorflow as tf

    *rest, width = tf.unstack(tf.shape(x))
    seed = tf.cast(layer.seed_generator.next(), "int32")
    pairs = tf.random.stateless_uniform(
        (*rest, (width + 1) // 2), seed, minval=None, maxval=None, dtype="uint32"
    )
    bits = tf.reshape(tf.bitcast(pairs, "uint16"), (*rest, -1))
    if x.shape[-1] is None or x.shape[-1] % 2 == 1:
        bits = bits[..., :width]
    bits = tf.ensure_shape(bits, x.shape)
    scale = tf.constant(_VALUES / (_VALUES - threshold), x.dtype)
    return tf.where(bits >= threshold, x * scale, tf.zeros((), x.dtype))


def activate(activation, x, training):
    """An activation; in training one compiled pass, and one for its gradient.

    Op by op, GELU and its gradient are a dozen passes over the widest vectors of a
    block, and keep all that is between them. Without a gradient, TensorFlow fuses GELU
    with the product before it.

    Args:
        activation: function of one tensor.
        x: float tensor.
        training: bool.

    Returns:
        Tensor shaped as `x`.
    """
    if not training or not _on_cpu():
        return activation(x)
    return _compiled(activation)(x)


@functools.cache
def _compiled(activation):
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def forward(x):
        # Rounded once: XLA rounds every bfloat16 in between, which takes longer.
        wide = tf.float32 if x.dtype.size < 4 else x.dtype
        return tf.cast(activation(tf.cast(x, wide)), x.dtype)

    @tf.function(jit_compile=True)
    def gradient(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward.python_function(x)
        return tape.gradient(y, x, output_gradients=upstream)

    @tf.custom_gradient
    def compiled(x):
        return forward(x), lambda upstream: gradient(x, upstream)

    return compiled


def _on_cpu():
    """Whether the backend is TensorFlow and has nothing but CPUs."""
    return keras.backend.backend() == "tensorflow" and not runs_on_accelerator()
