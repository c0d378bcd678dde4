"""Which heads and feed-forward neurons a loss depends on, in one pass over examples."""

import dataclasses
import functools
import json
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from keras_minilmv2.backbones.families import zero_segment_ids
from keras_minilmv2.distillation.trainer import StudentTrainer
from keras_minilmv2.downstream.tasks import Task
from keras_minilmv2.heads.gates import (
    HEAD_GATE,
    NEURON_GATE,
    block_of_layer,
    checked_mask,
    gate_shapes,
    gated_model,
)
from keras_minilmv2.training.supervised import NotFiniteError, compiled
from keras_minilmv2.utils.checks import check_choice, check_int
from keras_minilmv2.utils.datasets import without_autotune
from keras_minilmv2.utils.devices import runs_on_accelerator
from keras_minilmv2.utils.files import replacing_file

KINDS = ("absolute", "fisher")
_GATES = {"heads": HEAD_GATE, "neurons": NEURON_GATE}
# Fields of a result that may be None.
_OPTIONAL = (
    "neurons",
    "shared_heads",
    "shared_neurons",
    "head_blocks",
    "neuron_blocks",
)


@dataclass(frozen=True, eq=False)
class GateStatistics:
    """Moments over examples of a loss' derivatives with respect to gates.

    `g_i` is the derivative of example i's loss with respect to its own gate, at the
    masks that were given. Examples fall into two halves, every other one each.

    Args:
        counts: int64 `(2,)`. Examples of each half.
        absolutes: float64 `(2, layers, gates)`. Sums of `|g_i|` of each half.
        squares: likewise, sums of `g_i^2`.
        fourths: likewise, sums of `g_i^4`.
    """

    counts: np.ndarray
    absolutes: np.ndarray
    squares: np.ndarray
    fourths: np.ndarray

    @property
    def absolute(self):
        """`E |g|`, `(layers, gates)`: importance as Michel et al. (2019) have it."""
        return self.absolutes.sum(axis=0) / self.counts.sum()

    @property
    def fisher(self):
        """`E g^2`, `(layers, gates)`: the diagonal of the empirical Fisher matrix."""
        return self.squares.sum(axis=0) / self.counts.sum()

    @property
    def absolute_error(self):
        """Standard error of `absolute` over examples; nan of a single one."""
        return self._error(self.absolute, self.fisher)

    @property
    def fisher_error(self):
        """Standard error of `fisher` over examples; nan of a single one."""
        return self._error(self.fisher, self.fourths.sum(axis=0) / self.counts.sum())

    def _error(self, mean, mean_of_squares):
        variance = np.maximum(mean_of_squares - mean**2, 0.0)
        degrees = float(self.counts.sum() - 1)
        return np.sqrt(variance / degrees) if degrees else np.full_like(mean, np.nan)

    def scores(self, kind="absolute", normalize=True):
        """Importance, comparable between layers.

        Args:
            kind: str. `"absolute"` or `"fisher"`.
            normalize: bool. Whether each layer's importance is divided by its l2 norm,
                as Michel et al. do. The norm is over what is not removed, which has a
                derivative of 0 here; the last head that a layer has then scores
                exactly 1.

        Returns:
            float64 `(layers, gates)`.
        """
        check_choice(KINDS, kind=kind)
        scores = getattr(self, kind)
        return layer_normalized(scores) if normalize else scores

    def reliability(self, kind="absolute", normalize=True):
        """How well the importance of other examples would rank the gates the same.

        Spearman's rank correlation r between the scores of the two halves, stepped up
        to the number of all examples by Spearman and Brown: `2 r / (1 + r)`.

        Args:
            kind: str. `"absolute"` or `"fisher"`.
            normalize: bool, as for `scores`.

        Returns:
            float, at most 1; 0 where the halves do not agree, nan where one of them has
            no example or scores do not differ.
        """
        check_choice(KINDS, kind=kind)
        if not self.counts.all():
            return float("nan")
        sums = self.absolutes if kind == "absolute" else self.squares
        halves = sums / self.counts[:, None, None]
        # What is removed has no rank.
        kept = self.squares.sum(axis=0) > 0
        ranked = [
            (layer_normalized(half) if normalize else half)[kept] for half in halves
        ]
        if kept.sum() < 2 or any(np.ptp(half) == 0 for half in ranked):
            return float("nan")
        correlation = max(stats.spearmanr(*ranked).statistic, 0.0)
        return float(2 * correlation / (1 + correlation))


