"""Relation distillation (MiniLMv2) as a `keras.Model`."""

from keras_minilmv2.backbones.precision import cast_once, look_up_before_casting
from keras_minilmv2.backbones.projections import block_calls, check_layer, qkv_model
from keras_minilmv2.backbones.pruned import layer_width
from keras_minilmv2.backbones.students import check_same_family
from keras_minilmv2.distillation.losses import RelationLoss
from keras_minilmv2.distillation.relations import check_relation_heads
from keras_minilmv2.distillation.trainer import StudentTrainer


class RelationDistiller(StudentTrainer):
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
    BERT, ALBERT and ELECTRA, are not part of the loss. They stay as initialized until
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
        num_relation_heads: int. Must divide both `hidden_dim`s; of a pruned encoder,
            the channels of the heads left in the layer that is compared. The papers
            take 48 with teachers of 768 channels and 64 with 1024.
        relation_weights: dict of float by pair of letters q, k, v. Defaults to
            `{"qq": 1.0, "kk": 1.0, "vv": 1.0}`.
        relation_loss: a `RelationLoss` or `AttentionValueLoss` in place of the two
            arguments before and the one after.
        relation_head_weights: sequence of float, one for each relation head, as for
            `RelationLoss`: the paper has none.
        **kwargs: as for `keras.Model`.

    Call arguments:
        inputs: dict of int32 `"token_ids"` and `"padding_mask"` (1 = real token), each
            `(batch, length)`; `"segment_ids"` is optional and defaults to 0. `fit` and
            `evaluate` read batches of these. Returns the student's output.

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
        relation_head_weights=None,
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
            relation_loss = RelationLoss(
                num_relation_heads,
                relation_weights,
                relation_head_weights=relation_head_weights,
            )
        elif any(
            each is not None
            for each in (num_relation_heads, relation_weights, relation_head_weights)
        ):
            raise ValueError(
                "`relation_loss` must not be combined with `num_relation_heads`, "
                "`relation_weights` or `relation_head_weights`. Received: "
                f"relation_loss={relation_loss.name!r}, "
                f"num_relation_heads={num_relation_heads}, "
                f"relation_weights={relation_weights}, "
                f"relation_head_weights={relation_head_weights}."
            )
        depth = len(block_calls(student))
        hidden_dims = {"teacher": teacher.hidden_dim, "student": student.hidden_dim}
        widths = {
            "teacher": layer_width(teacher, teacher_layer),
            "student": layer_width(student, depth),
        }
        # One head divides all channels, unless there are none.
        check_relation_heads(1, hidden_dims, widths)
        # A projection that no pair names would be computed, and its weights decayed.
        projections = relation_loss.projections
        teacher_outputs = qkv_model(cast_once(teacher), teacher_layer, projections)
        look_up_before_casting(student)
        student_outputs = qkv_model(student, depth, projections)
        # Wrong heads fail here, not in the first step.
        num_heads = relation_loss.relation_heads(
            teacher_outputs.output, student_outputs.output
        )
        check_relation_heads(num_heads, hidden_dims, widths)
        super().__init__(
            student,
            student_outputs,
            relation_loss.pairs,
            min(teacher.max_sequence_length, student.max_sequence_length),
            teacher_outputs,
            **kwargs,
        )
        self.teacher_layer = teacher_layer
        self.relation_loss = relation_loss

    def _targets(self, inputs, training):
        return self.targets_of(self._teacher_outputs(inputs), inputs)

    @staticmethod
    def targets_of(vectors, inputs):
        """What the loss takes as `y_true`, from the teacher's projections.

        Args:
            vectors: dict of `"query"`, `"key"`, `"value"`, those that the loss reads.
            inputs: dict of the student's inputs.
        """
        return {**vectors, "padding_mask": inputs["padding_mask"]}

    def _losses_of(self, outputs, inputs, y_true, static_shapes):
        return self.relation_loss.sequence_losses(
            y_true, outputs, static_shapes=static_shapes
        )
