"""Fine-tuning runs on a small model and small tasks."""

import errno
import io
import json
import os
import re
import shutil

import keras
import keras_hub
import numpy as np
import pytest
import small_vocabularies
import tensorflow as tf
from families import make_backbone
from small_runs import WORDS, make_teacher, write_task
from tokenizers.pre_tokenizers import ByteLevel

import keras_minilmv2 as km
from keras_minilmv2 import cli
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.downstream.registry import TASKS
from keras_minilmv2.downstream.text_tasks import Examples, TextTask
from keras_minilmv2.runs import fine_tune as fine_tuning_runs
from keras_minilmv2.runs import supervised
from keras_minilmv2.runs.evaluate import evaluate_model
from keras_minilmv2.runs.fine_tune import FineTuningSettings, fine_tune


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A BERT of one layer."""
    path = tmp_path_factory.mktemp("models")
    teacher = load_backbone(make_teacher(path / "teacher"))
    student = km.student_backbone(
        teacher,
        num_layers=1,
        num_heads=4,
        hidden_dim=16,
        intermediate_dim=24,
        initialization="layers",
        teacher_layers=[1],
    )
    km.save_student(student, load_tokenizer(path / "teacher"), path / "model")
    return path / "model"


def draw(number, seed):
    """Sentences, and which share of each is words of the second half."""
    generator = np.random.default_rng(seed)
    halves = WORDS[: len(WORDS) // 2], WORDS[len(WORDS) // 2 :]
    texts, shares = [], generator.choice([0.1, 0.9], number)
    for i, share in enumerate(shares):
        second = generator.random(generator.integers(4, 9)) < share
        words = [str(generator.choice(halves[int(of)])) for of in second]
        texts.append(" ".join(words))
        shares[i] = second.mean()
    return texts, shares


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Of which half are most words? Which share of both texts is of the second?"""
    path = tmp_path_factory.mktemp("data")
    for split, number, seed in (("train", 160, 0), ("dev", 40, 1), ("test", 6, 2)):
        texts, shares = draw(number, seed)
        others, more = draw(number, seed + 10)
        scores = 2.5 * (shares + more)
        (path / "SST-2").mkdir(exist_ok=True)
        rows = ["sentence\tlabel"]
        rows += [f"{t}\t{int(x > 0.5)}" for t, x in zip(texts, shares, strict=True)]
        if split == "test":
            rows = ["index\tsentence", *(f"{i}\t{t}" for i, t in enumerate(texts))]
        (path / f"SST-2/{split}.tsv").write_text("\n".join(rows) + "\n")
        if split != "test":
            (path / "STS-B").mkdir(exist_ok=True)
            rows = ["sentence1\tsentence2\tscore"]
            rows += [
                f"{t}\t{o}\t{x:.2f}"
                for t, o, x in zip(texts, others, scores, strict=True)
            ]
            (path / f"STS-B/{split}.tsv").write_text("\n".join(rows) + "\n")
    return path


def run(model, data, output_dir, task="sst2", logged=None, **changes):
    settings = {
        "data_dir": data,
        "learning_rate": 0.03,
        "epochs": 1,
        "batch_size": 16,
        "sequence_length": 24,
        "progress_stream": io.StringIO(),
        "log": (lambda line: None) if logged is None else logged.append,
    }
    return fine_tune(model, task, output_dir, **{**settings, **changes})


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "sst2"
    logged = []
    stream = io.StringIO()
    result = run(
        model, data, output_dir, epochs=6, logged=logged, progress_stream=stream
    )
    return result, logged, stream.getvalue()


@pytest.fixture(scope="module")
def single(model, data, tmp_path_factory):
    """A run of one epoch, with the settings of `run`."""
    return run(model, data, tmp_path_factory.mktemp("runs") / "out")


