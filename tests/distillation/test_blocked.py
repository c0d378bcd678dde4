"""What the blocked loss adds to the plain one; both pass test_relations."""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import ragged_mask, relation_loss, vectors

from keras_minilmv2.distillation.blocked import block_shape
from keras_minilmv2.distillation.losses import RelationLoss

PAIRS = {rows + columns: 0.5 for rows in "qkv" for columns in "qkv"}
LENGTH = 9


def sample(lengths=(9, 3, 1, 6), scale=1.0):
    generator = np.random.default_rng(0)
    teacher = vectors(generator, len(lengths), LENGTH, 4, 6)
    student = vectors(generator, len(lengths), LENGTH, 2, 6)
    return (
        {name: tf.constant(scale * x, "float32") for name, x in teacher.items()},
        {name: tf.constant(scale * x, "float32") for name, x in student.items()},
        ragged_mask(lengths, LENGTH),
    )


def losses_and_gradients(loss, static_shapes=True, scale=1.0, **compile_options):
    teacher, student, mask = sample(scale=scale)
    upstream = tf.constant([1.0, -2.0, 0.5, 3.0])

    @tf.function(**compile_options)
    def run(student):
        y_true = {**teacher, "padding_mask": mask}
        with tf.GradientTape() as tape:
            tape.watch(student)
            losses, pairs = loss.sequence_losses(y_true, student, static_shapes)
            total = tf.reduce_sum(losses * upstream)
        return losses, pairs, tape.gradient(total, student)

    return run(student)


@pytest.mark.parametrize(
    ("block_size", "options"),
    [
        (None, {}),
        (3, {"jit_compile": True}),
        (1, {"static_shapes": False, "scale": 6.0}),
        pytest.param(24, {"static_shapes": False}, marks=pytest.mark.slow),
        pytest.param(3, {"scale": 6.0}, marks=pytest.mark.slow),
    ],
)
def test_losses_pairs_and_gradients_are_those_of_the_plain_formula(block_size, options):
    scale = {"scale": options.get("scale", 1.0)}
    plain = losses_and_gradients(RelationLoss(6, PAIRS, blocked=False), **scale)
    blocked = losses_and_gradients(
        RelationLoss(6, PAIRS, block_size=block_size), **options
    )
    for one, other in zip(
        tf.nest.flatten(plain), tf.nest.flatten(blocked), strict=True
    ):
        size = np.abs(one).max()
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-6 * size)


def test_relations_far_from_their_diagonals_are_exact():
    # Every token looks at one of long vectors: the diagonal's probability underflows.
    teacher, student, mask = sample()
    for values, other in ((teacher, 40.0), (student, 30.0)):
        factors = np.ones((1, LENGTH, 1, 1), "float32")
        factors[:, 2] = other
        for name in values:
            values[name] = values[name] * factors
    y_true = {**teacher, "padding_mask": mask}
    loss = RelationLoss(6, PAIRS)
    expected = relation_loss(
        {name: x.numpy() for name, x in teacher.items()},
        {name: x.numpy() for name, x in student.items()},
        mask,
        6,
        PAIRS,
    )
    assert expected > 10.0
    assert float(loss(y_true, student)) == pytest.approx(expected, rel=1e-5)


def test_unknown_batch_and_length_are_taken():
    teacher, student, mask = sample()
    loss = RelationLoss(6, block_size=3)
    unknown = {n: tf.TensorSpec((None, None, *x.shape[2:])) for n, x in teacher.items()}
    of_student = {
        n: tf.TensorSpec((None, None, *x.shape[2:])) for n, x in student.items()
    }

    @tf.function(input_signature=[unknown, of_student, tf.TensorSpec((None, None))])
    def run(teacher, student, mask):
        return loss({**teacher, "padding_mask": mask}, student)

    value = run(teacher, student, tf.constant(mask, "float32"))
    expected = loss({**teacher, "padding_mask": mask}, student)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_low_precision_gets_a_gradient_of_its_own_kind():
    teacher, student, mask = sample()
    low = {name: tf.cast(x, "bfloat16") for name, x in student.items()}
    rounded = {name: tf.cast(x, "float32") for name, x in low.items()}
    gradients = []
    for values in (low, rounded):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = RelationLoss(6)({**teacher, "padding_mask": mask}, values)
        assert loss.dtype == "float32"
        gradients.append(tape.gradient(loss, values))
    for name in low:
        assert gradients[0][name].dtype == "bfloat16"
        np.testing.assert_allclose(
            tf.cast(gradients[0][name], "float32"), gradients[1][name], rtol=5e-3
        )


