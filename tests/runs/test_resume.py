"""Killed at any moment, a run ends with the bits of one that nobody touched."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from small_runs import assert_same_run, make_recipe, make_teacher

NUM_RUNS, KILLS_OF_A_RUN = 4, 5


def start(recipe, output_dir):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "keras_minilmv2", "distill", str(recipe)),
            *("--output-dir", str(output_dir)),
        ],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, word):
    """Reads the output up to a line with a word; the time at which it came."""
    for line in process.stdout:
        if word in line:
            return time.monotonic()
    raise AssertionError(f"no {word!r} before the end")


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    """20 kills of 200-step runs that write a checkpoint every third step."""
    teacher = make_teacher(tmp_path / "teacher")
    recipe = make_recipe(
        tmp_path,
        teacher,
        total_steps=200,
        log_every=7,
        evaluate_every=40,
        checkpoint_every=3,
    )
    whole = start(recipe, tmp_path / "whole")
    began = wait_for(whole, "Student:")
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    seconds = time.monotonic() - began
    moments = random.Random(0)
    num_kills = 0
    for number in range(NUM_RUNS):
        output_dir = tmp_path / f"killed{number}"
        for _ in range(KILLS_OF_A_RUN):
            process = start(recipe, output_dir)
            wait_for(process, "Student:")
            time.sleep(moments.uniform(0, seconds / 2))
            process.send_signal(signal.SIGKILL)
            num_kills += process.wait() == -signal.SIGKILL
            process.stdout.close()
            if (output_dir / "report.md").exists():
                break
        last = start(recipe, output_dir)
        output, _ = last.communicate()
        if not (output_dir / "report.md").exists():
            raise AssertionError(output)
        assert_same_run(tmp_path / "whole", output_dir)
    assert num_kills >= 15, num_kills
