"""Runs train_small in processes of their own, and compares what they saved."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HELPERS = Path(__file__).parent
SCRIPT = HELPERS.parent / "distillation" / "train_small.py"


def start(output, *options, environment=None, script=None):
    helpers = [str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, str(script or SCRIPT), str(output), *map(str, options)],
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONPATH": os.pathsep.join(helpers),
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output[-3_000:]
    return output


def largest_difference(path, other):
    with np.load(path) as a, np.load(other) as b:
        assert int(b["steps"]) == int(a["steps"]) == 20
        for name in ("start", "train", "held_out", "gradient_norm"):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-5)
        names = [name for name in a.files if name.startswith("arr_")]
        assert len(names) > 25
        return max(np.abs(a[name] - b[name]).max() for name in names)
