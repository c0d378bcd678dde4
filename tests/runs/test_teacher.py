"""Fine-tuning with a teacher: outputs and relations compared, held against NumPy."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import make_backbone, make_inputs
from oracle import relation_loss
from pruned import make_pruned
from scipy.special import log_softmax

from keras_minilmv2.backbones.projections import qkv_model, with_projections
from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.distillation.losses import RelationLoss
from keras_minilmv2.downstream.batches import Features
from keras_minilmv2.downstream.registry import TASKS
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.runs import teacher as module
from keras_minilmv2.runs.grid import Cell
from keras_minilmv2.runs.teacher import (
    compared_relations,
    taught_loss,
    train_with_teacher,
)
from keras_minilmv2.training.supervised import training_step

PAIRS = {"qq": 1.0, "kk": 1.0, "vv": 1.0}
TASK = TASKS["sst2"]


class Rows(Features):
    """Random rows of a backbone's inputs, with labels 0 and 1."""

    length_step = 4
    sequence_length = 12

    def __init__(self, backbone, number=24):
        self.arrays = make_inputs(backbone, number)
        self.lengths = self.arrays["padding_mask"].sum(axis=1)

    def inputs(self, rows, length=None):
        return {name: array[rows, :length] for name, array in self.arrays.items()}

    def targets(self, rows):
        return (self.lengths[rows] % 2).astype("int32")

    def identity(self):
        return [self.lengths]


def make_models(family="bert", task=TASK):
    """The whole model and one without some heads and neurons, no dropout."""
    backbone = make_backbone(family, dropout=0.0)
    whole = task.model(backbone, seed=0)
    return whole, task.model(make_pruned(backbone), seed=1)


def vectors_of(model, layer, inputs):
    vectors = qkv_model(model.backbone, layer)(inputs, training=False)
    return {name: np.array(value) for name, value in vectors.items()}


def expected_relations(whole, smaller, layer, num_heads, inputs):
    vectors = (vectors_of(each, layer, inputs) for each in (whole, smaller))
    return relation_loss(*vectors, inputs["padding_mask"], num_heads, PAIRS)


@pytest.mark.parametrize(
    ("family", "jit_compile"),
    [
        ("bert", True),
        pytest.param("bert", False, marks=pytest.mark.slow),
        pytest.param("albert_groups", False, marks=pytest.mark.slow),
    ],
)
def test_the_added_loss_is_the_oracles_relation_loss(family, jit_compile):
    whole, smaller = make_models(family)
    layer, num_heads = compared_relations(whole.backbone, smaller.backbone)
    inputs = make_inputs(whole.backbone)
    teacher, student = (
        with_projections(TASK.training_model(each), layer) for each in (whole, smaller)
    )
    # In the compiled step, whose arguments have no known batch and length.
    relations = RelationLoss(num_heads)
    loss = taught_loss(lambda *_: 0.0, 0.0, 0.7, relations, static_shapes=jit_compile)
    step = training_step(student, loss, keras.optimizers.SGD(0.0), jit_compile)
    targets = np.zeros(8, "int32"), teacher(inputs, training=False)
    expected = expected_relations(whole, smaller, layer, num_heads, inputs)
    assert expected > 0.01
    assert float(step(inputs, targets)) == pytest.approx(0.7 * expected, rel=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_three_parts():
    whole, smaller = make_models()
    inputs = make_inputs(whole.backbone)
    labels = np.arange(8, dtype="int32") % 2
    teacher, student = (
        with_projections(TASK.training_model(each), 4) for each in (whole, smaller)
    )
    wanted, outputs = (each(inputs, training=False) for each in (teacher, student))
    loss = taught_loss(TASK.loss, 0.3, 2.0, RelationLoss(6))
    p, q = (
        log_softmax(np.array(each["outputs"], "float64"), axis=-1)
        for each in (wanted, outputs)
    )
    cross_entropy = -np.mean(q[np.arange(8), labels])
    divergence = np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
    relations = expected_relations(whole, smaller, 4, 6, inputs)
    expected = 0.7 * cross_entropy + 0.3 * divergence + 2.0 * relations
    assert float(loss((labels, wanted), outputs)) == pytest.approx(expected, rel=1e-5)


def test_one_output_is_compared_by_its_square_in_the_compiled_step():
    task = TASKS["stsb"]
    whole, smaller = make_models(task=task)
    inputs = make_inputs(whole.backbone)
    student = task.training_model(smaller)
    wanted, outputs = (each(inputs, training=False) for each in (whole, student))
    step = training_step(
        student, taught_loss(task.loss, 1.0), keras.optimizers.SGD(0.0)
    )
    # The classifier has a dropout of its own.
    student.layers[-2].rate = 0.0
    assert isinstance(student.layers[-2], keras.layers.Dropout)
    value = float(step(inputs, (np.zeros(8, "float32"), wanted)))
    expected = np.mean(np.square(np.array(wanted) - np.array(outputs)))
    assert value == pytest.approx(expected, rel=1e-4)


def test_relations_reach_what_is_below_them_and_nothing_above():
    whole, smaller = make_models()
    inputs = make_inputs(whole.backbone)
    teacher, student = (
        with_projections(TASK.training_model(each), 4) for each in (whole, smaller)
    )
    loss = taught_loss(lambda *_: 0.0, 0.0, 1.0, RelationLoss(6))
    wanted = teacher(inputs, training=False)
    with tf.GradientTape() as tape:
        value = loss((None, wanted), student(inputs, training=True))
    variables = {v.path: v for v in smaller.trainable_variables}
    gradients = dict(
        zip(variables, tape.gradient(value, list(variables.values())), strict=True)
    )
    reached = {
        path
        for path, gradient in gradients.items()
        if gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 1e-6
    }
    last = "transformer_layer_3/self_attention_layer"
    for name in ("query", "key", "value"):
        assert any(f"{last}/{name}/kernel" in path for path in reached), name
    assert any("token_embedding" in path for path in reached)
    assert not any("attention_output" in p and "layer_3/" in p for p in reached)
    assert not any("feedforward" in p and "layer_3/" in p for p in reached)
    assert not any("pooled" in path or "logits" in path for path in reached)


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "squad1"), ("albert", "sst2"), ("electra", "sst2")]
)
def test_a_model_with_projections_computes_what_it_did(family, task):
    task = TASKS[task]
    backbone = make_backbone(family)
    pruned = make_pruned(backbone)
    model = task.training_model(task.model(pruned, seed=0))
    inputs = make_inputs(backbone)
    if "answer_mask" in model.input:
        inputs["answer_mask"] = inputs["padding_mask"]
        inputs.setdefault("segment_ids", np.zeros_like(inputs["token_ids"]))
    found = with_projections(model, 4)(inputs, training=False)
    outputs = model(inputs, training=False)
    tf.nest.map_structure(np.testing.assert_array_equal, found["outputs"], outputs)
    vectors = qkv_model(pruned, 4)({name: inputs[name] for name in pruned.input})
    for name, value in vectors.items():
        np.testing.assert_allclose(found["projections"][name], value, atol=1e-5)
    np.testing.assert_array_equal(
        found["projections"]["padding_mask"], inputs["padding_mask"]
    )


