"""Training of an encoder together with gates that decide which heads it keeps."""

import functools

import keras
import numpy as np
import tensorflow as tf

from keras_minilmv2.distillation.trainer import StudentTrainer
from keras_minilmv2.heads.gates import (
    HEAD_GATE,
    NEURON_GATE,
    block_of_layer,
    gate_shapes,
    gated_model,
    ones_gates,
)
from keras_minilmv2.heads.subset import Gates
from keras_minilmv2.training.supervised import compiled, loss_and_gradients

# What a step reports beside its loss.
FACTS = ("temperature", "zero_gradients", "overlap")


class SubsetTraining:
    """One update of a model, and of the gates on its heads, as a compiled function.

    The encoder and the logits have an optimizer each: rates, and the clipping of
    gradients, are apart, so that a large gradient of the logits does not shrink that of
    the encoder. Temperature and noise depend on the number of updates and are computed
    in the compiled step.

    Args:
        model: functional Keras model that holds the encoder, as for `gated_model`; or a
            trainer of the package, such as `RelationDistiller`, which brings its loss:
            its student is then pruned while it is distilled.
        gates: `HeadSubset` or `L0Gates`: a row for each layer of the encoder, or, of
            ALBERT, for each block. A relation loss ends at the queries, keys and values
            of the student's last layer: its heads have none.
        loss: function of targets and outputs, a scalar; None with a trainer.
        optimizer: Keras optimizer of the model; None to train the gates alone.
        gates_optimizer: Keras optimizer of the gates.
        schedule: function of the number of updates, a tensor from 0, that returns the
            temperature, such as `TemperatureSchedule`.
        jit_compile: bool, as for `training_step`.

    Attributes:
        facts: list of dicts by step: `"temperature"`; `"zero_gradients"`, the share of
            logits whose gradient is 0; `"overlap"`, see `Gates.overlap`.

    Raises:
        ValueError: if the gates do not fit the model.
    """

    def __init__(
        self,
        model,
        gates,
        loss,
        optimizer,
        gates_optimizer,
        schedule,
        *,
        jit_compile=False,
    ):
        is_trainer = isinstance(model, StudentTrainer)
        if is_trainer != (loss is None):
            raise ValueError(
                "`loss` must be given, unless `model` is a trainer, which has its own. "
                f"Received: loss={loss!r}, model of type {type(model).__name__}."
            )
        self.gates, self.schedule = gates, schedule
        self.gates_optimizer = gates_optimizer
        self.optimizer = optimizer or gates_optimizer
        self.student = model.student_part if is_trainer else model
        self._gated = gated_model(self.student)
        self._blocks = block_of_layer(self.student)
        self._neurons = _check_fits(self._gated, self._blocks, gates)
        if is_trainer:
            generator = keras.random.SeedGenerator(gates.seed)
            self._loss = functools.partial(
                _loss_of_trainer, model, generator, self._gated, jit_compile
            )
        else:
            self._loss = functools.partial(_loss_of_function, loss, self._gated)
        self._of_model = [] if optimizer is None else self.student.trainable_variables
        if optimizer is not None:
            optimizer.build(self._of_model)
        gates_optimizer.build(gates.trainable_variables)
        self._run = compiled(self._step, jit_compile)
        self.facts = []

    def step(self, inputs, *targets):
        """One update; returns the loss without the penalty of the gates.

        Args:
            inputs: dict of the model's inputs; a batch as the trainer takes it.
            *targets: what the loss compares with; none with a trainer.
        """
        value, *facts = self._run(inputs, *targets).numpy().tolist()
        self.facts.append(dict(zip(FACTS, facts, strict=True)))
        return value

    def _step(self, inputs, *targets):
        gates, of_gates = self.gates, self.gates.trainable_variables
        number = tf.cast(self.gates_optimizer.iterations.value, "int64")
        gates.step.assign(number)
        temperature = self.schedule(number)
        drawn, task_loss = None, None

        def loss():
            nonlocal drawn, task_loss
            drawn = gates(training=True, temperature=temperature)
            value = self._loss(self._gate_inputs(drawn), inputs, *targets)
            task_loss = tf.cast(value, "float32")
            return task_loss + gates.penalty()

        variables = [*self._of_model, *of_gates]
        _, gradients, reached = loss_and_gradients(loss, variables, self.optimizer)
        mine = {id(variable) for variable in of_gates}
        pairs = list(zip(gradients, reached, strict=True))
        upwards = {id(variable) for variable in gates.ascending}
        moved = [(-g if id(v) in upwards else g, v) for g, v in pairs if id(v) in mine]
        zero = [
            tf.reduce_mean(tf.cast(g == 0.0, "float32"))
            for g, v in moved
            if v is gates.logits
        ]
        # Before any update: the hard subset is that of the logits that were sampled.
        overlap = gates.overlap(drawn)
        if self._of_model:
            update = tf.function(
                lambda gradients: self.optimizer.apply(
                    gradients, [v for _, v in pairs if id(v) not in mine]
                ),
                jit_compile=True,
            )
            update([g for g, v in pairs if id(v) not in mine])
        self.gates_optimizer.apply(*zip(*moved, strict=True))
        return tf.stack([task_loss, temperature, *zero, overlap])

    def _gate_inputs(self, drawn):
        """Gates of one row, as the model with gates reads them."""
        heads, neurons = drawn if isinstance(drawn, tuple) else (drawn, None)
        heads = tf.gather(heads, self._blocks)
        neurons = self._neurons if neurons is None else tf.gather(neurons, self._blocks)
        return {HEAD_GATE: heads[None], NEURON_GATE: neurons[None]}

    def masks(self):
        """Masks by layer of what inference keeps, for `prune_heads`.

        Returns:
            tuple of int32 `(num_layers, num_heads)` and `(num_layers,
            intermediate_dim)`, or None.
        """
        heads, neurons = self.gates.masks()
        if neurons is not None:
            neurons = neurons[self._blocks]
        return heads[self._blocks], neurons

    # What `Checkpoints` reads: all that changes in training.

    @property
    def variables(self):
        """Those of the model, the gates and the gates' optimizer."""
        return [
            *self.student.variables,
            *self.gates.variables,
            *self.gates_optimizer.variables,
        ]

    @property
    def metrics_variables(self):
        """None: the facts of steps are no variables."""
        return []

    def separate_seeds(self, restored=False):
        """There is one replica."""


