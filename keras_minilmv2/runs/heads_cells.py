"""The settings and the measurements of a study of heads, cell by cell."""

import dataclasses
import functools
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.heads.importance import KINDS, HeadImportance, head_importance
from keras_minilmv2.heads.orders import (
    RemovalCurve,
    iterative_order,
    joined,
    order_by_scores,
    random_order,
    removal_curve,
    reversed_order,
)
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.study import (
    head_statistics,
    masked_token_loss,
    step_of_loss,
    trainer_like,
    unigram_entropy,
)
from keras_minilmv2.runs.grid import Cell, Result
from keras_minilmv2.runs.models import truncated
from keras_minilmv2.runs.settings import Settings, not_compared
from keras_minilmv2.runs.supervised import (
    calibration_batches,
    removal_metric,
    train_and_score,
)
from keras_minilmv2.utils.checks import check_choice, check_int, check_number
from keras_minilmv2.utils.files import writing
from keras_minilmv2.utils.tables import percent

# What stands in the place of a task, and of an encoder, in a cell.
PRETRAINING, WHOLE = "pretraining", "whole"
ORDERS = ("iterative", "one_shot")
IMPORTANCE = "importance"


@dataclass(frozen=True, kw_only=True)
class StudySettings(Settings):
    """What a study of heads measures.

    Args:
        task: tuple of str. Names of tasks.
        seed: tuple of int, of fine-tuning.
        shares: tuple of float from 0 to 1. Shares of heads removed: of the curves, and
            of the scores before fine-tuning.
        tuned_shares: tuple of float. Shares whose encoders are fine-tuned, and compared
            with random heads at equal loss. Defaults to `shares`.
        first_layers: tuple of int. Truncated encoders to compare with, by the number of
            their layers. Defaults to half of the layers.
        order: str. `"iterative"`, importance computed again as heads go, or
            `"one_shot"`: the order that encoders are pruned in.
        heads_per_step: int. Heads that go between two computations of the iterative
            order. Defaults to a tenth of them.
        num_random_orders: int, of the curve of random heads.
        kind: str, as for `GateStatistics.scores`.
        normalize: bool, as for `GateStatistics.scores`.
        num_importance_examples: int. Sequences of text, and training rows of each task,
            that importance is computed on.
        num_loss_examples: int. Other sequences, which the loss is computed on.
        sequence_length: int, tokens of the text.
        batch_size: int, sequences of text.
        held_out_every: int or None. Every N-th chunk of the corpus is read, those that
            pre-training with the same number holds out; None reads it all.
        document_separator: str, as for `Corpus`.
        decode_errors: str, as for `Corpus`.
        text_seed: int. Of the sequences, their masked tokens and the training rows.
        learning_rate: float, of fine-tuning. Defaults to the task's.
        epochs: int. Defaults to the first of the task's.
        task_batch_size: int. Defaults to the task's.
        task_sequence_length: int. Defaults to the task's.
        num_train_examples: int. Fine-tune on N examples. Defaults to all.
        num_dev_examples: int. Score N examples. Defaults to all.
        tolerance: float. Score that may be lost, see `acceptable_deduction`.
        num_permutations: int, see `coherence`.

    Raises:
        ValueError, TypeError: if a value is out of its range or of another type.
    """

    # Grid.
    task: tuple[str, ...]
    seed: tuple[int, ...] = not_compared(default=(0, 1, 2))
    shares: tuple[float, ...] = tuple(number / 10 for number in range(10))
    tuned_shares: tuple[float, ...] | None = None
    first_layers: tuple[int, ...] | None = not_compared(default=None)
    # Heads.
    order: str = "iterative"
    heads_per_step: int | None = None
    num_random_orders: int = 5
    kind: str = "absolute"
    normalize: bool = True
    num_importance_examples: int = 512
    # Text.
    num_loss_examples: int = 256
    sequence_length: int = 128
    batch_size: int = 32
    held_out_every: int | None = 100
    document_separator: str = "blank_line"
    decode_errors: str = "strict"
    text_seed: int = 0
    # Fine-tuning.
    learning_rate: float | None = None
    epochs: int | None = None
    task_batch_size: int | None = None
    task_sequence_length: int | None = None
    num_train_examples: int | None = None
    num_dev_examples: int | None = None
    # What is made of the numbers.
    tolerance: float = not_compared(default=0.01)
    num_permutations: int = not_compared(default=2_000)

    def check(self):
        """Raises unless all values are in their ranges."""
        for name in ("task", "seed", "shares"):
            if not getattr(self, name):
                raise ValueError(
                    f"`{name}` must have a value. Received: {name}={()!r}."
                )
        for seed in (*self.seed, self.text_seed):
            check_int(least=0, below=2**32, seed=seed)
        for name in ("shares", "tuned_shares"):
            for share in getattr(self, name) or ():
                check_number(least=0, most=1, **{name: share})
        for layers in self.first_layers or ():
            check_int(first_layers=layers)
        check_choice(ORDERS, order=self.order)
        check_choice(KINDS, kind=self.kind)
        for name in (
            *("heads_per_step", "num_random_orders", "num_importance_examples"),
            *("num_loss_examples", "sequence_length", "batch_size", "epochs"),
            *("task_batch_size", "task_sequence_length", "num_train_examples"),
            *("num_dev_examples", "num_permutations"),
        ):
            if getattr(self, name) is not None:
                check_int(**{name: getattr(self, name)})
        if self.learning_rate is not None:
            check_number(above=0, learning_rate=self.learning_rate)
        check_number(least=0, tolerance=self.tolerance)

    @property
    def pruned_shares(self):
        """The shares that encoders are fine-tuned at; 0 is the whole encoder."""
        shares = self.shares if self.tuned_shares is None else self.tuned_shares
        return sorted(set(shares) - {0.0})

    @classmethod
    def _noun(cls):
        return "The settings of a study"


