"""The loss and its gradients against PyTorch, transformers and the paper alone.

The numbers come from tests/reference/make_reference.py, in float64.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_minilmv2 as km
from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.backbones.projections import qkv_model
from keras_minilmv2.distillation.losses import RelationLoss

REFERENCE = Path(__file__).parents[1] / "reference"
LOSSES = json.loads((REFERENCE / "expected.json").read_text("utf-8"))["losses"]
RELATION_WEIGHTS = {"qq": 1.0, "kk": 1.0, "vv": 1.0}

families = pytest.mark.parametrize("family", sorted(LOSSES))


def load_pair(family):
    """Teacher, student and the batch that both read."""
    teacher = load_backbone(REFERENCE / f"{family}_teacher")
    student = load_backbone(REFERENCE / f"{family}_student")
    saved = LOSSES[family]["batch"]
    batch = {key: np.array(saved[key], dtype="int32") for key in teacher.input}
    return teacher, student, batch


def loss_and_gradients(family):
    """The loss with its gradients by token embedding and last query kernel."""
    teacher, student, batch = load_pair(family)
    loss = RelationLoss(LOSSES[family]["num_relation_heads"], RELATION_WEIGHTS)
    y_true = qkv_model(teacher, LOSSES[family]["teacher_layer"])(batch, training=False)
    student_qkv = qkv_model(student, student.num_layers)
    last_block = student.get_layer(f"transformer_layer_{student.num_layers - 1}")
    variables = [
        student.token_embedding.embeddings,
        attention_of(last_block).query_dense.kernel,
    ]
    with tf.GradientTape() as tape:
        y_pred = student_qkv(batch, training=False)
        value = loss(y_true | {"padding_mask": batch["padding_mask"]}, y_pred)
    gradients = tape.gradient(value, [variable.value for variable in variables])
    # The embedding's gradient is sparse: repeated tokens have to be summed first.
    dense = [keras.ops.convert_to_numpy(gradient) for gradient in gradients]
    return float(value), [np.linalg.norm(gradient) for gradient in dense]


@families
def test_distiller_has_the_loss_of_the_reference(family):
    teacher, student, batch = load_pair(family)
    distiller = km.RelationDistiller(
        teacher,
        student,
        teacher_layer=LOSSES[family]["teacher_layer"],
        num_relation_heads=LOSSES[family]["num_relation_heads"],
        relation_weights=RELATION_WEIGHTS,
    )
    distiller.compile(optimizer="adam")
    dataset = tf.data.Dataset.from_tensors(batch)
    logs = distiller.evaluate(dataset, return_dict=True, verbose=0)
    assert logs["loss"] == pytest.approx(LOSSES[family]["loss"], rel=1e-5)


@families
def test_gradients_are_those_of_the_reference(family):
    loss, (embedding_norm, query_norm) = loss_and_gradients(family)
    expected = LOSSES[family]
    assert loss == pytest.approx(expected["loss"], rel=1e-5)
    assert embedding_norm == pytest.approx(
        expected["token_embedding_gradient_norm"], rel=1e-4
    )
    assert query_norm == pytest.approx(expected["query_gradient_norm"], rel=1e-4)


@families
def test_reference_is_far_from_uniform_relations(family):
    # Near 0 a loss could be wrong and still agree to many digits.
    assert LOSSES[family]["loss"] > 1.0
