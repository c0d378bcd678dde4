import numpy as np
import pytest
import tensorflow as tf
from families import make_backbone, make_inputs

from keras_minilmv2.backbones.precision import cast_once, look_up_before_casting


def outputs(backbone, inputs):
    values = tf.nest.flatten(backbone(inputs))
    return [np.asarray(tf.cast(value, "float32")) for value in values]


@pytest.mark.parametrize("name", ["bert", "xlm_roberta", "albert", "electra"])
def test_weights_cast_once_are_as_near_to_float32_as_those_cast_in_every_step(name):
    exact, backbone = (make_backbone(name, dtype=d) for d in (None, "mixed_bfloat16"))
    inputs = make_inputs(backbone)
    before = [np.asarray(weight) for weight in backbone.weights]
    copy = cast_once(backbone)
    assert {weight.dtype for weight in copy.weights} == {"bfloat16"}
    errors = [
        sum(
            np.abs(x - y).mean()
            for x, y in zip(outputs(exact, inputs), outputs(model, inputs), strict=True)
        )
        for model in (backbone, copy)
    ]
    assert 0 < errors[1] < 1.3 * errors[0]
    for weight, value in zip(backbone.weights, before, strict=True):
        assert weight.dtype == "float32"
        np.testing.assert_array_equal(np.asarray(weight), value)


def test_weights_that_need_no_cast_are_not_copied():
    backbone = make_backbone("bert")
    assert cast_once(backbone) is backbone


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_a_table_that_is_not_cast_gives_equal_outputs_and_float32_gradients(name):
    backbone = make_backbone(name, dtype="mixed_bfloat16")
    inputs = make_inputs(backbone)
    before = outputs(backbone, inputs)
    look_up_before_casting(backbone)
    for one, other in zip(before, outputs(backbone, inputs), strict=True):
        np.testing.assert_array_equal(other, one)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.nest.flatten(backbone(inputs))[0])
        table = backbone.token_embedding.embeddings
        return tape.gradient(total, table)

    casts = [
        operation
        for operation in gradient.get_concrete_function().graph.get_operations()
        if operation.type == "Cast"
        and operation.outputs[0].dtype == tf.bfloat16
        and operation.outputs[0].shape[:1] == [50]
    ]
    assert casts == []
    assert gradient().dtype == tf.float32
