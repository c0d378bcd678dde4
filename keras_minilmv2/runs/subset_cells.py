"""The settings and the measurements of subset pruning, cell by cell."""

import functools
import itertools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.downstream.saved import load_fine_tuned
from keras_minilmv2.heads.budget import gradual_importance, keep_within
from keras_minilmv2.heads.costs import operation_costs
from keras_minilmv2.heads.gates import block_of_layer
from keras_minilmv2.heads.importance import head_importance
from keras_minilmv2.heads.l0_gates import L0Gates
from keras_minilmv2.heads.orders import iterative_order, random_order
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.study import head_statistics
from keras_minilmv2.heads.subset import (
    VARIANTS,
    HeadSubset,
    TemperatureSchedule,
    check_kept,
)
from keras_minilmv2.heads.subset_training import FACTS, SubsetTraining
from keras_minilmv2.runs.compress import CompressionSettings, importance_and_fit
from keras_minilmv2.runs.grid import Cell, Result
from keras_minilmv2.runs.models import truncated
from keras_minilmv2.runs.settings import Settings, not_compared
from keras_minilmv2.runs.supervised import (
    calibration_batches,
    in_float32,
    save_task_model,
    train_model,
    with_backbone,
)
from keras_minilmv2.runs.teacher import train_with_teacher
from keras_minilmv2.training.checkpoints import Checkpoints
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.training.supervised import NotFiniteError
from keras_minilmv2.utils.checks import check_choice, check_int, check_number
from keras_minilmv2.utils.files import remove, writing

WHOLE = "whole"
L0 = "l0"
# Whether the encoder is trained with its gates, or was before.
JOINT, PIPELINED = "joint", "pipelined"
LEARNED = tuple(
    f"{mode}_{kind}"
    for mode, kind in itertools.product((JOINT, PIPELINED), (*VARIANTS, L0))
)
RANKED = ("absolute", "fisher")
OTHERS = ("random", "depth", "compress")
METHODS = (*LEARNED, *RANKED, *OTHERS)
STARTS, CHECKPOINTS = "starts", "checkpoints"
# A policy that scales losses is not for two optimizers.
POLICIES = ("float32", "mixed_bfloat16")


