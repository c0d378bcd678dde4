"""Runs that a distilled student is compared with, from the command line."""

import csv
import json
import os
import signal

import keras_hub
import numpy as np
import pytest
from small_runs import assert_same_run, make_recipe, make_teacher

import keras_minilmv2 as km
from keras_minilmv2 import cli
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.distillation.masked_tokens import load_masked_token_trainer
from keras_minilmv2.runs.distill import distill
from keras_minilmv2.runs.recipes import load_recipe
from keras_minilmv2.training.progress import ProgressLine


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture
def recipe(teacher_dir, tmp_path):
    return make_recipe(tmp_path, teacher_dir)


def run(command, recipe, output_dir, *options):
    return cli.main([command, str(recipe), "--output-dir", str(output_dir), *options])


def weights(path):
    backbone = keras_hub.models.Backbone.from_preset(str(path))
    return [np.asarray(weight) for weight in backbone.weights]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "changes", "columns", "words"),
    [
        (
            "attention_values",
            ["--set", "student_num_heads=4"],
            "loss,qk,vv",
            "Held-out attention and value-relation loss",
        ),
        (
            "hidden_states",
            [],
            "loss,layer_0,layer_1,layer_2",
            "Held-out hidden-state loss",
        ),
        ("masked_tokens", [], "loss,accuracy", "Held-out masked-token loss"),
    ],
)
def test_other_objectives_train_and_are_named_in_reports(
    recipe, tmp_path, capsys, objective, changes, columns, words
):
    out = tmp_path / "out"
    options = ["--set", f"objective={objective}", *changes]
    assert run("distill", recipe, out, *options) == 0
    header = (out / "history.csv").read_text().splitlines()[0]
    assert header.startswith(f"step,{columns},gradient_norm")
    assert words in capsys.readouterr().out
    assert words in (out / "report.md").read_text()
    assert keras_hub.models.Backbone.from_preset(str(out / "student")).hidden_dim == 8


def test_value_relations_need_as_many_heads(recipe, tmp_path, capsys):
    options = ["--set", "objective=attention_values"]
    assert run("distill", recipe, tmp_path / "out", *options) == 2
    assert "`num_heads` of teacher and student must be equal" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pretrain_is_masked_language_modelling(recipe, tmp_path):
    out = tmp_path / "out"
    assert run("pretrain", recipe, out, "--whole-words") == 0
    saved = json.loads((out / "recipe.json").read_text())
    assert saved["objective"] == "masked_tokens"
    assert saved["whole_words"] is True
    assert saved["student_initialization"] == "random"
    header = (out / "history.csv").read_text().splitlines()[0]
    assert header.startswith("step,loss,accuracy,gradient_norm")
    report = (out / "report.md").read_text()
    assert "masked words" in report
    assert "Held-out masked-token loss" in report
    # The head is saved beside the encoder: both have the loss that was measured.
    trained = distill(load_recipe(out / "recipe.json"), out)
    loaded = load_masked_token_trainer(out / "student", whole_words=True)
    loaded.compile(km.adamw(0.01, 1, 5))
    loss = loaded.evaluate(trained.held_out, return_dict=True, verbose=0)["loss"]
    assert loss == pytest.approx(trained.history.series("held_out_loss")[1][-1])


@pytest.mark.slow
def test_pretraining_that_was_stopped_ends_with_the_same_bits(
    recipe, tmp_path, monkeypatch
):
    assert run("pretrain", recipe, tmp_path / "whole") == 0
    update = ProgressLine.update

    def stop_at_7(self, step, losses):
        update(self, step, losses)
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ProgressLine, "update", stop_at_7)
    assert run("pretrain", recipe, tmp_path / "parts") == 0
    monkeypatch.setattr(ProgressLine, "update", update)
    assert not (tmp_path / "parts" / "report.md").exists()
    assert run("pretrain", recipe, tmp_path / "parts") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_an_unknown_objective_is_refused(recipe, tmp_path, capsys):
    assert run("distill", recipe, tmp_path / "out", "--set", "objective=logits") == 2
    assert "`objective` must be one of relations," in capsys.readouterr().err


def test_whole_words_is_true_or_false(recipe, tmp_path, capsys):
    assert run("pretrain", recipe, tmp_path / "out", "--set", "whole_words=yes") == 2
    assert "`whole_words` must be true or false" in capsys.readouterr().err


