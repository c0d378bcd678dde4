"""The relation losses as Keras losses: reductions, dtypes, `compile(loss=...)`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_minilmv2.distillation.losses import AttentionValueLoss, RelationLoss


def vectors(seed, heads=2):
    generator = np.random.default_rng(seed)
    names = ("query", "key", "value")
    shape = (3, 5, heads, 4)
    return {name: generator.normal(size=shape).astype("float32") for name in names}


MASK = (np.arange(5) < np.array([[5], [3], [1]])).astype("int32")
Y_TRUE, Y_PRED = {**vectors(0), "padding_mask": MASK}, vectors(1)
EACH = RelationLoss(4, reduction=None)(Y_TRUE, Y_PRED).numpy()
WEIGHTS = np.array([1.0, 0.5, 0.0], "float32")


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", (EACH * WEIGHTS).sum()),
        ("sum_over_batch_size", (EACH * WEIGHTS).mean()),
        ("mean", (EACH * WEIGHTS).mean()),
        ("mean_with_sample_weight", (EACH * WEIGHTS).sum() / WEIGHTS.sum()),
    ],
)
def test_every_reduction_of_keras_is_that_of_keras(reduction, expected):
    loss = RelationLoss(4, reduction=reduction)
    assert float(loss(Y_TRUE, Y_PRED, WEIGHTS)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reduction", [None, "none"])
def test_without_reduction_each_sequence_has_its_loss(reduction):
    loss = RelationLoss(4, reduction=reduction)
    np.testing.assert_allclose(loss(Y_TRUE, Y_PRED, WEIGHTS), EACH * WEIGHTS, rtol=1e-6)
    np.testing.assert_array_equal(loss.call(Y_TRUE, Y_PRED), EACH)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="Invalid value for argument `reduction`"):
        AttentionValueLoss(reduction="median")


def test_losses_are_float32_whatever_floatx_is():
    before = keras.config.floatx()
    try:
        keras.config.set_floatx("bfloat16")
        loss = RelationLoss(4, reduction=None)(Y_TRUE, Y_PRED)
    finally:
        keras.config.set_floatx(before)
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, EACH, rtol=1e-6)


@pytest.mark.slow
def test_a_plain_model_trains_the_same_weights_on_1_2_and_4_devices():
    script = Path(__file__).with_name("compile_plain_loss.py")
    result = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3_000:]
    moved, different = map(float, re.findall(r"[\d.e-]+(?=[,\n])", result.stdout))
    assert moved > 0.05
    assert different < 1e-6
