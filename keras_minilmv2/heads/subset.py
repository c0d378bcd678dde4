"""Which K heads to keep, as something gradient descent can learn."""

import math
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from keras_minilmv2.utils.checks import check_choice, check_int, check_number

VARIANTS = ("gumbel", "straight_through", "bounded")
# Gradients are kept below it: at low temperatures each of K steps multiplies them.
_LARGEST = 1e12
_BISECTIONS = 64
# A budget may be exceeded by rounding alone.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TemperatureSchedule:
    """A temperature that falls evenly in its logarithm, and then stays.

        tau(s) = tau_0 (tau_1 / tau_0) ^ min(s / cooldown, 1)

    Args:
        initial: float above 0.
        final: float above 0.
        cooldown_steps: int. Steps until `final`.
        total_steps: int, of the training, or None where they are not known.

    Raises:
        ValueError, TypeError: if a value is out of its range; or the cooldown is longer
            than the training, which then ends above `final`.
    """

    initial: float = 1000.0
    final: float = 1e-8
    cooldown_steps: int = 25_000
    total_steps: int | None = None

    def __post_init__(self):
        check_number(above=0, initial=self.initial, final=self.final)
        check_int(cooldown_steps=self.cooldown_steps)
        if self.total_steps is None:
            return
        check_int(total_steps=self.total_steps)
        if self.cooldown_steps > self.total_steps:
            share = self.total_steps / self.cooldown_steps
            left = self.initial * (self.final / self.initial) ** share
            raise ValueError(
                "`cooldown_steps` must not be above the steps of training. Received: "
                f"cooldown_steps={self.cooldown_steps:,} of {self.total_steps:,} "
                f"steps, which would end at a temperature of {left:.3g} in place of "
                f"{self.final:g}."
            )

    def __call__(self, step):
        """The temperature of one update, counted from 0; a float32 scalar tensor."""
        fraction = tf.minimum(tf.cast(step, "float32") / self.cooldown_steps, 1.0)
        low, high = math.log(self.final), math.log(self.initial)
        return tf.exp(high + fraction * (low - high))


