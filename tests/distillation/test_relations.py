import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import ragged_mask, relation_loss, vectors

from keras_minilmv2.distillation.losses import AttentionValueLoss, RelationLoss
from keras_minilmv2.distillation.relations import (
    relation_kl,
    relation_log_probs,
    split_relation_heads,
)

PAIRS = [rows + columns for rows in "qkv" for columns in "qkv"]
LENGTH = 7


@pytest.fixture(
    params=[{"blocked": False}, {}, {"block_size": 2}],
    ids=["plain", "blocked", "blocks of two relations"],
)
def path(request):
    return request.param


def sample(seed=0, lengths=(7, 4, 1), teacher_heads=(4, 12), student_heads=(3, 8)):
    generator = np.random.default_rng(seed)
    teacher = vectors(generator, len(lengths), LENGTH, *teacher_heads)
    student = vectors(generator, len(lengths), LENGTH, *student_heads)
    return teacher, student, ragged_mask(lengths, LENGTH)


def tensors(values):
    return {name: tf.constant(value, "float32") for name, value in values.items()}


def loss_value(loss, teacher, student, mask):
    return float(loss({**tensors(teacher), "padding_mask": mask}, tensors(student)))


@pytest.mark.parametrize("num_relation_heads", [1, 2, 6, 24])
@pytest.mark.parametrize("pair", PAIRS)
def test_loss_equals_the_oracle_for_each_pair(pair, num_relation_heads, path):
    teacher, student, mask = sample()
    value = loss_value(
        RelationLoss(num_relation_heads, {pair: 1.0}, **path), teacher, student, mask
    )
    expected = relation_loss(teacher, student, mask, num_relation_heads, {pair: 1.0})
    assert value == pytest.approx(expected, rel=1e-5)


def test_loss_equals_the_oracle_for_weighted_pairs(path):
    weights = {"qq": 0.5, "kv": 2.0, "vk": 1.0, "vv": 0.0}
    teacher, student, mask = sample(1)
    value = loss_value(RelationLoss(8, weights, **path), teacher, student, mask)
    expected = relation_loss(teacher, student, mask, 8, weights)
    assert value == pytest.approx(expected, rel=1e-5)


HEAD_WEIGHTS = [0.0, 1.0, 4.0, 0.5, 2.0, 3.0]


@pytest.mark.parametrize("static_shapes", [True, False])
def test_loss_equals_the_oracle_with_weighted_relation_heads(path, static_shapes):
    weights = {"qq": 0.5, "kv": 2.0}
    # Keras warns of a softmax over the single token of a block, outside a graph.
    teacher, student, mask = sample(6, lengths=(7, 4, 2))
    loss = RelationLoss(6, weights, relation_head_weights=HEAD_WEIGHTS, **path)
    losses, pair_losses = loss.sequence_losses(
        {**tensors(teacher), "padding_mask": mask}, tensors(student), static_shapes
    )
    arguments = teacher, student, mask, 6
    expected = relation_loss(*arguments, weights, HEAD_WEIGHTS)
    assert expected != pytest.approx(relation_loss(*arguments, weights), rel=1e-3)
    assert float(tf.reduce_mean(losses)) == pytest.approx(expected, rel=1e-5)
    for pair, values in pair_losses.items():
        expected = relation_loss(*arguments, {pair: 1.0}, HEAD_WEIGHTS)
        assert float(tf.reduce_mean(values)) == pytest.approx(expected, rel=1e-5)


def test_only_ratios_of_the_relation_heads_weights_matter(path):
    teacher, student, mask = sample(6)
    plain, fives, weighted, scaled = (
        loss_value(
            RelationLoss(6, relation_head_weights=weights, **path),
            teacher,
            student,
            mask,
        )
        for weights in (None, [5] * 6, HEAD_WEIGHTS, np.multiply(7.0, HEAD_WEIGHTS))
    )
    assert fives == pytest.approx(plain, rel=1e-6)
    assert scaled == pytest.approx(weighted, rel=1e-6)


