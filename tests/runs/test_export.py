import json

import keras_hub
import numpy as np
import pytest
from small_runs import make_teacher

import keras_minilmv2 as km
from keras_minilmv2.cli import main
from keras_minilmv2.downstream.saved import load_saved
from keras_minilmv2.runs.export import export
from keras_minilmv2.runs.fine_tune import fine_tune

ROWS = [("the ship was at sea", 1), ("it was night", 0)] * 8


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="module")
def classifier(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier")
    (path / "SST-2").mkdir()
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in ROWS)]
    for split in ("train", "dev"):
        (path / "SST-2" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    fine_tune(
        student, "sst2", path / "out", data_dir=path, epochs=1, sequence_length=16
    )
    return path / "out"


@pytest.mark.slow
def test_a_student_is_exported_and_checked_by_commands(student, tmp_path, capsys):
    target = str(tmp_path / "serving")
    words = ["export", str(student), "--output-dir", target, "--sequence-length", "8"]
    assert main([*words, "16"]) == 0
    manifest = json.loads((tmp_path / "serving" / "1" / "manifest.json").read_text())
    assert "serving_default" in manifest["signatures"]
    assert main(["serve-check", target]) == 0
    assert "serving_default" in capsys.readouterr().out


def test_a_student_goes_to_hugging_face_and_comes_back(student, tmp_path):
    target = tmp_path / "hf"
    words = ["export", str(student), "--form", "hugging_face", "--output-dir"]
    assert main([*words, str(target)]) == 0
    one, other = km.load_backbone(student), km.load_backbone(target)
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_a_fine_tuned_model_keeps_its_labels(classifier):
    saved = load_saved(classifier)
    assert isinstance(saved.model, keras_hub.models.TextClassifier)
    assert saved.labels == ("negative", "positive")
    assert saved.pairs is False


def test_an_unknown_form_is_refused(student, tmp_path):
    with pytest.raises(ValueError, match="`form` must be one of saved_model, hug"):
        export(student, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
