"""Distillation of hidden states, a baseline of relation distillation."""

import keras
from keras import ops

from keras_minilmv2.backbones.precision import cast_once, look_up_before_casting
from keras_minilmv2.backbones.projections import (
    block_calls,
    check_layer,
    hidden_states_model,
)
from keras_minilmv2.backbones.students import check_same_family
from keras_minilmv2.distillation.trainer import StudentTrainer


class HiddenStateDistiller(StudentTrainer):
    """Distils a teacher's hidden states, layer by layer, into a student.

        L = 1 / (M + 1) sum_m 1 / (|x| d) sum_t || W s[m, t] - h[g(m), t] ||^2
        g(m) = round(m l / M)

    with the hidden states `s` of the student and `h` of the teacher, over the
    embeddings, `m = 0`, and the student's M layers; `l` is the `teacher_layer`, `d` the
    teacher's `hidden_dim` and |x| the number of real tokens. `W`, one
    matrix with a bias for all layers, is learned and no part of the student.

    A baseline: it needs no equal number of heads either, but ties the student's
    layers to the teacher's, and its width through `W`.

    Metrics: `loss` and `layer_0` to `layer_M`. Trains on TensorFlow and JAX.

    Args:
        teacher: a keras-nlp backbone.
        student: a keras-nlp backbone of the same family. Trained in place.
        teacher_layer: int, from 1. The layer that the student's last one is compared
            with.
        seed: int. Of `W`.
        **kwargs: as for `keras.Model`.

    Raises:
        ValueError: if the families differ or `teacher_layer` is not there.

    Reference:
        [Jiao et al., 2020](https://arxiv.org/abs/1909.10351), the loss of its hidden
        states and embeddings.
    """

    def __init__(self, teacher, student, teacher_layer, seed=0, **kwargs):
        check_same_family(teacher, student)
        check_layer("teacher_layer", teacher_layer, len(block_calls(teacher)))
        depth = len(block_calls(student))
        if depth > teacher_layer:
            raise ValueError(
                "`teacher_layer` must not be below the number of the student's layers. "
                f"Received: teacher_layer={teacher_layer}, num_layers={depth}."
            )
        teacher_outputs = hidden_states_model(
            cast_once(teacher), layer_map(depth, teacher_layer)
        )
        look_up_before_casting(student)
        super().__init__(
            student,
            hidden_states_model(student, list(range(depth + 1))),
            [f"layer_{layer}" for layer in range(depth + 1)],
            min(teacher.max_sequence_length, student.max_sequence_length),
            teacher_outputs,
            **kwargs,
        )
        self.teacher_layer = teacher_layer
        self.projection = keras.layers.Dense(
            teacher.hidden_dim,
            kernel_initializer=keras.initializers.GlorotUniform(seed),
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build((None, None, student.hidden_dim))

    @property
    def distilled_variables(self):
        """The student's trainable variables below its last layer's end, and `W`."""
        return [
            *super().distilled_variables,
            *self.projection.trainable_variables,
        ]

    def _targets(self, inputs, training):
        return self._teacher_outputs(inputs)

    def _losses_of(self, outputs, inputs, y_true, static_shapes):
        states = outputs.values()
        mask = ops.cast(ops.cast(inputs["padding_mask"], "bool"), "float32")
        share = mask / ops.maximum(ops.sum(mask, axis=-1, keepdims=True), 1.0)
        parts = {}
        for layer, (ours, theirs) in enumerate(
            zip(states, y_true.values(), strict=True)
        ):
            difference = ops.subtract(
                ops.cast(self.projection(ours), "float32"), ops.cast(theirs, "float32")
            )
            errors = ops.mean(ops.square(difference), axis=-1)
            parts[f"layer_{layer}"] = ops.sum(share * errors, axis=-1)
        return sum(parts.values()) / len(parts), parts


def layer_map(num_layers, teacher_layer):
    """The teacher's layer that each layer of the student is compared with.

    Args:
        num_layers: int, of the student.
        teacher_layer: int, that of the student's last layer.

    Returns:
        list of int, `num_layers + 1` of them; the first is 0, the embeddings.
    """
    return [
        round(layer * teacher_layer / num_layers) for layer in range(num_layers + 1)
    ]
