"""Trials of several layers: each as if alone, scored, and the best named."""

import io
import json

import keras_hub
import numpy as np
import pytest
from small_runs import make_recipe, make_teacher, write_task

import keras_minilmv2 as km
from keras_minilmv2 import cli
from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.distillation.candidates import LayerCandidates
from keras_minilmv2.runs.layers import (
    LayerTrial,
    best_trial,
    choose_layer,
    trial_table,
)


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture
def recipe(teacher_dir, tmp_path):
    return make_recipe(tmp_path, teacher_dir)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("tasks") / "data")


@pytest.mark.slow
def test_students_beside_each_other_are_trained_as_if_alone(teacher_dir):
    teacher = load_backbone(teacher_dir)
    generator = np.random.default_rng(0)
    batches = [
        {
            "token_ids": generator.integers(5, 40, (8, 12)).astype("int32"),
            "padding_mask": np.ones((8, 12), "int32"),
            "segment_ids": np.zeros((8, 12), "int32"),
        }
        for _ in range(5)
    ]

    def make_student():
        return km.student_backbone(
            teacher,
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=12,
            dropout=0.0,
            seed=3,
        )

    def make_optimizer():
        return km.adamw(0.01, 1, 5)

    students = {layer: make_student() for layer in (1, 3)}
    candidates = LayerCandidates(
        teacher, students, 4, {"qq": 1.0, "vv": 1.0}, make_optimizer
    )
    seen = []
    candidates.train(batches, lambda step, losses: seen.append((step, losses)))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    for layer, student in students.items():
        alone = make_student()
        distiller = km.RelationDistiller(
            teacher, alone, layer, 4, {"qq": 1.0, "vv": 1.0}
        )
        distiller.compile(make_optimizer())
        losses = [distiller.train_on_batch(batch)[0] for batch in batches]
        assert seen[0][1][layer] == pytest.approx(losses[0], rel=1e-5)
        for ours, theirs in zip(student.weights, alone.weights, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
def test_a_trial_scores_every_layer_and_goes_on(recipe, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["layers", str(recipe), "--task", "sst2", "--data-dir", str(data)]
    arguments += ["--output-dir", str(out), "--steps", "6", "--epochs", "1"]
    arguments += ["--set", "log_every=2", "--set", "evaluate_every=6"]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "Best by the probe: layer" in output
    # The upper half of 3 layers.
    for layer in (2, 3):
        student = out / f"layer_{layer}" / "student"
        assert keras_hub.models.Backbone.from_preset(str(student)).hidden_dim == 8
        assert (
            len(list((out / f"layer_{layer}").glob("probe-sst2-2000-*/cells/*"))) == 2
        )
    report = (out / "report.md").read_text()
    assert "| layer" in report
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    losses = json.loads((out / "losses.json").read_text())
    assert set(losses) == {"2", "3"}
    # Again: nothing is distilled or fine-tuned anew, and the answer is the same.
    cells = sorted(out.glob("layer_*/probe-*/cells/*"))
    times = [cell.stat().st_mtime_ns for cell in cells]
    assert cli.main(arguments) == 0
    assert [cell.stat().st_mtime_ns for cell in cells] == times
    again = capsys.readouterr().out
    assert "Resumes with the students" in again
    assert again.splitlines()[-2] == output.splitlines()[-2]
    # Other settings are another trial.
    assert cli.main([*arguments, "--set", "seed=1"]) == 2
    assert "a run of other settings" in capsys.readouterr().err


def test_layers_that_are_not_there_are_refused(recipe, data, tmp_path):
    loaded = km.load_recipe(recipe)
    with pytest.raises(ValueError, match="`layers` must be between 1"):
        choose_layer(
            loaded,
            tmp_path / "out",
            "sst2",
            layers=[2, 4],
            data_dir=data,
            progress_stream=io.StringIO(),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["accumulation_steps=2", "strategy=mirrored"])
def test_settings_of_other_devices_are_refused(recipe, data, tmp_path, capsys, setting):
    arguments = ["layers", str(recipe), "--task", "sst2", "--data-dir", str(data)]
    arguments += ["--output-dir", str(tmp_path / "out"), "--set", setting]
    assert cli.main(arguments) == 2
    assert "to choose a layer, which trains all" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", "0"), ("learning-rate", "-1"), ("seed", "-1")]
    + [("num-train-examples", "0")],
)
def test_settings_of_the_probe_are_checked_first(
    recipe, data, tmp_path, capsys, option, value
):
    arguments = ["layers", str(recipe), "--task", "sst2", "--data-dir", str(data)]
    arguments += ["--output-dir", str(tmp_path / "out"), f"--{option}", value]
    assert cli.main(arguments) == 2
    name = option.replace("-", "_")
    assert f"`{name}` must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_place_for_a_trial(recipe, data, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    arguments = ["layers", str(recipe), "--task", "sst2", "--data-dir", str(data)]
    assert cli.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    assert "`output_dir` must be a directory" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_another_run_is_no_trial(recipe, data, tmp_path, capsys):
    # As `finetune` leaves it.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text('{"task": "sst2"}')
    arguments = ["layers", str(recipe), "--task", "sst2", "--data-dir", str(data)]
    assert cli.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    assert "must be empty or new" in capsys.readouterr().err


def test_the_best_is_the_best_on_average():
    trials = [
        LayerTrial(1, 1.0, 0.5, (0.5, 0.9)),
        LayerTrial(2, 1.0, 0.6, (0.8, 0.8)),
        LayerTrial(3, 1.0, 0.1, (0.6,)),
    ]
    assert best_trial(trials).layer == 2
    assert trials[0].deviation == pytest.approx(np.std([0.5, 0.9], ddof=1))
    assert trials[2].deviation is None


def test_weights_of_one_layers_heads_choose_no_layer(recipe, data, tmp_path):
    loaded = km.load_recipe(recipe).override(["relation_head_weights=1,2,3,4"])
    with pytest.raises(ValueError, match="`relation_head_weights` must be None to ch"):
        choose_layer(loaded, tmp_path / "out", "sst2", data_dir=data)
    assert not (tmp_path / "out").exists()


def test_a_layer_whose_probe_diverged_is_never_the_best():
    trials = [LayerTrial(1, 1.0, 0.5, ()), LayerTrial(2, 1.0, 0.6, (0.1,))]
    assert best_trial(trials).layer == 2
    first, _ = trial_table(trials, "sst2").splitlines()[2:]
    assert "diverged" in first
    with pytest.raises(RuntimeError, match="every probe was not finite"):
        best_trial(trials[:1])


@pytest.mark.slow
def test_a_probe_that_diverges_ends_no_trial(recipe, data, tmp_path, capsys):
    arguments = ["layers", str(recipe), "--task", "sst2", "--data-dir", str(data)]
    arguments += ["--output-dir", str(tmp_path / "out"), "--steps", "2"]
    arguments += ["--epochs", "1", "--learning-rate", "1e30"]
    for _ in range(2):
        assert cli.main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out.count("  The loss was not finite.") == 2
        assert "The loss of every probe was not finite" in captured.err


def test_a_task_without_data_is_refused_before_distilling(recipe, tmp_path, capsys):
    arguments = ["layers", str(recipe), "--task", "sst2", "--data-dir", str(tmp_path)]
    assert cli.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    assert "train.tsv" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
