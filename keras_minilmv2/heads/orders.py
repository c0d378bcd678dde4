"""In which order heads are removed, and how a metric falls as they go."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy import stats

from keras_minilmv2.heads.gates import checked_mask
from keras_minilmv2.utils.checks import check_int, check_number


@dataclass(frozen=True, eq=False)
class RemovalOrder:
    """Masks from the one in which everything is kept to the one with no head.

    Args:
        name: str. What reports call the order.
        head_masks: float32 `(steps + 1, num_layers, num_heads)`, 1 for a head that is
            kept. What a step removes stays removed.
        neuron_masks: float32 `(steps + 1, num_layers, intermediate_dim)`, or None where
            all neurons are kept.

    Raises:
        ValueError: if a step removes nothing or brings a head back.
    """

    name: str
    head_masks: np.ndarray
    neuron_masks: np.ndarray | None = None

    def __post_init__(self):
        steps = np.diff(self.head_masks, axis=0)
        if (steps > 0).any() or not (steps < 0).any(axis=(1, 2)).all():
            raise ValueError(
                "`head_masks` must remove a head in each step, and keep it removed. "
                f"Received: name={self.name!r} with other masks."
            )

    @property
    def shares(self):
        """Share of the heads that is removed after each step, `(steps + 1,)`."""
        return 1.0 - self.head_masks.mean(axis=(1, 2), dtype="float64")

    def at(self, share):
        """The masks of the step whose share of removed heads is nearest to one.

        Args:
            share: float, from 0 to 1.

        Returns:
            tuple of the head mask `(num_layers, num_heads)` and the neuron mask, or
            None.
        """
        check_number(least=0, most=1, share=share)
        step = int(np.abs(self.shares - share).argmin())
        neurons = None if self.neuron_masks is None else self.neuron_masks[step]
        return self.head_masks[step], neurons

    def removed(self):
        """What each step removes: list of lists of pairs, layer and head, from 0."""
        return [
            [tuple(map(int, place)) for place in np.argwhere(step < 0)]
            for step in np.diff(self.head_masks, axis=0)
        ]


def order_by_scores(name, scores, block_of_layer=None):
    """Removes heads one at a time, the lowest score first; scores are not renewed.

    Args:
        name: str.
        scores: `(num_layers, num_heads)`; of shared heads `(num_blocks, num_heads)`.
            Of equal ones the first goes first.
        block_of_layer: int `(num_layers,)`, as in `HeadImportance`, where blocks are
            shared: a head goes from all layers of its block. None where none is.

    Returns:
        `RemovalOrder`.

    Raises:
        ValueError: if a score is not finite.
    """
    scores = np.asarray(scores, "float64")
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise ValueError(
            "`scores` must be finite numbers of shape (num_layers, num_heads). "
            f"Received: scores of shape {scores.shape}, "
            f"{np.sum(~np.isfinite(scores))} not finite."
        )
    order = np.argsort(scores, axis=None, kind="stable")
    return _one_by_one(name, order, scores.shape, block_of_layer)


def reversed_order(order, name=None):
    """Removes first what another order removes last.

    Args:
        order: `RemovalOrder`.
        name: str. Defaults to the order's, and "reversed".

    Returns:
        `RemovalOrder` of as many steps.
    """
    # A step from the end gives back what it removed.
    masks = [
        None if masks is None else 1.0 - masks[::-1]
        for masks in (order.head_masks, order.neuron_masks)
    ]
    return RemovalOrder(name or f"{order.name}, reversed", *masks)


def random_order(shape, seed, block_of_layer=None):
    """Removes heads one at a time in random order.

    Args:
        shape: `(num_layers, num_heads)`; of shared heads `(num_blocks, num_heads)`.
        seed: int. The order depends on it alone.
        block_of_layer: as for `order_by_scores`.

    Returns:
        `RemovalOrder`.
    """
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return _one_by_one("random", order, shape, block_of_layer)


def iterative_order(name, scores_of, shape, heads_per_step=1, block_of_layer=None):
    """Removes the lowest scores, and computes those of what is left after each step.

    Args:
        name: str.
        scores_of: function of a head mask `(num_layers, num_heads)` that returns scores
            shaped as `shape`, such as those of `head_importance` with this mask. Scores
            of removed heads are not read.
        shape: `(num_layers, num_heads)`; of shared heads `(num_blocks, num_heads)`.
        heads_per_step: int. Heads that are removed between two computations.
        block_of_layer: as for `order_by_scores`.

    Returns:
        `RemovalOrder` that removes one head a step.

    Raises:
        ValueError: if a score is not finite.
    """
    check_int(heads_per_step=heads_per_step)
    order, left = [], np.ones(int(np.prod(shape)), "bool")
    while left.any():
        mask = _of_layers(left.reshape(shape).astype("float32"), block_of_layer)
        scores = np.asarray(scores_of(mask), "float64")
        if scores.shape != tuple(shape) or not np.isfinite(scores.ravel()[left]).all():
            raise ValueError(
                f"`scores_of` must return finite scores of shape {tuple(shape)}. "
                f"Received: scores of shape {scores.shape}, "
                f"{np.sum(~np.isfinite(scores))} not finite."
            )
        ranked = np.argsort(np.where(left, scores.ravel(), np.inf), kind="stable")
        chosen = ranked[: min(heads_per_step, left.sum())]
        order.extend(chosen)
        left[chosen] = False
    return _one_by_one(name, order, shape, block_of_layer)


def ablation_order(metric, shape, block_of_layer=None):
    """Removes first the head without which, alone, a metric is highest.

    Args:
        metric: function of a head mask and a neuron mask, here None, that returns a
            float, higher for better.
        shape: `(num_layers, num_heads)`; of shared heads `(num_blocks, num_heads)`. The
            metric is computed once for each head.
        block_of_layer: as for `order_by_scores`.

    Returns:
        `RemovalOrder`.
    """
    scores = np.zeros(shape)
    for place in np.ndindex(*shape):
        mask = np.ones(shape, "float32")
        mask[place] = 0.0
        # What the metric loses; a constant changes no order.
        scores[place] = -float(metric(_of_layers(mask, block_of_layer), None))
    return order_by_scores("ablation", scores, block_of_layer)


def depth_order(num_heads, intermediate_dim, layers):
    """Removes all heads and neurons of one layer after the other.

    Of a layer, its two norms and the biases of its two output matrices are left.

    Args:
        num_heads: int, of a layer.
        intermediate_dim: int.
        layers: all layers, int from 0, in the order in which they are removed.

    Returns:
        `RemovalOrder`.

    Raises:
        ValueError: if a layer is missing or stands there twice.
    """
    layers = list(layers)
    check_int(num_heads=num_heads, intermediate_dim=intermediate_dim)
    if not layers or sorted(layers) != list(range(len(layers))):
        raise ValueError(
            "`layers` must be all layers, from 0, each of them once. "
            f"Received: layers={layers}."
        )
    steps = np.arange(len(layers) + 1)
    # (steps + 1, num_layers)
    kept = (np.argsort(layers) >= steps[:, None]).astype("float32")

    def masks(size):
        return np.repeat(kept[:, :, None], size, axis=2)

    return RemovalOrder("depth", masks(num_heads), masks(intermediate_dim))


def hies_scores(importance, entropy, alpha, head_mask=None):
    """Mixes importance with how narrowly heads attend (HIES).

        S = a minmax(I) + (1 - a) (1 - minmax(H))

    where minmax maps the heads of the whole encoder to 0 to 1.

    Args:
        importance: `(num_layers, num_heads)`, such as
            `HeadImportance.heads.scores(normalize=False)`.
        entropy: the same shape, as `attention_entropy` returns it.
        alpha: float, from 0 to 1.
        head_mask: the same shape. Removed heads are no part of the two ranges and score
            0. Defaults to ones.

    Returns:
        float64, the same shape.

    Reference:
        [HIES, 2025](https://arxiv.org/abs/2510.13832).
    """
    check_number(least=0, most=1, alpha=alpha)
    importance, entropy = np.asarray(importance), np.asarray(entropy)
    if importance.shape != entropy.shape:
        raise ValueError(
            "`entropy` must have the shape of `importance`. Received: entropy of shape "
            f"{entropy.shape}, importance of shape {importance.shape}."
        )
    kept = checked_mask("head_mask", head_mask, importance.shape) == 1
    narrow = 1.0 - _minmax(entropy, kept)
    mixed = alpha * _minmax(importance, kept) + (1.0 - alpha) * narrow
    return np.where(kept, mixed, 0.0)


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """A metric against the share of heads that is removed, for several runs.

    Args:
        name: str.
        shares: float64 `(points,)`, those that were asked for.
        removed: float64 `(runs, points)`, the shares that could be had.
        scores: float64 `(runs, points)`.
    """

    name: str
    shares: np.ndarray
    removed: np.ndarray
    scores: np.ndarray

    @property
    def mean(self):
        """Mean over runs, `(points,)`."""
        return self.scores.mean(axis=0)

    @property
    def deviation(self):
        """Sample standard deviation over runs, `(points,)`; nan of a single run."""
        if len(self.scores) < 2:
            return np.full(len(self.shares), np.nan)
        return self.scores.std(axis=0, ddof=1)

    def band(self, confidence=0.95):
        """Interval of the mean over runs by Student's t.

        Args:
            confidence: float, between 0 and 1.

        Returns:
            tuple of lower and upper bounds, `(points,)` each; nan of a single run.
        """
        check_number(above=0, below=1, confidence=confidence)
        number = len(self.scores)
        if number < 2:
            half = self.deviation
        else:
            quantile = stats.t.ppf((1 + confidence) / 2, number - 1)
            half = quantile * self.deviation / np.sqrt(number)
        return self.mean - half, self.mean + half


def removal_curve(metric, order, shares):
    """Computes a metric at several shares of removed heads.

    Args:
        metric: function of a head mask `(num_layers, num_heads)` and a neuron mask, or
            None, that returns a float. It may score a model with gates, one with the
            heads really removed, or one that was trained afterwards.
        order: `RemovalOrder`.
        shares: float, from 0 to 1. Shares that fall on one step are computed once.

    Returns:
        `RemovalCurve` of one run.

    Raises:
        ValueError: if there is no share, or a score is not finite.
    """
    shares = np.asarray(shares, "float64")
    if shares.ndim != 1 or not len(shares):
        raise ValueError(
            f"`shares` must be at least one number. Received: shares={shares.tolist()}."
        )
    found, removed, scores = {}, [], []
    for share in shares:
        head_mask, neuron_mask = order.at(share)
        step = head_mask.tobytes()
        if step not in found:
            found[step] = float(metric(head_mask, neuron_mask))
        removed.append(1.0 - head_mask.mean(dtype="float64"))
        scores.append(found[step])
    if not np.isfinite(scores).all():
        raise ValueError(
            "`metric` must return finite scores. "
            f"Received: {scores} at shares {shares.tolist()} of {order.name!r}."
        )
    return RemovalCurve(order.name, shares, np.array([removed]), np.array([scores]))


def joined(curves, name=None):
    """One curve of the runs of several, such as those of several seeds.

    Args:
        curves: list of `RemovalCurve` at the same shares.
        name: str. Defaults to the first one's.

    Returns:
        `RemovalCurve`.

    Raises:
        ValueError: if there is none, or their shares differ.
    """
    if not curves or any(
        not np.array_equal(curve.shares, curves[0].shares) for curve in curves
    ):
        raise ValueError(
            "`curves` must be at least one, all at the same shares. "
            f"Received: {len(curves)} curves."
        )
    return dataclasses.replace(
        curves[0],
        name=curves[0].name if name is None else name,
        removed=np.concatenate([curve.removed for curve in curves]),
        scores=np.concatenate([curve.scores for curve in curves]),
    )


def _one_by_one(name, order, shape, block_of_layer):
    """A `RemovalOrder` from flat indices of heads."""
    size = int(np.prod(shape))
    ranks = np.empty(size, "int64")
    ranks[np.asarray(order)] = np.arange(size)
    kept = ranks.reshape(shape) >= np.arange(size + 1)[:, None, None]
    return RemovalOrder(name, _of_layers(kept.astype("float32"), block_of_layer))


def _of_layers(masks, block_of_layer):
    """Masks by layer from masks by block, `(..., blocks, heads)`."""
    if block_of_layer is None:
        return masks
    return masks[..., np.asarray(block_of_layer), :]


def _minmax(values, kept):
    """Values scaled to 0 to 1 over what is kept; 0 where they are all equal."""
    values = np.asarray(values, "float64")
    if not kept.any():
        return np.zeros_like(values)
    low, high = values[kept].min(), values[kept].max()
    if high == low:
        return np.zeros_like(values)
    return (values - low) / (high - low)
