"""The JAX backend: TensorFlow's weights, and a run without TensorFlow installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import finish, largest_difference, start

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="jax is not installed; `pip install jax` to test the JAX backend",
)
JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed; nothing to compare JAX with")
    path = tmp_path_factory.mktemp("tensorflow") / "weights.npz"
    finish(start(path, environment={"KERAS_BACKEND": "tensorflow"}))
    return path


@pytest.mark.parametrize(
    "options",
    [
        ["--hide-tensorflow"],
        ["--accumulation", 4, "--steps-per-execution", 8],
        pytest.param(["--devices", 2, "--accumulation", 2], marks=pytest.mark.slow),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_jax_trains_the_weights_of_tensorflow(on_tensorflow, tmp_path, options):
    finish(start(tmp_path / "jax.npz", *options, environment=JAX))
    # The losses, before, in and after training, agree to 1e-5.
    assert largest_difference(on_tensorflow, tmp_path / "jax.npz") < 1e-4


def test_facts_hold_on_jax_without_tensorflow():
    # Compiling is nearly all the time it takes.
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    facts = Path(__file__).with_name("facts_on_jax.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(facts)],
        env={**os.environ, **JAX, **quick},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-5_000:] + result.stderr[-1_000:]


def test_a_backend_without_steps_is_named():
    code = "import keras_minilmv2 as km; km.RelationDistiller"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
    )
    assert result.stderr.splitlines()[-1] == (
        "ImportError: `RelationDistiller` needs Keras on TensorFlow or JAX. "
        "Received: KERAS_BACKEND=numpy."
    )
