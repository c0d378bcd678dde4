"""A grid of runs in one directory: cells to results, resumable, the best one kept.

A cell is any frozen dataclass whose fields are numbers or strings; a result has the
score that cells are compared by.
"""

import dataclasses
import gc
import hashlib
import itertools
import re
import statistics
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from keras_minilmv2.backbones.traces import forgotten_gradients
from keras_minilmv2.utils.checks import check_int, check_number
from keras_minilmv2.utils.files import read_json, write_json, writing
from keras_minilmv2.utils.tables import clock, percent

CELLS = "cells"
# Beside a model that a grid keeps: of which cell it is.
NOTES = "cell.json"


class NoFiniteLossError(RuntimeError):
    """The loss of every cell of a grid was not finite."""


@dataclass(frozen=True, order=True)
class Cell:
    """One fine-tuning of a grid.

    Args:
        learning_rate: float.
        epochs: int.
        seed: int.
    """

    learning_rate: float
    epochs: int
    seed: int

    def __str__(self):
        return (
            f"learning rate {self.learning_rate:g}, epochs {self.epochs}, "
            f"seed {self.seed}"
        )


@dataclass(frozen=True)
class Result:
    """What came out of a cell.

    Args:
        score: float, what cells are compared by, higher is better; None if the run
            diverged.
        metrics: dict of float by name; all metrics.
        losses: list of float, the mean training loss of each epoch.
        seconds: float.
    """

    score: float | None
    metrics: dict = field(default_factory=dict)
    losses: list = field(default_factory=list)
    seconds: float = 0.0


def grid_cells(learning_rates, epochs, seeds):
    """The cells of a grid: of each setting all seeds, duplicates dropped.

    Raises:
        TypeError: if epochs or a seed is no int.
        ValueError: if there is no cell, a learning rate is not above 0, a number of
            epochs is below 1, or a seed is below 0 or beyond 32 bits.
    """
    for value in epochs:
        check_int(epochs=value)
    for value in seeds:
        check_int(least=0, below=2**32, seed=value)
    for value in learning_rates:
        check_number(above=0, learning_rate=value)
    cells = itertools.product(learning_rates, epochs, seeds)
    cells = list(dict.fromkeys(Cell(float(r), e, s) for r, e, s in cells))
    if not cells:
        raise ValueError(
            "`learning_rate`, `epochs` and `seed` must have a value each. Received: "
            f"learning_rate={learning_rates}, epochs={epochs}, seed={seeds}."
        )
    return cells


class FinishedCells:
    """Results in a directory, one JSON file for each finished cell.

    Args:
        directory: str or path.
        cell_class: a frozen dataclass.
    """

    def __init__(self, directory, cell_class=Cell):
        self.directory = Path(directory)
        self.cell_class = cell_class

    def path(self, cell):
        """The file of a cell; its name has the fields."""
        name = ",".join(f"{key}={value}" for key, value in asdict(cell).items())
        safe = re.sub(r"[^\w.,=+-]", "_", name)
        if safe != name or len(name) > 200:
            safe = f"{safe[:150]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return self.directory / f"{safe}.json"

    def save(self, cell, result):
        """Writes a result."""
        write_json(self.path(cell), {**asdict(cell), **asdict(result)})

    def load(self):
        """All results, by cell, in the order of the cells.

        Raises:
            ValueError: if a file is not what `save` writes.
        """
        results = {}
        for path in sorted(self.directory.glob("[!.]*.json")):
            try:
                values = read_json(path)
                names = [each.name for each in fields(self.cell_class)]
                cell = self.cell_class(**{name: values.pop(name) for name in names})
                result = Result(**values)
            except (ValueError, TypeError, KeyError) as error:
                raise _unreadable(path) from error
            if path.name not in (self.path(cell).name, _earlier_name(cell)):
                raise _unreadable(path)
            results[cell] = result
        return dict(sorted(results.items(), key=lambda item: astuple(item[0])))


def _earlier_name(cell):
    """The file of a cell as earlier versions named it."""
    if not isinstance(cell, Cell):
        return None
    return f"lr{cell.learning_rate!r}-epochs{cell.epochs}-seed{cell.seed}.json"


def astuple(cell):
    """The fields of a cell, as cells are ordered by; None stands first."""
    return tuple(
        (value is not None, 0 if value is None else value)
        for value in dataclasses.astuple(cell)
    )


def _unreadable(path):
    return ValueError(
        "`output_dir` must hold results as they were written. "
        f"Received: {path}; remove it to run that cell again."
    )