class Gates(keras.layers.Layer):
    """Gates of heads that are trained: what all kinds share.

    A subclass has `logits` and `num_kept_heads`, is called with `training` and
    `temperature`, and returns gates `(num_layers, num_heads)`; in inference exactly
    `num_kept_heads` are 1 and the others 0.

    Args:
        num_layers: int.
        num_heads: int, of each layer.
        seed: int.
        **kwargs: as for `keras.layers.Layer`.

    Attributes:
        step: int64 variable, not trained. Which noise is drawn; a training loop sets
            it.
    """

    def __init__(self, num_layers, num_heads, *, seed=0, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        check_int(num_layers=num_layers, num_heads=num_heads)
        check_int(least=0, below=2**32, seed=seed)
        self.num_layers, self.num_heads, self.seed = num_layers, num_heads, seed
        self.step = self.add_weight(
            name="step", shape=(), initializer="zeros", dtype="int64", trainable=False
        )

    @property
    def num_gates(self):
        """Gates of all layers, an int."""
        return self.num_layers * self.num_heads

    @property
    def ascending(self):
        """Variables whose gradient is followed upwards."""
        return []

    def penalty(self):
        """What is added to the loss, a scalar."""
        return 0.0

    def uniform(self, step):
        """Random numbers between 0 and 1 of a step, float32 `(num_gates,)`."""
        # Not TensorFlow's generators: with XLA they draw other numbers.
        words = tf.range(self.num_gates)
        for word in (step, self.seed):
            # 0 mixes to 0.
            key = _mixed(tf.cast(word, "int64") + 0x9E3779B9)
            words = _mixed(tf.bitwise.bitwise_xor(tf.cast(words, "uint32"), key))
        bits = tf.bitwise.right_shift(words, tf.constant(9, "uint32"))
        return (tf.cast(bits, "float32") + 0.5) / 2.0**23

    def masks(self):
        """The masks of what is kept, for `prune_heads`.

        Returns:
            tuple of int32 arrays: `(num_layers, num_heads)`, and `(num_layers,
            num_neurons)` or None.
        """
        return self(training=False).numpy().astype("int32"), None

    def overlap(self, gates):
        """How much of the hard subset the gates of a training step sample.

        Args:
            gates: as `call` returned them in training.

        Returns:
            float32 scalar tensor: of the heads that inference keeps, the share that is
            among the highest gates.
        """
        both = self(training=False) * hard_top_k(gates, self.num_kept_heads)
        return tf.reduce_sum(both) / self.num_kept_heads

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        del config["dtype"]
        names = ("num_layers", "num_heads", "seed")
        return config | {name: getattr(self, name) for name in names}


class HeadSubset(Gates):
    """Learns which heads of an encoder to keep: exactly K of all its layers.

    Every head has a logit w. With G independent Gumbel noise, training computes for a
    temperature t

        gumbel            gates = sum_{j=1..K} p_j,  p_j = softmax(r_j / t)
        straight_through  gates = top_K(w), whose gradient is passed on as it is
        bounded           gates = sigmoid((w + G - theta) / t),  sum c gates = budget

    where r_1 = w + G and r_{j+1} = r_j + log(1 - p_j), and theta is what meets the
    budget. The first two are those of Li et al.; their gates sum to K, and at
    temperatures near 1 single ones of `gumbel` are well above 1. The third is ours:
    gates from 0 to 1, no loop over K, and costs c, so that neurons may be chosen too,
    and the budget may be of operations or seconds. As t falls, both draw K heads by
    Gumbel top-K. In inference gates are 1 for the K highest logits and 0 for the
    others, without noise; of equal logits the first counts as higher.

    All is float32, logarithms where probabilities would vanish. Noise depends on the
    seed and `step` alone: replicas that share a step draw the same.

    Args:
        num_layers: int.
        num_heads: int, of each layer.
        num_kept_heads: int, K, from 1 to all heads. None with a `budget`.
        variant: str. `"gumbel"`, `"straight_through"` or `"bounded"`.
        seed: int, of the logits and the noise.
        temperature: float above 0.
        num_neurons: int. Feed-forward neurons of each layer, which have gates too;
            0 for none. Of `bounded` alone.
        head_cost: float above 0, or array of shape `(num_layers, num_heads)`.
            Of `bounded` alone.
        neuron_cost: likewise, `(num_layers, num_neurons)`.
        budget: float. What is kept must not cost more; in training the gates cost
            just this. Of `bounded` alone; replaces `num_kept_heads`.
        fixed_cost: float. The part of the budget that is spent without any head and
            neuron, such as on embeddings, norms and biases.
        **kwargs: as for `keras.layers.Layer`.

    Attributes:
        logits: float32 variable `(num_layers, num_heads)`, Glorot uniform.
        neuron_logits: likewise `(num_layers, num_neurons)`, or None.
        step: int64 variable, not trained. Which noise is drawn; a training loop sets
            it.

    Call arguments:
        training: bool. Whether gates are those of training.

    Returns:
        float32 `(num_layers, num_heads)`; with neurons a pair, the second of them
        `(num_layers, num_neurons)`.

    Raises:
        ValueError, TypeError: if an argument is out of its range or does not fit.

    Example:

    ```python
    subset = km.HeadSubset(num_layers=6, num_heads=12, num_kept_heads=24)
    subset.temperature = 0.1
    gates = subset(training=True)  # (6, 12), sums to 24
    smaller = km.prune_heads(encoder, *subset.masks())
    ```

    Reference:
        [Li, Cotterell & Sachan, 2021](https://arxiv.org/abs/2108.04657), section 3.
    """

    def __init__(
        self,
        num_layers,
        num_heads,
        num_kept_heads=None,
        *,
        variant="gumbel",
        seed=0,
        temperature=1.0,
        num_neurons=0,
        head_cost=1.0,
        neuron_cost=1.0,
        budget=None,
        fixed_cost=0.0,
        **kwargs,
    ):
        super().__init__(num_layers, num_heads, seed=seed, **kwargs)
        check_int(least=0, num_neurons=num_neurons)
        check_choice(VARIANTS, variant=variant)
        self.num_neurons, self.variant = num_neurons, variant
        self._head_cost = _cost("head_cost", head_cost, (num_layers, num_heads))
        self._neuron_cost = _cost("neuron_cost", neuron_cost, (num_layers, num_neurons))
        self.num_kept_heads, self.budget, self.fixed_cost = None, None, fixed_cost
        costs_differ = np.ptp(self._head_cost) > 0 or num_neurons or budget is not None
        if costs_differ and variant != "bounded":
            raise ValueError(
                "`variant` must be 'bounded' for costs, a budget or neurons. "
                f"Received: variant={variant!r}."
            )
        if budget is None:
            if num_kept_heads is None or costs_differ:
                raise ValueError(
                    "`num_kept_heads` must be given for heads of one cost, `budget` "
                    "for neurons or heads of several. Received: "
                    f"num_kept_heads={num_kept_heads}, budget=None."
                )
            check_kept(num_kept_heads, num_layers * num_heads)
            self.num_kept_heads = int(num_kept_heads)
        else:
            if num_kept_heads is not None:
                raise ValueError(
                    "`num_kept_heads` must not be given with a `budget`. Received: "
                    f"num_kept_heads={num_kept_heads}, budget={budget}."
                )
            self._set_budget(budget, fixed_cost)
        self.logits = self.add_weight(
            name="logits",
            shape=(num_layers, num_heads),
            initializer=keras.initializers.GlorotUniform(seed),
        )
        self.neuron_logits = None
        if num_neurons:
            self.neuron_logits = self.add_weight(
                name="neuron_logits",
                shape=(num_layers, num_neurons),
                initializer=keras.initializers.GlorotUniform(seed + 1),
            )
        self._temperature = self.add_weight(
            name="temperature", shape=(), initializer="ones", trainable=False
        )
        self.temperature = temperature
        self.built = True

    def _set_budget(self, budget, fixed_cost):
        check_number(budget=budget)
        check_number(least=0, fixed_cost=fixed_cost)
        costs = self._costs()
        whole, least = float(costs.sum(dtype="float64")), float(costs.min())
        if not least <= budget - fixed_cost <= whole * (1 + _ROUNDING):
            raise ValueError(
                f"`budget` must be from {fixed_cost + least:g}, what is left without "
                "heads and neurons and the cheapest of them, to "
                f"{fixed_cost + whole:g}, what all cost. Received: budget={budget:g}."
            )
        self.budget = min(float(budget) - fixed_cost, whole)

    @property
    def temperature(self):
        """The temperature of training, a float."""
        return float(keras.ops.convert_to_numpy(self._temperature))

    @temperature.setter
    def temperature(self, value):
        check_number(above=0, temperature=value)
        self._temperature.assign(value)

    def call(self, training=None, temperature=None):
        """The gates.

        Args:
            training: bool.
            temperature: float32 scalar tensor. Defaults to the layer's own.
        """
        logits = self._flat_logits()
        if not training:
            return self._by_layer(self._hard(logits))
        if self.variant == "straight_through":
            return self._by_layer(_passed_on(logits, self._hard))
        if temperature is None:
            temperature = tf.convert_to_tensor(self._temperature)
        noisy = logits + self.noise(self.step)
        if self.variant == "bounded":
            gates = bounded_gates(noisy, temperature, *self._costs_and_budget())
        else:
            gates = soft_top_k(noisy, self.num_kept_heads, temperature)
        return self._by_layer(gates)

    @property
    def num_gates(self):
        """Gates of all layers, an int: heads, then neurons."""
        return self.num_layers * (self.num_heads + self.num_neurons)

    def noise(self, step):
        """The Gumbel noise of a step, float32 `(num_gates,)`."""
        return -tf.math.log(-tf.math.log(self.uniform(step)))

    def masks(self):
        """The masks of what is kept, for `prune_heads`.

        Returns:
            tuple of int32 arrays: `(num_layers, num_heads)`, and `(num_layers,
            num_neurons)` or None.
        """
        gates = self(training=False)
        heads, neurons = gates if self.num_neurons else (gates, None)
        as_mask = [
            None if each is None else each.numpy().astype("int32")
            for each in (heads, neurons)
        ]
        return tuple(as_mask)

    def overlap(self, gates):
        """As `Gates.overlap`, by the cost of what is kept."""
        parts = gates if self.num_neurons else [gates]
        gates = tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)
        hard = self._hard(self._flat_logits())
        costs = tf.constant(self._costs())
        both = tf.reduce_sum(costs * hard * self._hard(gates))
        return both / tf.maximum(tf.reduce_sum(costs * hard), 1e-30)

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        config |= {
            "num_kept_heads": self.num_kept_heads,
            "variant": self.variant,
            "temperature": self.temperature,
            "num_neurons": self.num_neurons,
            "head_cost": self._head_cost.tolist(),
            "neuron_cost": self._neuron_cost.tolist(),
            "budget": None if self.budget is None else self.budget + self.fixed_cost,
            "fixed_cost": self.fixed_cost,
        }
        return config

    def _flat_logits(self):
        """Logits of heads, then of neurons, `(gates,)`."""
        logits = [self.logits]
        if self.num_neurons:
            logits.append(self.neuron_logits)
        return tf.concat([tf.reshape(each, [-1]) for each in logits], axis=0)

    def _by_layer(self, gates):
        """Heads `(num_layers, num_heads)`, or the pair of them and neurons."""
        size = self.num_layers * self.num_heads
        heads = tf.reshape(gates[:size], (self.num_layers, self.num_heads))
        if not self.num_neurons:
            return heads
        return heads, tf.reshape(gates[size:], (self.num_layers, self.num_neurons))

    def _costs(self):
        """Costs of heads, then of neurons, float32 `(gates,)`."""
        parts = [self._head_cost.ravel()]
        if self.num_neurons:
            parts.append(self._neuron_cost.ravel())
        return np.concatenate(parts)

    def _costs_and_budget(self):
        budget = self.num_kept_heads if self.budget is None else self.budget
        return tf.constant(self._costs()), budget

    def _hard(self, values):
        """1 for the highest values that the budget has room for, 0 for the others."""
        costs, budget = self._costs_and_budget()
        # Of equal values top_k has the lower index first.
        order = tf.math.top_k(values, k=values.shape[0]).indices
        spent = tf.cumsum(tf.gather(costs, order))
        kept = tf.cast(spent <= budget * (1 + _ROUNDING), "float32")
        return tf.scatter_nd(order[:, None], kept, values.shape)


