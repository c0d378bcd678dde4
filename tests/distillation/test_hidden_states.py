"""Distillation of hidden states against its formula."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_trainers import make_batch, make_student, make_teacher

import keras_minilmv2 as km
from keras_minilmv2.backbones.projections import block_calls, hidden_states_model
from keras_minilmv2.distillation.hidden_states import HiddenStateDistiller, layer_map


@pytest.mark.parametrize(
    ("num_layers", "teacher_layer", "expected"),
    [
        (2, 4, [0, 2, 4]),
        (3, 6, [0, 2, 4, 6]),
        (4, 4, [0, 1, 2, 3, 4]),
        (3, 12, [0, 4, 8, 12]),
    ],
)
def test_layers_are_spread_evenly(num_layers, teacher_layer, expected):
    assert layer_map(num_layers, teacher_layer) == expected


def test_hidden_states_are_those_of_the_blocks():
    teacher, batch = make_teacher(), make_batch()
    states = [*hidden_states_model(teacher, [0, 1, 3, 4])(batch).values()]
    calls = block_calls(teacher)
    inputs = [tensor for _, tensor in calls]
    expected = keras.Model(teacher.input, [inputs[0], inputs[1], inputs[3]])(batch)
    for ours, theirs in zip(states, expected, strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    last = teacher(batch)["sequence_output"]
    np.testing.assert_allclose(states[3], last, atol=1e-5)


@pytest.mark.parametrize("layers", [[2, 1], [1, 1], [-1], [0, 5]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="`layers` must be ascending"):
        hidden_states_model(make_teacher(), layers)


def test_the_loss_is_the_formula():
    teacher, batch = make_teacher(), make_batch()
    student = make_student(teacher)
    distiller = HiddenStateDistiller(teacher, student, teacher_layer=4)
    distiller.compile("sgd")
    values = distiller.evaluate(
        tf.data.Dataset.from_tensors(batch), return_dict=True, verbose=0
    )
    kernel, bias = (
        np.asarray(w, "float64") for w in distiller.projection.get_weights()
    )
    ours = hidden_states_model(student, [0, 1, 2])(batch).values()
    theirs = hidden_states_model(teacher, [0, 2, 4])(batch).values()
    expected = []
    for s, h in zip(ours, theirs, strict=True):
        s, h = np.asarray(s, "float64"), np.asarray(h, "float64")
        losses = []
        for i, mask in enumerate(batch["padding_mask"]):
            squares = [
                np.mean((s[i, t] @ kernel + bias - h[i, t]) ** 2)
                for t in range(len(mask))
                if mask[t]
            ]
            losses.append(np.mean(squares))
        expected.append(np.mean(losses))
    for layer, value in enumerate(expected):
        assert values[f"layer_{layer}"] == pytest.approx(value, rel=1e-5)
    assert values["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_teacher_and_pooler():
    teacher, batch = make_teacher(), make_batch()
    student = make_student(teacher, dropout=0.1)
    distiller = HiddenStateDistiller(teacher, student, teacher_layer=4)
    distiller.compile(km.adamw(0.01, 3, 40), accumulation_steps=2)
    theirs = [np.asarray(w) for w in teacher.weights]
    pooler = [np.asarray(w) for w in student.pooled_dense.weights]
    dataset = tf.data.Dataset.from_tensors(batch).repeat(40)
    before = distiller.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"]
    distiller.fit(dataset, verbose=0, shuffle=False)
    after = distiller.evaluate(dataset.take(1), verbose=0, return_dict=True)["loss"]
    assert after < 0.7 * before
    for weight, value in zip(teacher.weights, theirs, strict=True):
        np.testing.assert_array_equal(weight, value)
    for weight, value in zip(student.pooled_dense.weights, pooler, strict=True):
        np.testing.assert_array_equal(weight, value)
    ids = {id(variable) for variable in distiller.variables}
    assert not ids & {id(variable) for variable in teacher.variables}
    # W is no part of the student.
    kernel = distiller.projection.kernel
    assert id(kernel) in {id(v) for v in distiller.distilled_variables}
    assert id(kernel) not in {id(v) for v in student.variables}


def test_a_student_deeper_than_the_layer_is_refused():
    teacher = make_teacher()
    student = make_student(teacher, num_layers=3)
    with pytest.raises(ValueError, match="must not be below the number of"):
        HiddenStateDistiller(teacher, student, teacher_layer=2)