def test_a_run_learns_and_logs_it(finished):
    result, logged, progress = finished
    (cell,) = result.results
    losses = result.results[cell].losses
    assert losses[-1] < 0.5 * losses[0]
    assert result.evaluations["dev"].metrics["accuracy"] > 0.85
    accuracy = f"{100 * result.evaluations['dev'].metrics['accuracy']:.2f}"
    assert "SST-2: 160 training examples, 40 of dev; on " in logged[0]
    assert logged[1] == "Run 1 of 1: learning rate 0.03, epochs 6, seed 0."
    assert f"dev accuracy {accuracy}, 0:" in logged[2]
    assert logged[3:] == [f"SST-2 dev, 40 examples: accuracy {accuracy}"]
    assert "60/60 [####################]  loss " in progress


def test_a_run_writes_everything(finished, data):
    result, *_ = finished
    output_dir = result.output_dir
    assert {entry.name for entry in output_dir.iterdir()} == {
        *("settings.json", "cells", "model"),
        *("predictions", "metrics.json", "report.md", "report.json", ".run.json"),
    }
    metrics = json.loads((output_dir / "metrics.json").read_text())
    accuracy = metrics["splits"]["dev"]["metrics"]["accuracy"]
    assert accuracy == result.evaluations["dev"].metrics["accuracy"]
    assert list(metrics["splits"]) == ["dev"]
    assert (metrics["task"], metrics["epochs"]) == ("sst2", 6)
    report = (output_dir / "report.md").read_text()
    for part in (
        f"Accuracy on dev: {100 * accuracy:.2f}.",
        "| dev   |       40 |",
        "160 of 67,349",
        "which 0.0% of the training rows reach",
        "hardware",
        "date",
    ):
        assert part in report
    assert "deviation" not in report


def test_the_saved_model_predicts_what_was_written(finished, data):
    output_dir = finished[0].output_dir
    classifier = keras_hub.models.TextClassifier.from_preset(str(output_dir / "model"))
    assert classifier.preprocessor.sequence_length == 24
    lines = (output_dir / "predictions/dev/SST-2.tsv").read_text().split("\n")
    assert (lines[0], lines[-1]) == ("index\tprediction", "")
    rows = (data / "SST-2/dev.tsv").read_text().splitlines()[1:]
    texts = [row.split("\t")[0] for row in rows]
    classes = classifier.predict(texts, verbose=0).argmax(axis=1)
    assert lines[1:-1] == [f"{i}\t{y}" for i, y in enumerate(classes)]


@pytest.mark.slow
def test_a_regression_writes_scores(model, data, tmp_path):
    result = run(model, data, tmp_path / "out", task="stsb", epochs=6)
    (cell,) = result.results
    losses = result.results[cell].losses
    assert losses[-1] < 0.5 * losses[0]
    assert set(result.evaluations["dev"].metrics) == {"spearman", "pearson"}
    lines = (tmp_path / "out/predictions/dev/STS-B.tsv").read_text().splitlines()
    assert re.fullmatch(r"0\t\d\.\d{3}", lines[1])
    assert evaluate_model(tmp_path / "out", data_dir=data).metrics == (
        result.evaluations["dev"].metrics
    )


@pytest.mark.slow
def test_a_backbone_is_left_as_it_is(model, data, single, tmp_path):
    backbone = load_backbone(model)
    before = backbone.get_weights()
    result = run(backbone, data, tmp_path, tokenizer=load_tokenizer(model))
    for x, y in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    (ours,), (theirs,) = result.results.values(), single.results.values()
    assert ours.losses == theirs.losses


@pytest.mark.parametrize(
    "policy",
    ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)],
)
def test_mixed_precision_and_fewer_examples(model, data, tmp_path, policy):
    result = run(model, data, tmp_path, dtype_policy=policy, num_train_examples=48)
    (outcome,) = result.results.values()
    assert np.isfinite(outcome.losses).all()
    report = (tmp_path / "report.md").read_text()
    assert "48 of 67,349" in report
    assert policy in report
    # The saved model is the one that was evaluated, in float32.
    assert result.evaluations["dev"].metrics == outcome.metrics


