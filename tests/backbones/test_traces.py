"""Traced functions are freed, though TensorFlow registers their custom gradients."""

import gc
import weakref

import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

from keras_minilmv2.backbones.traces import forgotten_gradients


@tf.custom_gradient
def doubled(x):
    return 2.0 * x, lambda upstream: 2.0 * upstream


def trace():
    """A function that has a custom gradient in its graph, traced."""
    return tf.function(lambda x: doubled(x) + 1.0).get_concrete_function(tf.ones(3))


def test_a_graph_with_a_custom_gradient_is_freed():
    with forgotten_gradients():
        graph = weakref.ref(trace().graph)
        gc.collect()
        assert graph() is not None
    gc.collect()
    assert graph() is None


def test_a_traced_function_runs_as_before_and_earlier_gradients_are_kept():
    earlier = trace()
    others = {n for n in ops.gradient_registry.list() if "CustomGradient" not in n}
    with forgotten_gradients():
        inside = trace()
    assert set(inside(tf.ones(3)).numpy()) == {3.0}
    x = tf.ones(3)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = earlier(x)
    assert set(tape.gradient(y, x).numpy()) == {2.0}
    assert others <= set(ops.gradient_registry.list())


def test_gradients_are_forgotten_after_an_error_too():
    before = set(ops.gradient_registry.list())

    @forgotten_gradients()
    def fail():
        trace()
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        fail()
    assert set(ops.gradient_registry.list()) == before
