"""Runs that version 0.1.0 wrote are resumed, returned, evaluated and exported."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_runs import columns

from keras_minilmv2 import cli
from keras_minilmv2.backbones.loading import load_backbone

RUNS = Path(__file__).parents[1] / "fixtures" / "runs_of_version_0_1_0.tar.xz"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The directories, whose settings have relative paths."""
    with tarfile.open(RUNS) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(path):
    return [np.asarray(weight) for weight in load_backbone(path).weights]


def test_a_finished_distillation_is_returned(runs, capsys):
    report = (runs / "finished" / "report.md").read_bytes()
    assert cli.main(["distill", "recipe.json", "--output-dir", "finished"]) == 0
    assert "Finished already: finished." in capsys.readouterr().out
    assert (runs / "finished" / "report.md").read_bytes() == report


@pytest.mark.slow
def test_an_unfinished_distillation_is_resumed(runs, capsys):
    assert cli.main(["distill", "recipe.json", "--output-dir", "unfinished"]) == 0
    assert "Resumes after step 7 of 12" in capsys.readouterr().out
    one, other = (runs / name for name in ("finished", "unfinished"))
    first, *rows = columns(other / "history.csv")
    # Version 0.1.0 wrote the rate of the next update.
    rate = first.index("learning_rate")
    for ours, theirs in zip(rows, columns(one / "history.csv")[1:], strict=True):
        del ours[rate], theirs[rate]
        for a, b in zip(ours, theirs, strict=True):
            # Another processor sums in another order.
            assert a == b or float(a) == pytest.approx(float(b), rel=1e-4)
    for a, b in zip(weights(other / "student"), weights(one / "student"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


FINETUNE = ["finetune", "finished/student", "--data-dir", "data"]
SST2 = [*FINETUNE, "--task", "sst2", "--batch-size", "8", "--epochs", "1"]
SST2 += ["--sequence-length", "16", "--learning-rate", "1e-3", "--seed", "0", "1"]


def cells(path):
    """Scores by seed."""
    contents = (json.loads(file.read_text()) for file in (path / "cells").iterdir())
    return {content["seed"]: content["score"] for content in contents}


@pytest.mark.slow
def test_a_finished_fine_tuning_is_returned_and_an_unfinished_one_resumed(runs):
    before = cells(runs / "sst2")
    assert cli.main([*SST2, "--output-dir", "sst2"]) == 0
    assert cells(runs / "sst2") == before
    assert cells(runs / "sst2_unfinished").keys() == {0}
    assert cli.main([*SST2, "--output-dir", "sst2_unfinished"]) == 0
    assert cells(runs / "sst2_unfinished") == pytest.approx(before)
    metrics = json.loads((runs / "sst2_unfinished" / "metrics.json").read_text())
    assert metrics["task"] == "sst2"


def test_fine_tuned_models_are_evaluated(runs, capsys):
    arguments = ["--data-dir", "data", "--output-dir", "evaluation"]
    assert cli.main(["evaluate", "sst2", *arguments]) == 0
    assert "accuracy 50.00" in capsys.readouterr().out
    shutil.rmtree(runs / "evaluation")
    assert cli.main(["evaluate", "squad1", *arguments]) == 0
    assert "16.67" in capsys.readouterr().out


@pytest.mark.slow
def test_fine_tuned_models_are_exported(runs):
    arguments = ["--form", "hugging_face", "--output-dir", "hf"]
    assert cli.main(["export", "sst2", *arguments]) == 0
    assert (runs / "hf" / "model.safetensors").is_file()
    for model in ("squad1", "squad1/model"):
        arguments = ["--sequence-length", "16", "--output-dir", f"serving/{model}"]
        assert cli.main(["export", model, *arguments]) == 0
        assert (runs / "serving" / model / "1" / "saved_model.pb").is_file()