def trained(weight, epochs=1, distill=0.0):
    """Losses, and the relation loss of the smaller model after training."""
    whole, smaller = make_models()
    rows = Rows(whole.backbone)
    losses = train_with_teacher(
        TASK,
        smaller,
        whole,
        rows,
        Cell(3e-3, epochs, 0),
        distill=distill,
        relation_weight=weight,
        batch_size=8,
        progress_stream=io.StringIO(),
    )
    return losses, expected_relations(whole, smaller, 4, 6, rows.arrays)


@pytest.mark.slow
def test_a_model_with_uneven_layers_learns_the_relations():
    assert layer_counts(make_models()[1].backbone)[0] == (0, 1, 4, 3)
    losses, learned = trained(10.0, epochs=4)
    assert losses[-1] < losses[0]
    assert learned < 0.8 * trained(0.0, epochs=4)[1]


@pytest.mark.slow
def test_a_weight_of_0_computes_no_relations(monkeypatch):
    monkeypatch.delattr(module, "with_projections")
    losses, _ = trained(0.0, distill=0.5)
    assert np.isfinite(losses).all()
    with pytest.raises(NameError, match="with_projections"):
        trained(1.0)


def test_the_last_layer_with_heads_is_compared():
    backbone = make_backbone("bert")
    mask = np.ones((4, 4), int)
    assert compared_relations(backbone, prune_heads(backbone, mask)) == (4, 24)
    mask[3, 1:] = 0
    assert compared_relations(backbone, prune_heads(backbone, mask)) == (4, 6)
    mask[3] = mask[2, :2] = 0
    assert compared_relations(backbone, prune_heads(backbone, mask)) == (3, 12)
    with pytest.raises(ValueError, match="`relation_weight` must be 0 for a model"):
        compared_relations(backbone, prune_heads(backbone, 0 * mask))


def test_projections_of_a_layer_without_heads_are_refused():
    model = TASK.training_model(make_models()[1])
    with pytest.raises(ValueError, match="`layer` must be one that has"):
        with_projections(model, 1)
    with pytest.raises(ValueError, match="`layer` must be between 1 and the number"):
        with_projections(model, 5)