@dataclass(frozen=True, order=True)
class StudyCell:
    """One measurement of a study.

    Args:
        encoder: str. `"whole"`, `"importance 0.3"` (share of heads removed), `"random
            0.3"` (at equal loss), `"first 3"` (layers), `"student NAME"`; or an order
            of removal, `"order iterative"`.
        task: str. The task, or `"pretraining"`.
        seed: int. Of fine-tuning, and of random orders.
    """

    encoder: str
    task: str
    seed: int

    def __str__(self):
        return f"{self.encoder}, {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Encoder:
    """An encoder of a study; its trainer is None without a masked-token head."""

    backbone: object
    tokenizer: object
    trainer: object = None


@dataclass(frozen=True)
class TaskData:
    """A task with its options and its examples.

    Args:
        task: `Task`.
        train_examples: as `Task.load` gives them.
        dev_examples: likewise.
        read: dict of the features of both by the identity of a tokenizer.
    """

    task: object
    train_examples: object
    dev_examples: object
    read: dict = field(default_factory=dict)

    def features(self, encoder):
        """The features of both splits as an encoder reads them."""
        key = id(encoder.tokenizer)
        if key not in self.read:
            self.read[key] = tuple(
                self.task.features(examples, encoder.backbone, encoder.tokenizer)
                for examples in (self.train_examples, self.dev_examples)
            )
        return self.read[key]