def test_pretraining_has_one_objective(recipe, tmp_path, capsys):
    objective = "objective=hidden_states"
    assert run("pretrain", recipe, tmp_path / "out", "--set", objective) == 2
    assert "`objective` must be masked_tokens" in capsys.readouterr().err


def test_plan_refuses_what_it_cannot_count(recipe, capsys):
    assert cli.main(["plan", str(recipe), "--set", "objective=hidden_states"]) == 2
    assert "`objective` must be relations or" in capsys.readouterr().err


def test_a_student_before_training_is_written(recipe, teacher_dir, tmp_path, capsys):
    assert run("student", recipe, tmp_path / "new") == 0
    assert "2x8" in capsys.readouterr().out
    assert run("student", recipe, tmp_path / "cut", "--truncated-teacher") == 0
    teacher = keras_hub.models.Backbone.from_preset(str(teacher_dir))
    cut = keras_hub.models.Backbone.from_preset(str(tmp_path / "cut"))
    assert len(block_calls(cut)) == 2
    for (ours, _), (theirs, _) in zip(
        block_calls(cut), block_calls(teacher), strict=False
    ):
        for x, y in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_run_starts_with_the_student_before_training(recipe, tmp_path):
    assert run("student", recipe, tmp_path / "new") == 0
    assert run("distill", recipe, tmp_path / "out", "--set", "total_steps=4") == 0
    drawn = weights(tmp_path / "new")
    trained = weights(tmp_path / "out" / "student")
    assert any((a != b).any() for a, b in zip(drawn, trained, strict=True))
    # The pooler gets no gradient.
    assert any(
        (a == b).all() for a, b in zip(drawn, trained, strict=True) if a.ndim > 1
    )


def held_out_losses(path):
    with open(path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["held_out_loss"] for row in rows if row["held_out_loss"]]


def from_preset(path):
    return ["--set", f"student_initialization=preset:{path}"]


@pytest.mark.slow
def test_a_preset_is_trained_further(recipe, tmp_path, capsys):
    assert run("distill", recipe, tmp_path / "first") == 0
    student = tmp_path / "first" / "student"
    # Its weights are carried over, its dropout is the recipe's.
    options = [*from_preset(student), "--set", "student_dropout=0"]
    assert run("distill", recipe, tmp_path / "second", *options) == 0
    assert f"initialized from {student}" in capsys.readouterr().out
    first, second = (held_out_losses(tmp_path / name) for name in ("first", "second"))
    assert second[0] == first[-1]
    assert float(second[-1]) < float(second[0])
    backbone = keras_hub.models.Backbone.from_preset(str(tmp_path / "second/student"))
    assert backbone.dropout == 0


@pytest.mark.slow
def test_a_preset_must_lie_in_another_directory(recipe, tmp_path, capsys):
    assert run("distill", recipe, tmp_path / "out", "--set", "total_steps=4") == 0
    before = weights(tmp_path / "out" / "student")
    options = [*from_preset(tmp_path / "out" / "student"), "--overwrite"]
    assert run("distill", recipe, tmp_path / "out", *options) == 2
    assert (
        "`student_initialization` must not lie in `output_dir`"
        in capsys.readouterr().err
    )
    after = weights(tmp_path / "out" / "student")
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_a_preset_has_the_recipes_shape(recipe, teacher_dir, tmp_path, capsys):
    assert run("distill", recipe, tmp_path / "out", *from_preset(teacher_dir)) == 2
    assert (
        "`student_initialization` must name a preset with the student's num_layers, 2. "
        f"Received: student_initialization=preset:{teacher_dir}, num_layers=3."
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_preset_has_the_teachers_vocabulary(recipe, teacher_dir, tmp_path, capsys):
    assert run("student", recipe, tmp_path / "other") == 0
    path = tmp_path / "other" / "assets" / "tokenizer" / "vocabulary.txt"
    vocabulary = path.read_text().splitlines()
    path.write_text("\n".join([*vocabulary[:-2], vocabulary[-1], vocabulary[-2]]))
    options = from_preset(tmp_path / "other")
    assert run("distill", recipe, tmp_path / "out", *options) == 2
    assert "must name a preset with the teacher's vocabulary" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_student_is_not_written_over_other_files(recipe, tmp_path, capsys):
    assert run("student", recipe, tmp_path) == 2
    assert "`output_dir` must be empty or new" in capsys.readouterr().err
    options = ["--set", "student_initialization=projection"]
    assert run("student", recipe, tmp_path / "new", *options) == 2
    assert "must be random, layers or preset" in capsys.readouterr().err
