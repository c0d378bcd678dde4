"""Every command that reads a model refuses a damaged one with one sentence."""

import resource
import shutil

import pytest
import tensorflow as tf
from small_runs import make_recipe, make_teacher, write_task

from keras_minilmv2 import cli
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.downstream.registry import get_task
from keras_minilmv2.utils.files import write_json

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
        "tuned": tuned_model(path / "tuned", teacher),
    }


def commands(model, recipe, data, corpus, out):
    """By name, all commands that read a model; those that write do so to `out`."""
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
        "finetune": ["finetune", model, *task, "--sequence-length", "16", *out],
        "evaluate": ["evaluate", model, *task],
        "compress": ["compress", model, *task, "--latency-length", "16", *out],
        "heads study": [
            *("heads", "study", model, "--corpus", str(corpus), *task, *out),
        ],
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


def tuned_model(path, teacher):
    """What `finetune` writes of a model, before any training."""
    backbone = load_backbone(teacher)
    task = get_task("sst2").with_options(backbone, sequence_length=16)
    model = task.model(backbone, 0, "float32")
    task.save_model(model, load_tokenizer(teacher), path)
    write_json(path / "fine_tuning.json", task.notes())
    return path


NO_DIRECTORIES = {
    "a file": ("file", "a file."),
    "below a file": ("file/deep/out", "below {tmp_path}/file, a file."),
    "a link to nothing": ("dangling", "a link to nothing."),
    "below a link to nothing": ("dangling/out", "a link to nothing."),
    "a loop of links": ("loop", "(Too many levels of symbolic links)."),
    "a name too long": ("x" * 300, "(File name too long)."),
    "a name too long below a new one": (f"new/{'x' * 300}", "(File name too long)."),
    "nothing may be written": ("/proc/out", "(No such file or directory)."),
}


@pytest.mark.parametrize("kind", NO_DIRECTORIES)
def test_every_command_that_writes_refuses_what_can_be_no_directory(
    places, kind, tmp_path, capsys
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    name, reason = NO_DIRECTORIES[kind]
    out = tmp_path / name
    model = places["teacher"]
    others = {key: places[key] for key in ("recipe", "data", "corpus")}
    all_commands = commands(model, **others, out=out)
    all_commands["evaluate"] = [
        *("evaluate", str(places["tuned"]), "--data-dir", str(places["data"])),
        *("--output-dir", str(out)),
    ]
    all_commands["demo"] = [
        *("demo", "--teacher", str(model), "--corpus", str(places["corpus"])),
        *("--output-dir", str(out)),
    ]
    writing = {name: a for name, a in all_commands.items() if "--output-dir" in a}
    assert len(writing) == 13
    for command, arguments in writing.items():
        capsys.readouterr()
        code = cli.main(arguments)
        error = capsys.readouterr().err.splitlines()[-1:]
        assert code == 2, (command, error)
        assert error[0].startswith("keras-minilmv2: `output_dir` must be "), command
        assert f"output_dir={out}" in error[0], (command, error)
        assert error[0].endswith(reason.format(tmp_path=tmp_path)), (command, error)
        names = {path.name for path in tmp_path.iterdir()}
        assert names <= {"file", "dangling", "loop"}, command
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "command", ["student", "shrink-vocabulary", "export to Hugging Face"]
)
def test_the_working_directory_is_not_replaced(
    places, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    others = {key: places[key] for key in ("recipe", "data", "corpus")}
    assert cli.main(commands(places["teacher"], **others, out=".")[command]) == 2
    assert "must be a directory that can be replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "overwrite"),
    [
        ("student", False),
        ("shrink-vocabulary", True),
        ("export to Hugging Face", True),
        ("export", False),
    ],
)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    places, command, overwrite, tmp_path, capsys
):
    """No file may have more bytes than the least of the models needs."""
    out = tmp_path / "out"
    others = {key: places[key] for key in ("recipe", "data", "corpus")}
    arguments = commands(places["teacher"], **others, out=out)[command]
    if command == "export":
        arguments += ["--sequence-length", "16"]
    if overwrite:
        shutil.copytree(places["teacher"], out)
        arguments += ["--overwrite"]
    before = sorted(tmp_path.rglob("*"))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        code = cli.main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2, error
    assert error == (
        "keras-minilmv2: `output_dir` must be writable and have room. Received: "
        f"output_dir={out} (File too large)."
    )
    left = sorted(tmp_path.rglob("*"))
    assert left == (before if overwrite else [out] * (command == "export"))
    if overwrite:
        load_backbone(out)


# As a function that looks up an embedding raises it.
GRAPH_ERROR = """Graph execution error:

Detected at node Gather defined at (most recent call last):
  File "text.py", line 5, in look_up

indices[1] = 60000 is not in [0, 2)
\t [[{{node Gather}}]] [Op:__inference_look_up_10]"""


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "full\nnodes"), "full", 2),
        (
            tf.errors.InvalidArgumentError(None, None, GRAPH_ERROR),
            "indices[1] = 60000 is not in [0, 2)",
            2,
        ),
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
