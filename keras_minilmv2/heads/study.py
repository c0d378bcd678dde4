"""What may be given up: whether tasks need the same heads, and how much loss they bear.

The acceptable deduction is a definition of this package, after the question of
Chiang & Chen (2021, https://arxiv.org/abs/2106.07137).
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy import optimize, stats

from keras_minilmv2.distillation.masked_tokens import (
    MaskedTokenTrainer,
    special_token_ids,
)
from keras_minilmv2.heads.gates import HEAD_GATE, NEURON_GATE, gated_model, ones_gates
from keras_minilmv2.training.supervised import compiled
from keras_minilmv2.utils.checks import check_int, check_number


def head_statistics(importance):
    """The statistics of heads that have weights of their own.

    Args:
        importance: `HeadImportance`.

    Returns:
        tuple of `GateStatistics` and, where blocks are shared as ALBERT's are,
        `block_of_layer`, else None: what the orders of removal take.
    """
    if importance.shared_heads is None:
        return importance.heads, None
    return importance.shared_heads, importance.block_of_layer


@dataclass(frozen=True, eq=False)
class Coherence:
    """How alike two losses rank the heads, the mean over pairs of runs.

    Args:
        spearman: float. Rank correlation.
        corrected: float or None. Divided by the geometric mean of the two split-half
            reliabilities: what the correlation would be without the noise of few
            examples; sampling may take it above 1. None where a reliability is 0 or
            not known.
        overlap: float64 `(heads,)`. Share of the top k that is common, k from 1.
        overlap_within: float64 `(heads,)`. The same by chance where heads are permuted
            within their layers.
        p_value: float. Share of such permutations whose correlation is as high, the
            heads as they are counted too.
        num_pairs: int.
    """

    spearman: float
    corrected: float | None
    overlap: np.ndarray
    overlap_within: np.ndarray
    p_value: float
    num_pairs: int

    @property
    def overlap_by_chance(self):
        """`k / heads`, what two independent rankings have in common."""
        return np.arange(1, len(self.overlap) + 1) / len(self.overlap)


def coherence(
    pairs, *, kind="absolute", normalize=True, num_permutations=2_000, seed=0
):
    """Compares importances of heads for two losses, or two runs of one.

    Layers differ in their means, which alone correlates two rankings. The permutation
    test keeps each head in its layer: it asks whether heads of a layer are ranked
    alike. Of all pairs, the second one is permuted in the same way.

    Args:
        pairs: list of tuples of two `GateStatistics` of the same shape.
        kind: str, as for `GateStatistics.scores`.
        normalize: bool, as for `GateStatistics.scores`.
        num_permutations: int.
        seed: int, of the permutations.

    Returns:
        `Coherence`.

    Raises:
        ValueError: if there is no pair or shapes differ.
    """
    check_int(num_permutations=num_permutations)
    shapes = {one.absolute.shape for pair in pairs for one in pair}
    if len(shapes) != 1:
        raise ValueError(
            "`pairs` must be at least one pair of statistics of one shape. "
            f"Received: {len(pairs)} pairs, shapes {sorted(shapes)}."
        )
    (shape,) = shapes
    # (2, pairs, heads)
    ranks = np.array(
        [
            [stats.rankdata(s.scores(kind, normalize), axis=None) for s in side]
            for side in zip(*pairs, strict=True)
        ]
    )
    permutations = within_layers(shape, num_permutations, seed)
    standard = ranks - ranks.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(standard, axis=-1, keepdims=True)
    # Scores that are all equal correlate with nothing.
    standard = standard / np.where(norms > 0, norms, 1.0)
    correlations = np.sum(standard[0] * standard[1], axis=-1)
    permuted = np.array(
        [
            np.sum(standard[0] * standard[1][:, order]) / len(pairs)
            for order in permutations
        ]
    )
    within = [_overlap(ranks[0], ranks[1][:, order]) for order in permutations]
    observed = correlations.mean()
    return Coherence(
        spearman=float(observed),
        corrected=_corrected(correlations, pairs, kind, normalize),
        overlap=_overlap(*ranks),
        overlap_within=np.mean(within, axis=0),
        # Sums in another order are equal for all that matters.
        p_value=float((1 + np.sum(permuted >= observed - 1e-12)) / (1 + len(permuted))),
        num_pairs=len(pairs),
    )


def within_layers(shape, number, seed=0):
    """Permutations of heads that keep each of them in its layer.

    Args:
        shape: `(num_layers, num_heads)`.
        number: int.
        seed: int.

    Returns:
        int `(number, num_layers * num_heads)`.
    """
    keys = np.random.default_rng(seed).random((number, *shape))
    first = np.arange(shape[0])[:, None] * shape[1]
    return (keys.argsort(axis=-1) + first).reshape(number, -1)


def _corrected(correlations, pairs, kind, normalize):
    reliabilities = np.array(
        [[one.reliability(kind, normalize) for one in pair] for pair in pairs]
    )
    if not (reliabilities > 0).all():
        return None
    return float(np.mean(correlations / np.sqrt(reliabilities.prod(axis=1))))


def _overlap(ones, others):
    """Common share of the top k for each k, the mean over rows of ranks."""
    size = ones.shape[-1]
    # Rank 0 is the most important one.
    places = [(-ranks).argsort(axis=-1, kind="stable") for ranks in (ones, others)]
    lowest = np.maximum(*(each.argsort(axis=-1) for each in places))
    counts = np.apply_along_axis(np.bincount, -1, lowest, minlength=size)
    return np.mean(counts.cumsum(axis=-1) / np.arange(1, size + 1), axis=0)


@dataclass(frozen=True)
class Deduction:
    """The loss on pre-training that a task bears, in nats.

    Args:
        value: float or None. The acceptable deduction; None where not even the encoder
            that gives up nothing is acceptable.
        lower: float. Of its 95% interval over seeds.
        upper: float.
        is_all: bool. Whether all losses that were measured are acceptable, and `value`
            is the largest one.
    """

    value: float | None
    lower: float
    upper: float
    is_all: bool


def acceptable_deduction(
    losses, scores, *, tolerance=0.01, confidence=0.95, num_samples=2_000, seed=0
):
    """The loss on pre-training that may be given up for a task, by our definition.

        D = max{ x : lower bound of f(x) - f_0  >=  -tolerance }

    `f` is the isotonic fit, which never rises, of the score on the loss x given up,
    linear between what was measured; `f_0` is the score of the whole encoder. The
    lower bound is one-sided, by a bootstrap over seeds that draws whole runs: a seed
    with its scores at all losses. The interval is that of the largest acceptable x of
    each sample.

    Args:
        losses: float `(points,)`, or `(runs, points)` where they differ between runs.
            Nats given up; the first point is the whole encoder's, 0. A negative one
            counts as 0.
        scores: float `(runs, points)`, shares from 0 to 1.
        tolerance: float. Score that may be lost; 0.01 is a point.
        confidence: float, of the bound.
        num_samples: int, of the bootstrap.
        seed: int, of the bootstrap.

    Returns:
        `Deduction`, or None with fewer than two runs, which have no interval.

    Raises:
        ValueError: if shapes differ or a value is not finite.
    """
    check_number(least=0, tolerance=tolerance)
    check_number(above=0, below=1, confidence=confidence)
    scores = np.asarray(scores, "float64")
    losses = np.asarray(losses, "float64")
    fits = scores.ndim == 2 and losses.shape in (scores.shape, scores.shape[1:])
    if not fits or not np.isfinite([*losses.ravel(), *scores.ravel()]).all():
        raise ValueError(
            "`losses` and `scores` must be finite, (points,) and (runs, points). "
            f"Received: losses of shape {losses.shape}, scores of shape {scores.shape}."
        )
    losses = np.broadcast_to(losses, scores.shape).clip(min=0.0)
    runs = len(scores)
    if runs < 2:
        return None
    samples = np.random.default_rng(seed).integers(runs, size=(num_samples, runs))
    # A grid that the fits of all samples are read at.
    grid = np.unique(np.concatenate([losses.ravel(), losses.mean(axis=0)]))
    drops = [_drops(losses[rows], scores[rows], grid) for rows in samples]
    # No fit rises, so that what all but 5% of the samples accept is a 5% quantile.
    found = np.array([_largest(grid, drop, -tolerance) for drop in drops])
    value, lower, upper = np.quantile(
        found, [1 - confidence, 0.025, 0.975], method="inverted_cdf"
    ).tolist()
    is_all = value == grid[-1]
    return Deduction(
        None if value < 0 else value, max(lower, 0.0), max(upper, 0.0), bool(is_all)
    )


def _drops(losses, scores, grid):
    """The isotonic fit of some runs minus the score of the whole encoder."""
    places, group = np.unique(losses, return_inverse=True)
    group = group.ravel()
    sizes = np.bincount(group)
    means = np.bincount(group, scores.ravel()) / sizes
    fit = optimize.isotonic_regression(means, weights=sizes, increasing=False).x
    return np.interp(grid, places, fit) - scores[:, 0].mean()


def _largest(grid, values, least):
    """The largest x whose value, which never rises, is at least some number; or -1."""
    good = np.flatnonzero(values >= least)
    if not len(good):
        return -1.0
    last = good[-1]
    if last + 1 == len(grid):
        return float(grid[-1])
    share = (values[last] - least) / (values[last] - values[last + 1])
    return float(grid[last] + share * (grid[last + 1] - grid[last]))


@dataclass(frozen=True)
class Difference:
    """Mean of differences between pairs of runs, and its interval.

    Args:
        mean: float.
        lower: float or None, by Student's t; None of a single pair.
        upper: float or None.
    """

    mean: float
    lower: float | None
    upper: float | None

    @property
    def sign(self):
        """1 or -1 where the interval is above or below 0, else 0."""
        if self.lower is None:
            return 0
        return int(self.lower > 0) - int(self.upper < 0)


def paired_difference(ones, others, confidence=0.95):
    """The mean of `ones - others`, run by run.

    Args:
        ones: float `(runs,)`.
        others: float `(runs,)`, or a number.
        confidence: float, between 0 and 1.

    Returns:
        `Difference`.
    """
    differences = np.asarray(ones, "float64") - np.asarray(others, "float64")
    mean, runs = float(differences.mean()), len(differences)
    if runs < 2:
        return Difference(mean, None, None)
    half = stats.t.ppf((1 + confidence) / 2, runs - 1) * stats.sem(differences)
    return Difference(mean, mean - float(half), mean + float(half))


def step_of_loss(order, loss_of, target):
    """The step of an order whose loss is nearest to one, by bisection.

    Args:
        order: `RemovalOrder`. Its loss should rise as heads go; where it does not, a
            step that was not tried may be nearer.
        loss_of: function of a head mask that returns a float.
        target: float.

    Returns:
        tuple of the step, an int, and its loss.
    """
    low, high, found = 0, len(order.head_masks) - 1, {}
    while low <= high:
        middle = (low + high) // 2
        found[middle] = float(loss_of(order.head_masks[middle]))
        if found[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return min(found.items(), key=lambda item: abs(item[1] - target))


def masked_token_loss(trainer, batches, seed=0):
    """Makes a function that gives the masked-token loss without some heads.

    The masked tokens are the same in each call, and for all trainers whose tokenizers
    are equal; dropout is off.

    Args:
        trainer: `MaskedTokenTrainer`, its head trained.
        batches: list of dicts of arrays, as it trains on.
        seed: int, of the masked tokens.

    Returns:
        Function of a head mask `(num_layers, num_heads)`, or None for the encoder as it
        is, that returns nats: the mean over sequences of the mean over masked tokens.
    """
    generator = keras.random.SeedGenerator(seed)
    first = generator.state.numpy()
    gated = gated_model(trainer.student_part, sizes_of=trainer.student)
    ones = ones_gates(gated)

    def with_gates(batch, head_gate):
        # `compiled` leaves all shapes open.
        head_gate = tf.ensure_shape(head_gate, ones[HEAD_GATE].shape)
        gates = {HEAD_GATE: head_gate, NEURON_GATE: tf.constant(ones[NEURON_GATE])}
        return _sums(lambda inputs: gated({**inputs, **gates}, training=False), batch)

    def as_it_is(batch):
        return _sums(lambda inputs: trainer.student_part(inputs, training=False), batch)

    def _sums(student_part, batch):
        losses, counted = trainer.example_losses(batch, student_part, generator, False)
        counted = tf.cast(counted, losses.dtype)
        return tf.reduce_sum(losses * counted), tf.reduce_sum(counted)

    run_gated, run = compiled(with_gates, False), compiled(as_it_is, False)

    def loss_of(head_mask=None):
        generator.state.assign(first)
        if head_mask is None:
            sums = [run(batch) for batch in batches]
        else:
            gate = np.asarray(head_mask, "float32")[None]
            sums = [run_gated(batch, gate) for batch in batches]
        total, number = np.sum([[float(x) for x in pair] for pair in sums], axis=0)
        return total / number

    return loss_of


def trainer_like(trainer, student, tokenizer):
    """A trainer of another encoder of the same width, with the same trained head.

    Args:
        trainer: `MaskedTokenTrainer`.
        student: keras-nlp backbone, such as one that heads were removed from.
        tokenizer: of both.

    Returns:
        `MaskedTokenTrainer`.
    """
    new = MaskedTokenTrainer(student, tokenizer)
    for ours, theirs in zip(new.head.weights, trainer.head.weights, strict=True):
        ours.assign(theirs)
    return new


def unigram_entropy(batches, tokenizer):
    """Entropy of the tokens of some sequences, in nats, without special ones.

    What guessing each masked token by the frequencies of these very tokens costs, to
    the extent that what is masked has them.

    Args:
        batches: list of dicts of arrays `"token_ids"` and `"padding_mask"`.
        tokenizer: keras-nlp tokenizer.
    """
    ids = np.concatenate([b["token_ids"][b["padding_mask"] == 1] for b in batches])
    ids = ids[~np.isin(ids, special_token_ids(tokenizer))]
    return float(stats.entropy(np.bincount(ids)))
