"""The relation losses of MiniLMv2 and MiniLM as `keras.losses.Loss` classes."""

import math

import keras
import numpy as np

from keras_minilmv2.distillation.blocked import blocked_relation_losses
from keras_minilmv2.distillation.head_weights import check_relation_head_weights
from keras_minilmv2.distillation.relations import (
    PROJECTION_OF_LETTER,
    relation_losses,
)
from keras_minilmv2.utils.checks import check_int

DEFAULT_RELATION_WEIGHTS = {"qq": 1.0, "kk": 1.0, "vv": 1.0}


def check_relation_weights(relation_weights):
    """Checks the weights of the relations.

    Args:
        relation_weights: dict of float by pair of letters.

    Returns:
        dict of float.

    Raises:
        TypeError: if `relation_weights` is not a dict.
        ValueError: if it is empty, names a letter other than q, k, v, or has a weight
            that is negative or not finite, or none above zero.
    """
    if not isinstance(relation_weights, dict):
        raise TypeError(
            "`relation_weights` must be a dict of float by pair of letters. "
            f"Received: relation_weights={relation_weights!r}."
        )
    if not relation_weights:
        raise ValueError(
            "`relation_weights` must name at least one pair, such as "
            '{"qq": 1.0}. Received: relation_weights={}.'
        )
    for pair, weight in relation_weights.items():
        if (
            not isinstance(pair, str)
            or len(pair) != 2
            or not set(pair) <= PROJECTION_OF_LETTER.keys()
        ):
            raise ValueError(
                "`relation_weights` must have pairs of the letters q, k and v as keys. "
                f"Received: key {pair!r}."
            )
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not math.isfinite(weight)
            or weight < 0
        ):
            raise ValueError(
                "`relation_weights` must have finite weights of at least 0. "
                f"Received: {pair}={weight!r}."
            )
    if not any(relation_weights.values()):
        raise ValueError(
            "`relation_weights` must have a weight above 0. "
            f"Received: relation_weights={relation_weights}."
        )
    return {pair: float(weight) for pair, weight in relation_weights.items()}


