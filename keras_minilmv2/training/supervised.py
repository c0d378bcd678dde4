"""The training step of models with labels: one compiled update, and loops over it."""

import math

import tensorflow as tf

from keras_minilmv2.training.gradients import dense


class NotFiniteError(FloatingPointError, ValueError):
    """A loss, or an output of a model, is not finite."""


def loss_and_gradients(loss, variables, optimizer):
    """A loss, and its gradient for every variable that it depends on.

    Gradients of embeddings are dense, so that Adam moves every row in every step, as
    it does in the papers' code.

    Args:
        loss: function without arguments that computes a scalar.
        variables: list of variables.
        optimizer: Keras optimizer; it scales the loss of the gradients.

    Returns:
        tuple of the loss, a list of tensors and the list of their variables. A pooler
        that the model does not use has no gradient and is in neither list.
    """
    with tf.GradientTape() as tape:
        value = loss()
        scaled = optimizer.scale_loss(value)
    gradients = tape.gradient(scaled, variables)
    reached = [
        (dense(gradient, variable), variable)
        for gradient, variable in zip(gradients, variables, strict=True)
        if gradient is not None
    ]
    return value, *map(list, zip(*reached, strict=True))


def training_step(model, loss, optimizer, jit_compile=False):
    """One update of a model, as a compiled function.

    Args:
        model: Keras model.
        loss: function of targets and outputs, a scalar.
        optimizer: Keras optimizer.
        jit_compile: bool. Whether XLA compiles gradients too, once for each shape. The
            update is always compiled.

    Returns:
        Function of inputs and targets that updates the model and returns the loss. It
        is compiled for the first batch's structure, for all lengths.
    """
    variables = model.trainable_variables
    optimizer.build(variables)

    def step(inputs, targets):
        value, gradients, reached = loss_and_gradients(
            lambda: loss(targets, model(inputs, training=True)), variables, optimizer
        )
        # In one compiled pass: op by op the moments of a large embedding are read
        # and written many times.
        update = tf.function(
            lambda gradients: optimizer.apply(gradients, reached), jit_compile=True
        )
        update(gradients)
        return value

    return compiled(step, jit_compile)


def train(step, epochs, on_step=None, *, start=None, keep=None):
    """Trains by taking one step after the other.

    Args:
        step: function of inputs and targets that updates a model and returns the loss,
            such as `training_step` returns.
        epochs: iterable of iterables of pairs, inputs and targets, of any one
            structure. The first axis is the batch.
        on_step: function of the step, counted from 1, and its loss.
        start: dict that `keep` was given, of a training that goes on: the batches of
            steps that are done are passed over.
        keep: function of the steps that are done and a dict, what JSON can hold, after
            each of them.

    Returns:
        list of float, the mean loss of each epoch.

    Raises:
        NotFiniteError: if a loss is not finite.
    """
    start = start or {"step": 0, "total": 0.0, "count": 0, "means": []}
    done, means = start["step"], list(start["means"])
    total, count, number = start["total"], start["count"], 0
    for epoch in epochs:
        for batch in epoch:
            number += 1
            if number <= done:
                continue
            value = float(step(*batch))
            if not math.isfinite(value):
                raise NotFiniteError(f"The loss was not finite at step {number}.")
            size = len(tf.nest.flatten(batch)[0])
            total, count = total + size * value, count + size
            if on_step is not None:
                on_step(number, value)
            if keep is not None:
                state = {"step": number, "total": total, "count": count}
                keep(number, {**state, "means": list(means)})
        if number >= done:
            means.append(total / count)
            total, count = 0.0, 0
    return means


def compiled(function, jit_compile=False):
    """A function compiled at its first call, for any batch and length.

    Args:
        function: function of structures of tensors, whose first two axes may change.
        jit_compile: bool. Whether XLA compiles it, once for each shape.

    Returns:
        Function of the same arguments.
    """
    concrete = None

    def call(*arguments):
        nonlocal concrete
        if concrete is None:
            specs = tf.nest.map_structure(_any_length, arguments)
            # Not the tf.function itself: it warns where a grid makes many of them.
            graph = tf.function(function, jit_compile=jit_compile or None)
            concrete = graph.get_concrete_function(*specs)
        return concrete(*arguments)

    return call


def _any_length(value):
    """The `tf.TensorSpec` of tensors that differ in their first two axes only."""
    shape = [None] * min(value.ndim, 2) + list(value.shape[2:])
    return tf.TensorSpec(shape, value.dtype)