@dataclass(frozen=True, eq=False)
class HeadImportance:
    """How much a loss depends on the heads and feed-forward neurons of an encoder.

    Args:
        heads: `GateStatistics`, `(num_layers, num_heads)`; of ALBERT for each
            application of a block.
        neurons: the same, `(num_layers, intermediate_dim)`, or None.
        shared_heads: `GateStatistics` of ALBERT's heads, which are shared by several
            applications: of the sum of the derivatives over these, `(num_blocks,
            num_heads)`. None for other encoders.
        shared_neurons: likewise.
        head_blocks: float64 `(num_layers, num_heads, num_heads)`, `E g g'` of the
            heads of a layer; of shared heads `(num_blocks, ...)`. None if they were not
            asked for.
        neuron_blocks: likewise.
        head_mask: float32 `(num_layers, num_heads)`. Removed heads, 0, have no
            importance.
        neuron_mask: float32 `(num_layers, intermediate_dim)`.
        block_of_layer: int `(num_layers,)`. The index of each layer's block among
            the encoder's; of ALBERT several layers have the same.
        loss: float. Mean loss of the examples.
        num_examples: int. Examples that have a loss.
        num_left_out: int. Others, such as those without a masked token.
    """

    heads: GateStatistics
    neurons: GateStatistics | None
    shared_heads: GateStatistics | None
    shared_neurons: GateStatistics | None
    head_blocks: np.ndarray | None
    neuron_blocks: np.ndarray | None
    head_mask: np.ndarray
    neuron_mask: np.ndarray
    block_of_layer: np.ndarray
    loss: float
    num_examples: int
    num_left_out: int

    def save(self, path):
        """Writes everything to a file in NumPy's npz format.

        Args:
            path: str or path. An existing file is replaced.
        """
        arrays, numbers = {}, {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, GateStatistics):
                for part in dataclasses.fields(value):
                    arrays[f"{field.name}.{part.name}"] = getattr(value, part.name)
            elif isinstance(value, np.ndarray):
                arrays[field.name] = value
            elif value is not None:
                numbers[field.name] = value
        text = np.frombuffer(json.dumps(numbers).encode(), "uint8")
        with replacing_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, numbers=text, **arrays)

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file is not one of these.
        """
        try:
            with np.load(path) as archive:
                arrays = dict(archive)
            values = json.loads(arrays.pop("numbers").tobytes())
            groups = {}
            for name, array in arrays.items():
                group, _, part = name.partition(".")
                if part:
                    groups.setdefault(group, {})[part] = array
                else:
                    values[name] = array
            values |= {name: GateStatistics(**parts) for name, parts in groups.items()}
            return cls(**{**dict.fromkeys(_OPTIONAL), **values})
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise ValueError(
                "`path` must be a file that HeadImportance.save wrote. "
                f"Received: path={str(path)!r}."
            ) from error


def head_importance(
    model,
    dataset,
    loss=None,
    *,
    head_mask=None,
    neuron_mask=None,
    neurons=True,
    fisher_blocks=("heads",),
    seed=0,
    jit_compile="auto",
    on_step=None,
):
    """Measures how much a loss depends on each head and feed-forward neuron.

        absolute  I_lh = E_x |dL(x)/dg_lh|
        Fisher    F_lh = E_x (dL(x)/dg_lh)^2
        blocks    B_l  = E_x (dL(x)/dg_l) (dL(x)/dg_l)'

    where `g_lh` multiplies head h, or neuron h, of layer l and every example x has
    gates of its own. One backward pass for each batch: the sum of its examples' losses
    is differentiated, not their mean. Dropout is off. Weights get no gradient.

    ALBERT's blocks are applied several times: `heads` has a row for each application,
    `shared_heads` one for each block, of `E_x |sum_l dL/dg_lh|` over its applications.

    Public code of Michel et al. takes the absolute value for each token, that of others
    for each batch; ranks of heads then differ.

    Args:
        model: what has the encoder. A trainer of the package, such as
            `RelationDistiller` or `MaskedTokenTrainer`, brings its loss: that of its
            student. A teacher against itself has no gradient; a `MaskedTokenTrainer`
            needs a head that was trained with the encoder. Else a classifier,
            `SpanModel` or another functional Keras model with a dict as input. Its
            `distribute_strategy` is used. It is left as it is.
        dataset: iterable of batches, under several replicas a `tf.data.Dataset`: with a
            trainer what it trains on, else pairs of inputs and targets. Every other
            example belongs to the same half: they should come in random order.
        loss: `Task`, or function of targets and outputs that returns the loss of each
            example, `(batch,)`. None with a trainer.
        head_mask: `(num_layers, num_heads)` of 1 and, for removed heads, 0. Defaults to
            ones.
        neuron_mask: `(num_layers, intermediate_dim)`, likewise.
        neurons: bool. Whether neurons are measured too.
        fisher_blocks: names out of `"heads"` and `"neurons"` whose blocks are returned.
            Those of neurons take `8 * num_layers * intermediate_dim**2` bytes.
        seed: int. Of masked tokens; XLA draws others.
        jit_compile: bool or `"auto"`. Whether XLA compiles the pass; `"auto"` where
            there is a GPU or TPU.
        on_step: function of the number of the batch, from 1, and its mean loss.

    Returns:
        `HeadImportance`.

    Raises:
        TypeError: if `model` can have no gates.
        ValueError: if an argument does not fit the model, or `dataset` has no example
            with a loss.
        NotFiniteError: if a loss or a derivative is not finite.

    Example:

    ```python
    importance = head_importance(classifier, dataset, task)
    importance.heads.scores()  # (num_layers, num_heads)
    importance.heads.reliability()
    ```

    Reference:
        [Michel et al., 2019](https://arxiv.org/abs/1905.10650), section 4.
    """
    fisher_blocks = tuple(fisher_blocks)
    for name in fisher_blocks:
        check_choice(_GATES, fisher_blocks=name)
    if "neurons" in fisher_blocks and not neurons:
        raise ValueError(
            "`neurons` must be set for `fisher_blocks` of neurons. "
            f"Received: neurons={neurons}, fisher_blocks={fisher_blocks}."
        )
    check_int(least=0, seed=seed)
    if jit_compile == "auto":
        jit_compile = runs_on_accelerator()
    with model.distribute_strategy.scope():
        example_losses, gated, encoder = _example_losses(model, loss, seed, jit_compile)
        masks = _masks(gated, head_mask, neuron_mask)
        blocks = block_of_layer(encoder)
        measured = ("heads", "neurons") if neurons else ("heads",)

        # Not a partial, whose arrays tf.function would turn into tensors.
        def step(batch, offset):
            return _statistics(
                batch,
                offset,
                example_losses=example_losses,
                masks=masks,
                measured=measured,
                fisher_blocks=fisher_blocks,
                block_of_layer=blocks,
            )

        check = functools.partial(_check_batch, with_targets=loss is not None)
        total = _total(model, dataset, step, check, jit_compile, on_step)
    return _result(total, masks, blocks, measured)


def attention_entropy(
    model, dataset, *, head_mask=None, neuron_mask=None, jit_compile="auto"
):
    """Measures how widely each head spreads its attention.

        H_lh = E_x mean_t -sum_s a_ts log a_ts

    over the real tokens t of an example, in nats; `a_t` is head h's attention of token
    t in layer l.

    Args:
        model: an encoder, or what holds one, as for `head_importance`; of a trainer
            its student is taken.
        dataset: batches of its inputs, or pairs whose first one is.
        head_mask: as for `head_importance`.
        neuron_mask: as for `head_importance`.
        jit_compile: as for `head_importance`.

    Returns:
        float64 `(num_layers, num_heads)`.

    Raises:
        As `head_importance`.
    """
    if jit_compile == "auto":
        jit_compile = runs_on_accelerator()
    with model.distribute_strategy.scope():
        encoder = model.student if isinstance(model, StudentTrainer) else model
        gated = gated_model(encoder, inner=("attention_entropy",))
        masks = _masks(gated, head_mask, neuron_mask)

        def step(batch, offset):
            inputs = _inputs(gated, batch if isinstance(batch, dict) else batch[0])
            gates = {name: masks[name][None] for name in masks}
            inner = gated({**inputs, **gates}, training=False)["inner"]
            # (layers, batch, heads)
            entropies = tf.stack([layer["attention_entropy"] for layer in inner])
            real = tf.reduce_any(tf.cast(inputs["padding_mask"], "bool"), axis=-1)
            counted = tf.cast(real, entropies.dtype)
            return {
                "entropies": tf.einsum("lbh,b->lh", entropies, counted),
                "num_examples": tf.reduce_sum(counted),
                "num_rows": tf.shape(counted)[0],
            }

        total = _total(model, dataset, step, _check_batch, jit_compile, None)
    return total["entropies"] / total["num_examples"]


def layer_normalized(scores):
    """Scores `(layers, gates)` divided by the l2 norm of their layer.

    A layer whose scores are all 0 keeps them.
    """
    norms = np.linalg.norm(scores, axis=-1, keepdims=True)
    return np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)


def _example_losses(model, loss, seed, static_shapes):
    """What is differentiated, the model with gates, and what has all their layers.

    The first is a function of a batch and gates that returns the losses of examples and
    whether they count.
    """
    if isinstance(model, StudentTrainer):
        if loss is not None:
            raise ValueError(
                "`loss` must not be given with a trainer, which has its own. "
                f"Received: loss={loss!r}, model of type {type(model).__name__}."
            )
        gated = gated_model(model.student_part, sizes_of=model.student)
        generator = keras.random.SeedGenerator(seed)

        def of_trainer(batch, gates):
            def student_part(inputs):
                return gated({**inputs, **gates}, training=False)

            return model.example_losses(batch, student_part, generator, static_shapes)

        return of_trainer, gated, model.student
    if loss is None:
        raise ValueError(
            "`loss` must be given unless `model` is a trainer. Received: loss=None, "
            f"model of type {type(model).__name__}."
        )
    if isinstance(loss, Task):
        model = loss.training_model(model)
        loss = functools.partial(loss.loss, reduction=None)
    elif hasattr(model, "with_flat_blocks"):
        model = model.with_flat_blocks()
    gated = gated_model(model)

    def of_function(batch, gates):
        inputs, targets = batch
        outputs = gated({**_inputs(gated, inputs), **gates}, training=False)
        losses = loss(targets, outputs)
        if losses.shape.rank != 1:
            raise ValueError(
                "`loss` must return the loss of each example, of shape (batch,). "
                f"Received: losses of shape {tuple(losses.shape)}."
            )
        return losses, tf.ones_like(losses, "bool")

    return of_function, gated, model


def _inputs(gated, inputs):
    """What a model with gates reads of a batch, without the gates."""
    inputs = zero_segment_ids(gated, inputs)
    names = [name for name in gated.input if name not in (HEAD_GATE, NEURON_GATE)]
    missing = sorted(set(names) - set(inputs))
    if missing:
        raise ValueError(
            f"`dataset` must yield {', '.join(sorted(names))}. "
            f"Received: a batch without {', '.join(missing)}."
        )
    return {name: inputs[name] for name in names}


def _masks(gated, head_mask, neuron_mask):
    """Checked masks by the name of their gate, constants."""
    shapes = gate_shapes(gated)
    given = {HEAD_GATE: head_mask, NEURON_GATE: neuron_mask}
    return {
        name: tf.constant(
            checked_mask(name.replace("gate", "mask"), mask, shapes[name]),
            gated.input[name].dtype,
        )
        for name, mask in given.items()
    }


def _check_batch(batch, with_targets=False):
    if with_targets and not (
        isinstance(batch, tuple | list) and len(batch) == 2 and batch[1] is not None
    ):
        raise ValueError(
            "`dataset` must yield pairs of inputs and targets, which `loss` needs. "
            f"Received: a batch of type {type(batch).__name__}."
        )


def _statistics(
    batch,
    offset,
    *,
    example_losses,
    masks,
    measured,
    fisher_blocks,
    block_of_layer,
):
    """Sums over a batch of what `HeadImportance` has means of, a dict of tensors."""
    num_rows = tf.shape(tf.nest.flatten(batch)[0])[0]
    gates = {
        name: tf.tile(mask[None], [num_rows, 1, 1]) for name, mask in masks.items()
    }
    names = [_GATES[name] for name in measured]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([gates[name] for name in names])
        losses, counted = example_losses(batch, gates)
        total = tf.reduce_sum(losses)
    derivatives = tape.gradient(
        total,
        [gates[name] for name in names],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    counted = tf.cast(counted, "bool")
    second = tf.cast((tf.range(num_rows) + tf.cast(offset, "int32")) % 2, "bool")
    # (2, batch)
    halves = tf.stack([counted & ~second, counted & second])
    found = {
        "counts": tf.reduce_sum(tf.cast(halves, "int64"), axis=1),
        "loss": tf.reduce_sum(tf.where(counted, losses, 0.0)),
        "num_rows": num_rows,
    }
    num_blocks = block_of_layer.max() + 1
    shared = num_blocks < len(block_of_layer)
    for name, gate, derivative in zip(measured, names, derivatives, strict=True):
        # (batch, layers, gates)
        derivative *= masks[gate]
        derivative = tf.where(counted[:, None, None], derivative, 0.0)
        if derivative.dtype.size < 4:
            derivative = tf.cast(derivative, "float32")
        groups = {name: derivative}
        if shared:
            # (layers, blocks)
            applied = np.eye(num_blocks)[block_of_layer]
            groups[f"shared_{name}"] = tf.einsum(
                "blh,lk->bkh", derivative, tf.constant(applied, derivative.dtype)
            )
        for group, values in groups.items():
            weights = tf.cast(halves, values.dtype)
            for part, powers in (
                ("absolutes", tf.abs(values)),
                ("squares", values**2),
                ("fourths", values**4),
            ):
                found[f"{group}.{part}"] = tf.einsum("kb,blh->klh", weights, powers)
        if name in fisher_blocks:
            values = groups.get(f"shared_{name}", derivative)
            found[f"{name}.blocks"] = tf.einsum("blh,blk->lhk", values, values)
    return found


def _total(model, dataset, step, check, jit_compile, on_step):
    """Sums over all batches of what `step` returns of one, float64."""
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        dataset = without_autotune(dataset)
        run = compiled(step, jit_compile)
    else:
        dataset = strategy.experimental_distribute_dataset(without_autotune(dataset))
        replica_step = tf.function(step, jit_compile=jit_compile or None)
        # Traced once: Keras cannot add to a batch that is known to have no example,
        # as a replica gets of the last one.
        run = tf.function(
            lambda *batch: strategy.run(replica_step, batch),
            input_signature=[dataset.element_spec, tf.TensorSpec([], "int32")],
        )
    total, num_rows = {}, 0
    for number, batch in enumerate(dataset, start=1):
        check(batch)
        found = run(batch, tf.constant(num_rows % 2))
        found = {
            name: strategy.reduce("SUM", value, axis=None).numpy()
            for name, value in found.items()
        }
        num_rows += int(found["num_rows"])
        for name, value in found.items():
            total[name] = total.get(name, 0) + np.asarray(value, "float64")
        if on_step is not None:
            on_step(number, float(found["loss"] / max(found["counts"].sum(), 1)))
    num_examples = total["counts"].sum() if "counts" in total else num_rows
    if not num_examples:
        raise ValueError(
            "`dataset` must have an example with a loss. "
            f"Received: {num_rows:,} examples without one."
        )
    if not all(np.isfinite(value).all() for value in total.values()):
        raise NotFiniteError("`model` must have finite losses and derivatives.")
    return total


def _result(total, masks, block_of_layer, measured):
    counts = total["counts"].astype("int64")

    def statistics(group):
        if f"{group}.squares" not in total:
            return None
        parts = ("absolutes", "squares", "fourths")
        return GateStatistics(counts, *(total[f"{group}.{part}"] for part in parts))

    num_examples = int(counts.sum())
    blocks = {
        f"{name.removesuffix('s')}_blocks": total[f"{name}.blocks"] / num_examples
        if f"{name}.blocks" in total
        else None
        for name in _GATES
    }
    return HeadImportance(
        **{
            prefix + name: statistics(prefix + name)
            for name in _GATES
            for prefix in ("", "shared_")
        },
        **blocks,
        head_mask=masks[HEAD_GATE].numpy().astype("float32"),
        neuron_mask=masks[NEURON_GATE].numpy().astype("float32"),
        block_of_layer=block_of_layer,
        loss=float(total["loss"] / num_examples),
        num_examples=num_examples,
        num_left_out=int(total["num_rows"]) - num_examples,
    )