@pytest.mark.slow
def test_an_interrupted_grid_goes_on_where_it_was(
    model, data, single, tmp_path, monkeypatch
):
    grid = {"learning_rate": [0.01, 0.03], "seed": [0]}
    train = supervised.train
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(supervised, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, data, tmp_path / "out", **grid)
    assert len(list((tmp_path / "out/cells").iterdir())) == 1
    logged = []
    resumed = run(model, data, tmp_path / "out", logged=logged, **grid)
    assert len(calls) == 3  # the finished one, the interrupted one, and one more
    assert logged[1] == f"Finished runs in {tmp_path / 'out'}: 1."
    # Of what ran before, nothing is left in a run.
    alone, later = single.results[single.cell], resumed.results[single.cell]
    assert (later.losses, later.metrics) == (alone.losses, alone.metrics)
    best = resumed.results[resumed.cell]
    assert resumed.evaluations["dev"].metrics == best.metrics
    report = (tmp_path / "out/report.md").read_text()
    assert "| learning rate | epochs | runs |" in report
    assert "`model/` is the best of 2 runs: learning rate" in report
    assert re.search(r"\| +0.03 \| +1 \| +1 \| +\d+.\d\d \|", report)


@pytest.mark.slow
def test_a_finished_grid_may_grow(model, data, tmp_path, monkeypatch):
    grid = {"learning_rate": [0.01, 0.03], "seed": [0]}
    train = supervised.train
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return train(*args, **kwargs)

    monkeypatch.setattr(supervised, "train", counted)
    run(model, data, tmp_path / "out", **grid)
    grid["seed"] = [0, 1]
    results = run(model, data, tmp_path / "out", **grid).results
    assert len({tuple(result.losses) for result in results.values()}) == 4
    assert len(calls) == 4
    report = (tmp_path / "out/report.md").read_text()
    assert "over 2 seeds. `model/` is the best of 4 runs: learning rate" in report
    assert re.search(r"\| +0.03 \| +1 \| +2 \| +\d+.\d\d \| +\d+.\d\d \| +0 \|", report)