def _mixed(words):
    """Spreads what differs in any bit over all 32 (the finalizer of MurmurHash3)."""
    words = tf.cast(words, "uint32")
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        shifted = tf.bitwise.right_shift(words, tf.constant(shift, "uint32"))
        words = tf.bitwise.bitwise_xor(words, shifted) * tf.constant(factor, "uint32")
    return words


def hard_top_k(values, k):
    """1 for the k highest values, 0 for the others; of equal ones the first count.

    Args:
        values: float tensor.
        k: int.

    Returns:
        float32, the same shape.
    """
    flat = tf.reshape(values, [-1])
    order = tf.math.top_k(flat, k=k).indices
    kept = tf.scatter_nd(order[:, None], tf.ones(k), flat.shape)
    return tf.reshape(kept, values.shape)


def check_kept(num_kept_heads, num_heads):
    """Raises unless a number of heads can be kept.

    Args:
        num_kept_heads: int.
        num_heads: int, of all layers.

    Raises:
        TypeError: if it is no int.
        ValueError: if it is not from 1 to all heads.
    """
    check_int(num_kept_heads=num_kept_heads)
    if num_kept_heads > num_heads:
        raise ValueError(
            f"`num_kept_heads` must be from 1 to the {num_heads} heads that there are. "
            f"Received: num_kept_heads={num_kept_heads}."
        )


