"""The numbers of a run by step, written as a CSV file and as a picture."""

import csv

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from keras_minilmv2.utils.files import replacing_file


class History:
    """Numbers of a run by step.

    Args:
        on_add: function of a step and a dict of float that is called with all numbers
            that are added, or None.

    Attributes:
        rows: dict by step of dicts of float by name.
    """

    def __init__(self, on_add=None):
        self.rows = {}
        self.on_add = on_add

    def add_rows(self, rows):
        """Adds the rows of an earlier part of the run, without calling `on_add`.

        Args:
            rows: dict as in `rows`; a step may be a str, as JSON has it.
        """
        self.rows.update({int(step): row for step, row in rows.items()})

    def add(self, step, **values):
        """Adds numbers to the row of a step."""
        self.rows.setdefault(step, {}).update(values)
        if self.on_add is not None:
            self.on_add(step, values)

    def names(self):
        """Names of the columns: of training, then of held-out text."""
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        return sorted(names, key=lambda name: name.startswith("held_out_"))

    def series(self, name):
        """Steps at which a number is known, and the numbers."""
        points = [(step, row[name]) for step, row in self.rows.items() if name in row]
        return [step for step, _ in points], [value for _, value in points]

    def last(self, name):
        """The latest value of a number, or None."""
        _, values = self.series(name)
        return values[-1] if values else None

    def save_csv(self, path):
        """Writes a row for each step; a number that is not known is an empty cell."""
        names = self.names()
        with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *names])
            for step, row in sorted(self.rows.items()):
                cells = (f"{row[name]:.6g}" if name in row else "" for name in names)
                writer.writerow([step, *cells])

    @classmethod
    def load_csv(cls, path):
        """Reads what `save_csv` wrote; numbers have six digits."""
        history = cls()
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                history.add(step, **{k: float(v) for k, v in row.items() if v})
        return history

    def save_curves(self, path, title, loss_name):
        """Draws losses and learning rate over steps as a PNG.

        Args:
            path: str or path.
            title: str.
            loss_name: str, with a unit.
        """
        figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        not_losses = (
            "gradient_norm",
            "learning_rate",
            "tokens_per_second",
            "skipped_steps",
        )
        relations = [
            name
            for name in self.names()
            if name not in ("loss", *not_losses) and not name.startswith("held_out_")
        ]
        losses.plot(*self.series("loss"), color="C0", label="training, dropout on")
        losses.plot(
            *self.series("held_out_loss"),
            color="C1",
            marker="o",
            label="held out, dropout off",
        )
        for i, name in enumerate(relations):
            losses.plot(
                *self.series(name),
                color=f"C{2 + i}",
                linewidth=1,
                label=f"training, {_in_words(name)}",
            )
        losses.set_ylabel(loss_name)
        losses.set_ylim(bottom=0)
        losses.set_title(title)
        figure.legend(loc="outside right upper")
        rate.plot(*self.series("learning_rate"), color="black")
        rate.set_ylabel("learning rate")
        rate.set_ylim(bottom=0)
        rate.set_xlabel("step")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for axes in (losses, rate):
            axes.grid(alpha=0.3)
        with replacing_file(path) as temporary:
            figure.savefig(temporary, format="png")


def _in_words(part):
    """The name of a part of the loss: a pair of letters is `Q-Q`."""
    if len(part) == 2:
        return "-".join(part.upper())
    return part.replace("_", " ")
