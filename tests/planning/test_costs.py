"""Operations against TensorFlow's profiler, memory against a process."""

import functools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from pruned import make_pruned
from small_plans import BACKBONES, make_backbone

from keras_minilmv2.backbones.projections import qkv_model
from keras_minilmv2.distillation.blocked import blocked_relation_losses
from keras_minilmv2.distillation.distiller import RelationDistiller
from keras_minilmv2.planning.costs import step_memory, step_operations
from keras_minilmv2.planning.shapes import EncoderShape
from keras_minilmv2.training.schedule import adamw

PAIRS = ("qq", "kk", "vv")


def profiled(function, *specs):
    """Operations of a function by TensorFlow's profiler."""
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder.float_operation()
    options = profiler.ProfileOptionBuilder(options).with_empty_output().build()
    operations = profiler.profile(graph=graph, options=options).total_float_ops
    # TensorFlow 2.21 takes the columns of a transposed batch product for its rows.
    for op in graph.get_operations():
        if op.type == "BatchMatMulV2" and op.get_attr("adj_x"):
            rows, columns = op.inputs[0].shape[-2:]
            operations += 2 * math.prod(op.outputs[0].shape) * (rows - columns)
    return operations


def token_specs(backbone, batch, length):
    return {name: tf.TensorSpec((batch, length), tf.int32) for name in backbone.input}


@pytest.mark.parametrize("family", BACKBONES)
def test_operations_are_those_of_the_profiler(family):
    batch, length, layer = 2, 96, 2
    teacher = make_backbone(family, layers=3)
    student = make_backbone(family, width=128, inner=512, heads=2)
    ours = step_operations(teacher, student, layer, 16, PAIRS, batch, length)
    forward = qkv_model(teacher, layer)
    theirs = profiled(
        lambda inputs: forward(inputs, training=False),
        token_specs(teacher, batch, length),
    )
    assert ours["teacher"] == pytest.approx(theirs, rel=0.05)

    model = qkv_model(student, 2)
    slopes = {
        name: tf.TensorSpec((batch, length, *output.shape[2:]))
        for name, output in model.output.items()
    }

    def backward(inputs, slopes):
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
        return tape.gradient(
            outputs, model.trainable_variables, output_gradients=slopes
        )

    inputs = token_specs(student, batch, length)
    theirs = profiled(lambda inputs: model(inputs, training=True), inputs)
    assert ours["student_forward"] == pytest.approx(theirs, rel=0.05)
    theirs = profiled(backward, inputs, slopes) - theirs
    assert ours["student_backward"] == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize("family", ["BERT", "ALBERT"])
def test_operations_of_pruned_encoders_are_those_of_the_profiler(family):
    batch, length = 2, 96
    full = make_backbone(family, layers=4)
    pruned = make_pruned(full)
    ours = []
    for backbone in (full, pruned):
        call = functools.partial(qkv_model(backbone, 4), training=False)
        theirs = profiled(call, token_specs(backbone, batch, length))
        ours.append(step_operations(backbone, backbone, 4, 16, PAIRS, batch, length))
        assert ours[-1]["teacher"] == pytest.approx(theirs, rel=0.05)
    assert ours[1]["teacher"] < 0.8 * ours[0]["teacher"]
    assert ours[1]["optimizer"] < 0.8 * ours[0]["optimizer"]


def test_relation_heads_must_divide_what_pruning_left():
    pruned = make_pruned(make_backbone("BERT", layers=3))
    with pytest.raises(ValueError, match="`teacher` must have attention heads in"):
        step_operations(pruned, pruned, 1, 16, PAIRS, 2, 16)
    with pytest.raises(ValueError, match="144 channels left in the teacher's"):
        step_operations(pruned, pruned, 3, 192, PAIRS, 2, 16)


def test_memory_of_pruned_encoders_is_less():
    full = make_backbone("BERT", layers=4)
    pruned = make_pruned(full)
    for policy in ("float32", "mixed_bfloat16"):
        more, less = (
            step_memory(backbone, backbone, PAIRS, 96, 8, policy)
            for backbone in (full, pruned)
        )
        assert less["student"] == 4 * pruned.count_params()
        for part in ("teacher", "optimizer", "gradients", "activations", "peak"):
            assert less[part] < more[part]


