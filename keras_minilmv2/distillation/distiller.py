"""The model that trains a student to have its teacher's relations."""

import keras
from keras import ops

from keras_minilmv2.backbones.families import family_of, zero_segment_ids
from keras_minilmv2.backbones.precision import cast_once, look_up_before_casting
from keras_minilmv2.backbones.projections import block_calls, check_layer, qkv_model
from keras_minilmv2.backbones.students import check_same_family
from keras_minilmv2.distillation.losses import RelationLoss
from keras_minilmv2.files import save_student

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
    """Holds a model that must not become part of the distiller's weights."""

    def __init__(self, model):
        self.model = model


class RelationDistiller(Steps, keras.Model):
    """Distils a teacher's self-attention relations into a student (MiniLMv2).

        L = sum_ij a_ij / (A_r |x|) sum_a sum_t KL(R_teacher[a, t] || R_student[a, t])
        R = softmax(A_i A_j' / sqrt(d_r))

    with `A_i`, `A_j` out of the queries, keys and values of the teacher's
    `teacher_layer` and of the student's last layer, joined to the full width and split
    into `num_relation_heads` heads. No labels are needed.

    The teacher runs in inference mode, outside the gradient tape and only up to the
    projections of `teacher_layer`; it is no part of the distiller's weights. The
    student stays the plain keras-nlp backbone that was passed in and is trained in
    place.

    **What gets no gradient.** Above the projections of its last layer, the student's
    attention output, both norms and feed-forward of that layer, and the pooler of
    BERT, ALBERT and ELECTRA, are not part of the loss. They stay as initialised until
    the student is fine-tuned, and weight decay does not touch them.

    Trains on TensorFlow and, with `KERAS_BACKEND=jax`, on JAX, where TensorFlow need
    not be installed. On JAX, `fit` and `evaluate` also take any Python iterable of
    dict batches of NumPy arrays.

    Metrics: `loss` (nats, the weighted sum) and one for each relation pair, such as
    `qq`. `evaluate` runs without dropout.

    Args:
        teacher: a keras-nlp backbone.
        student: a keras-nlp backbone of the same family and vocabulary.
        teacher_layer: int, from 1. The papers take the last layer of 12-layer
            teachers, 21 of BERT large, 19 of RoBERTa and XLM-R large.
        num_relation_heads: int. Must divide both `hidden_dim`s. The papers take 48
            with teachers of 768 channels and 64 with 1024.
        relation_weights: dict of float by pair of letters q, k, v. Defaults to
            `{"qq": 1.0, "kk": 1.0, "vv": 1.0}`.
        relation_loss: a `RelationLoss` or `AttentionValueLoss` in place of the two
            arguments before.
        **kwargs: as for `keras.Model`.

    Call arguments:
        inputs: dict of int32 `"token_ids"` and `"padding_mask"` (1 = real token), each
            `(batch, length)`; `"segment_ids"` may be left out and is then 0. What
            `fit` and `evaluate` read, in batches. Returns the student's output.

    Raises:
        TypeError: if a backbone is of no supported family.
        ValueError: if the two backbones do not fit together, or an argument does not
            fit them.

    Example:

    ```python
    distiller = RelationDistiller(
        teacher, student, teacher_layer=12, num_relation_heads=48
    )
    distiller.compile(optimizer=adamw(6e-4, warmup_steps=4_000, total_steps=400_000))
    distiller.fit(dataset)
    save_student(student, tokenizer, "out/student")
    ```

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828), equations 5 to 8.
    """

    def __init__(
        self,
        teacher,
        student,
        teacher_layer,
        num_relation_heads=None,
        relation_weights=None,
        relation_loss=None,
        **kwargs,
    ):
        check_same_family(teacher, student)
        check_layer("teacher_layer", teacher_layer, len(block_calls(teacher)))
        if relation_loss is None:
            if num_relation_heads is None:
                raise ValueError(
                    "`num_relation_heads` must be given unless `relation_loss` is. "
                    "Received: num_relation_heads=None."
                )
            relation_loss = RelationLoss(num_relation_heads, relation_weights)
        elif num_relation_heads is not None or relation_weights is not None:
            raise ValueError(
                "`relation_loss` must not be combined with `num_relation_heads` or "
                "`relation_weights`. Received: relation_loss="
                f"{relation_loss.name!r}, num_relation_heads={num_relation_heads}, "
                f"relation_weights={relation_weights}."
            )
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(**kwargs)
        self.student = student
        self.teacher_layer = teacher_layer
        self.relation_loss = relation_loss
        # A projection that no pair names would be computed, and its weights decayed.
        projections = relation_loss.projections
        self._teacher_qkv = _Untracked(
            qkv_model(cast_once(teacher), teacher_layer, projections)
        )
        look_up_before_casting(student)
        self._student_qkv = _Untracked(
            qkv_model(student, len(block_calls(student)), projections)
        )
        self._max_sequence_length = min(
            teacher.max_sequence_length, student.max_sequence_length
        )
        # Wrong heads fail here, not in the first step.
        num_heads = relation_loss.relation_heads(
            self._teacher_qkv.model.output, self._student_qkv.model.output
        )
        _check_divides(num_heads, teacher, student)
        self._trackers = {"loss": keras.metrics.Mean(name="loss")}
        for pair in relation_loss.pairs:
            self._trackers[pair] = keras.metrics.Mean(name=pair)
        # Not among `metrics`: they say nothing in `evaluate`.
        self._gradient_norm = keras.metrics.Mean(name="gradient_norm")
        self._skipped_steps = keras.metrics.Sum(name="skipped_steps")
        self.accumulation_steps = 1
        self.built = True

    @property
    def metrics(self):
        """The total loss first, then one metric for each relation pair."""
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
        """Updates left out so far because float16 gradients were not finite.

        None if the optimizer does not scale the loss, when none is left out.
        """
        if not self._scales_loss:
            return None
        return round(float(self._skipped_steps.result()))

    @property
    def distilled_variables(self):
        """The student's trainable variables that the loss reaches."""
        return self._student_qkv.model.trainable_variables

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
            ValueError: if `loss`, `metrics` or `loss_weights` is passed, or
                `accumulation_steps` is not a positive int.
        """
        if not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise ValueError(
                "`accumulation_steps` must be a positive int. "
                f"Received: accumulation_steps={accumulation_steps!r}."
            )
        self.accumulation_steps = accumulation_steps
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` must not be passed: the loss of a RelationDistiller is "
                    f"its `relation_loss`. Received: {name}={kwargs[name]!r}."
                )
        if jit_compile == "auto":
            jit_compile = self._jit_compile_by_default()
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        if not self.optimizer.built:
            # Variables made inside the first step break under tf.distribute.
            self.optimizer.build(self.distilled_variables)

    def reset_metrics(self):
        """Resets the metrics and the gradient norm; skipped steps are counted on."""
        super().reset_metrics()
        self._gradient_norm.reset_state()

    def call(self, inputs, training=False):
        """Runs the student."""
        return self.student(self._inputs(inputs), training=training)

    def save(self, filepath, overwrite=True, **kwargs):
        """Saves the student, and nothing else, as a keras-nlp preset directory.

        Args:
            filepath: str or path. A directory.
            overwrite: bool. Whether an existing directory is replaced.
            **kwargs: ignored; here for callbacks that pass options of
                `keras.Model.save`.
        """
        save_student(self.student, None, filepath, overwrite=overwrite)

    def _teacher_relations(self, inputs):
        vectors = self._teacher_qkv.model(inputs, training=False)
        return {**vectors, "padding_mask": inputs["padding_mask"]}

    def _sequence_losses(self, inputs, y_true, training):
        y_pred = self._student_qkv.model(inputs, training=training)
        return self.relation_loss.sequence_losses(
            y_true, y_pred, static_shapes=self._needs_static_shapes
        )

    @property
    def _scales_loss(self):
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _update_metrics(self, losses, pair_losses):
        for name, values in {"loss": losses, **pair_losses}.items():
            if self._scales_loss:
                # float16 overflows now and then; the update is left out then.
                self._update_if_finite(self._trackers[name], values)
            else:
                self._trackers[name].update_state(values)

    def _update_gradient_metrics(self, gradients, num_replicas=1):
        """Adds the global norm of what the optimizer is given, and returns it."""
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
        """The student's inputs out of what a dataset yields; labels are ignored."""
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
                "`sequence_length` must not be beyond the position table. Received: "
                f"sequence_length={length}, max_sequence_length="
                f"{self._max_sequence_length}."
            )
        return {name: inputs[name] for name in self.student.input}


def _global_norm(gradients):
    return ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))


def _check_divides(num_relation_heads, teacher, student):
    for role, backbone in (("teacher", teacher), ("student", student)):
        if backbone.hidden_dim % num_relation_heads != 0:
            raise ValueError(
                "`num_relation_heads` must divide the `hidden_dim` of teacher and "
                f"student. Received: num_relation_heads={num_relation_heads}, "
                f"{role} hidden_dim={backbone.hidden_dim} ({family_of(backbone).name})."
            )