@pytest.mark.parametrize(
    ("num_relation_heads", "weights", "head_weights"),
    [
        (2, dict.fromkeys(PAIRS, 1.0), None),
        (6, dict.fromkeys(PAIRS, 1.0), None),
        (2, {"qk": 1.0}, None),
        (6, {"qk": 1.0}, None),
        (6, {"qq": 1.0, "kv": 2.0}, HEAD_WEIGHTS),
    ],
)
def test_gradients_equal_differences_of_the_oracle(
    num_relation_heads, weights, head_weights, path
):
    teacher, student, mask = sample(2)
    variables = tensors(student)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        loss = RelationLoss(
            num_relation_heads, weights, relation_head_weights=head_weights, **path
        )({**tensors(teacher), "padding_mask": mask}, variables)
    gradients = tape.gradient(
        loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    generator = np.random.default_rng(3)
    for _ in range(5):
        direction = {
            name: generator.normal(size=value.shape) for name, value in student.items()
        }

        def moved(step, direction=direction):
            there = {n: v + step * direction[n] for n, v in student.items()}
            return relation_loss(
                teacher, there, mask, num_relation_heads, weights, head_weights
            )

        # Fourth order: float64 then gives nine digits.
        h = 1e-3
        slope = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
        value = sum(
            np.sum(gradients[name].numpy().astype("float64") * direction[name])
            for name in student
        )
        size = np.sqrt(
            sum(
                np.square(gradients[name].numpy()).sum()
                * np.square(direction[name]).sum()
                for name in student
            )
        )
        assert abs(value - slope) <= 1e-5 * max(abs(slope), 0.1 * size)


def test_loss_is_zero_when_student_is_teacher(path):
    teacher, _, mask = sample()
    weights = dict.fromkeys(PAIRS, 1.0)
    value = loss_value(RelationLoss(4, weights, **path), teacher, teacher, mask)
    assert value == pytest.approx(0.0, abs=1e-6)


def test_loss_is_unchanged_by_padding_to_a_longer_length(path):
    teacher, student, mask = sample(lengths=(7, 4, 2))
    generator = np.random.default_rng(4)

    def longer(values):
        return {
            name: np.concatenate(
                [value, generator.normal(size=(3, 9, *value.shape[2:]))], axis=1
            )
            for name, value in values.items()
        }

    loss = RelationLoss(6, **path)
    short = loss_value(loss, teacher, student, mask)
    long = loss_value(
        loss, longer(teacher), longer(student), np.pad(mask, [(0, 0), (0, 9)])
    )
    assert long == pytest.approx(short, rel=1e-6)


def test_padding_may_stand_anywhere(path):
    teacher, student, _ = sample()
    mask = np.array([[0, 1, 1, 0, 1, 0, 1]] * 3)
    value = loss_value(RelationLoss(6, **path), teacher, student, mask)
    expected = relation_loss(
        teacher, student, mask, 6, {"qq": 1.0, "kk": 1.0, "vv": 1.0}
    )
    assert value == pytest.approx(expected, rel=1e-5)


def test_loss_is_unchanged_by_the_order_of_the_batch(path):
    teacher, student, mask = sample()
    order = [2, 0, 1]
    loss = RelationLoss(6, **path)
    value = loss_value(
        loss,
        {name: x[order] for name, x in teacher.items()},
        {name: x[order] for name, x in student.items()},
        mask[order],
    )
    assert value == pytest.approx(loss_value(loss, teacher, student, mask), rel=1e-6)


def test_one_token_and_no_token_contribute_nothing_and_stay_finite(path):
    teacher, student, _ = sample()
    mask = ragged_mask((7, 1, 0), LENGTH)
    variables = tensors(student)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        loss = RelationLoss(6, reduction=None, **path)(
            {**tensors(teacher), "padding_mask": mask}, variables
        )
        total = tf.reduce_sum(loss)
    assert loss.numpy()[0] > 0.1
    np.testing.assert_allclose(loss.numpy()[1:], 0.0, atol=1e-6)
    for gradient in tape.gradient(total, variables).values():
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient.numpy()[2], 0.0)


def test_vectors_of_low_precision_give_a_float32_loss(path):
    teacher, student, mask = sample()
    low = {n: tf.cast(v, "bfloat16") for n, v in tensors(student).items()}
    loss = RelationLoss(6, **path)({**tensors(teacher), "padding_mask": mask}, low)
    assert loss.dtype == "float32"
    rounded = {n: np.asarray(tf.cast(v, "float32")) for n, v in low.items()}
    assert float(loss) == pytest.approx(
        loss_value(RelationLoss(6, **path), teacher, rounded, mask), rel=1e-6
    )


def test_large_logits_do_not_overflow(path):
    teacher, student, mask = sample()
    big = {name: 1e4 * value for name, value in student.items()}
    assert np.isfinite(loss_value(RelationLoss(6, **path), teacher, big, mask))


def test_relation_rows_are_distributions_over_real_tokens():
    teacher, _, mask = sample()
    heads = split_relation_heads(tf.constant(teacher["query"], "float32"), 6)
    assert heads.shape == (3, 6, LENGTH, 8)
    probabilities = np.exp(relation_log_probs(heads, heads, mask))
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    padded = np.broadcast_to(mask[:, None, None, :] == 0, probabilities.shape)
    np.testing.assert_array_equal(probabilities[padded], 0.0)


