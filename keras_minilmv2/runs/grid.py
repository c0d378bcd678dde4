"""Settings tried one after the other, each with several seeds."""

import itertools
import json
import math
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from keras_minilmv2.utils.files import replacing_file


@dataclass(frozen=True, order=True)
class Cell:
    """One run of a grid.

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
        score: float, the metric that settings are chosen by, or None if the run
            diverged.
        metrics: dict of float by name; all metrics.
        losses: list of float, the mean training loss of each epoch.
        seconds: float.
    """

    score: float | None
    metrics: dict
    losses: list
    seconds: float


@dataclass(frozen=True)
class Summary:
    """All seeds of one learning rate and number of epochs.

    Args:
        learning_rate: float.
        epochs: int.
        scores: tuple of float, one for each seed that did not diverge.
        num_diverged: int.
    """

    learning_rate: float
    epochs: int
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


def grid_cells(learning_rates, epochs, seeds):
    """The cells of a grid: of each setting all seeds, duplicates left out.

    Raises:
        ValueError: if there is none, a learning rate is not above 0, a number of
            epochs is below 1 or a seed below 0 or beyond 32 bits.
    """
    for name, values, least, below in (
        ("epochs", epochs, 1, math.inf),
        ("seed", seeds, 0, 2**32),
    ):
        for value in values:
            if not isinstance(value, int) or not least <= value < below:
                limit = "" if math.isinf(below) else f", below {below}"
                raise ValueError(
                    f"`{name}` must be whole numbers of at least {least}{limit}. "
                    f"Received: {name}={value}."
                )
    for value in learning_rates:
        if not value > 0:
            raise ValueError(
                f"`learning_rate` must be above 0. Received: learning_rate={value}."
            )
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
    """

    def __init__(self, directory):
        self.directory = Path(directory)

    def path(self, cell):
        """The file of a cell."""
        name = f"lr{cell.learning_rate!r}-epochs{cell.epochs}-seed{cell.seed}.json"
        return self.directory / name

    def save(self, cell, result):
        """Writes a result."""
        with replacing_file(self.path(cell)) as temporary:
            temporary.write_text(
                json.dumps({**asdict(cell), **asdict(result)}, indent=2) + "\n"
            )

    def load(self):
        """All results, by cell, in the order of the cells.

        Raises:
            ValueError: if a file is not what `save` writes.
        """
        results = {}
        for path in self.directory.glob("[!.]*.json"):
            try:
                values = json.loads(path.read_text())
                names = (field.name for field in fields(Cell))
                cell = Cell(**{name: values.pop(name) for name in names})
                results[cell] = Result(**values)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise _unreadable(path) from error
            if path != self.path(cell):
                raise _unreadable(path)
        return dict(sorted(results.items()))


def _unreadable(path):
    return ValueError(
        "`output_dir` must hold results as they were written. "
        f"Received: {path}; remove it to run that cell again."
    )


def best_cell(results):
    """The cell with the highest score, the least of equal ones; None if all diverged.

    Args:
        results: dict of `Result` by `Cell`.
    """
    scored = sorted(c for c, result in results.items() if result.score is not None)
    return max(scored, key=lambda cell: results[cell].score, default=None)


def summaries(results):
    """One `Summary` for each learning rate and number of epochs.

    Args:
        results: dict of `Result` by `Cell`.

    Returns:
        list of `Summary`, in the order of the results.
    """
    groups = {}
    for cell, result in results.items():
        groups.setdefault((cell.learning_rate, cell.epochs), []).append(result.score)
    return [
        Summary(
            rate,
            epochs,
            tuple(score for score in scores if score is not None),
            scores.count(None),
        )
        for (rate, epochs), scores in groups.items()
    ]


def best_summary(results):
    """The `Summary` with the highest mean score; None if all runs diverged.

    Args:
        results: dict of `Result` by `Cell`.
    """
    scored = [summary for summary in summaries(results) if summary.scores]
    return max(scored, key=lambda summary: summary.mean, default=None)
