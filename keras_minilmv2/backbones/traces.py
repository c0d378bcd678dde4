"""What TensorFlow keeps of traced functions that nobody calls any more.

Reads a private name of TensorFlow; checked on TensorFlow 2.21.
"""

import contextlib

import keras


@contextlib.contextmanager
def forgotten_gradients():
    """Forgets, at its end, the custom gradients of graphs that were traced meanwhile.

    TensorFlow registers the gradient of each `tf.custom_gradient` in a graph, and with
    it the graph, for the life of the process. Keras' optimizers have one in each
    update: no training step would ever be freed, and that of a small student takes
    50 MB. A function that was traced inside runs as before, but its gradient can no
    longer be traced.
    """
    before = _custom_gradients()
    try:
        yield
    finally:
        for name in _custom_gradients() - before:
            del _registry()[name]


def _custom_gradients():
    """Names of the custom gradients of all graphs."""
    return {name for name in _registry() if name.startswith("CustomGradient-")}


def _registry():
    """All gradients of TensorFlow by name, those of its own operations included."""
    if keras.backend.backend() != "tensorflow":
        return {}
    from tensorflow.python.framework import ops

    return ops.gradient_registry._registry
