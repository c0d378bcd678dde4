"""The base class of all models that train a student: steps, metrics, inputs."""

import keras
from keras import ops

from keras_minilmv2.backbones.families import zero_segment_ids
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.utils.checks import check_int

# Each imports its framework, which may be the only one installed.
if keras.backend.backend() == "tensorflow":
    from keras_minilmv2.distillation.tensorflow_steps import TensorFlowSteps as Steps
elif keras.backend.backend() == "jax":
    from keras_minilmv2.distillation.jax_steps import JaxSteps as Steps
else:
    raise ImportError(
        "`RelationDistiller` needs Keras on TensorFlow or JAX. "
        f"Received: KERAS_BACKEND={keras.backend.backend()}."
    )


class _Untracked:
    """Holds a model that must not become part of the trainer's weights."""

    def __init__(self, model):
        self.model = model


class StudentTrainer(Steps, keras.Model):
    """Trains a student in place; subclasses define the loss.

    A subclass implements `_targets`, which is computed outside the gradient tape, and
    `_losses_of`. `_targets` may read the teacher's outputs by `_teacher_outputs` and
    draw from a `SeedGenerator` that is an attribute. The trainer runs on TensorFlow and
    JAX alike.

    Args:
        student: a keras-nlp backbone.
        student_outputs: `keras.Model` from the student's inputs to what the loss reads.
        parts: names of the parts of the loss, which become metrics.
        max_sequence_length: int. Longer inputs are refused.
        teacher_outputs: `keras.Model` from the same inputs to what `_targets` reads, or
            None without a teacher.
        **kwargs: as for `keras.Model`.
    """

    def __init__(
        self,
        student,
        student_outputs,
        parts,
        max_sequence_length,
        teacher_outputs=None,
        **kwargs,
    ):
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(**kwargs)
        self.student = student
        # The student's variables are the trainer's already, by its first attribute.
        self._student_part = _Untracked(student_outputs)
        self._teacher_part = _Untracked(teacher_outputs)
        self._max_sequence_length = max_sequence_length
        self._trackers = {
            name: keras.metrics.Mean(name=name) for name in ("loss", *parts)
        }
        # Not among `metrics`: `evaluate` has no gradients.
        self._gradient_norm = keras.metrics.Mean(name="gradient_norm")
        self._skipped_steps = keras.metrics.Sum(name="skipped_steps")
        self.accumulation_steps = 1
        self.built = True

    @property
    def metrics(self):
        """The total loss first, then one metric for each of its parts."""
        return list(self._trackers.values())

    @property
    def metrics_variables(self):
        """Variables of the metrics, the gradient norm and the skipped steps."""
        trackers = *self.metrics, self._gradient_norm, self._skipped_steps
        return [variable for tracker in trackers for variable in tracker.variables]

    @property
    def gradient_norm(self):
        """Mean global norm of the gradients, before clipping, since the last reset."""
        return float(self._gradient_norm.result())

    @property
    def skipped_steps(self):
        """Updates skipped so far because float16 gradients were not finite.

        None if the optimizer does not scale the loss and so skips none.
        """
        if not self._scales_loss:
            return None
        return round(float(self._skipped_steps.result()))

    @property
    def distilled_variables(self):
        """The trainable variables that the loss reaches."""
        return self._student_part.model.trainable_variables

    @property
    def teacher_variables(self):
        """The teacher's variables that `_targets` reads; none without a teacher."""
        model = self._teacher_part.model
        return [] if model is None else model.variables

    @property
    def student_part(self):
        """The `keras.Model` from the student's inputs to what the loss reads."""
        return self._student_part.model

    def example_losses(self, data, student_part, seed_generator, static_shapes=True):
        """The losses of a batch with another model in place of `student_part`.

        Args:
            data: a batch as `fit` takes it.
            student_part: function of the student's inputs that returns what the loss
                reads, such as `student_part` with gates in its blocks.
            seed_generator: `keras.random.SeedGenerator` that random choices, such as
                masked tokens, are drawn from.
            static_shapes: bool. Whether shapes must not depend on values, as under XLA.

        Returns:
            tuple of float32 `(batch,)`, and of bool `(batch,)`, whether a sequence has
            a loss; one of padding alone, or without a masked token, has none.
        """
        inputs = self._inputs(data)
        y_true = self._drawn_targets(inputs, seed_generator)
        outputs = student_part(self._student_inputs(inputs, y_true))
        losses, _ = self._losses_of(outputs, inputs, y_true, static_shapes)
        return losses, self._has_loss(inputs, y_true)

    def _teacher_outputs(self, inputs):
        return self._teacher_part.model(inputs, training=False)

    def _targets(self, inputs, training):
        """What the student is compared with, computed outside the gradient tape.

        Args:
            inputs: dict of the student's inputs.
            training: bool. Whether random choices are drawn anew.
        """
        raise NotImplementedError

    def _drawn_targets(self, inputs, seed_generator):
        """`_targets` whose random choices, if any, are drawn from a generator."""
        return self._targets(inputs, training=False)

    def _student_inputs(self, inputs, y_true):
        """What the student reads, given the targets."""
        return inputs

    def _losses_of(self, outputs, inputs, y_true, static_shapes):
        """The losses of a batch.

        Args:
            outputs: what `student_part` returned.
            inputs: dict of the student's inputs.
            y_true: what `_targets` returned.
            static_shapes: bool. Whether shapes must not depend on values, as under XLA.

        Returns:
            tuple of float32 `(batch,)`, and of a dict of the same by part.
        """
        raise NotImplementedError

    def _has_loss(self, inputs, y_true):
        """Which sequences have a loss, bool `(batch,)`: those that have a token."""
        return ops.any(ops.cast(inputs["padding_mask"], "bool"), axis=-1)

    def _sequence_losses(self, inputs, y_true, training):
        """The losses of a batch, as `_losses_of` returns them."""
        inputs_of_student = self._student_inputs(inputs, y_true)
        outputs = self._student_part.model(inputs_of_student, training=training)
        return self._losses_of(outputs, inputs, y_true, self._needs_static_shapes)

    # What Keras trains: the optimizer knows no other variables.
    @property
    def trainable_variables(self):
        """The same as `distilled_variables`."""
        return self.distilled_variables

    @property
    def trainable_weights(self):
        """The same as `distilled_variables`."""
        return self.distilled_variables

    @property
    def non_trainable_variables(self):
        """The rest of the student, and the seeds of its dropout."""
        distilled = {id(variable) for variable in self.distilled_variables}
        return [v for v in self.variables if id(v) not in distilled]

    def compile(
        self,
        optimizer="rmsprop",
        jit_compile="auto",
        accumulation_steps=1,
        **kwargs,
    ):
        """Sets the optimizer and builds its variables.

        Args:
            optimizer: a Keras optimizer, see `keras_minilmv2.adamw`.
            jit_compile: bool or `"auto"`: XLA where there is a GPU or TPU, and on
                TensorFlow not on a CPU, where it was slower.
            accumulation_steps: int. Micro-batches that the batch of each replica is
                cut into, so that only one's activations are held at a time. The
                update is that of the whole batch.
            **kwargs: as for `keras.Model.compile`, without `loss` and `metrics`.

        Raises:
            TypeError: if `accumulation_steps` is not an int.
            ValueError: if it is below 1, or `loss`, `metrics` or `loss_weights` is
                passed.
        """
        check_int(accumulation_steps=accumulation_steps)
        self.accumulation_steps = accumulation_steps
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` must not be passed: a {type(self).__name__} has its "
                    f"own loss. Received: {name}={kwargs[name]!r}."
                )
        if jit_compile == "auto":
            jit_compile = self._jit_compile_by_default()
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        if not self.optimizer.built:
            # Variables made inside the first step break under tf.distribute.
            self.optimizer.build(self.distilled_variables)

    def reset_metrics(self):
        """Resets the metrics and the gradient norm, but not the skipped steps."""
        super().reset_metrics()
        self._gradient_norm.reset_state()

    def call(self, inputs, training=False):
        """Runs the student."""
        return self.student(self._inputs(inputs), training=training)

    def save(self, filepath, overwrite=True, **kwargs):
        """Saves `model_to_save`, and nothing else, as a keras-nlp preset directory.

        Args:
            filepath: str or path. A directory.
            overwrite: bool. Whether an existing directory is replaced.
            **kwargs: ignored. Callbacks pass options of `keras.Model.save`.
        """
        save_student(self.model_to_save, None, filepath, overwrite=overwrite)

    @property
    def model_to_save(self):
        """The student, or a keras-nlp model that holds it."""
        return self.student

    @property
    def _scales_loss(self):
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _update_metrics(self, losses, pair_losses):
        for name, values in {"loss": losses, **pair_losses}.items():
            if self._scales_loss:
                # float16 overflows now and then; the update is then skipped.
                self._update_if_finite(self._trackers[name], values)
            else:
                self._trackers[name].update_state(values)

    def _update_gradient_metrics(self, gradients, num_replicas=1):
        """Updates the metrics of the gradients; returns their global norm."""
        norm = _global_norm(gradients)
        if not self._scales_loss:
            self._gradient_norm.update_state(norm)
            return norm
        scale = self.optimizer.scale_loss(ops.ones(()))
        unscaled = _global_norm([gradient / scale for gradient in gradients])
        self._update_if_finite(self._gradient_norm, unscaled)
        finite = ops.all(
            ops.stack([ops.all(ops.isfinite(gradient)) for gradient in gradients])
        )
        # Each replica adds its share.
        skipped = 1.0 - ops.cast(finite, "float32")
        self._skipped_steps.update_state(skipped / num_replicas)
        return norm

    @staticmethod
    def _update_if_finite(tracker, values):
        finite = ops.isfinite(values)
        tracker.update_state(
            ops.where(finite, values, 0.0), sample_weight=ops.cast(finite, "float32")
        )

    def _inputs(self, data):
        """The student's inputs from what a dataset yields; labels are ignored."""
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(inputs, dict):
            raise TypeError(
                "`dataset` must yield dicts of token_ids and padding_mask. "
                f"Received: a batch of type {type(inputs).__name__}."
            )
        missing = sorted(set(self.student.input) - {"segment_ids"} - set(inputs))
        if missing:
            raise ValueError(
                f"`dataset` must yield {', '.join(sorted(self.student.input))}. "
                f"Received: a batch without {', '.join(missing)}."
            )
        inputs = zero_segment_ids(self.student, inputs)
        length = inputs["token_ids"].shape[1]
        if length is not None and length > self._max_sequence_length:
            raise ValueError(
                "`sequence_length` must not exceed the position table. Received: "
                f"sequence_length={length}, max_sequence_length="
                f"{self._max_sequence_length}."
            )
        return {name: inputs[name] for name in self.student.input}


def _global_norm(gradients):
    return ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
