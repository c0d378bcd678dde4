"""Weights of relation heads: some count more in the relation loss than others."""

import math

import numpy as np

from keras_minilmv2.utils.checks import check_int


def relation_head_weights(head_importance, num_relation_heads):
    """Weights of relation heads by the importance of the attention heads in them.

    Attention heads and relation heads are both slices of a layer's channels, in the
    same order. The weight of a relation head is the mean, over its channels, of the
    importance of the attention head that a channel belongs to; then all weights are
    divided by their mean.

    Args:
        head_importance: float `(num_heads,)`, not negative: of the layer that is
            distilled, such as `importance.heads.absolute[11]` of `head_importance`
            for layer 12. Only ratios matter. Of a pruned layer, the heads left.
        num_relation_heads: int.

    Returns:
        tuple of float, `num_relation_heads` of them, mean 1.

    Raises:
        TypeError: if `num_relation_heads` is not an int.
        ValueError: if the importance has another shape, or a value that is negative or
            not finite, or none above 0.

    Example:

    ```python
    importance = km.head_importance(classifier, batches, task)
    weights = km.relation_head_weights(importance.heads.absolute[11], 48)
    recipe = dataclasses.replace(recipe, relation_head_weights=weights)
    ```
    """
    check_int(num_relation_heads=num_relation_heads)
    importance = np.asarray(head_importance, "float64")
    if importance.ndim != 1:
        raise ValueError(
            "`head_importance` must have shape (num_heads,), that of one layer. "
            f"Received: head_importance of shape {importance.shape}."
        )
    _check("head_importance", importance)
    # Parts of channels that lie in one attention head and in one relation head.
    num_parts = math.lcm(len(importance), num_relation_heads)
    parts = np.repeat(importance, num_parts // len(importance))
    weights = parts.reshape(num_relation_heads, -1).mean(axis=1)
    return tuple((weights / weights.mean()).tolist())


def check_relation_head_weights(weights, num_relation_heads):
    """Checks weights of relation heads.

    Args:
        weights: sequence of float, or None.
        num_relation_heads: int.

    Returns:
        tuple of float as they were given, or None.

    Raises:
        TypeError: if it is no sequence of numbers.
        ValueError: if it is not one of `num_relation_heads` numbers, finite and at
            least 0, one of them above 0.
    """
    if weights is None:
        return None
    try:
        values = np.asarray(weights, "float64")
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`relation_head_weights` must be a sequence of float. "
            f"Received: relation_head_weights={weights!r}."
        ) from error
    if values.shape != (num_relation_heads,):
        raise ValueError(
            "`relation_head_weights` must have a weight for each relation head. "
            f"Received: weights of shape {values.shape}, "
            f"num_relation_heads={num_relation_heads}."
        )
    _check("relation_head_weights", values)
    return tuple(values.tolist())


def _check(argument, values):
    wrong = values[~(np.isfinite(values) & (values >= 0))]
    if len(wrong):
        raise ValueError(
            f"`{argument}` must have finite values of at least 0. "
            f"Received: {wrong[0]:g}."
        )
    if not values.any():
        raise ValueError(
            f"`{argument}` must have a value above 0. Received: {len(values)} values, "
            "none above 0."
        )