class _PairLoss(keras.losses.Loss):
    """Weighted sum of relation divergences; subclasses define `relation_heads`."""

    relation_weights: dict
    relation_head_weights = None

    def __init__(self, blocked, block_size, name, reduction, **kwargs):
        # The base class casts to its dtype, and `floatx` may be a half precision.
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, reduction=reduction, **kwargs)
        if block_size is not None:
            check_int(block_size=block_size)
        if block_size is not None and not blocked:
            raise ValueError(
                "`block_size` must not be given without `blocked`. "
                f"Received: block_size={block_size}, blocked={blocked}."
            )
        self.blocked = blocked
        self.block_size = block_size

    @property
    def pairs(self):
        """The pairs of letters whose weight is not 0."""
        return [pair for pair, weight in self.relation_weights.items() if weight]

    @property
    def projections(self):
        """Names of the projections that the pairs are made of."""
        letters = "".join(self.pairs)
        return [
            name for letter, name in PROJECTION_OF_LETTER.items() if letter in letters
        ]

    def sequence_losses(self, y_true, y_pred, static_shapes=True):
        """The loss of each sequence, and that of each pair.

        Args:
            y_true: as for calling the loss.
            y_pred: as for calling the loss.
            static_shapes: bool. Whether shapes must not depend on values, as under
                XLA. If not, the blocked loss skips padding.

        Returns:
            tuple of float32 `(batch,)`, nats, the weighted sum of the pairs; and of a
            dict by pair of the losses before weighting. The gradient of the blocked
            loss flows through the sum only.
        """
        num_relation_heads = self.relation_heads(y_true, y_pred)
        weights = {pair: self.relation_weights[pair] for pair in self.pairs}
        head_weights = self.relation_head_weights
        if head_weights is not None:
            head_weights = np.divide(head_weights, np.mean(head_weights))
        if self.blocked:
            return blocked_relation_losses(
                y_true,
                y_pred,
                y_true["padding_mask"],
                num_relation_heads,
                weights,
                block_size=self.block_size,
                static_shapes=static_shapes,
                relation_head_weights=head_weights,
            )
        pair_losses = relation_losses(
            y_true,
            y_pred,
            y_true["padding_mask"],
            num_relation_heads,
            self.pairs,
            head_weights,
        )
        losses = sum(weights[pair] * values for pair, values in pair_losses.items())
        return losses, pair_losses

    def relation_heads(self, y_true, y_pred):
        raise NotImplementedError

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "blocked": self.blocked,
            "block_size": self.block_size,
        }

    def call(self, y_true, y_pred):
        """The loss of each sequence, float32 `(batch,)`; the base class reduces it."""
        losses, _ = self.sequence_losses(y_true, y_pred)
        return losses


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class RelationLoss(_PairLoss):
    """KL divergence between teacher and student self-attention relations.

    A relation of two projections is a softmax over tokens, one for each relation head
    and token. The loss is the sum over `relation_weights` of the mean
    `KL(teacher || student)` over relation heads and real tokens, then the mean over
    sequences. Teacher and student may differ in `hidden_dim` and `num_heads`.

        L = sum_ij a_ij / (A_r |x|) sum_a w_a sum_t KL(R_T[a, t] || R_S[a, t])
        R = softmax(A_i A_j' / sqrt(d_r))

    of teacher T and student S, with `w_a = 1` in the paper.

    Padding is neither a row nor a column of a relation. Computed in float32 under
    every dtype policy. The student's attention output and feed-forward of the
    distilled layer receive no gradient from this loss.

    Args:
        num_relation_heads: int. `A_r` in the paper; must divide both `hidden_dim`s.
        relation_weights: dict of float by pair of letters q, k, v; `alpha_ij` in
            the paper. Defaults to `{"qq": 1.0, "kk": 1.0, "vv": 1.0}`.
        blocked: bool. Whether loss and gradient are formed block by block, so that
            memory does not grow with the number of relation heads, or with the plain
            formula, which holds every relation and has second derivatives.
        block_size: int, relations of a pair (one head of one sequence each) that are
            held at a time. Defaults to what suits the device.
        relation_head_weights: sequence of float, at least 0, one for each relation
            head: `w_a`, once divided by their mean. Defaults to 1 each, without cost.
            See `keras_minilmv2.relation_head_weights`.
        name: str.
        reduction: as for `keras.losses.Loss`, over sequences. None gives float32
            `(batch,)`.
        **kwargs: as for `keras.losses.Loss`.

    Call arguments:
        y_true: dict of teacher `"query"`, `"key"`, `"value"`, each
            `(batch, length, num_heads, head_dim)`, and `"padding_mask"`
            `(batch, length)`, 1 for a real token.
        y_pred: dict of student `"query"`, `"key"`, `"value"`, same layout.
        sample_weight: `(batch,)`. Defaults to ones.

    Returns:
        float32 scalar, nats per token and relation head, summed over pairs.

    A plain `keras.Model` whose outputs are a dict of the projections and
    `"padding_mask"` trains with `compile(loss=[RelationLoss(...)])`. The list makes
    Keras pass the whole dict to one loss.

    Raises:
        ValueError: if `num_relation_heads` is below 1 or does not divide both
            `hidden_dim`s, a pair has a letter other than q, k, v, or the weights of
            the heads are not as many, or negative.
        TypeError: if `num_relation_heads` is not an int.

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828), equations 5 to 8.
    """

    def __init__(
        self,
        num_relation_heads,
        relation_weights=None,
        blocked=True,
        block_size=None,
        relation_head_weights=None,
        name="relation_loss",
        reduction="sum_over_batch_size",
        **kwargs,
    ):
        super().__init__(blocked, block_size, name, reduction, **kwargs)
        check_int(num_relation_heads=num_relation_heads)
        if relation_weights is None:
            relation_weights = DEFAULT_RELATION_WEIGHTS
        self.num_relation_heads = num_relation_heads
        self.relation_weights = check_relation_weights(relation_weights)
        self.relation_head_weights = check_relation_head_weights(
            relation_head_weights, num_relation_heads
        )

    def relation_heads(self, y_true, y_pred):
        """The number of relation heads."""
        return self.num_relation_heads

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_relation_heads": self.num_relation_heads,
            "relation_weights": self.relation_weights,
            "relation_head_weights": self.relation_head_weights,
        }


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class AttentionValueLoss(_PairLoss):
    """The loss of MiniLM (v1): attention distributions and value relations.

    `L = L_AT + L_VR`: the mean KL(teacher || student) of the attention distributions
    `softmax(Q K' / sqrt(d_k))` and of the value relations `softmax(V V' / sqrt(d_k))`,
    over attention heads and real tokens. The paper takes the last layer of both. It
    is the relation loss of the pairs q-k and v-v with as many relation heads as
    attention heads, so both models must have the same number of them.

    Args:
        blocked: as for `RelationLoss`.
        block_size: as for `RelationLoss`.
        name: str.
        reduction: as for `keras.losses.Loss`, over sequences. None gives float32
            `(batch,)`.
        **kwargs: as for `keras.losses.Loss`.

    Call arguments:
        y_true: as for `RelationLoss`.
        y_pred: as for `RelationLoss`.

    Returns:
        float32 scalar, nats per token and attention head, summed over both terms.

    Raises:
        ValueError: if teacher and student differ in `num_heads`.

    Reference:
        [Wang et al., 2020](https://arxiv.org/abs/2002.10957), equations 6 to 10.
    """

    def __init__(
        self,
        blocked=True,
        block_size=None,
        name="attention_value_loss",
        reduction="sum_over_batch_size",
        **kwargs,
    ):
        super().__init__(blocked, block_size, name, reduction, **kwargs)
        self.relation_weights = {"qk": 1.0, "vv": 1.0}

    def relation_heads(self, y_true, y_pred):
        """The number of attention heads, once it is known to be the same."""
        teacher_heads = y_true["query"].shape[-2]
        student_heads = y_pred["query"].shape[-2]
        if teacher_heads != student_heads:
            raise ValueError(
                "`num_heads` of teacher and student must be equal for "
                "AttentionValueLoss; RelationLoss has no such rule. Received: teacher "
                f"num_heads={teacher_heads}, student num_heads={student_heads}."
            )
        return teacher_heads