@dataclass(frozen=True, kw_only=True)
class SubsetSettings(Settings):
    """How heads are chosen, by which methods, and what is trained.

    Args:
        num_kept_heads: tuple of int, K.
        method: tuple of str. `"joint_KIND"`: gates and encoder are trained together,
            from the encoder that was given; `"pipelined_KIND"`: the encoder is
            fine-tuned, then the gates alone are trained. KIND is `gumbel`,
            `straight_through` or `bounded`, see `HeadSubset`, or `l0`, see `L0Gates`.
            `"absolute"`, `"fisher"`: the most important heads, computed again after
            each tenth; `"random"`; `"depth"`: the first layers, where K is a multiple
            of a layer's heads; `"compress"`: heads and neurons by Fisher information
            within the operations of the first K heads, refitted by least squares.
        seed: tuple of int. Of fine-tuning, logits, noise, order of the data, and
            random heads.
        num_random: int. Random draws for each seed.
        learning_rate: float, peak, of fine-tuning. Defaults to the task's.
        epochs: int, of fine-tuning, and of joint training. Defaults to the task's.
        search_epochs: int. Of the gates alone, of pipelined methods.
        retraining_epochs: int. After the heads are removed, the same for all methods;
            0 for none.
        gates_learning_rate: float, of logits; falls to 0.
        initial_temperature: float.
        final_temperature: float.
        cooldown: float above 0, at most 1. The share of the training of gates in which
            the temperature, and the wanted number of `l0`, fall.
        gradient_clip_norm: float. Of the encoder and of the gates, each for itself.
        distill: float from 0 to 1, and relation_weight: float. Of the loss while gates
            are trained and in retraining, see `train_with_teacher`. The teacher is the
            fine-tuned encoder with all heads.
        relation_weight: float.
        num_held_out_examples: int. Training examples that are not trained on: models
            are chosen on them.
        num_importance_examples: int. Training rows that importance is computed on.
        num_train_examples: int. Train on N examples. Defaults to all.
        num_dev_examples: int. Score N examples. Defaults to all.
        batch_size: int. Defaults to the task's.
        sequence_length: int. Defaults to the task's.
        dtype_policy: str, of training: `"float32"` or `"mixed_bfloat16"`.
        checkpoint_every: int. Steps of the training of gates between two checkpoints.

    Raises:
        ValueError, TypeError: if a value is out of its range or of another type.
    """

    # Grid.
    num_kept_heads: tuple[int, ...] = not_compared(default=(24,))
    method: tuple[str, ...] = not_compared(default=("pipelined_bounded",))
    seed: tuple[int, ...] = not_compared(default=(0,))
    num_random: int = not_compared(default=5)
    # Fine-tuning.
    learning_rate: float | None = None
    epochs: int | None = None
    search_epochs: int = 1
    retraining_epochs: int = 1
    batch_size: int | None = None
    sequence_length: int | None = None
    num_train_examples: int | None = None
    num_dev_examples: int | None = None
    num_held_out_examples: int = 1_000
    num_importance_examples: int = 2_048
    dtype_policy: str = "float32"
    # Gates.
    gates_learning_rate: float = 0.5
    initial_temperature: float = 1_000.0
    final_temperature: float = 1e-8
    cooldown: float = 0.68
    gradient_clip_norm: float = 1.0
    # Teacher.
    distill: float = 0.0
    relation_weight: float = 0.0
    checkpoint_every: int = not_compared(default=500)

    def check(self):
        """Raises unless all values are in their ranges."""
        for name in ("num_kept_heads", "method", "seed"):
            if not getattr(self, name):
                raise ValueError(
                    f"`{name}` must have a value. Received: {name}={()!r}."
                )
        for kept in self.num_kept_heads:
            check_int(num_kept_heads=kept)
        for method in self.method:
            check_choice(METHODS, method=method)
        for seed in self.seed:
            check_int(least=0, below=2**32, seed=seed)
        for name in (
            *("num_random", "search_epochs", "num_held_out_examples"),
            *("num_importance_examples", "checkpoint_every"),
        ):
            check_int(**{name: getattr(self, name)})
        for name in (
            *("epochs", "batch_size", "sequence_length"),
            *("num_train_examples", "num_dev_examples"),
        ):
            if getattr(self, name) is not None:
                check_int(**{name: getattr(self, name)})
        check_int(least=0, retraining_epochs=self.retraining_epochs)
        for name in (
            *("gates_learning_rate", "initial_temperature", "final_temperature"),
            "gradient_clip_norm",
        ):
            check_number(above=0, **{name: getattr(self, name)})
        if self.learning_rate is not None:
            check_number(above=0, learning_rate=self.learning_rate)
        check_number(above=0, most=1, cooldown=self.cooldown)
        check_number(least=0, most=1, distill=self.distill)
        check_number(least=0, relation_weight=self.relation_weight)
        check_choice(POLICIES, dtype_policy=self.dtype_policy)

    @classmethod
    def _noun(cls):
        return "The settings of a subset of heads"


@dataclass(frozen=True, order=True)
class SubsetCell:
    """One choice of heads.

    Args:
        method: str, one of `METHODS`, or `"whole"`.
        num_kept_heads: int.
        seed: int.
        draw: int. Which of several random ones; 0 for other methods.
    """

    method: str
    num_kept_heads: int
    seed: int
    draw: int = 0

    def __str__(self):
        draw = f", draw {self.draw}" if self.method == "random" else ""
        return f"{self.method}, {self.num_kept_heads} heads, seed {self.seed}{draw}"

    @property
    def name(self):
        """The name of its directories."""
        return f"{self.method}-{self.num_kept_heads}-{self.seed}"


