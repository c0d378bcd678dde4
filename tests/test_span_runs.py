"""SQuAD and MLQA from the command line, on a small model and small files."""

import json

import numpy as np
import pytest
from small_runs import WORDS, make_teacher

from keras_minilmv2 import cli
from keras_minilmv2.span_runs import fine_tune_on_squad


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "teacher")


def squad_file(path, number, seed, *, without_answer=False, misplaced=False):
    """Which word comes after "king"? One question a context."""
    generator = np.random.default_rng(seed)
    paragraphs = []
    for i in range(number):
        words = [str(w) for w in generator.choice(WORDS[:-1], 8)]
        place = int(generator.integers(0, 7))
        words[place] = "king"
        context = " ".join(words)
        start = context.index("king") + 5
        answers = [{"text": words[place + 1], "answer_start": start}]
        if misplaced and i == 0:
            answers[0]["answer_start"] += 1
        question = {"id": f"{seed}-{i}", "question": "king", "answers": answers}
        if without_answer:
            question["is_impossible"] = i % 4 == 0
            if question["is_impossible"]:
                question["answers"] = []
        paragraphs.append({"context": context, "qas": [question]})
    content = {"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    squad_file(path / "train-v1.1.json", 160, 0, misplaced=True)
    squad_file(path / "dev-v1.1.json", 24, 1)
    squad_file(path / "train-v2.0.json", 80, 2, without_answer=True)
    squad_file(path / "dev-v2.0.json", 24, 3, without_answer=True)
    for seed, language in enumerate(("en", "de")):
        name = f"dev-context-{language}-question-{language}.json"
        squad_file(path / "dev" / name, 12, 10 + seed)
    return path


SETTINGS = ["--learning-rate", "0.02", "--batch-size", "16", "--sequence-length", "24"]


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "squad1"
    arguments = ["finetune", str(model), "--task", "squad1", "--data-dir", str(data)]
    arguments += ["--output-dir", str(out), "--epochs", "6", *SETTINGS]
    assert cli.main(arguments) == 0
    return out


def test_a_run_leaves_model_answers_and_report(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["task"] == "squad1"
    answers = json.loads((finished / "predictions" / "dev.json").read_text())
    assert len(answers) == 24
    (cell,) = (finished / "cells").iterdir()
    losses = json.loads(cell.read_text())["losses"]
    assert losses[-1] < losses[0]
    report = (finished / "report.md").read_text()
    for word in ("exact_match", "f1", f"{metrics['metrics']['f1']:.2f}", "hardware"):
        assert word in report


def test_a_finished_run_is_kept(model, data, finished, capsys):
    arguments = ["finetune", str(model), "--task", "squad1", "--data-dir", str(data)]
    arguments += ["--output-dir", str(finished), "--epochs", "6", *SETTINGS]
    assert cli.main(arguments) == 2
    assert "must not hold a finished run" in capsys.readouterr().err


def test_evaluate_gives_the_scores_of_the_run(data, finished, tmp_path, capsys):
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    out = tmp_path / "out"
    arguments = ["evaluate", str(finished), "--data-dir", str(data)]
    assert cli.main([*arguments, "--output-dir", str(out)]) == 0
    assert f"{metrics['f1']:.2f}" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["metrics"] == metrics


def test_mlqa_is_scored_in_every_language_there_is(data, finished, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", str(finished), "--task", "mlqa", "--data-dir", str(data)]
    assert cli.main([*arguments, "--output-dir", str(out)]) == 0
    output = capsys.readouterr().out
    assert "MLQA dev" in output
    assert [line.split()[1] for line in output.splitlines()[4:]] == ["de", "en", "mean"]
    metrics = json.loads((out / "metrics.json").read_text())
    each = [metrics["by_language"][language]["f1"] for language in ("en", "de")]
    assert metrics["metrics"]["f1"] == pytest.approx(np.mean(each))
    names = {entry.name for entry in (out / "predictions").iterdir()}
    assert names == {"dev-en.json", "dev-de.json"}


@pytest.mark.slow
def test_squad_2_finds_its_threshold(model, data, tmp_path):
    scores, results = fine_tune_on_squad(
        model,
        "squad2",
        tmp_path / "out",
        data_dir=data,
        learning_rate=0.02,
        epochs=1,
        seed=(0, 1),
        batch_size=16,
        sequence_length=24,
        num_train_examples=40,
        say=lambda line: None,
    )
    assert len(results) == 2
    assert scores.metrics["best_f1"] >= scores.metrics["f1"]
    odds = tmp_path / "out" / "predictions" / "dev-null_odds.json"
    assert len(json.loads(odds.read_text())) == 24
    assert "Best setting by mean best_f1" in (tmp_path / "out/report.md").read_text()


def test_misplaced_answers_are_counted_or_refused(model, data, tmp_path, capsys):
    arguments = ["finetune", str(model), "--task", "squad1", "--data-dir", str(data)]
    arguments += ["--output-dir", str(tmp_path / "out"), *SETTINGS]
    assert cli.main([*arguments, "--strict"]) == 2
    error = capsys.readouterr().err
    assert "train-v1.1.json" in error
    assert not (tmp_path / "out").exists()
    elsewhere = [*arguments, "--strict"]
    elsewhere[elsewhere.index("squad1")] = "sst2"
    assert cli.main(elsewhere) == 2
    assert "--strict with --task sst2" in capsys.readouterr().err
    arguments += ["--epochs", "1", "--num-train-examples", "16"]
    assert cli.main(arguments) == 0
    assert "Answers that do not stand in their context" in capsys.readouterr().out


def test_missing_files_are_named(model, tmp_path, capsys):
    arguments = ["finetune", str(model), "--task", "squad1"]
    arguments += ["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "train-v1.1.json" in capsys.readouterr().err