@pytest.mark.parametrize("pairs", [PAIRS, ("qk",), ("qq", "vk")])
def test_operations_of_relations_are_those_of_the_profiler(monkeypatch, pairs):
    batch, length, heads = 2, 64, 8
    teacher = make_backbone("BERT", layers=1, width=192, inner=8)
    student = make_backbone("BERT", layers=1, width=96, inner=8)
    ours = step_operations(teacher, student, 1, heads, pairs, batch, length)

    def one_block(function, blocks, **kwargs):
        first = tf.nest.map_structure(lambda x: x[0], blocks)
        return tf.nest.map_structure(lambda x: x[None], function(first))

    # The profiler does not look into loops and conditions.
    monkeypatch.setattr(tf, "map_fn", one_block)
    monkeypatch.setattr("keras.ops.cond", lambda condition, yes, no: no())

    def losses(teacher, student, mask):
        weights = dict.fromkeys(pairs, 1.0)
        with tf.GradientTape() as tape:
            tape.watch(student)
            losses, _ = blocked_relation_losses(
                teacher, student, mask, heads, weights, block_size=batch * heads
            )
        used = [name for name in student if name[0] in "".join(pairs)]
        return tape.gradient(losses, [student[name] for name in used])

    vectors = [
        {
            name: tf.TensorSpec((batch, length, 4, width // 4))
            for name in ("query", "key", "value")
        }
        for width in (192, 96)
    ]
    theirs = profiled(losses, *vectors, tf.TensorSpec((batch, length), tf.int32))
    assert ours["relations"] == pytest.approx(theirs, rel=0.05)


def test_operations_of_the_optimizer_are_those_of_the_profiler():
    teacher = make_backbone("BERT", layers=1, width=16, inner=24)
    student = make_backbone("BERT", layers=2, width=64, inner=256)
    distiller = RelationDistiller(teacher, student, 1, num_relation_heads=8)
    distiller.compile(optimizer=adamw(1e-3, warmup_steps=1, total_steps=10))
    variables = distiller.distilled_variables

    def update(gradients):
        norm = tf.linalg.global_norm(gradients)
        distiller.optimizer.apply(gradients, variables)
        return norm

    theirs = profiled(update, [tf.TensorSpec(v.shape) for v in variables])
    ours = step_operations(teacher, student, 1, 8, PAIRS, 1, 8)["optimizer"]
    # The profiler counts no square root and no assignment: 4 of 20.
    assert 0.8 * ours == pytest.approx(theirs, rel=0.05)


def test_operations_are_those_counted_by_hand():
    tokens = 256 * 512
    operations = step_operations(
        *("bert_base_en_uncased", "bert_base_en_uncased", 12),
        *(48, PAIRS, 256, 512),
    )
    blocks = 11 * tokens * (2 * 12 * 768**2 + 2 * 2 * 512 * 768)
    projections = 3 * 2 * tokens * 768**2
    # The rest are the softmaxes.
    assert operations["teacher"] == pytest.approx(blocks + projections, rel=0.003)
    assert operations["student_forward"] == operations["teacher"]
    assert operations["student_backward"] == 2 * operations["teacher"]
    assert operations["relations"] == 3 * 256 * 48 * 512**2 * (12 * 16 + 15)
    assert operations["total"] == sum(list(operations.values())[:-1])


def test_operations_that_cannot_be_are_refused():
    shapes = "bert_base_en_uncased", "bert_tiny_en_uncased"
    with pytest.raises(ValueError, match="`teacher_layer` must be between 1 and"):
        step_operations(*shapes, 13, 16, PAIRS, 1, 8)
    with pytest.raises(ValueError, match="=48, student hidden_dim=128."):
        step_operations(*shapes, 12, 48, PAIRS, 1, 8)


def test_memory_of_weights_gradients_and_moments_is_counted():
    teacher = make_backbone("BERT", layers=3, width=16, inner=24)
    student = make_backbone("BERT", layers=2, width=16, inner=24)
    memory = step_memory(teacher, student, PAIRS, length=16, batch=4)
    distiller = RelationDistiller(teacher, student, 2, num_relation_heads=8)
    trained = sum(math.prod(v.shape) for v in distiller.distilled_variables)
    assert memory["teacher"] == 4 * teacher.count_params()
    assert memory["student"] == 4 * student.count_params()
    assert memory["optimizer"] == 2 * memory["gradients"] == 8 * trained
    twice = step_memory(teacher, student, PAIRS, 16, 8, accumulated=True)
    assert twice["activations"] == 2 * memory["activations"]
    assert twice["gradients"] == 2 * memory["gradients"]


MEASURE = """
import sys, numpy as np, keras_hub
from keras_minilmv2.distillation.distiller import RelationDistiller
from keras_minilmv2.training.schedule import adamw

def backbone(layers, width):
    return keras_hub.models.BertBackbone(100, layers, 12, width, 4 * width)

distiller = RelationDistiller(backbone(3, 384), backbone(3, 192), 3, 48)
distiller.compile(optimizer=adamw(1e-4, 1, 9))
ids = np.ones((int(sys.argv[1]), 256), "int32")
distiller.train_on_batch(
    {"token_ids": ids, "padding_mask": ids, "segment_ids": ids - ids}
)
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_activations_are_those_of_a_process():
    peaks = {
        batch: 1024
        * int(
            subprocess.run(
                [sys.executable, "-c", MEASURE, str(batch)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()[-1]
        )
        for batch in (2, 18)
    }
    shapes = [
        EncoderShape(
            family="BERT",
            num_layers=3,
            num_heads=12,
            hidden_dim=width,
            intermediate_dim=4 * width,
            vocabulary_size=100,
        )
        for width in (384, 192)
    ]
    memory = step_memory(*shapes, PAIRS, length=256, batch=16)
    ratio = memory["activations"] / (peaks[18] - peaks[2])
    assert 1 / 1.4 < ratio < 1.4