def soft_top_k(scores, k, temperature):
    """A soft choice of k out of n, by k softmaxes one after the other.

        p_j = softmax(r_j / t),  r_{j+1} = r_j + log(1 - p_j),  sum_{j=1..k} p_j

    `log(1 - p)` is computed as a difference of logarithms of sums, which neither
    rounds to minus infinity nor has a gradient beyond `1 / t`; what k such factors
    multiply to is cut off at 1e12.

    Args:
        scores: float32 `(..., n)`, with their noise.
        k: int, from 1 to n.
        temperature: float32 scalar above 0.

    Returns:
        float32 `(..., n)` that sums to k; single ones may be above 1.

    Reference:
        [Xie & Ermon, 2019](https://arxiv.org/abs/1901.10517), with the exact
        logarithm.
    """

    def body(number, scores, total):
        scores = _with_bounded_gradient(scores)
        scaled = scores / temperature
        log_p = tf.nn.log_softmax(scaled)
        scores += _log_of_rest(scaled, log_p)
        return number + 1, scores, total + tf.exp(log_p)

    state = tf.constant(0), scores, tf.zeros_like(scores)
    if k > 1:
        # A loop of the graph: unrolled, tracing would take longer than many steps.
        state = tf.while_loop(
            lambda number, *_: number < k - 1, body, state, maximum_iterations=k - 1
        )
    _, scores, total = state
    return total + tf.nn.softmax(_with_bounded_gradient(scores) / temperature)


