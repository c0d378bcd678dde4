"""What fine-tuned models lose as heads are removed, without training afterwards.

    python removal_curves.py DIRECTORY GLUE_DATA MODEL [MODEL ...]

Each MODEL is what `keras-minilmv2 finetune` wrote with one seed. For every task the
score on its dev split is measured at each of `--shares` of the heads removed, in these
orders:

    absolute     Michel et al.'s importance, computed again after each tenth
    once         the same, computed once
    fisher       Fisher information, computed again after each tenth
    hies         mixed with attention entropy, computed once; the mix of 0, 0.25, 0.5,
                 0.75 and 1 with the best score of the calibration examples at half of
                 the heads
    reversed     `absolute`, the other way round
    random       three orders
    depth        whole layers, from the last one

Importance is that of 2,048 training examples, drawn by the seed. A finished curve is
not measured again. Writes curves.json, curves.png and curves.md to DIRECTORY.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from keras_minilmv2.downstream.saved import load_fine_tuned
from keras_minilmv2.heads.importance import attention_entropy, head_importance
from keras_minilmv2.heads.orders import (
    depth_order,
    hies_scores,
    iterative_order,
    order_by_scores,
    random_order,
    removal_curve,
    reversed_order,
)
from keras_minilmv2.runs.grid import Result, run_grid
from keras_minilmv2.runs.supervised import (
    calibration_batches,
    removal_metric,
    task_of,
)
from keras_minilmv2.utils.files import replacing_file, write_json
from keras_minilmv2.utils.tables import markdown_table

SHARES = tuple(step / 10 for step in range(11))
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_RANDOM, NUM_CALIBRATION = 3, 2_048
ORDERS = ("absolute", "once", "fisher", "hies", "reversed", "depth")
ORDERS += tuple(f"random {number}" for number in range(NUM_RANDOM))


@dataclass(frozen=True)
class CurveCell:
    """One curve: a model and an order of its heads."""

    task: str
    seed: int
    order: str

    def __str__(self):
        return f"{self.task}, seed {self.seed}, {self.order}"


class Curves:
    """The curves of one fine-tuned model."""

    def __init__(self, path, data_dir):
        saved = load_fine_tuned(path)
        task = task_of(saved, None, path).with_options(saved.backbone, **saved.sizes)
        self.task, self.model = task, saved.model
        self.seed = int(saved.notes["cell"]["seed"])
        self.dev_examples = task.load(task.dev_split, data_dir)
        self.dev = task.features(self.dev_examples, saved.backbone, saved.tokenizer)
        train_examples = task.load("train", data_dir)
        train = task.features(train_examples, saved.backbone, saved.tokenizer)
        rows = np.random.default_rng((self.seed, 1)).permutation(train.training_rows())
        rows = rows[:NUM_CALIBRATION]
        self.batches = calibration_batches(train, NUM_CALIBRATION, (self.seed, 1))
        self.calibration_examples = train_examples.take(rows)
        self.calibration = task.features(
            self.calibration_examples, saved.backbone, saved.tokenizer
        )
        backbone = saved.backbone
        self.shape = backbone.num_layers, backbone.num_heads
        self.intermediate_dim = backbone.intermediate_dim
        self.score = removal_metric(
            task, saved.model, self.dev, task.dev_split, self.dev_examples
        )
        self.calibration_score = removal_metric(
            task, saved.model, self.calibration, "train", self.calibration_examples
        )
        self.orders = {}

    def importance(self, head_mask=None):
        """`HeadImportance` of the calibration examples."""
        return head_importance(
            self.model,
            self.batches,
            self.task,
            head_mask=head_mask,
            neurons=False,
            fisher_blocks=(),
        )

    def order(self, name):
        """A `RemovalOrder`."""
        if name not in self.orders:
            self.orders[name] = self._order(name)
        return self.orders[name]

    def _order(self, name):
        tenth = round(np.prod(self.shape) / 10)
        if name in ("absolute", "fisher"):

            def scores_of(mask):
                return self.importance(mask).heads.scores(name)

            return iterative_order(name, scores_of, self.shape, tenth)
        if name == "once":
            return order_by_scores(name, self.importance().heads.scores())
        if name == "reversed":
            return reversed_order(self.order("absolute"), name)
        if name == "depth":
            layers = reversed(range(self.shape[0]))
            return depth_order(self.shape[1], self.intermediate_dim, layers)
        if name == "hies":
            importance = self.importance().heads.scores(normalize=False)
            entropy = attention_entropy(self.model, self.batches)
            orders = [
                order_by_scores(name, hies_scores(importance, entropy, mix))
                for mix in MIXES
            ]
            return max(orders, key=lambda o: self.calibration_score(o.at(0.5)[0]))
        number = int(name.split()[-1])
        return random_order(self.shape, seed=100 * self.seed + number)


def main():
    """Measures what is missing, and writes what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, help="0.5 must be one"
    )
    options = parser.parse_args()
    shares = tuple(options.shares)
    options.directory.mkdir(parents=True, exist_ok=True)
    curves = {}
    for path in options.models:
        found = Curves(path, options.data_dir)

        def run(cell, found=found):
            curve = removal_curve(found.score, found.order(cell.order), shares)
            metrics = dict(zip(map(str, shares), curve.scores[0], strict=True))
            metrics |= {
                f"removed at {share}": removed
                for share, removed in zip(shares, curve.removed[0], strict=True)
            }
            return Result(float(metrics["0.5"]), metrics), None

        cells = [CurveCell(found.task.name, found.seed, name) for name in ORDERS]
        curves |= run_grid(options.directory, cells, run, cell_class=CurveCell)
    write(options.directory, curves)


