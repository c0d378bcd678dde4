"""SQuAD and MLQA from the command line, on a small model and small files."""

import contextlib
import io
import json

import numpy as np
import pytest
from small_runs import WORDS, make_teacher

from keras_minilmv2 import cli
from keras_minilmv2.downstream.reader import load_span_examples
from keras_minilmv2.downstream.saved import load_saved
from keras_minilmv2.downstream.span_metrics import squad_v2_metrics
from keras_minilmv2.downstream.span_model import SpanModel
from keras_minilmv2.runs.evaluate import evaluate_model
from keras_minilmv2.runs.export import export
from keras_minilmv2.runs.fine_tune import fine_tune


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


SETTINGS = ["--learning-rate", "0.005", "--batch-size", "16", "--sequence-length", "24"]


@pytest.fixture(scope="module")
def finished_and_said(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "squad1"
    arguments = ["finetune", str(model), "--task", "squad1", "--data-dir", str(data)]
    arguments += ["--output-dir", str(out), "--epochs", "6", *SETTINGS]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert cli.main(arguments) == 0
    return out, output.getvalue()


@pytest.fixture(scope="module")
def finished(finished_and_said):
    """The directory of a run."""
    return finished_and_said[0]


@pytest.fixture(scope="module")
def said(finished_and_said):
    """What the run of `finished` printed."""
    return finished_and_said[1]


def test_a_run_leaves_model_answers_and_report(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["task"] == "squad1"
    f1 = metrics["splits"]["dev"]["metrics"]["f1"]
    assert 0 < f1 <= 1
    answers = json.loads((finished / "predictions" / "dev.json").read_text())
    assert len(answers) == 24
    nbest = json.loads((finished / "predictions" / "dev-nbest.json").read_text())
    assert {key: entries[0]["text"] for key, entries in nbest.items()} == answers
    for entries in nbest.values():
        assert 1 < len(entries) <= 20
        assert sum(entry["probability"] for entry in entries) == pytest.approx(1)
    (cell,) = (finished / "cells").iterdir()
    losses = json.loads(cell.read_text())["losses"]
    assert losses[-1] < losses[0]
    report = (finished / "report.md").read_text()
    for word in ("exact_match", "f1", f"{100 * f1:.2f}", "hardware"):
        assert word in report


def test_a_finished_run_is_returned(model, data, finished, capsys):
    arguments = ["finetune", str(model), "--task", "squad1", "--data-dir", str(data)]
    arguments += ["--output-dir", str(finished), "--epochs", "6", *SETTINGS]
    before = {file: file.read_bytes() for file in finished.rglob("*.*")}
    assert cli.main(arguments) == 0
    assert f"Finished already: {finished}." in capsys.readouterr().out
    assert {file: file.read_bytes() for file in finished.rglob("*.*")} == before


def metrics_of(directory):
    content = json.loads((directory / "metrics.json").read_text())
    return content["splits"]["dev"]["metrics"]


def test_evaluate_gives_the_scores_of_the_run(data, finished, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", str(finished), "--data-dir", str(data)]
    assert cli.main([*arguments, "--output-dir", str(out)]) == 0
    metrics = metrics_of(finished)
    assert f"{100 * metrics['f1']:.2f}" in capsys.readouterr().out
    assert metrics_of(out) == metrics


def test_mlqa_is_scored_in_every_language_there_is(data, finished, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["evaluate", str(finished), "--task", "mlqa", "--data-dir", str(data)]
    assert cli.main([*arguments, "--output-dir", str(out)]) == 0
    output = capsys.readouterr().out
    assert "MLQA dev" in output
    assert [line.split()[1] for line in output.splitlines()[4:]] == ["de", "en", "mean"]
    metrics = metrics_of(out)
    each = [metrics[f"f1_{language}"] for language in ("en", "de")]
    assert metrics["f1"] == pytest.approx(np.mean(each))
    names = {entry.name for entry in (out / "predictions").iterdir()}
    assert names == {
        f"dev-{language}{kind}.json"
        for language in ("en", "de")
        for kind in ("", "-nbest")
    }


def test_mlqa_is_scored_in_the_languages_that_are_asked_for(data, finished, capsys):
    arguments = ["evaluate", str(finished), "--task", "mlqa", "--data-dir", str(data)]
    assert cli.main([*arguments, "--languages", "de", "--num-examples", "5"]) == 0
    (row,) = capsys.readouterr().out.splitlines()[4:]
    assert row.split()[1:4] == ["de", "|", "5"]
    arguments = ["evaluate", str(finished), "--data-dir", str(data)]
    assert cli.main([*arguments, "--languages", "de"]) == 2
    assert "`languages` must not be given for squad1" in capsys.readouterr().err
    arguments += ["--task", "mlqa", "--languages", "de-en"]
    assert cli.main(arguments) == 2
    assert "`languages` must be out of ar, de, en" in capsys.readouterr().err
    assert cli.main([*arguments[:-4], "--task", "sst2"]) == 2
    error = capsys.readouterr().err
    assert "`model` must be a TextClassifier for sst2. Received: model of type" in error


def test_every_form_of_a_run_is_loaded(finished, data):
    saved = load_saved(finished)
    assert isinstance(saved.model, SpanModel)
    assert (saved.task, saved.pairs, saved.labels) == ("squad1", True, None)
    assert saved.sizes["sequence_length"] == 24
    inner = load_saved(finished / "model")
    for one, two in zip(saved.model.weights, inner.model.weights, strict=True):
        np.testing.assert_array_equal(one, two)
    evaluation = evaluate_model(finished, data_dir=data)
    assert evaluation.metrics == metrics_of(finished)


@pytest.mark.slow
@pytest.mark.parametrize("place", [".", pytest.param("model", marks=pytest.mark.slow)])
def test_a_run_is_exported(finished, tmp_path, place):
    version = export(
        finished / place, tmp_path / "serving", "saved_model", sequence_length=24
    )
    manifest = json.loads((version / "manifest.json").read_text())
    outputs = manifest["signatures"]["serving_default"]["outputs"]
    assert {"start_logits", "end_logits"} <= set(outputs)


def test_each_question_of_squad_1_has_an_answer(data, finished, tmp_path, capsys):
    squad_file(tmp_path / "dev-v1.1.json", 4, 5, without_answer=True)
    arguments = ["evaluate", str(finished), "--data-dir", str(tmp_path)]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "an answer to each question of squad1. Received: question '5-0'" in error


def test_sizes_are_checked_before_anything_is_written(model, data, tmp_path, capsys):
    arguments = ["finetune", str(model), "--task", "squad1", "--data-dir", str(data)]
    arguments += ["--output-dir", str(tmp_path / "out"), "--sequence-length"]
    assert cli.main([*arguments, "1024"]) == 2
    assert "max_sequence_length=" in capsys.readouterr().err
    assert cli.main([*arguments, "4"]) == 2
    assert "`sequence_length` must leave room" in capsys.readouterr().err
    assert cli.main([*arguments, "1"]) == 2
    assert "`sequence_length` must leave room" in capsys.readouterr().err
    assert cli.main([*arguments, "0"]) == 2
    assert "`sequence_length` must be an int of at least 1" in capsys.readouterr().err
    assert cli.main([*arguments, "24", "--doc-stride", "0"]) == 2
    assert "`doc_stride` must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["num_train_examples", "num_dev_examples"])
def test_numbers_of_questions_must_be_positive(model, data, tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be an int of at least 1"):
        fine_tune(model, "squad1", tmp_path / "out", data_dir=data, **{name: 0})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_answers_are_other_data(model, data, tmp_path, capsys):
    other = tmp_path / "data"
    squad_file(other / "train-v1.1.json", 160, 0)  # without the misplaced answer
    squad_file(other / "dev-v1.1.json", 24, 1)
    arguments = ["finetune", str(model), "--task", "squad1", "--epochs", "1"]
    arguments += ["--output-dir", str(tmp_path / "out"), *SETTINGS, "--data-dir"]
    assert cli.main([*arguments, str(data)]) == 0
    assert cli.main([*arguments, str(other), "--seed", "1"]) == 2
    assert "whose settings.json has data_sha256=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_may_diverge_on_its_last_update(model, data, tmp_path):
    results = fine_tune(
        model,
        "squad1",
        tmp_path / "out",
        data_dir=data,
        learning_rate=(1e30, 0.02),
        epochs=1,
        warmup_fraction=0.0,
        sequence_length=24,
        num_train_examples=1,
        log=lambda line: None,
    ).results
    assert [result.score is None for result in results.values()] == [False, True]


@pytest.mark.slow
def test_squad_2_finds_its_threshold(model, data, tmp_path):
    run = fine_tune(
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
        log=lambda line: None,
    )
    assert len(run.results) == 2
    scores = run.evaluations["dev"]
    assert scores.metrics["best_f1"] >= scores.metrics["f1"]
    # What is written gives the best score: the official script reads these two.
    answers, odds = (
        json.loads((tmp_path / f"out/predictions/dev-{name}.json").read_text())
        for name in ("not_blanked", "null_odds")
    )
    questions = load_span_examples("squad/v2.0", "dev", data)
    golds = {question.id: question.answers for question in questions}
    again = squad_v2_metrics(answers, golds, odds)
    assert again["best_f1"] == pytest.approx(scores.metrics["best_f1"])
    # Nor does it matter whether a question without an answer is among them.
    squad_file(tmp_path / "data/dev-v2.0.json", 4, 5)
    scores = evaluate_model(tmp_path / "out", data_dir=tmp_path / "data")
    assert "best_f1" in scores.metrics
    assert "Best setting by mean best_f1" in (tmp_path / "out/report.md").read_text()


def test_misplaced_answers_are_counted_or_refused(
    model, data, finished, said, tmp_path, capsys
):
    arguments = ["finetune", str(model), "--task", "squad1", "--data-dir", str(data)]
    arguments += ["--output-dir", str(tmp_path / "out"), *SETTINGS]
    assert cli.main([*arguments, "--strict"]) == 2
    error = capsys.readouterr().err
    assert "train-v1.1.json" in error
    assert not (tmp_path / "out").exists()
    elsewhere = [*arguments, "--strict"]
    elsewhere[elsewhere.index("squad1")] = "sst2"
    assert cli.main(elsewhere) == 2
    assert "`strict` must not be given for sst2" in capsys.readouterr().err
    elsewhere[elsewhere.index("sst2")] = "squad"
    assert cli.main(elsewhere) == 2
    error = capsys.readouterr().err
    assert "rte, xnli, squad1, squad2, mlqa. Received: task='squad'" in error
    line = "Training questions: answers that are not at their answer_start, skipped: 1."
    assert line in said
    report = (finished / "report.md").read_text()
    assert "160; answers that are not at their answer_start, skipped: 1" in report


def test_evaluation_counts_or_refuses_misplaced_answers(
    data, finished, tmp_path, capsys
):
    name = "dev-context-hi-question-hi.json"
    squad_file(tmp_path / "dev" / name, 4, 7, misplaced=True)
    arguments = ["evaluate", str(finished), "--task", "mlqa", "--languages", "hi"]
    arguments += ["--data-dir", str(tmp_path)]
    assert cli.main(arguments) == 0
    line = (
        "MLQA dev, 4 questions (answers that are not at their answer_start, counted in "
        "the scores: 1)"
    )
    assert capsys.readouterr().out.startswith(line)
    assert cli.main([*arguments, "--strict"]) == 2
    assert name in capsys.readouterr().err
    assert cli.main(["evaluate", str(finished), "--data-dir", str(data)]) == 0
    assert "not where" not in capsys.readouterr().out


def test_a_run_is_kept_where_nothing_can_be_learned(model, tmp_path, capsys):
    arguments = ["finetune", str(model), "--task", "squad1", *SETTINGS]
    arguments += ["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    squad_file(tmp_path / "train-v1.1.json", 1, 0, misplaced=True)
    squad_file(tmp_path / "dev-v1.1.json", 2, 1)
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "settings.json").write_text("{}")
    assert cli.main([*arguments, "--overwrite"]) == 2
    assert "must have a window whose label is known" in capsys.readouterr().err
    assert (tmp_path / "out" / "model").is_dir()


def test_missing_files_are_named(model, tmp_path, capsys):
    arguments = ["finetune", str(model), "--task", "squad1"]
    arguments += ["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "train-v1.1.json" in capsys.readouterr().err