def _log_of_rest(scaled, log_p):
    """`log(1 - softmax(scaled))`."""
    # One probability at most is above a half: that of the largest.
    places = tf.range(scaled.shape[-1], dtype="int64")
    largest = tf.argmax(scaled, axis=-1)[..., None] == places
    others = tf.where(largest, -np.inf, scaled)
    of_largest = tf.reduce_logsumexp(
        others, axis=-1, keepdims=True
    ) - tf.reduce_logsumexp(scaled, axis=-1, keepdims=True)
    p = tf.where(largest, 0.0, tf.exp(log_p))
    return tf.where(largest, of_largest, tf.math.log1p(-p))


@tf.custom_gradient
def _with_bounded_gradient(values):
    def gradient(upstream):
        upstream = tf.where(tf.math.is_nan(upstream), 0.0, upstream)
        return tf.clip_by_value(upstream, -_LARGEST, _LARGEST)

    return tf.identity(values), gradient


def _passed_on(values, function):
    """A function of values whose gradient is that of the identity."""
    return tf.stop_gradient(function(values)) + (values - tf.stop_gradient(values))


def bounded_gates(scores, temperature, costs, budget):
    """Gates from 0 to 1 that cost a budget.

        m_i = sigmoid((r_i - theta) / t),  theta such that sum_i c_i m_i = C

    with theta by bisection. The gradient is that of the implicit function, without a
    loop: `dm/dr = D - D 1 c'D / (c'D 1)` with `D = diag(m (1 - m)) / t`.

    Args:
        scores: float32 `(n,)`, with their noise.
        temperature: float32 scalar above 0.
        costs: float32 `(n,)`, above 0.
        budget: float, above 0 and not above the sum of the costs.

    Returns:
        float32 `(n,)`.
    """
    temperature = tf.convert_to_tensor(temperature, "float32")

    @tf.custom_gradient
    def gates_of(scores):
        gates = _bisected(scores, temperature, costs, budget)

        def gradient(upstream):
            # At low temperatures all of this may vanish: nothing moves then.
            slope = gates * (1.0 - gates) / temperature
            mass = tf.reduce_sum(costs * slope)
            share = tf.math.divide_no_nan(tf.reduce_sum(slope * upstream), mass)
            found = slope * (upstream - share * costs)
            return tf.clip_by_value(found, -_LARGEST, _LARGEST)

        return gates, gradient

    return gates_of(scores)


def _bisected(scores, temperature, costs, budget):
    order = tf.argsort(scores, direction="DESCENDING", stable=True)
    spent = tf.cumsum(tf.gather(costs, order))
    last = tf.reduce_sum(tf.cast(spent < budget * (1 - _ROUNDING), "int32"))
    # Differences to the score at the threshold: they are exact where it matters.
    scaled = (scores - tf.gather(scores, tf.gather(order, last))) / temperature
    low, high = tf.reduce_min(scaled) - 40.0, tf.reduce_max(scaled) + 40.0
    for _ in range(_BISECTIONS):
        middle = low + (high - low) / 2.0
        too_much = tf.reduce_sum(costs * tf.sigmoid(scaled - middle)) > budget
        low = tf.where(too_much, middle, low)
        high = tf.where(too_much, high, middle)
    return tf.sigmoid(scaled - high)


def _cost(name, value, shape):
    value = np.asarray(value, "float32")
    if value.shape not in ((), shape) or not (value > 0).all():
        raise ValueError(
            f"`{name}` must be a number above 0, or an array of them of shape {shape}. "
            f"Received: {name} of shape {value.shape}."
        )
    return np.broadcast_to(value, shape).copy()
