"""Gates that an L0 penalty closes: the relaxation of Louizos et al. for heads."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_minilmv2.heads.subset import Gates, check_kept, hard_top_k
from keras_minilmv2.utils.checks import check_int

# The paper's: temperature of the concrete distribution, and the interval that it is
# stretched to.
BETA, LOW, HIGH = 0.33, -0.1, 1.1
# Gates start almost open.
_FIRST_LOGIT = 2.5


class L0Gates(Gates):
    """Hard concrete gates, as many of them open as asked.

        s = sigmoid((log u - log(1 - u) + a) / beta),  gate = clip(1.2 s - 0.1, 0, 1)
        P(gate > 0) = sigmoid(a - beta log(0.1 / 1.1))

    Voita et al. add `lambda sum P(gate > 0)` to the loss, and look for the lambda that
    leaves the wanted number. Here two Lagrange multipliers, which training raises
    while others fall, do it in one training:

        L + l_1 (S - S_K) + l_2 (S - S_K)^2,  S = mean P(gate > 0)

    where the wanted share S_K falls evenly from 1 to K / heads within `cooldown_steps`.
    Inference keeps the K highest logits a, so that it is compared at the same number;
    the number of gates that are open above a half is `num_open`.

    Args:
        num_layers: int.
        num_heads: int, of each layer.
        num_kept_heads: int, K.
        cooldown_steps: int.
        seed: int, of the logits and the noise.
        **kwargs: as for `keras.layers.Layer`.

    Attributes:
        logits: float32 variable `(num_layers, num_heads)`.
        step: int64 variable, not trained.
        multipliers: float32 variable `(2,)`, which gradient ascent trains.

    References:
        [Voita et al., 2019](https://arxiv.org/abs/1905.09418), section 6;
        [Wang et al., 2020](https://arxiv.org/abs/1910.04732), section 3.2, for the
        multipliers.
    """

    def __init__(
        self, num_layers, num_heads, num_kept_heads, cooldown_steps=1, seed=0, **kwargs
    ):
        super().__init__(num_layers, num_heads, seed=seed, **kwargs)
        check_kept(num_kept_heads, num_layers * num_heads)
        check_int(cooldown_steps=cooldown_steps)
        self.num_kept_heads = num_kept_heads
        self.cooldown_steps = cooldown_steps
        self.logits = self.add_weight(
            name="logits",
            shape=(num_layers, num_heads),
            initializer=keras.initializers.RandomNormal(_FIRST_LOGIT, 0.1, seed=seed),
        )
        self.multipliers = self.add_weight(
            name="multipliers", shape=(2,), initializer="zeros"
        )
        self.built = True

    @property
    def ascending(self):
        """Variables whose gradient is followed upwards."""
        return [self.multipliers]

    def call(self, training=None, temperature=None):
        """The gates; `temperature` is that of other kinds, and is not read.

        Args:
            training: bool.
            temperature: None, or anything.

        Returns:
            float32 `(num_layers, num_heads)`.
        """
        logits = tf.convert_to_tensor(self.logits)
        if not training:
            return hard_top_k(logits, self.num_kept_heads)
        uniform = tf.reshape(self.uniform(self.step), logits.shape)
        noise = tf.math.log(uniform) - tf.math.log1p(-uniform)
        return _stretched((noise + logits) / BETA)

    def penalty(self):
        """The Lagrangian of the number of open gates, a scalar."""
        fraction = tf.cast(self.step, "float32") / self.cooldown_steps
        last = self.num_kept_heads / (self.num_layers * self.num_heads)
        wanted = 1.0 - tf.minimum(fraction, 1.0) * (1.0 - last)
        shift = BETA * math.log(-LOW / HIGH)
        excess = tf.reduce_mean(tf.sigmoid(self.logits - shift)) - wanted
        multipliers = tf.convert_to_tensor(self.multipliers)
        return multipliers[0] * excess + multipliers[1] * tf.square(excess)

    def num_open(self):
        """How many gates inference would open above a half, an int."""
        gates = _stretched(tf.convert_to_tensor(self.logits))
        return int(np.sum(gates.numpy() > 0.5))

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_kept_heads": self.num_kept_heads,
            "cooldown_steps": self.cooldown_steps,
        }


def _stretched(logits):
    return tf.clip_by_value(tf.sigmoid(logits) * (HIGH - LOW) + LOW, 0.0, 1.0)
