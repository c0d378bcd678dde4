"""Commands killed at every change of the file system end alike when given again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import (
    make_masked_model,
    make_recipe,
    make_teacher,
    write_task,
    write_text,
)

SCRIPT = Path(__file__).parents[1] / "helpers" / "kill_everywhere.py"
SETTINGS = ["--set", "total_steps=4", "--set", "evaluate_every=2"]
SETTINGS += ["--set", "checkpoint_every=2", "--set", "log_every=2"]
FINETUNE = ["finetune", "{teacher}", "--task", "sst2", "--data-dir", "{data}"]
FINETUNE += ["--epochs", "1", "--sequence-length", "16", "--seed", "0", "1"]
PREPARE = ["prepare", "{corpus}", "--tokenizer", "{teacher}", "--sequence-length", "16"]
SHRINK = ["shrink-vocabulary", "{teacher}", "--corpus", "{corpus}"]
COMPRESS = ["compress", "{tuned}", "--data-dir", "{data}", "--budget", "operations"]
COMPRESS += ["--speedup", "1.3", "--latency-length", "16"]
COMPRESS += ["--num-calibration-examples", "16"]
HEADS = ["heads", "study", "{masked}", "--corpus", "{corpus}", "--task", "sst2"]
HEADS += ["--data-dir", "{data}", "--epochs", "1", "--seed", "0", "--shares", "0.5"]
HEADS += ["--set", "sequence_length=16", "--set", "held_out_every=2"]
HEADS += ["--set", "num_loss_examples=16", "--set", "num_importance_examples=16"]
HEADS += ["--set", "num_random_orders=1", "--set", "heads_per_step=2"]
HEADS += ["--set", "tuned_shares=", "--set", "first_layers="]
EXPORT = ["export", "{tuned}", "--sequence-length", "16"]
HUGGING_FACE = ["export", "{teacher}", "--form", "hugging_face"]
DEMO = ["demo", "--teacher", "{wide}", "--corpus", "{texts}", "--steps", "1"]
LAYERS = ["layers", "{recipe}", "--task", "sst2", "--data-dir", "{data}"]
LAYERS += ["--steps", "2", "--epochs", "1", "--layers", "3", "--set", "log_every=1"]

# What is there before, if anything, and the command that is killed.
COMMANDS = {
    "distill": (None, ["distill", "{recipe}", *SETTINGS]),
    "distill overwrites": (
        ["distill", "{recipe}", *SETTINGS, "--set", "seed=1"],
        ["distill", "{recipe}", *SETTINGS, "--overwrite"],
    ),
    "pretrain": (None, ["pretrain", "{recipe}", *SETTINGS]),
    "demo": (None, DEMO),
    "layers": (None, LAYERS),
    "finetune": (None, FINETUNE),
    "finetune overwrites": (
        [*FINETUNE, "--learning-rate", "1e-3"],
        [*FINETUNE, "--batch-size", "16", "--overwrite"],
    ),
    "evaluate": (None, ["evaluate", "{tuned}", "--data-dir", "{data}"]),
    "prepare": (None, PREPARE),
    "prepare overwrites": (
        [*PREPARE, "--held-out-every", "7"],
        [*PREPARE, "--overwrite"],
    ),
    "student": (None, ["student", "{recipe}"]),
    "shrink-vocabulary": (None, SHRINK),
    "export": (None, EXPORT),
    "export to Hugging Face": (None, HUGGING_FACE),
    "compress": (None, COMPRESS),
    "heads study": (None, HEADS),
}
# Those of several models and functions.
EAGERLY = ("demo", "layers", "heads study")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_change_the_command_given_again_ends_alike(name, tmp_path):
    """The process ends at the n-th change of the output directory, for every n."""
    places = {
        "teacher": make_teacher(tmp_path / "teacher"),
        "wide": make_teacher(
            tmp_path / "wide",
            num_heads=4,
            hidden_dim=196,
            intermediate_dim=768,
            max_sequence_length=128,
        ),
        "masked": make_masked_model(tmp_path / "masked", num_layers=1),
        "data": write_task(tmp_path / "data"),
        "tuned": tmp_path / "tuned",
        "corpus": tmp_path / "corpus.txt",
        "texts": tmp_path / "texts",
    }
    places["texts"].mkdir()
    for number in range(60):
        write_text(places["texts"] / f"{number}.txt", 8, seed=number)
    places["recipe"] = make_recipe(tmp_path, places["teacher"])

    def filled(command):
        parts = []
        for part in command:
            for key, value in places.items():
                part = part.replace(f"{{{key}}}", str(value))
            parts.append(part)
        return parts

    if "{tuned}" in COMMANDS[name][1]:
        command = [*filled(FINETUNE), "--output-dir", str(places["tuned"])]
        subprocess.run([sys.executable, "-m", "keras_minilmv2", *command], check=True)
    commands = (
        command and [*filled(command), "--output-dir", "{out}"]
        for command in COMMANDS[name]
    )
    work = tmp_path / "work"
    work.mkdir()
    result = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), str(work), *map(json.dumps, commands)),
            *(["eagerly"] if name in EAGERLY else []),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2_000:] + result.stderr[-2_000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["problems"] == {}
    assert found["changes"] >= 4
