"""`heads subset`: exactly K heads, by every method, resumable."""

import json

import numpy as np
import pytest
from small_runs import make_teacher, write_task

from keras_minilmv2 import cli
from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.downstream.saved import load_saved
from keras_minilmv2.runs.evaluate import evaluate_model
from keras_minilmv2.runs.grid import Result
from keras_minilmv2.runs.subset import prune_to_subset
from keras_minilmv2.runs.subset_cells import (
    METHODS,
    WHOLE,
    SubsetCell,
    SubsetSettings,
)
from keras_minilmv2.runs.subset_report import grouped, survivors, whole_scores
from keras_minilmv2.training.checkpoints import Checkpoints

SETTINGS = {
    "num_kept_heads": (5,),
    "epochs": 1,
    "retraining_epochs": 0,
    "sequence_length": 16,
    "batch_size": 16,
    "num_held_out_examples": 20,
    "num_importance_examples": 32,
    "num_random": 2,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    path = tmp_path_factory.mktemp("subset")
    return make_teacher(path / "teacher"), write_task(path / "data")


def run(places, out, **changes):
    model, data = places
    lines = []
    settings = SubsetSettings(**{**SETTINGS, **changes})
    results = prune_to_subset(
        model, "sst2", out, settings, data_dir=data, log=lines.append
    )
    return results, lines


def test_a_model_with_as_many_heads_as_asked(places, tmp_path):
    results, _ = run(places, tmp_path / "out")
    whole, pruned = results
    if whole.method != WHOLE:
        whole, pruned = pruned, whole
    assert pruned == SubsetCell("pipelined_bounded", 5, 0)
    metrics = results[pruned].metrics
    assert sum(metrics["heads"]) == np.sum(metrics["mask"]) == 5
    assert results[pruned].score == metrics["held_out"]
    saved = load_saved(tmp_path / "out")
    heads, neurons = layer_counts(saved.backbone)
    assert list(heads) == metrics["heads"]
    assert neurons == (24, 24, 24)
    score = evaluate_model(tmp_path / "out", data_dir=places[1]).metrics["accuracy"]
    assert score == metrics["dev"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (row,) = report["tables"]["scores"]
    assert row["heads"] == 5
    assert row["parameters"] == saved.backbone.count_params()
    for picture in ("scores.png", "survivors.png"):
        assert (tmp_path / "out" / picture).read_bytes()[1:4] == b"PNG"
    assert not (tmp_path / "out" / "checkpoints").exists()
    again, lines = run(places, tmp_path / "out")
    assert again == results
    assert lines == [f"Finished already: {tmp_path / 'out'}."]


@pytest.mark.slow
def test_every_method_and_what_retraining_adds(places, tmp_path):
    results, _ = run(
        places,
        tmp_path / "out",
        method=METHODS,
        num_kept_heads=(4, 5),
        retraining_epochs=1,
        distill=0.5,
        relation_weight=0.1,
    )
    found = {(cell.method, cell.num_kept_heads) for cell in results}
    # Depth has whole layers alone.
    wanted = {(method, kept) for method in METHODS for kept in (4, 5)}
    assert found == wanted - {("depth", 5)} | {(WHOLE, 12)}
    for cell, result in results.items():
        assert 0 <= result.metrics["dev_retrained"] <= 1
        if cell.method not in ("compress", WHOLE):
            assert sum(result.metrics["heads"]) == cell.num_kept_heads
        if cell.method == "compress":
            assert sum(result.metrics["neurons"]) < 72
        if cell.method.endswith("_l0"):
            assert 0 <= result.metrics["num_open"] <= 12
    draws = [cell.draw for cell in results if cell.method == "random"]
    assert sorted(draws) == [0, 0, 1, 1]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Points more than `absolute` with as many heads" in text
    assert "| joint_l0" in text


@pytest.mark.slow
@pytest.mark.parametrize("method", ["joint_gumbel", "pipelined_bounded"])
def test_a_killed_run_ends_to_the_bit(places, tmp_path, monkeypatch, method):
    changes = {"method": (method,), "checkpoint_every": 1, "retraining_epochs": 1}
    whole, _ = run(places, tmp_path / "whole", **changes)
    save = Checkpoints.save

    def save_and_die(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(places, tmp_path / "killed", **changes)
    monkeypatch.undo()
    again, _ = run(places, tmp_path / "killed", **changes)
    for cell, result in whole.items():
        assert again[cell].metrics == result.metrics
        assert again[cell].losses == result.losses
    ours, theirs = (load_saved(tmp_path / n).model for n in ("killed", "whole"))
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(other))


@pytest.mark.slow
def test_more_heads_and_seeds_are_added_to_a_finished_run(places, tmp_path):
    first, _ = run(places, tmp_path / "out", method=("random",))
    more, _ = run(
        places,
        tmp_path / "out",
        method=("random", "fisher"),
        num_kept_heads=(5, 8),
        seed=(0, 1),
    )
    assert set(first) < set(more)
    assert all(more[cell] == result for cell, result in first.items())
    assert len(more) == 2 + 2 * 2 * 3


def test_draws_of_a_seed_are_one_run_of_it():
    def result(dev, mask=None):
        metrics = {"dev": dev, "parameters": 10, "heads": [1, 0]}
        return Result(dev, metrics | ({} if mask is None else {"mask": mask}))

    results = {
        SubsetCell(WHOLE, 4, 0): result(0.9),
        SubsetCell("random", 1, 0, 0): result(0.5),
        SubsetCell("random", 1, 0, 1): result(0.7),
        SubsetCell("random", 1, 1, 0): result(0.4),
        SubsetCell("fisher", 1, 0): result(0.8, [[1, 0], [0, 0]]),
        SubsetCell("fisher", 1, 1): result(0.8, [[0, 0], [0, 1]]),
        SubsetCell("fisher", 1, 2): Result(None),
    }
    groups = grouped(results)
    means = {seed: run["dev"] for seed, run in groups["random", 1].items()}
    assert means == {0: pytest.approx(0.6), 1: pytest.approx(0.4)}
    assert whole_scores(results) == {"dev": {0: 0.9}}
    (kept,) = survivors(results).values()
    np.testing.assert_array_equal(kept, [[0.5, 0], [0, 0.5]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num-kept-heads", "13"], "from 1 to the 12 heads that there are"),
        (["--num-kept-heads", "0"], "`num_kept_heads` must be an int of at least 1"),
        (["--method", "magnitude"], "`method` must be one of joint_gumbel"),
        (["--set", "cooldown=1.5"], "`cooldown` must be a finite number above 0"),
        (["--set", "final_temperature=0"], "`final_temperature` must be"),
        (["--set", "dtype_policy=mixed_float16"], "`dtype_policy` must be one of"),
        (
            ["--method", "depth", "--num-kept-heads", "5"],
            "`num_kept_heads` must have a multiple of a layer's heads",
        ),
        (["--num-held-out-examples", "60"], "must leave examples to train on"),
        (["--task", "mnli"], "must hold"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    places, tmp_path, capsys, arguments, sentence
):
    model, data = places
    command = ["heads", "subset", str(model), "--task", "sst2", "--data-dir", str(data)]
    command += ["--output-dir", str(tmp_path / "out")]
    command += ["--set", "sequence_length=16", "--num-held-out-examples", "20"]
    command += ["--set", "num_importance_examples=32", *arguments]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
