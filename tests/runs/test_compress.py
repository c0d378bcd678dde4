"""`compress`: a fine-tuned model in, a smaller one of the same kind out."""

import json
import math
from types import SimpleNamespace

import keras_hub
import numpy as np
import pytest
from families import make_backbone
from small_runs import make_teacher, write_task

from keras_minilmv2 import cli
from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.downstream.saved import load_saved
from keras_minilmv2.runs import compress as compress_run
from keras_minilmv2.runs.compress import (
    CompressionSettings,
    compress,
    importance_and_fit,
)
from keras_minilmv2.runs.evaluate import evaluate_model
from keras_minilmv2.runs.fine_tune import fine_tune

SETTINGS = {"latency_length": 16, "num_calibration_examples": 40, "seed": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("tuned")
    teacher = make_teacher(directory / "teacher")
    fine_tune(
        str(teacher),
        "sst2",
        directory / "run",
        data_dir=data,
        sequence_length=16,
        epochs=1,
        log=lambda line: None,
    )
    return directory / "run"


@pytest.mark.parametrize("epochs", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_model_of_the_same_kind_with_fewer_operations(tuned, data, tmp_path, epochs):
    lines = []
    settings = {**SETTINGS, "speedup": 1.5, "budget": "operations", "epochs": epochs}
    settings["relation_weight"] = 0.5

    def run():
        out = tmp_path / "out"
        return compress(tuned, out, data_dir=data, log=lines.append, **settings)

    found = run()
    saved, before = load_saved(tmp_path / "out"), load_saved(tuned)
    assert layer_counts(saved.backbone) == (found.head_counts, found.neuron_counts)
    assert saved.backbone.count_params() < before.backbone.count_params()
    # A step of one neuron is 4 d = 64 operations a token of some 10,000.
    assert found.speedup == pytest.approx(1.5, rel=0.02)
    assert found.speedup >= 1.5
    assert saved.task == "sst2"
    assert saved.labels == before.labels
    names = ["whole", "pruned", "fitted", *["fine_tuned"] * epochs]
    assert list(found.scores) == names
    score = evaluate_model(tmp_path / "out", data_dir=data).metrics["accuracy"]
    assert score == found.scores[names[-1]]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert ("relation_loss" in report["facts"]) == bool(epochs)
    num_relation_heads = math.gcd(48, 4 * found.head_counts[-1])
    line = f"Relation loss: layer 3, {num_relation_heads} relation heads."
    assert (line in lines) == bool(epochs)
    heads = [row["heads"] for row in report["tables"]["sizes"]]
    assert heads == [sum(layer_counts(before.backbone)[0]), sum(found.head_counts)]
    assert (tmp_path / "out" / "layers.png").read_bytes()[1:4] == b"PNG"
    # keras-hub's own loader takes it, and gives the same outputs.
    theirs = keras_hub.models.TextClassifier.from_preset(
        str(tmp_path / "out" / "model")
    )
    for ours, other in zip(saved.model.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(other))
    again = run()
    assert again == found
    assert lines[-1] == f"Finished already: {tmp_path / 'out'}."


@pytest.mark.slow
def test_a_measured_speed_with_all_neurons_kept(tuned, data, tmp_path):
    found = compress(
        tuned,
        tmp_path / "out",
        data_dir=data,
        speedup=1.05,
        heads_only=True,
        least_squares=False,
        log=lambda line: None,
        **SETTINGS,
    )
    saved = load_saved(tmp_path / "out")
    assert set(found.neuron_counts) == {saved.backbone.intermediate_dim}
    assert list(found.scores) == ["whole", "pruned"]
    assert found.speedup > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--speedup", "0.5"], "`speedup` must be a finite number above 1."),
        (["--speedup", "nan"], "`speedup` must be a finite number above 1."),
        (["--budget", "watts"], "latency, operations, parameters"),
        (["--num-calibration-examples", "4000"], "num_calibration_examples=4,000"),
        (["--latency-length", "4000"], "latency_length=4000"),
        (
            ["--budget", "parameters", "--speedup", "90"],
            "removing every head and neuron gives. Received: speedup=90, the most is",
        ),
        (
            ["--distill", "2"],
            "`distill` must be a finite number at least 0 and at most",
        ),
        (
            ["--relation-weight", "-1"],
            "`relation_weight` must be a finite number at least 0.",
        ),
        (["--task", "mrpc"], "`task`"),
    ],
)
def test_bad_input_is_one_sentence(tuned, data, tmp_path, capsys, arguments, words):
    command = ["compress", str(tuned), "--data-dir", str(data)]
    command += ["--num-calibration-examples", "8", "--latency-length", "16"]
    out = tmp_path / "out"
    assert cli.main([*command, *arguments, "--output-dir", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error
    assert not out.exists()


def test_settings_are_checked():
    with pytest.raises(
        ValueError, match="`penalty` must be a finite number at least 0"
    ):
        CompressionSettings(penalty=-1.0)
    with pytest.raises(ValueError, match="`epochs` must be an int of at least 0"):
        CompressionSettings(epochs=-1)


def test_least_squares_stop_reading_at_20_tokens_a_neuron(monkeypatch):
    backbone = make_backbone("bert", intermediate_dim=8)
    mask = np.ones((5, 10), "int32")
    mask[:, 8:] = 0
    inputs = {name: mask for name in backbone.input}
    seen = []
    monkeypatch.setattr(
        compress_run,
        "refit_outputs",
        lambda backbone, heads, neurons, batches, penalty: seen.extend(batches),
    )
    model = SimpleNamespace(backbone=backbone)
    # 40 tokens a batch, of 160 in all.
    _, refit = importance_and_fit(None, model, [(inputs, None)] * 6)
    refit(None, None)
    assert len(seen) == 4
    assert set(seen[0]) == set(backbone.input)