@pytest.mark.slow
def test_a_grid_that_grows_is_unfinished_until_its_report(
    model, data, tmp_path, monkeypatch
):
    run(model, data, tmp_path / "out", seed=[0])
    monkeypatch.setattr(fine_tuning_runs, "_report", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(model, data, tmp_path / "out", seed=[0, 1])
    monkeypatch.undo()
    run(model, data, tmp_path / "out", seed=[0, 1])
    assert "over 2 seeds" in (tmp_path / "out/report.md").read_text()


def _interrupt(*_):
    raise KeyboardInterrupt


def test_what_a_preset_has_no_weights_for_is_the_same_each_time(monkeypatch):
    """As for a Hugging Face directory without a pooler."""

    def load(preset, dtype):
        return keras.initializers.GlorotUniform()((3, 3))

    monkeypatch.setattr(fine_tuning_runs, "load_backbone", load)
    monkeypatch.setattr(fine_tuning_runs, "load_tokenizer", lambda preset: None)
    (first, _), (second, _) = (
        fine_tuning_runs.load_model("preset", None, "float32") for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_a_given_tokenizer_is_that_of_the_saved_model():
    """keras-nlp's own splits words of RoBERTa in another way outside of tf.data."""
    # A token of the end of a word and the space after it.
    specials = ["<s>", "<pad>", "</s>", "<mask>"]
    tokens = [*specials, "s\u0120", *sorted(ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = keras_hub.tokenizers.RobertaTokenizer(vocabulary, ["s \u0120"])
    texts = ["kings of the sea", "ring"]
    expected = (
        tf.data.Dataset.from_tensors(texts)
        .map(tokenizer)
        .get_single_element()
        .to_list()
    )
    assert tokenizer(texts) != expected
    backbone = keras_hub.models.RobertaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=1,
        hidden_dim=2,
        intermediate_dim=2,
    )
    _, loaded = fine_tuning_runs.load_model(backbone, tokenizer, "float32")
    assert loaded(texts) == expected


def test_bert_layers_over_the_vocabulary_of_xlm_r_are_fine_tuned(tmp_path):
    """The multilingual MiniLMs are such models."""
    tokenizer = small_vocabularies.make_tokenizer("xlm_roberta")
    vocabulary_size = tokenizer.vocabulary_size()
    backbone = make_backbone("bert", num_layers=1, vocabulary_size=vocabulary_size)
    km.save_student(backbone, tokenizer, tmp_path / "model")
    run = fine_tune(
        tmp_path / "model",
        "sst2",
        tmp_path / "out",
        data_dir=write_task(tmp_path / "data", num_train=32, num_dev=16),
        sequence_length=16,
        epochs=1,
        progress_stream=io.StringIO(),
        log=lambda line: None,
    )
    saved = km.load_saved(tmp_path / "out")
    assert isinstance(saved.backbone, keras_hub.models.BertBackbone)
    assert isinstance(saved.tokenizer, keras_hub.models.XLMRobertaTokenizer)
    ids = np.asarray(tokenizer("the"))
    np.testing.assert_array_equal(np.asarray(saved.tokenizer("the")), ids)
    # The rows of the embeddings that were trained are those of the tokenizer's ids.
    before, after = (
        np.asarray(each.token_embedding.embeddings)
        for each in (backbone, saved.backbone)
    )
    moved = np.abs(after - before).max(axis=1) > 1e-6
    assert moved[ids].all()
    assert not moved.all()
    evaluation = evaluate_model(tmp_path / "out", data_dir=tmp_path / "data")
    assert evaluation.metrics == run.results[run.cell].metrics
    assert evaluation.metrics == run.evaluations["dev"].metrics


def test_the_papers_grid_is_the_tasks(monkeypatch):
    class StopError(Exception):
        """Carries the values of a grid."""

    def stop(learning_rates, epochs, seeds):
        raise StopError(learning_rates, epochs, seeds)

    monkeypatch.setattr(fine_tuning_runs, "grid_cells", stop)
    rates = (1e-5, 1.5e-5, 2e-5, 3e-5, 5e-5)
    for task, given, values in (
        ("sst2", {}, ((3e-5,), (3,), (0,))),
        ("cola", {}, ((3e-5,), (25,), (0,))),
        ("sst2", {"grid": True}, (rates, (3, 5, 10), (0,))),
        ("cola", {"grid": True, "seed": range(4)}, (rates, (25,), (0, 1, 2, 3))),
        ("xnli", {"grid": True}, ((3e-5, 4e-5, 5e-5, 6e-5), (10,), (0,))),
        ("sst2", {"grid": True, "learning_rate": 0.1}, ((0.1,), (3, 5, 10), (0,))),
        ("sst2", {"epochs": [4, 5]}, ((3e-5,), (4, 5), (0,))),
    ):
        with pytest.raises(StopError) as caught:
            fine_tune("model", task, "out", **given)
        assert caught.value.args == values


@pytest.mark.slow
def test_a_run_that_diverges_is_not_the_best(model, data, tmp_path):
    rates = {"learning_rate": [1e30, 0.03]}
    logged = []
    result = run(model, data, tmp_path / "out", logged=logged, **rates)
    assert result.cell.learning_rate == 0.03
    assert "  The loss was not finite." in logged
    report = (tmp_path / "out/report.md").read_text()
    assert re.search(r"\| +1e\+30 \| +1 \| +0 \|", report)
    # Only the run that diverged is left.
    for name in ("cells/learning_rate=0.03,epochs=1,seed=0.json", "report.md"):
        (tmp_path / "out" / name).unlink()
    shutil.rmtree(tmp_path / "out/model")
    with pytest.raises(RuntimeError, match="not finite in any run. Try a lower"):
        run(model, data, tmp_path / "out", learning_rate=1e30)


@pytest.mark.slow
def test_a_model_without_its_result_is_run_again(model, data, single, tmp_path):
    shutil.copytree(single.output_dir, tmp_path, dirs_exist_ok=True)
    (cell_file,) = (tmp_path / "cells").iterdir()
    cell_file.unlink()
    result = run(model, data, tmp_path, learning_rate=1e-9)
    assert len(result.results) == 2
    notes = json.loads((tmp_path / "model/fine_tuning.json").read_text())
    assert notes["cell"]["learning_rate"] == result.cell.learning_rate


@pytest.mark.slow
def test_every_language_counts_the_same(model, data, tmp_path):
    generator = np.random.default_rng(0)
    labels = TASKS["xnli"].label_names
    texts, _ = draw(60, 0)
    for file, header, first in (
        ("MNLI/train.tsv", "sentence1\tsentence2\tgold_label", None),
        ("XNLI-1.0/xnli.dev.tsv", "language\tsentence1\tsentence2\tgold_label", "en"),
    ):
        rows = []
        for i, text in enumerate(texts):
            language = [first if i % 3 else "de"] if first else []
            label = labels[generator.integers(3)]
            rows.append("\t".join([*language, text, texts[-i], label]))
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("\n".join([header, *rows]))
    result = run(model, tmp_path, tmp_path / "out", task="xnli")
    metrics = result.evaluations["dev"].metrics
    assert set(metrics) == {"accuracy", "accuracy_de", "accuracy_en"}
    assert metrics["accuracy"] == pytest.approx(
        (metrics["accuracy_de"] + metrics["accuracy_en"]) / 2
    )
    report = (tmp_path / "out/report.md").read_text()
    assert re.search(r"\| sw +\| not measured \|", report)
    assert (tmp_path / "out/predictions/dev/XNLI-de.tsv").is_file()
    settings = tmp_path / "out/settings.json"
    settings.write_text("{")
    with pytest.raises(ValueError, match="must be a JSON file. Received: .*settings"):
        run(model, tmp_path, tmp_path / "out", task="xnli")
    # A model of MNLI's labels may be evaluated on MNLI.
    evaluation = evaluate_model(
        tmp_path / "out", "mnli", data_dir=tmp_path, split="train"
    )
    assert len(evaluation.examples) == 60


def test_evaluation_writes_predictions_and_metrics(finished, data, tmp_path):
    result, *_ = finished
    evaluation = evaluate_model(
        result.output_dir / "model", data_dir=data, output_dir=tmp_path / "out"
    )
    assert evaluation.metrics == result.evaluations["dev"].metrics
    assert str(evaluation).startswith("SST-2 dev, 40 examples: accuracy ")
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {
        *("metrics.json", "predictions", "settings.json", ".run.json")
    }
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    again = evaluate_model(
        result.output_dir, data_dir=data, output_dir=tmp_path / "out"
    )
    assert again.metrics == evaluation.metrics
    assert before == {file: file.stat().st_mtime_ns for file in before}
    with pytest.raises(FileExistsError, match="other settings. .* split='dev'"):
        evaluate_model(
            result.output_dir, data_dir=data, split="test", output_dir=tmp_path / "out"
        )
    with pytest.raises(ValueError, match="`model` must not lie in `output_dir`"):
        evaluate_model(result.output_dir, data_dir=data, output_dir=result.output_dir)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="must be a directory.*a file"):
        evaluate_model(result.output_dir, data_dir=data, output_dir=tmp_path / "file")
    evaluation = evaluate_model(
        result.output_dir,
        data_dir=data,
        split="test",
        output_dir=tmp_path / "out",
        overwrite=True,
    )
    assert evaluation.metrics is None
    assert str(evaluation) == "SST-2 test, 6 examples: no labels"
    assert (tmp_path / "out/predictions/test/SST-2.tsv").is_file()
    assert not (tmp_path / "out/predictions/dev").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "squad1"], "`model` must be a SpanModel for squad1. Received: mod"),
        (["--languages", "de"], "`languages` must not be given for sst2, which has no"),
        (["--strict"], "`strict` must not be given for sst2, which has no such option"),
    ],
)
def test_options_of_other_models_are_refused(
    finished, data, capsys, arguments, message
):
    command = ["evaluate", str(finished[0].output_dir), "--data-dir", str(data)]
    assert cli.main([*command, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_model_that_is_not_there_is_what_is_wrong(tmp_path, capsys):
    command = ["evaluate", str(tmp_path / "typo"), "--task", "mlqa"]
    assert cli.main([*command, "--languages", "de"]) == 2
    assert "typo" in capsys.readouterr().err


def test_evaluation_refuses_what_does_not_fit(finished, model, data, tmp_path):
    output_dir = finished[0].output_dir
    message = "labels of the model. Received: task='stsb' with a score.*negative"
    with pytest.raises(ValueError, match=message):
        evaluate_model(output_dir, "stsb", data_dir=data)
    with pytest.raises(FileNotFoundError, match=r"`model` must be .* or a task.json"):
        evaluate_model(model, "sst2", data_dir=data)
    classifier = keras_hub.models.TextClassifier.from_preset(str(model), num_classes=3)
    classifier.preprocessor.sequence_length = 24
    classifier.save_to_preset(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="`task` must be given for a model"):
        evaluate_model(tmp_path / "model", data_dir=data)
    with pytest.raises(ValueError, match="labels of the model.* and 3 outputs"):
        evaluate_model(tmp_path / "model", "sst2", data_dir=data)
    (tmp_path / "model/task.weights.h5").write_text("no weights")
    with pytest.raises(ValueError, match="must hold a text classifier that can be"):
        evaluate_model(tmp_path / "model", "sst2", data_dir=data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "glue"}, "`task` must be one of cola"),
        ({"task": "mlqa"}, "`task` must be one of cola.*, squad1, squad2. Received"),
        ({"doc_stride": 8}, "`doc_stride` must not be given for sst2, which has no"),
        ({"batch_size": 0}, "`batch_size` must be an int of at least 1. Received"),
        ({"num_train_examples": 0}, "`num_train_examples` must be an int of at least"),
        (
            {"warmup_fraction": 1.0},
            "`warmup_fraction` must be a finite number at",
        ),
        ({"weight_decay": -1}, "`weight_decay` must be a finite number at least 0"),
        ({"sequence_length": 33}, "position table of the model. .*length=33"),
        ({"learning_rate": 0}, "`learning_rate` must be a finite number above 0"),
        ({"dtype_policy": "bfloat16"}, "`dtype_policy` must be one of float32, mixed"),
        ({"tokenizer": "x"}, "`tokenizer` must not be given where"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    model, data, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        run(model, data, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_models_and_data_that_do_not_fit_are_refused(model, data, tmp_path):
    backbone = load_backbone(model)
    with pytest.raises(ValueError, match="`tokenizer` must be given with a backbone"):
        run(backbone, data, tmp_path / "out")
    with pytest.raises(TypeError, match="`backbone` must be one of"):
        run(3, data, tmp_path / "out", tokenizer=load_tokenizer(model))
    with pytest.raises(FileNotFoundError, match="must hold RTE/train.tsv"):
        run(model, data, tmp_path / "out", task="rte")
    assert not (tmp_path / "out").exists()


def test_a_directory_with_something_else_is_refused(model, data, tmp_path):
    path = tmp_path / "out"
    path.write_text("")
    with pytest.raises(NotADirectoryError, match="must be a directory.*a file"):
        run(model, data, path)
    with pytest.raises(NotADirectoryError, match="out/below"):
        run(model, data, path / "below")
    (tmp_path / "model").mkdir()
    with pytest.raises(
        FileExistsError, match="empty or new. .* which holds model, out"
    ):
        run(model, data, tmp_path, overwrite=True)
    assert (tmp_path / "model").is_dir()


def test_a_finished_run_is_returned(model, data, single, tmp_path):
    shutil.copytree(single.output_dir, tmp_path, dirs_exist_ok=True)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    logged = []
    again = run(model, data, tmp_path, logged=logged)
    assert logged[0] == f"Finished already: {tmp_path}."
    assert again.results == single.results
    assert again.cell == single.cell
    assert again.evaluations["dev"].metrics == single.evaluations["dev"].metrics
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_a_full_disk_is_one_sentence(model, data, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = r"have room. Received: output_dir=.*\(No space left on device\)"
    with pytest.raises(OSError, match=message):
        run(model, data, tmp_path, num_train_examples=16)
    assert not (tmp_path / "cells").exists()


@pytest.mark.slow
def test_another_run_is_replaced_only_when_asked(model, data, single, tmp_path):
    shutil.copytree(single.output_dir, tmp_path, dirs_exist_ok=True)
    with pytest.raises(FileExistsError, match="has batch_size=16. Use .* --overwrite"):
        run(model, data, tmp_path, batch_size=8)
    backbone = load_backbone(model)
    backbone.set_weights([0.5 * x for x in backbone.get_weights()])
    with pytest.raises(FileExistsError, match="other settings. .* weights_sha256="):
        run(backbone, data, tmp_path, tokenizer=load_tokenizer(model))
    with pytest.raises(FileExistsError, match="data_sha256=.*, num_train_examples=160"):
        run(model, data, tmp_path, num_train_examples=30)
    (tmp_path / "mine.txt").write_text("kept")
    run(model, data, tmp_path, batch_size=8, overwrite=True)
    assert json.loads((tmp_path / "settings.json").read_text())["batch_size"] == 8
    assert (tmp_path / "mine.txt").read_text() == "kept"
    # Its own model is not replaced by what is made of it.
    with pytest.raises(ValueError, match="`model` must not lie in `output_dir`"):
        run(tmp_path / "model", data, tmp_path, overwrite=True)
    assert (tmp_path / "model" / "model.weights.h5").is_file()


@pytest.mark.slow
def test_settings_may_be_one_object(model, data, single, tmp_path):
    settings = FineTuningSettings(
        learning_rate=1.0, epochs=1, batch_size=16, sequence_length=24
    )
    result = fine_tune(
        model,
        "sst2",
        tmp_path,
        settings,
        data_dir=data,
        learning_rate=0.03,
        progress_stream=io.StringIO(),
    )
    (ours,), (theirs,) = result.results.values(), single.results.values()
    assert ours.losses == theirs.losses
    with pytest.raises(ValueError, match="Fine-tuning has no field `rate`"):
        fine_tune(model, "sst2", tmp_path, settings, data_dir=data, rate=1)


def test_some_examples_may_be_scored(finished, data):
    output_dir = finished[0].output_dir
    evaluation = evaluate_model(output_dir, data_dir=data, num_examples=7)
    assert len(evaluation.examples) == len(evaluation.predictions) == 7


def test_a_task_of_the_users_own(model, tmp_path):
    """Is there a king? What a Task needs, and nothing that a registry has."""
    generator = np.random.default_rng(0)

    class Kings(TextTask):
        def load(self, split, data_dir=None, tfds_data_dir=None):
            labels = generator.integers(0, 2, 80).astype("int32")
            words = np.where(labels, "king", "ship")
            return Examples(([f"the {word} was" for word in words],), labels)

        def write(self, split, examples, predictions, directory):
            np.savetxt(directory / f"{split}.txt", predictions, "%d")

    task = Kings(
        name="kings",
        title="Kings",
        splits=("train", "dev"),
        metrics=("accuracy",),
        label_names=("no", "yes"),
        sequence_length=16,
    )
    assert isinstance(task, km.Task)
    result = run(model, None, tmp_path, task=task, epochs=8, sequence_length=None)
    assert result.evaluations["dev"].metrics["accuracy"] > 0.9
    assert len(np.loadtxt(tmp_path / "predictions/dev.txt")) == 80
    saved = km.load_saved(tmp_path)
    assert (saved.task, saved.labels, saved.pairs) == ("kings", ("no", "yes"), False)
    evaluation = evaluate_model(tmp_path, task)
    assert evaluation.metrics["accuracy"] > 0.9
