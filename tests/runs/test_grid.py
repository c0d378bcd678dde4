import dataclasses
import json
import math

import pytest

from keras_minilmv2.runs.grid import (
    Cell,
    FinishedCells,
    Result,
    best_cell,
    best_summary,
    grid_cells,
    run_grid,
    summaries,
)


def result(score):
    return Result(score, {"accuracy": score}, [0.7, 0.5], 12.5)


RESULTS = {
    Cell(1e-5, 3, 0): result(0.7),
    Cell(1e-5, 3, 1): result(0.8),
    Cell(2e-5, 3, 0): result(0.9),
    Cell(2e-5, 3, 1): result(0.5),
    Cell(9e-1, 3, 0): result(None),
    Cell(9e-1, 3, 1): result(None),
}


def test_a_grid_has_all_seeds_of_a_setting_together_and_none_twice():
    assert grid_cells((1e-5, 2e-5), (3,), (0, 1, 0)) == [
        Cell(1e-5, 3, 0),
        Cell(1e-5, 3, 1),
        Cell(2e-5, 3, 0),
        Cell(2e-5, 3, 1),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((0.0,), (3,), (0,)), "`learning_rate` must be .*above 0.*rate=0.0"),
        (((math.nan,), (3,), (0,)), "`learning_rate` must be a finite.*rate=nan"),
        (((1e-5,), (0,), (0,)), "`epochs` must be an int.*at least 1.*epochs=0"),
        (((1e-5,), (2.5,), (0,)), "`epochs` must be an int.*epochs=2.5"),
        (((1e-5,), (3,), (-1,)), "`seed` must be an int.*at least 0.*seed=-1"),
        (((1e-5,), (3,), (2**32,)), "`seed` must be.*below 4,294,967,296.*seed=4294"),
        (((1e-5,), (3,), ()), "must have a value each"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        grid_cells(*values)


def test_results_come_back_as_they_were_saved(tmp_path):
    finished = FinishedCells(tmp_path / "cells")
    assert finished.load() == {}
    for cell, value in reversed(RESULTS.items()):
        finished.save(cell, value)
    assert list(finished.load().items()) == list(RESULTS.items())
    names = sorted(path.name for path in (tmp_path / "cells").iterdir())
    assert names[-1] == "learning_rate=2e-05,epochs=3,seed=1.json"
    assert len(names) == len(RESULTS)


def test_a_result_of_another_cell_or_form_is_refused(tmp_path):
    finished = FinishedCells(tmp_path)
    cell = Cell(1e-5, 3, 0)
    finished.save(cell, result(0.7))
    content = json.loads(finished.path(cell).read_text())
    for text in (
        json.dumps({**content, "seed": 1}),
        json.dumps({**content, "more": 1}),
        "[]",
        "{",
    ):
        finished.path(cell).write_text(text)
        with pytest.raises(ValueError, match="remove it to run that cell again"):
            finished.load()


def test_the_best_run_and_the_best_setting_may_differ():
    assert best_cell(RESULTS) == Cell(2e-5, 3, 0)
    assert best_summary(RESULTS).setting == {"learning_rate": 1e-5, "epochs": 3}
    assert best_cell({Cell(9e-1, 3, 0): result(None)}) is None
    assert best_summary({Cell(9e-1, 3, 0): result(None)}) is None


def test_the_least_of_equal_cells_is_the_best_whatever_the_order():
    equal = {Cell(2e-5, 3, 0): result(0.7), Cell(1e-5, 5, 1): result(0.7)}
    assert best_cell(equal) == Cell(1e-5, 5, 1)


def test_summaries_have_mean_and_sample_deviation():
    first, second, third = summaries(RESULTS)
    assert first.mean == pytest.approx(0.75)
    assert first.deviation == pytest.approx(0.05 * 2**0.5)
    assert second.mean == pytest.approx(0.7)
    assert second.deviation == pytest.approx(0.2 * 2**0.5)
    assert (third.mean, third.deviation, third.num_diverged) == (None, None, 2)
    (single,) = summaries({Cell(1e-5, 3, 0): result(0.7)})
    assert (single.mean, single.deviation) == (0.7, None)


def test_results_of_earlier_versions_are_read(tmp_path):
    cell = Cell(1e-5, 3, 0)
    content = {**dataclasses.asdict(cell), **dataclasses.asdict(result(0.7))}
    (tmp_path / "lr1e-05-epochs3-seed0.json").write_text(json.dumps(content))
    assert FinishedCells(tmp_path).load() == {cell: result(0.7)}


@dataclasses.dataclass(frozen=True)
class KeptHeads:
    """Cells of another kind."""

    num_kept: int
    order: str
    seed: int | None = None


def test_cells_may_be_any_dataclass_and_their_names_are_safe(tmp_path):
    finished = FinishedCells(tmp_path / "cells", KeptHeads)
    cells = [KeptHeads(3, "a/../b"), KeptHeads(3, "a_.._b"), KeptHeads(12, "by", 1)]
    for number, cell in enumerate(cells):
        finished.save(cell, result(number / 10))
    assert list(finished.load()) == cells
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / "cells"}


def test_a_grid_runs_what_is_missing_and_keeps_the_best(tmp_path):
    seen, lines = [], []
    scores = {0: 0.5, 1: 0.9, 2: None, 3: 0.7}

    def run_cell(cell):
        seen.append(cell.num_kept)
        if cell.num_kept == 3 and seen.count(3) == 1:
            raise KeyboardInterrupt
        return result(scores[cell.num_kept]), cell.num_kept

    def save_model(model, cell, path):
        path.mkdir(exist_ok=True)
        (path / "cell.json").write_text(json.dumps(dataclasses.asdict(cell)))
        (path / "weights").write_text(str(model))

    def run():
        cells = [KeptHeads(number, "by") for number in scores]
        return run_grid(
            tmp_path,
            cells,
            run_cell,
            save_model=save_model,
            cell_class=KeptHeads,
            log=lines.append,
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    results = run()
    assert seen == [0, 1, 2, 3, 3]
    assert [r.score for r in results.values()] == [0.5, 0.9, None, 0.7]
    assert (tmp_path / "model" / "weights").read_text() == "1"
    assert "  The loss was not finite." in lines
    # Saved, and its result was lost: run again, and no other.
    FinishedCells(tmp_path / "cells", KeptHeads).path(KeptHeads(1, "by")).unlink()
    run()
    assert seen[5:] == [1]