@pytest.mark.parametrize(
    "in_graph", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_second_derivatives_are_refused(in_graph):
    teacher, student, mask = sample()

    def curvature(student):
        with tf.GradientTape() as outer:
            outer.watch(student)
            with tf.GradientTape() as inner:
                inner.watch(student)
                loss = RelationLoss(6)({**teacher, "padding_mask": mask}, student)
            slope = inner.gradient(loss, student["query"])
            total = tf.reduce_sum(slope)
        return outer.gradient(total, student["query"])

    if in_graph:
        curvature = tf.function(curvature, autograph=False)
    with pytest.raises(
        NotImplementedError,
        match=r"has no second derivative. Use `RelationLoss\(..., blocked=False\)`",
    ):
        curvature(student)


def test_plain_formula_has_second_derivatives():
    teacher, student, mask = sample()
    with tf.GradientTape() as outer:
        outer.watch(student)
        with tf.GradientTape() as inner:
            inner.watch(student)
            loss = RelationLoss(6, blocked=False)
            value = loss({**teacher, "padding_mask": mask}, student)
        total = tf.reduce_sum(inner.gradient(value, student["query"]))
    assert np.abs(outer.gradient(total, student["query"])).max() > 1e-4


@pytest.mark.parametrize("blocked", [False, True])
def test_blocked_program_has_no_array_of_the_size_of_all_relations(blocked):
    loss = RelationLoss(6, blocked=blocked, block_size=2 if blocked else None)
    teacher, student, mask = sample()

    @tf.function(jit_compile=True)
    def run(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss({**teacher, "padding_mask": mask}, student)
        return tape.gradient(value, student)

    program = run.experimental_get_compiler_ir(student)(stage="hlo")
    shapes = re.findall(r"f32\[([\d,]+)\]", program)
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert (largest >= 4 * 6 * LENGTH * LENGTH) is not blocked


@pytest.mark.parametrize(
    ("batch", "heads", "length", "block_size", "expected"),
    [
        (32, 48, 128, None, (1, 24)),  # 2**19 entries of a CPU
        (16, 48, 512, None, (1, 2)),
        (16, 48, 2048, None, (1, 1)),
        (32, 12, 32, None, (32, 12)),
        (32, 12, 64, None, (8, 12)),
        (None, 12, 32, None, (1, 12)),
        (None, 48, None, None, (1, 2)),
        (30, 48, 128, 50, (1, 48)),
        (30, 48, 128, 100, (2, 48)),
        (30, 48, 128, 1, (1, 1)),
        (7, 10, 16, 7, (1, 5)),
    ],
)
def test_blocks_divide_sequences_and_heads(batch, heads, length, block_size, expected):
    assert block_shape(batch, heads, length, block_size) == expected


@pytest.mark.parametrize("block_size", [0, -1, 1.5, True, "2"])
def test_wrong_block_sizes_are_refused(block_size):
    with pytest.raises((ValueError, TypeError), match="`block_size` must be an int of"):
        RelationLoss(6, block_size=block_size)


def test_a_block_size_needs_blocks():
    with pytest.raises(
        ValueError, match="`block_size` must not be given without `blocked`"
    ):
        RelationLoss(6, blocked=False, block_size=2)


def test_options_survive_serialization():
    loss = RelationLoss(6, block_size=2)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert (again.blocked, again.block_size) == (True, 2)
