"""This machine, and accelerators by name."""

import tensorflow as tf
from small_plans import example_recipe
from small_runs import make_recipe, make_teacher

from keras_minilmv2.planning import machines
from keras_minilmv2.planning.machines import DEVICES, SHARE_REACHED, matmul_rate
from keras_minilmv2.planning.plan import plan, plan_text
from keras_minilmv2.runs.recipes import load_recipe


def test_this_machine_is_measured(tmp_path):
    make_teacher(tmp_path / "teacher")
    recipe = load_recipe(make_recipe(tmp_path, tmp_path / "teacher"))
    result = plan(recipe)
    assert result["time"]["share_reached"] == SHARE_REACHED["float32"]
    assert 1e8 < result["time"]["half_rate"] < 1e15
    assert result["time"]["hours"] < 1
    assert 1e8 < result["time"]["memory"] < 1e13
    text = plan_text(result)
    assert "measured now" in text
    assert "BERT 3x16" in text
    assert "BERT 2x8" in text


def test_the_memory_of_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(machines, "matmul_rate", lambda dtype: 1e12)
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: ["gpu"] * 2 * (kind == "GPU")
    )
    monkeypatch.setattr(machines, "hardware", lambda: "some GPUs")
    result = plan(example_recipe(dtype_policy="mixed_float16"))
    assert result["time"]["num_devices"] == 2
    assert result["batch"]["largest"] is None
    assert "not known: pass --memory" in plan_text(result)
    one = plan(example_recipe(strategy="one_device"), memory_gb=80)
    assert one["time"]["num_devices"] == 1
    assert one["batch"]["largest"] > 100


def test_a_rate_is_operations_a_second():
    assert 1e8 < matmul_rate("bfloat16", seconds=0.05) < 1e15


def test_every_device_has_a_plan():
    for name, device in DEVICES.items():
        for half in device.halves:
            result = plan(example_recipe(dtype_policy=f"mixed_{half}"), name)
            slower = plan(example_recipe(), name)
            assert result["time"]["hours"] <= slower["time"]["hours"]
            assert result["batch"]["largest"] > slower["batch"]["largest"]