def run_grid(
    directory,
    cells,
    run_cell,
    *,
    save_model=None,
    may_keep=lambda cell: True,
    metric="score",
    show=None,
    cell_class=Cell,
    log=print,
):
    """Runs the cells that are not finished, and keeps the model of the best one.

    Cells that another grid in the same directory finished count too. A process that
    is killed loses the cell that was running.

    Args:
        directory: path of the run.
        cells: list of `cell_class`.
        run_cell: function of a cell that returns its `Result` and its model.
        save_model: function of a model, its cell and a path, which writes the model;
            or None to keep none. It is kept in `model/`, with the cell in `cell.json`.
        may_keep: function of a cell: whether its model may be the one that is kept.
        metric: str. What the scores are, in messages.
        show: function of a cell and its `Result` that says what came out. Defaults to
            `metric` and the score, times 100.
        cell_class: a frozen dataclass.
        log: function of a line of information.

    Returns:
        dict of `Result` by cell, in the order of the cells.
    """
    finished = FinishedCells(directory / CELLS, cell_class)
    results = finished.load()
    kept = _kept_cell(directory / "model", cell_class)
    if kept is not None and kept not in results:
        # Its model was saved and its result was not.
        cells = list(dict.fromkeys([kept, *cells]))
    if results:
        log(f"Finished runs in {directory}: {len(results)}.")
    missing = [cell for cell in cells if cell not in results]
    for number, cell in enumerate(missing, start=1):
        log(f"Run {number} of {len(missing)}: {cell}.")
        with forgotten_gradients():
            result, model = run_cell(cell)
        results[cell] = result
        with writing(directory):
            # The model first: a cell whose result is there is not run again.
            candidates = {c: r for c, r in results.items() if may_keep(c)}
            if save_model is not None and best_cell(candidates) == cell:
                save_model(model, cell, directory / "model")
            finished.save(cell, result)
        if result.score is None:
            log("  The loss was not finite.")
        else:
            shown = show(cell, result) if show else f"{metric} {percent(result.score)}"
            log(f"  {shown}, {clock(result.seconds)}")
        del model
        gc.collect()  # a Keras model is a cycle, and a grid has many
    return dict(sorted(results.items(), key=lambda item: astuple(item[0])))


def _kept_cell(path, cell_class):
    """The cell that the kept model is of, or None."""
    # Earlier versions wrote it beside other notes.
    for name in (NOTES, "fine_tuning.json"):
        if (path / name).is_file():
            values = read_json(path / name)
            values = values.get("cell", values)
            names = {each.name for each in fields(cell_class)}
            return cell_class(**{k: v for k, v in values.items() if k in names})
    return None


def best_cell(results):
    """The cell with the highest score, the first of equal ones; None if all diverged.

    Args:
        results: dict of `Result` by cell.
    """
    scored = [cell for cell, result in results.items() if result.score is not None]
    scored.sort(key=astuple)
    return max(scored, key=lambda cell: results[cell].score, default=None)


def check_some_finished(results):
    """The best cell; raises if the loss of every run was not finite."""
    best = best_cell(results)
    if best is None:
        raise NoFiniteLossError(
            "The loss was not finite in any run. Try a lower learning rate, or "
            "mixed_bfloat16 in place of mixed_float16."
        )
    return best


@dataclass(frozen=True)
class Summary:
    """All seeds of one setting.

    Args:
        setting: dict of the fields of the cells, without the seed.
        scores: tuple of float, one for each seed that did not diverge.
        num_diverged: int.
    """

    setting: dict
    scores: tuple
    num_diverged: int

    @property
    def mean(self):
        """Mean score, or None if all runs diverged."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def deviation(self):
        """Sample standard deviation (n - 1) of the scores; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def __str__(self):
        words = (f"{k.replace('_', ' ')} {_short(v)}" for k, v in self.setting.items())
        return ", ".join(words)


def summaries(results):
    """One `Summary` for each setting: all fields of the cells but the seed.

    Args:
        results: dict of `Result` by cell.

    Returns:
        list of `Summary`, in the order of the results.
    """
    groups = {}
    for cell, result in results.items():
        setting = {k: v for k, v in asdict(cell).items() if k != "seed"}
        groups.setdefault(tuple(setting.items()), []).append(result.score)
    return [
        Summary(
            dict(setting),
            tuple(score for score in scores if score is not None),
            scores.count(None),
        )
        for setting, scores in groups.items()
    ]


def best_summary(results):
    """The setting with the highest mean score; None if all diverged."""
    scored = [summary for summary in summaries(results) if summary.scores]
    return max(scored, key=lambda summary: summary.mean, default=None)


def add_grid(report, results, metric, split):
    """Adds the settings of a grid to a report: mean and deviation over seeds.

    Args:
        report: `Report`.
        results: dict of `Result` by cell.
        metric: str.
        split: str. What the scores were measured on.
    """
    best, kept = best_summary(results), best_cell(results)
    deviation = "" if best.deviation is None else f" ± {percent(best.deviation)}"
    report.text(
        f"Best setting by mean {metric} on {split}: {best}: {percent(best.mean)}"
        f"{deviation} over {len(best.scores)} seeds. `model/` is the best of "
        f"{len(results)} runs: {kept}. It was chosen on {split}, so its score there is "
        "optimistic."
    )
    report.text(
        f"{metric.capitalize()} on {split}, times 100, mean and sample standard "
        "deviation over seeds:"
    )
    report.table(
        "settings",
        [
            {
                **{k.replace("_", " "): v for k, v in summary.setting.items()},
                "runs": len(summary.scores),
                "mean": summary.mean,
                "deviation": summary.deviation,
                "diverged": summary.num_diverged,
            }
            for summary in summaries(results)
        ],
        formats={
            "learning rate": _short,
            "mean": percent,
            "deviation": percent,
        },
    )


def _short(value):
    return f"{value:g}" if isinstance(value, float) else str(value)
