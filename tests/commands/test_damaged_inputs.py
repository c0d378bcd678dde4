"""Every command that reads a model refuses a damaged one with one sentence."""

import shutil

import pytest
import tensorflow as tf
from small_runs import make_recipe, make_teacher, write_task

from keras_minilmv2 import cli

DAMAGES = {
    "config is no JSON": ("config.json", "{"),
    "config is a list": ("config.json", "[]"),
    "config is empty": ("config.json", ""),
    "config is of another class": ("config.json", '{"registered_name": "x>Y"}'),
    "tokenizer is no JSON": ("tokenizer.json", "{"),
    "tokenizer is a list": ("tokenizer.json", "[1]"),
    "tokenizer is of another class": ("tokenizer.json", '{"registered_name": 3}'),
    "weights are text": ("model.weights.h5", "weights"),
    "weights are empty": ("model.weights.h5", ""),
    "no config": ("config.json", None),
    "no weights": ("model.weights.h5", None),
    "no tokenizer": ("tokenizer.json", None),
}
# Those that do not read the damaged file.
READ_NO_WEIGHTS = {"prepare", "plan"}
READ_NO_TOKENIZER = {"info", "plan"}
READ_NO_CONFIG = {"prepare"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged")
    teacher = make_teacher(path / "teacher")
    return {
        "teacher": teacher,
        "recipe": make_recipe(path, teacher),
        "data": write_task(path / "data"),
        "corpus": path / "corpus.txt",
    }


def commands(model, recipe, data, corpus, out):
    model, recipe, out = str(model), str(recipe), ["--output-dir", str(out)]
    teacher = ["--set", f"teacher={model}"]
    task = ["--task", "sst2", "--data-dir", str(data)]
    return {
        "info": ["info", model],
        "plan": ["plan", recipe, *teacher],
        "prepare": [
            *("prepare", str(corpus), "--tokenizer", model),
            *("--sequence-length", "16", *out),
        ],
        "distill": ["distill", recipe, *teacher, *out],
        "pretrain": ["pretrain", recipe, *teacher, *out],
        "student": ["student", recipe, *teacher, *out],
        "layers": ["layers", recipe, *teacher, *task, *out],
        "finetune": ["finetune", model, *task, *out],
        "evaluate": ["evaluate", model, *task],
        "shrink-vocabulary": [
            *("shrink-vocabulary", model, "--corpus", str(corpus), *out),
        ],
        "export": ["export", model, *out],
        "export to Hugging Face": ["export", model, "--form", "hugging_face", *out],
        "serve-check": ["serve-check", model],
    }


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_refuses_a_damaged_model(places, damage, tmp_path, capsys):
    name, text = DAMAGES[damage]
    model = tmp_path / "model"
    shutil.copytree(places["teacher"], model)
    if text is None:
        (model / name).unlink()
    else:
        (model / name).write_text(text)
    others = {key: places[key] for key in ("recipe", "data", "corpus")}
    all_commands = commands(model, **others, out=tmp_path / "out")
    for command, arguments in all_commands.items():
        kind = name.partition(".")[0]
        passed = {
            "model": READ_NO_WEIGHTS,
            "tokenizer": READ_NO_TOKENIZER,
            "config": READ_NO_CONFIG,
        }[kind]
        capsys.readouterr()
        code = cli.main(arguments)
        error = capsys.readouterr().err
        if command in passed:
            assert code == 0, (command, error)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            continue
        assert code == 2, (command, error)
        assert error.startswith("keras-minilmv2: "), (command, error)
        assert error.count("\n") == 1, (command, error)
        assert str(model) in error, (command, error)
        assert not (tmp_path / "out").exists(), command


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "full\nnodes"), "full", 2),
        (MemoryError(), "The memory of this machine is too small.", 2),
        (KeyError("x"), "KeyError: 'x' (--traceback shows where)", 1),
        (ValueError(), "ValueError: no message (--traceback shows where)", 1),
        (RuntimeError("diverged"), "diverged", 1),
    ],
)
def test_any_error_is_one_line(error, message, code, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr("keras_minilmv2.commands.info.run", fail)
    assert cli.main(["info", "x"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(message)
    with pytest.raises(type(error)):
        cli.main(["info", "x", "--traceback"])