def write(directory, results):
    """Writes tables and pictures of all finished curves."""
    tasks = sorted({cell.task for cell in results})
    figure = Figure(figsize=(5.5 * len(tasks), 4.5), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    texts, numbers = [], {}
    for ax, task in zip(axes, tasks, strict=True):
        rows = []
        of_task = [results[cell].metrics for cell in results if cell.task == task]
        shares = sorted(float(x) for x in of_task[0] if not x.startswith("removed"))
        for name in (*ORDERS[:6], "random"):
            cells = [
                cell
                for cell in results
                if cell.task == task and cell.order.split()[0] == name
            ]
            if not cells:
                continue
            # Several random orders of a model are one run of it.
            by_seed = {}
            for cell in cells:
                scores = [results[cell].metrics[str(share)] for share in shares]
                by_seed.setdefault(cell.seed, []).append(scores)
            runs = 100 * np.array([np.mean(each, axis=0) for each in by_seed.values()])
            numbers.setdefault(task, {})[name] = runs.tolist()
            mean = runs.mean(axis=0)
            deviation = runs.std(axis=0, ddof=1) if len(runs) > 1 else 0 * mean
            ax.plot(shares, mean, marker="o", markersize=3, label=name)
            ax.fill_between(shares, mean - deviation, mean + deviation, alpha=0.15)
            rows.append(
                [name, str(len(runs))]
                + [f"{m:.1f}±{d:.1f}" for m, d in zip(mean, deviation, strict=True)]
            )
        ax.set(
            title=task, xlabel="share of heads removed", ylabel="dev score, times 100"
        )
        ax.legend(frameon=False, fontsize=8)
        header = ["order", "seeds", *(f"{share:.0%}" for share in shares)]
        texts.append(f"## {task}\n\n{markdown_table(header, rows)}\n")
    write_json(directory / "curves.json", numbers)
    with replacing_file(directory / "curves.png") as temporary:
        figure.savefig(temporary, format="png")
    with replacing_file(directory / "curves.md") as temporary:
        temporary.write_text("\n".join(texts), encoding="utf-8")
    print("\n".join(texts))


if __name__ == "__main__":
    main()