@dataclass(eq=False)
class Subsets:
    """What the cells of a run share, and their measurements.

    Args:
        settings: `SubsetSettings`.
        task: `Task` with its options.
        load_encoder: function without arguments that returns the encoder and its
            tokenizer as they were given, in the policy of training.
        train_examples: as `Task.load` gives them.
        dev_examples: likewise.
        path: path of the run.
        progress_stream: text stream, or None.
    """

    settings: SubsetSettings
    task: object
    load_encoder: object
    train_examples: object
    dev_examples: object
    path: Path = None
    progress_stream: object = None
    _starts: dict = field(default_factory=dict)
    _orders: dict = field(default_factory=dict)

    @functools.cached_property
    def encoder(self):
        """The encoder as it was given, and its tokenizer."""
        return self.load_encoder()

    @functools.cached_property
    def _split(self):
        """Examples to train on, and those that are held out."""
        settings = self.settings
        order = np.random.default_rng(0).permutation(len(self.train_examples))
        number = settings.num_held_out_examples
        kept = self.train_examples.take(np.sort(order[number:]))
        if settings.num_train_examples is not None:
            kept = kept.sample(settings.num_train_examples)
        return kept, self.train_examples.take(np.sort(order[:number]))

    @functools.cached_property
    def train(self):
        """`Features` that are trained on."""
        return self.task.features(self._split[0], *self.encoder)

    @functools.cached_property
    def scored(self):
        """Split, examples and features by what models are scored on."""
        task = self.task
        parts = {
            "held_out": ("train", self._split[1]),
            "dev": (task.dev_split, self.dev_examples),
        }
        return {
            name: (split, examples, task.features(examples, *self.encoder))
            for name, (split, examples) in parts.items()
        }

    @functools.cached_property
    def shape(self):
        """Layers, and heads of each."""
        backbone, _ = self.encoder
        return len(block_calls(backbone)), backbone.num_heads

    @functools.cached_property
    def blocks(self):
        """The index of each layer's block."""
        return block_of_layer(self.encoder[0])

    @property
    def gates_shape(self):
        """Blocks that have weights of their own, and heads of each."""
        return int(self.blocks.max()) + 1, self.shape[1]

    @property
    def batch_size(self):
        """Rows of a batch."""
        return self.settings.batch_size or self.task.batch_size

    def cells(self):
        """All cells; one with every head for each seed first."""
        settings, found = self.settings, []
        num_heads = int(np.prod(self.gates_shape))
        for seed in dict.fromkeys(settings.seed):
            found.append(SubsetCell(WHOLE, num_heads, seed))
            for kept, method in itertools.product(
                dict.fromkeys(settings.num_kept_heads), dict.fromkeys(settings.method)
            ):
                if method == "depth" and kept % self.shape[1]:
                    continue
                draws = range(settings.num_random) if method == "random" else (0,)
                found += [SubsetCell(method, kept, seed, draw) for draw in draws]
        return found

    def cells_with_fewer_heads(self):
        """Those that remove heads."""
        return [cell for cell in self.cells() if cell.method != WHOLE]

    def run(self, cell):
        """Runs a cell; returns its `Result` and its model."""
        started = time.perf_counter()
        try:
            model, facts = self._chosen(cell)
            metrics, held_out = dict(facts), self._score(model, "held_out")
            metrics["held_out"] = held_out
            metrics["dev"] = self._score(model, "dev")
            losses = []
            if self.settings.retraining_epochs:
                model, losses = self._retrained(cell, model)
                held_out = metrics["held_out_retrained"] = self._score(
                    model, "held_out"
                )
                metrics["dev_retrained"] = self._score(model, "dev")
        except NotFiniteError:
            return Result(None, seconds=time.perf_counter() - started), None
        heads, neurons = layer_counts(model.backbone)
        metrics |= {"heads": list(heads), "neurons": list(neurons)}
        metrics["parameters"] = model.backbone.count_params()
        with writing(self.path):
            remove(self.path / CHECKPOINTS / cell.name)
        return Result(held_out, metrics, losses, time.perf_counter() - started), model

    def show(self, cell, result):
        """What came out of a cell, in words."""
        name = f"{self.task.dev_split} {self.task.main_metric}"
        shown = f"{name} {100 * result.metrics['dev']:.2f}"
        if "dev_retrained" in result.metrics:
            shown += f", retrained {100 * result.metrics['dev_retrained']:.2f}"
        return shown

    def _score(self, model, part):
        split, examples, features = self.scored[part]
        found = self.task.evaluate(model, features, split, examples)
        return found.metrics[self.task.main_metric]

    # Models.

    def start(self, seed):
        """The encoder with all heads, fine-tuned with a seed."""
        if seed not in self._starts:
            path = self.path / STARTS / str(seed)
            if not path.exists():
                model = self._new_model(seed)
                self._train(model, self._cell(seed, self._epochs), weighs=False)
                model = in_float32(self.task, model)
                with writing(self.path):
                    path.parent.mkdir(exist_ok=True)
                    save_task_model(self.task, model, self.encoder[1], path, {})
            # One at a time is held.
            self._starts = {seed: load_fine_tuned(path).model}
        return self._starts[seed]

    @property
    def _epochs(self):
        return self.settings.epochs or self.task.epochs[0]

    def _cell(self, seed, epochs):
        rate = self.settings.learning_rate or self.task.learning_rate
        return Cell(rate, epochs, seed)

    def _new_model(self, seed):
        backbone, _ = self.load_encoder()
        return self.task.model(backbone, seed)

    def _train(self, model, cell, weighs=True, **options):
        """Trains a model, with the fine-tuned encoder as teacher where asked."""
        settings = self.settings
        options = {
            "batch_size": self.batch_size,
            "dtype_policy": settings.dtype_policy,
            "progress_stream": self.progress_stream,
            **options,
        }
        if weighs and (settings.distill or settings.relation_weight):
            return train_with_teacher(
                self.task,
                model,
                self.start(cell.seed),
                self.train,
                cell,
                distill=settings.distill,
                relation_weight=settings.relation_weight,
                **options,
            )
        return train_model(self.task, model, self.train, cell, **options)

    def _retrained(self, cell, model):
        model = self._for_training(model, cell.seed)
        seeded = self._cell(cell.seed, self.settings.retraining_epochs)
        losses = self._train(model, seeded)
        return in_float32(self.task, model), losses

    def _for_training(self, model, seed):
        """A copy of a model in the policy of training."""
        policy = self.settings.dtype_policy
        return with_backbone(self.task, model, model.backbone, seed, policy)

    # Choices of heads.

    def _chosen(self, cell):
        """A model without the heads that a method removes, and facts of the choice."""
        if cell.method == WHOLE:
            return self.start(cell.seed), {}
        if cell.method in LEARNED:
            return self._learned(cell)
        start = self.start(cell.seed)
        if cell.method == "depth":
            backbone = truncated(start.backbone, cell.num_kept_heads // self.shape[1])
            return with_backbone(self.task, start, backbone), {}
        if cell.method == "compress":
            return self._compressed(cell, start), {}
        order = self._order(cell)
        mask = order.head_masks[int(np.prod(self.gates_shape)) - cell.num_kept_heads]
        return self._pruned(start, mask, None), {"mask": mask.astype(int).tolist()}

    def _pruned(self, model, head_mask, neuron_mask):
        smaller = prune_heads(model.backbone, head_mask, neuron_mask)
        return with_backbone(self.task, model, smaller)

    def _batches(self, seed):
        number = self.settings.num_importance_examples
        return calibration_batches(self.train, number, (seed, 1))

    def _order(self, cell):
        """The `RemovalOrder` of a method; every number of heads is a step of it."""
        key = cell.method, cell.seed, cell.draw
        if key in self._orders:
            return self._orders[key]
        shared = None if len(set(self.blocks)) == len(self.blocks) else self.blocks
        if cell.method == "random":
            seed = self.settings.num_random * cell.seed + cell.draw
            order = random_order(self.gates_shape, seed, shared)
        else:
            model, batches = self.start(cell.seed), self._batches(cell.seed)

            def scores_of(mask):
                importance = head_importance(
                    model,
                    batches,
                    self.task,
                    head_mask=mask,
                    neurons=False,
                    fisher_blocks=(),
                )
                return head_statistics(importance)[0].scores(cell.method)

            order = iterative_order(
                cell.method,
                scores_of,
                self.gates_shape,
                max(1, round(np.prod(self.gates_shape) / 10)),
                shared,
            )
        self._orders[key] = order
        return order

    def _compressed(self, cell, start):
        """Heads and neurons within the operations of K heads and all neurons."""
        backbone = start.backbone
        costs = operation_costs(backbone, self.task.sequence_length)
        heads, neurons = layer_counts(backbone)
        share = cell.num_kept_heads / int(np.prod(self.gates_shape))
        removed = costs.heads[-1] * len(heads) * (1 - share)
        whole = costs.total(heads, neurons)
        if not removed:
            return start
        speedup = whole / (whole - removed)
        measure, refit = importance_and_fit(
            self.task, start, self._batches(cell.seed), seed=cell.seed
        )
        rounds = gradual_importance(
            measure, refit, backbone, costs, speedup, CompressionSettings.num_rounds
        )
        kept = keep_within(backbone, rounds[-1], costs, speedup)
        masks = kept.head_mask, kept.neuron_mask
        return with_backbone(self.task, start, prune_heads(refit(*masks), *masks))

    def _learned(self, cell):
        """Trains gates, alone or with the encoder, and removes what they close."""
        settings = self.settings
        mode, _, kind = cell.method.partition("_")
        joint = mode == JOINT
        epochs = self._epochs if joint else settings.search_epochs
        num_rows = len(self.train.training_rows())
        total_steps = epochs * math.ceil(num_rows / self.batch_size)
        cooldown = max(1, round(settings.cooldown * total_steps))
        sizes = (*self.gates_shape, cell.num_kept_heads)
        if kind == L0:
            gates = L0Gates(*sizes, cooldown_steps=cooldown, seed=cell.seed)
        else:
            gates = HeadSubset(*sizes, variant=kind, seed=cell.seed)
        if joint:
            model = self._new_model(cell.seed)
        else:
            model = self._for_training(self.start(cell.seed), cell.seed)
        checkpoints = Checkpoints(self.path / CHECKPOINTS / cell.name, num_kept=1)
        training = None

        def make_step(training_model, loss, optimizer, jit_compile):
            nonlocal training
            training = SubsetTraining(
                training_model,
                gates,
                loss,
                optimizer if joint else None,
                adamw(
                    settings.gates_learning_rate,
                    0,
                    total_steps,
                    weight_decay=0.0,
                    epsilon=1e-8,
                    gradient_clip_norm=settings.gradient_clip_norm,
                ),
                TemperatureSchedule(
                    settings.initial_temperature,
                    settings.final_temperature,
                    cooldown,
                    total_steps,
                ),
                jit_compile=jit_compile,
            )
            return training.step

        def resume():
            arrays, _ = checkpoints.latest(training)
            if arrays is None:
                return None
            checkpoints.restore(arrays, training)
            _, notes = checkpoints.notes(arrays)
            training.facts[:] = notes["facts"]
            return notes["state"]

        def keep(step, state):
            if step % settings.checkpoint_every == 0 or step == total_steps:
                with writing(self.path):
                    checkpoints.save(
                        step, training, {"state": state, "facts": training.facts}
                    )

        self._train(
            model,
            self._cell(cell.seed, epochs),
            make_step=make_step,
            start=resume,
            keep=keep,
        )
        masks = training.masks()
        facts = _facts(training.facts) | {"mask": masks[0].tolist()}
        if kind == L0:
            facts["num_open"] = gates.num_open()
        return self._pruned(in_float32(self.task, model), *masks), facts


def _facts(steps):
    """Means of what was watched, over each tenth of the training."""
    parts = np.array_split(np.array([[s[name] for name in FACTS] for s in steps]), 10)
    means = np.array([part.mean(axis=0) for part in parts if len(part)])
    return {name: means[:, i].tolist() for i, name in enumerate(FACTS)}


def check_sizes(settings, shape):
    """Raises unless as many heads can be kept as asked.

    Args:
        settings: `SubsetSettings`.
        shape: layers, or blocks, and heads of each.
    """
    for kept in settings.num_kept_heads:
        check_kept(kept, int(np.prod(shape)))