@dataclass(eq=False)
class Study:
    """A study: what is measured, and the results so far.

    Args:
        settings: `StudySettings`.
        whole: `Encoder` that is studied.
        first_layers: tuple of int.
        students: dict of `Encoder` by name.
        tasks: dict of `TaskData` by name.
        loss_batches: list of dicts of arrays.
        importance_batches: list of dicts of arrays.
        path: path of the run.
        results: dict of `Result` by `StudyCell`.
        progress_stream: text stream, or None.
    """

    settings: StudySettings
    whole: Encoder
    first_layers: tuple
    students: dict
    tasks: dict
    loss_batches: list
    importance_batches: list
    path: Path = None
    results: dict = field(default_factory=dict)
    progress_stream: object = None

    @property
    def others(self):
        """Names of the encoders to compare with: truncated ones and students."""
        return [*(f"first {number}" for number in self.first_layers), *self.students]

    def cells(self):
        """All cells, each after those whose results it needs."""
        settings = self.settings
        seeds = dict.fromkeys(settings.seed)
        cells = [StudyCell(WHOLE, PRETRAINING, 0)]
        cells += [StudyCell(f"order {name}", PRETRAINING, 0) for name in ORDERS]
        cells += [StudyCell("order reversed", PRETRAINING, 0)]
        cells += [
            StudyCell("order random", PRETRAINING, seed)
            for seed in range(settings.num_random_orders)
        ]
        pruned = [f"importance {share:g}" for share in settings.pruned_shares]
        random = [f"random {share:g}" for share in settings.pruned_shares]
        single = [*pruned, *self.others]
        cells += [StudyCell(name, PRETRAINING, 0) for name in single]
        cells += [StudyCell(n, PRETRAINING, seed) for n in random for seed in seeds]
        cells += [
            StudyCell(name, task, seed)
            for name in (WHOLE, *pruned, *random, *self.others)
            for task in self.tasks
            for seed in seeds
        ]
        return cells

    def run(self, cell):
        """Runs a cell; returns its `Result` and None: no model is kept."""
        started = time.perf_counter()
        if cell.task != PRETRAINING:
            result = self._fine_tune(cell)
        else:
            kind, _, rest = cell.encoder.partition(" ")
            if kind == WHOLE:
                found = self._pretraining_importance()
            elif kind == "order":
                found = self._curve(rest, cell.seed)
            else:
                found = self._pretraining_loss(cell)
            result = Result(found.pop("score"), found)
        result = dataclasses.replace(result, seconds=time.perf_counter() - started)
        self.results[cell] = result
        return result, None

    def show(self, cell, result):
        """What came out of a cell, in words."""
        if cell.task in self.tasks:
            task = self.tasks[cell.task].task
            return f"{task.dev_split} {task.main_metric} {percent(result.score)}"
        if result.metrics.get("loss", 0.0) is None:
            return "no masked-token head: the loss is not measured"
        return f"loss {result.score:.4f}"

    # Pre-training.

    @functools.cached_property
    def loss_of(self):
        """The masked-token loss of the whole encoder without some heads."""
        return masked_token_loss(
            self.whole.trainer, self.loss_batches, self.settings.text_seed
        )

    def _pretraining_importance(self):
        importance = self._importance_of_text()
        self._save_importance(importance, PRETRAINING)
        loss = self.loss_of()
        entropy = unigram_entropy(self.loss_batches, self.whole.tokenizer)
        return {"score": loss, "loss": loss, "unigram_entropy": entropy}

    def _importance_of_text(self, head_mask=None):
        return head_importance(
            self.whole.trainer,
            self.importance_batches,
            head_mask=head_mask,
            neurons=False,
            fisher_blocks=(),
            seed=self.settings.text_seed,
        )

    def scores_of(self, importance):
        """The importance that heads are ranked by, `(layers or blocks, heads)`."""
        statistics, _ = head_statistics(importance)
        return statistics.scores(self.settings.kind, self.settings.normalize)

    @functools.cached_property
    def _shape(self):
        """Shape of the heads that have weights, and the block of each layer."""
        statistics, blocks = head_statistics(self.importance(PRETRAINING))
        return statistics.absolute.shape, blocks

    def order(self, name, seed=0):
        """A `RemovalOrder` of those that cells are about."""
        shape, blocks = self._shape
        if name == "random":
            return random_order(shape, seed, blocks)
        if name == "reversed":
            return reversed_order(self.order(self.settings.order))
        cell = StudyCell(f"order {name}", PRETRAINING, 0)
        if cell in self.results:
            return order_by_scores(name, self.results[cell].metrics["ranks"], blocks)
        if name == "one_shot":
            scores = self.scores_of(self.importance(PRETRAINING))
            return order_by_scores(name, scores, blocks)
        return iterative_order(
            name,
            lambda mask: self.scores_of(self._importance_of_text(mask)),
            shape,
            self.settings.heads_per_step or max(1, round(0.1 * np.prod(shape))),
            blocks,
        )

    def _curve(self, name, seed):
        order = self.order(name, seed)
        shares = sorted({0.0, *self.settings.shares, 1.0})
        curve = removal_curve(lambda mask, _: self.loss_of(mask), order, shares)
        found = {
            "score": float(curve.scores[0, -1]),
            "shares": shares,
            "removed": curve.removed[0].tolist(),
            "losses": curve.scores[0].tolist(),
        }
        if name in ORDERS:
            found["ranks"] = self._ranks(order)
        return found

    def _ranks(self, order):
        """When each head goes, from 0, shaped as the heads that have weights."""
        _, blocks = self._shape
        ranks = order.head_masks.sum(axis=0).astype(int) - 1
        if blocks is not None:
            ranks = ranks[np.unique(blocks, return_index=True)[1]]
        return ranks.tolist()

    def curve(self, name, seeds=(0,)):
        """The `RemovalCurve` of an order's cells."""
        curves = []
        for seed in seeds:
            found = self.results[StudyCell(f"order {name}", PRETRAINING, seed)].metrics
            shares, removed, losses = (
                np.array(found[key]) for key in ("shares", "removed", "losses")
            )
            curves.append(RemovalCurve(name, shares, removed[None], losses[None]))
        return joined(curves)

    def _pretraining_loss(self, cell):
        found = {}
        kind, _, rest = cell.encoder.partition(" ")
        if kind == "random":
            pruned = StudyCell(f"importance {rest}", PRETRAINING, 0)
            target = self.results[pruned].metrics["loss"]
            order = self.order("random", cell.seed)
            found["step"], _ = step_of_loss(order, self.loss_of, target)
            encoder = self._pruned(order.head_masks[found["step"]])
        else:
            encoder = self.encoder(cell.encoder)
        found["heads"] = sum(layer_counts(encoder.backbone)[0])
        found["parameters"] = encoder.backbone.count_params()
        if not self._has_loss(encoder):
            return {"score": 0.0, "loss": None, **found}
        loss_of = masked_token_loss(
            encoder.trainer, self.loss_batches, self.settings.text_seed
        )
        loss = loss_of()
        return {"score": loss, "loss": loss, **found}

    def _has_loss(self, encoder):
        """Whether an encoder predicts tokens, and the same ones."""
        ours, theirs = (
            list(each.tokenizer.get_vocabulary()) for each in (self.whole, encoder)
        )
        return encoder.trainer is not None and ours == theirs

    # Encoders.

    def encoder(self, name, seed=0):
        """The `Encoder` that a cell is about."""
        kind, _, rest = name.partition(" ")
        if name == WHOLE:
            return self.whole
        if kind == "student":
            return self.students[name]
        if kind == "first":
            return self._with_head(truncated(self.whole.backbone, int(rest)))
        return self._pruned(self.head_mask(name, seed))

    def head_mask(self, name, seed=0):
        """The mask of a pruned encoder, `(num_layers, num_heads)`."""
        kind, _, share = name.partition(" ")
        if kind == "importance":
            return self.order(self.settings.order).at(float(share))[0]
        found = self.results[StudyCell(name, PRETRAINING, seed)].metrics
        return self.order("random", seed).head_masks[found["step"]]

    def _pruned(self, head_mask):
        return self._with_head(prune_heads(self.whole.backbone, head_mask))

    def _with_head(self, backbone):
        tokenizer = self.whole.tokenizer
        trainer = trainer_like(self.whole.trainer, backbone, tokenizer)
        return Encoder(backbone, tokenizer, trainer)

    # Tasks.

    def _fine_tune(self, cell):
        settings, data = self.settings, self.tasks[cell.task]
        task, encoder = data.task, self.encoder(cell.encoder, cell.seed)
        train, dev = data.features(encoder)
        model = task.model(encoder.backbone, cell.seed)
        model, losses, metrics = train_and_score(
            task,
            model,
            train,
            dev,
            data.dev_examples,
            Cell(
                settings.learning_rate or task.learning_rate,
                settings.epochs or task.epochs[0],
                cell.seed,
            ),
            batch_size=settings.task_batch_size or task.batch_size,
            progress_stream=self.progress_stream,
        )
        score = metrics.get(task.main_metric)
        if cell.encoder == WHOLE and score is not None:
            batches = calibration_batches(
                train, settings.num_importance_examples, settings.text_seed
            )
            importance = head_importance(
                model, batches, task, neurons=False, fisher_blocks=()
            )
            self._save_importance(importance, cell.task, cell.seed)
            score_without = removal_metric(
                task, model, dev, task.dev_split, data.dev_examples
            )
            metrics["removed"] = {
                name: score_without(self.head_mask(name, cell.seed))
                for name in self.before_tuning
            }
        return Result(score, metrics, losses)

    @property
    def before_tuning(self):
        """Names of the pruned encoders that are scored without fine-tuning them."""
        settings = self.settings
        shares = sorted({*settings.shares, *settings.pruned_shares} - {0.0})
        random = (f"random {share:g}" for share in settings.pruned_shares)
        return [*(f"importance {share:g}" for share in shares), *random]

    def _save_importance(self, importance, task, seed=0):
        path = self._importance_file(task, seed)
        with writing(self.path):
            path.parent.mkdir(exist_ok=True)
            importance.save(path)

    def _importance_file(self, task, seed):
        name = task if task == PRETRAINING else f"{task}-{seed}"
        return self.path / IMPORTANCE / f"{name}.npz"

    def importance(self, task, seed=0):
        """The `HeadImportance` of a loss."""
        return HeadImportance.load(self._importance_file(task, seed))
