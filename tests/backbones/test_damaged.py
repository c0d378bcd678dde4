"""Damaged presets and Hugging Face directories: one sentence that names the place."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from families import make_backbone, others_slow
from small_tokenizers import make_tokenizer

from keras_minilmv2.backbones.families import FAMILIES
from keras_minilmv2.backbones.hugging_face.export import export_to_hugging_face
from keras_minilmv2.backbones.hugging_face.weights import refuse_head
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.runs.export import export
from keras_minilmv2.runs.shrink import shrink

REFERENCE = Path(__file__).parents[1] / "reference"
MODELS = ["bert_teacher", "roberta_teacher", "albert", "distilbert", "electra"]
# One whose blocks run once, and one whose blocks run many times.
FAST_MODELS = ["bert_teacher", "albert"]
VALUES = [None, "x", -1, 0, 1.5, 10**6, 10**12, True, [], {}, math.nan, math.inf]
FEWER_VALUES = [None, "x", -1, 1.5, []]
OTHERS = {
    *("model_type", "hidden_act", "activation", "layer_norm_eps", "is_decoder"),
    *("hidden_dropout_prob", "dropout", "pad_token_id", "position_embedding_type"),
}
KERAS_FIELDS = [
    *("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim"),
    *("max_sequence_length", "num_segments", "dropout", "dtype", "name", "trainable"),
]


def check(directory, load=load_backbone):
    """Loads, or refuses in one sentence that names the directory, and returns it."""
    message = None
    try:
        load(directory)
    except ValueError as error:
        message = str(error)
    if message is not None:
        assert message.startswith("`preset` must ")
        assert str(directory) in message
        assert "\n" not in message
    return message


def with_field(directory, config, field, value):
    (directory / "config.json").write_text(json.dumps({**config, field: value}))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("preset")
    make_backbone("bert").save_to_preset(str(directory))
    return directory


@pytest.mark.filterwarnings("ignore:The weights of preset")
@pytest.mark.parametrize("name", others_slow(MODELS, fast=FAST_MODELS))
def test_every_field_of_a_hugging_face_config_may_be_damaged(name, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(REFERENCE / name, directory)
    config = json.loads((directory / "config.json").read_text())
    [sizes] = (
        set(family.size_names.values())
        for family in FAMILIES
        if family.model_type == config["model_type"]
    )
    for field in sizes:
        for value in VALUES:
            with_field(directory, config, field, value)
            assert check(directory), (field, value)
    for field in OTHERS & set(config):
        for value in FEWER_VALUES:
            with_field(directory, config, field, value)
            check(directory)


@pytest.mark.parametrize("field", KERAS_FIELDS)
def test_every_argument_in_a_preset_may_be_damaged(field, preset, tmp_path):
    directory = shutil.copytree(preset, tmp_path / "preset")
    config = json.loads((directory / "config.json").read_text())
    is_size = field in KERAS_FIELDS[:7]
    for value in VALUES if is_size else FEWER_VALUES:
        arguments = {**config["config"], field: value}
        with_field(directory, config, "config", arguments)
        message = check(directory)
        assert message or not is_size, (field, value)
    arguments = {k: v for k, v in config["config"].items() if k != field}
    with_field(directory, config, "config", arguments)
    check(directory)


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "3", "{}", "[" * 100_000, '{"model_type": ["bert"]}']
    + [f'{{"registered_name": {name}}}' for name in ("3", "null", '"x"', "[]")]
    + [
        f'{{"registered_name": "keras_hub>BertBackbone"{more}}}'
        for more in ("", ', "config": 3', ', "config": {}')
    ],
)
@pytest.mark.parametrize("load", [load_backbone, load_tokenizer])
def test_a_config_may_be_damaged_whole(load, text, preset, tmp_path):
    directory = shutil.copytree(preset, tmp_path / "preset")
    (directory / "config.json").write_text(text)
    assert check(directory, load)
    (directory / "config.json").write_bytes(b"\xff\x00" + text.encode()[:100])
    assert check(directory, load)


@pytest.mark.parametrize("kept", [0, 4, 100, 1_000, -1])
@pytest.mark.parametrize("form", ["preset", "hugging_face"])
def test_weights_may_be_cut_off(form, kept, preset, tmp_path):
    source = preset if form == "preset" else REFERENCE / "bert_teacher"
    directory = shutil.copytree(source, tmp_path / "model")
    [file] = [*directory.glob("*.h5"), *directory.glob("*.safetensors")]
    file.write_bytes(file.read_bytes()[:kept])
    message = check(directory)
    assert file.name in message


def test_a_safetensors_file_may_be_damaged(tmp_path):
    directory = shutil.copytree(REFERENCE / "bert_teacher", tmp_path / "model")
    file = directory / "model.safetensors"
    content = file.read_bytes()
    for damaged in (
        b"\xff" * 8 + content[8:],
        content[:8] + content[8:].replace(b'"F32"', b'"F99"'),
        content[:8] + content[8:].replace(b'"F32"', b'"F8_"'),
        content[:8] + content[8:].replace(b"shape", b"shope"),
    ):
        file.write_bytes(damaged)
        assert "hold an intact model.safetensors" in check(directory)


@pytest.mark.parametrize("name", ["../w.safetensors", "/tmp/w", "a/b", 3, None])
def test_indices_that_name_files_elsewhere_are_refused(name, preset, tmp_path):
    directory = shutil.copytree(REFERENCE / "bert_teacher", tmp_path / "model")
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    shutil.copy(directory / "model.safetensors", tmp_path / "w.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
    message = check(directory)
    assert "must hold a model.safetensors.index.json that names files beside it" in (
        message
    )
    directory = shutil.copytree(preset, tmp_path / "preset")
    index = directory / "model.weights.json"
    index.write_text(json.dumps({"weight_map": {"/layers": [name]}}))
    assert "must hold a model.weights.json that names files beside it" in (
        check(directory)
    )


@pytest.mark.parametrize(
    "head",
    [
        ["classifier.weight", "classifier.bias"],
        ["pre_classifier.weight", "classifier.weight"],
        ["qa_outputs.weight"],
        ["classifier.dense.weight", "classifier.out_proj.weight"],
    ],
)
@pytest.mark.parametrize("form", ["hugging_face", "saved_model"])
def test_a_head_is_not_lost_in_an_export(form, head, tmp_path):
    directory = shutil.copytree(REFERENCE / "bert_teacher", tmp_path / "model")
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    weights = {f"bert.{name}": value for name, value in weights.items()}
    weights.update(dict.fromkeys(head, np.zeros((2, 12), "float32")))
    safetensors.numpy.save_file(weights, directory / "model.safetensors")
    with pytest.raises(ValueError, match="`model` must be an encoder.*a head of"):
        export(directory, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
    load_backbone(directory)


def test_heads_of_pretraining_and_models_without_a_head_are_let_through(tmp_path):
    directory = shutil.copytree(REFERENCE / "bert_teacher", tmp_path / "model")
    refuse_head("model", directory)
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    weights = {f"bert.{name}": value for name, value in weights.items()}
    weights["cls.predictions.bias"] = np.zeros(26, "float32")
    safetensors.numpy.save_file(weights, directory / "model.safetensors")
    refuse_head("model", directory)


def test_examples_with_ids_beyond_the_vocabulary_are_refused():
    teacher = make_backbone("bert")
    ids = np.full((2, 8), 50, "int32")
    examples = {"token_ids": ids, "padding_mask": ids > 0, "segment_ids": ids * 0}
    with pytest.raises(ValueError, match="token id 50, vocabulary of 50"):
        student_backbone(
            teacher,
            num_layers=2,
            num_heads=4,
            hidden_dim=12,
            intermediate_dim=16,
            initialization="projection",
            examples=examples,
        )


@pytest.mark.parametrize("name", ["thesis.txt", "README.md", ".git", "src"])
def test_a_directory_with_other_files_is_not_replaced(name, preset, tmp_path):
    directory = shutil.copytree(preset, tmp_path / "preset")
    student, tokenizer = make_backbone("bert"), make_tokenizer("Bert")
    save_student(student, None, directory)
    (directory / name).write_text("mine")
    before = sorted(directory.iterdir())
    for write in (
        lambda: save_student(student, None, directory),
        lambda: export_to_hugging_face(student, tokenizer, directory, overwrite=True),
        lambda: shrink(preset, preset / "config.json", directory, overwrite=True),
    ):
        with pytest.raises(FileExistsError, match=f"but a model, .* with {name}"):
            write()
    assert sorted(directory.iterdir()) == before
    assert (directory / name).read_text() == "mine"


def test_a_file_is_not_replaced_by_a_directory(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(NotADirectoryError, match="`path` must be a dir.*, a file"):
        save_student(make_backbone("bert"), None, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