def _loss_of_function(loss, gated, gates, inputs, targets):
    return loss(targets, gated({**inputs, **gates}, training=True))


def _loss_of_trainer(trainer, generator, gated, static_shapes, gates, batch):
    losses, counted = trainer.example_losses(
        batch,
        lambda inputs: gated({**inputs, **gates}, training=True),
        generator,
        static_shapes,
    )
    counted = tf.cast(counted, losses.dtype)
    return tf.reduce_sum(losses * counted) / tf.maximum(tf.reduce_sum(counted), 1.0)


def _check_fits(gated, blocks, gates):
    """Raises unless gates fit a model; returns neuron gates of 1, `(layers, n)`."""
    if not isinstance(gates, Gates):
        raise TypeError(
            "`gates` must be a HeadSubset or L0Gates. "
            f"Received: gates of type {type(gates).__name__}."
        )
    shapes = gate_shapes(gated)
    num_heads, num_neurons = (shapes[name][1] for name in (HEAD_GATE, NEURON_GATE))
    wanted = int(blocks.max()) + 1, num_heads
    received = gates.num_layers, gates.num_heads
    if wanted != received or getattr(gates, "num_neurons", 0) not in (0, num_neurons):
        raise ValueError(
            "`gates` must have a row for each layer of the model, or block that layers "
            f"share, and a gate for each of its heads: {wanted}, and {num_neurons} "
            f"neurons, or none. Received: gates of shape {received}, "
            f"{getattr(gates, 'num_neurons', 0)} neurons."
        )
    return tf.constant(np.array(ones_gates(gated)[NEURON_GATE][0]))