def test_relation_kl_is_a_mean_over_heads_and_real_tokens():
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(2, 3, 5, 5))
    p = keras.ops.log_softmax(keras.ops.cast(logits, "float32"))
    q = keras.ops.log_softmax(keras.ops.cast(-logits, "float32"))
    mask = ragged_mask((5, 5), 5)
    rows = np.sum(np.exp(p) * (np.asarray(p) - np.asarray(q)), axis=-1)
    np.testing.assert_allclose(relation_kl(p, q, mask), rows.mean((1, 2)), rtol=1e-5)


def test_sample_weight_weighs_sequences(path):
    teacher, student, mask = sample()
    y_true = {**tensors(teacher), "padding_mask": mask}
    each = RelationLoss(6, reduction=None, **path)(y_true, tensors(student)).numpy()
    weighted = RelationLoss(6, reduction="sum", **path)(
        y_true, tensors(student), sample_weight=np.array([1.0, 0.0, 2.0])
    )
    assert float(weighted) == pytest.approx(each[0] + 2 * each[2], rel=1e-6)


def test_attention_value_loss_is_attention_and_value_relation_of_minilm(path):
    teacher, student, mask = sample(teacher_heads=(4, 6), student_heads=(4, 3))
    value = loss_value(AttentionValueLoss(**path), teacher, student, mask)
    expected = relation_loss(teacher, student, mask, 4, {"qk": 1.0, "vv": 1.0})
    assert value == pytest.approx(expected, rel=1e-5)


def test_attention_value_loss_demands_equal_heads():
    teacher, student, mask = sample()
    with pytest.raises(
        ValueError,
        match=r"`num_heads` of teacher and student must be equal .* num_heads=4, "
        r"student num_heads=3",
    ):
        loss_value(AttentionValueLoss(), teacher, student, mask)


@pytest.mark.parametrize(
    "loss",
    [RelationLoss(6, {"qk": 0.5, "vv": 2.0}, reduction="sum"), AttentionValueLoss()],
    ids=["relation", "attention_value"],
)
def test_losses_survive_serialization(loss):
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


def test_heads_that_do_not_divide_are_refused():
    teacher, student, mask = sample()
    with pytest.raises(
        ValueError,
        match=r"`num_relation_heads` must divide `hidden_dim`. Received: "
        r"num_relation_heads=16, hidden_dim=24",
    ):
        loss_value(RelationLoss(16), teacher, student, mask)


@pytest.mark.parametrize("heads", [0, -1, 2.0, True, "12"])
def test_wrong_numbers_of_relation_heads_are_refused(heads):
    with pytest.raises(
        (ValueError, TypeError), match="`num_relation_heads` must be an int of at least"
    ):
        RelationLoss(heads)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "must name at least one pair"),
        ({"qx": 1.0}, "pairs of the letters q, k and v as keys. Received: key 'qx'"),
        ({"q": 1.0}, "Received: key 'q'"),
        ({"qkv": 1.0}, "Received: key 'qkv'"),
        ({("q", "q"): 1.0}, "Received: key"),
        ({"qq": -1.0}, "finite weights of at least 0. Received: qq=-1.0"),
        ({"qq": float("nan")}, "finite weights of at least 0. Received: qq=nan"),
        ({"qq": "1"}, "finite weights of at least 0. Received: qq='1'"),
        ({"qq": 0.0, "vv": 0}, "must have a weight above 0"),
    ],
)
def test_wrong_relation_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        RelationLoss(4, weights)


def test_relation_weights_must_be_a_dict():
    with pytest.raises(TypeError, match="`relation_weights` must be a dict"):
        RelationLoss(4, ["qq"])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            [1.0] * 5,
            ValueError,
            "a weight for each relation head. Received: weig",
        ),
        (1.0, ValueError, "weights of shape \\(\\), num_relation_heads=6"),
        ([1.0] * 5 + [-1.0], ValueError, "finite values of at least 0. Received: -1"),
        (
            [1.0] * 5 + [np.inf],
            ValueError,
            "values of at least 0. Received: inf",
        ),
        ([0.0] * 6, ValueError, "a value above 0. Received: 6 values, none above 0"),
        (["a"] * 6, TypeError, "`relation_head_weights` must be a sequence of float"),
        ([[1.0], [1.0, 2.0]], TypeError, "`relation_head_weights` must be a sequence"),
    ],
)
def test_wrong_weights_of_relation_heads_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        RelationLoss(6, relation_head_weights=weights)


def test_weights_of_relation_heads_survive_serialization():
    loss = RelationLoss(6, relation_head_weights=HEAD_WEIGHTS)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    teacher, student, mask = sample()
    values = [loss_value(each, teacher, student, mask) for each in (loss, again)]
    assert values[0] == values[1]
    assert list(again.relation_head_weights) == HEAD_WEIGHTS
