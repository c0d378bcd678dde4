"""AdamW with linear warm-up and decay, the optimizer of the papers."""

import keras
from keras import ops

from keras_minilmv2.utils.checks import check_number

# `bias`, and `output_bias` of a head over the vocabulary.
_NOT_DECAYED = r"(^|[/_])(bias|gamma|beta)(/replica_\d+)?(:\d+)?$"


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 to the peak, then linear decay to 0.

    The rate of update `s`, counted from 0, is `peak * (s + 1) / warmup_steps` while
    `s < warmup_steps`, then `peak * (total_steps - s) / (total_steps - warmup_steps)`,
    and 0 from `total_steps` on.

    Args:
        peak_learning_rate: float.
        warmup_steps: int, optimizer updates. May be 0.
        total_steps: int, optimizer updates.

    Raises:
        ValueError: if `warmup_steps` is negative or not below `total_steps`, or the
            peak is not above 0.
    """

    def __init__(self, peak_learning_rate, warmup_steps, total_steps):
        check_number(above=0, peak_learning_rate=peak_learning_rate)
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                "`warmup_steps` must be at least 0 and below `total_steps`. Received: "
                f"warmup_steps={warmup_steps}, total_steps={total_steps}."
            )
        self.peak_learning_rate = peak_learning_rate
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step):
        """The learning rate of one update, a float32 scalar."""
        step = ops.cast(step, "float32")
        # Not step / warmup_steps: the first update would then be thrown away.
        warmup = (step + 1.0) / max(self.warmup_steps, 1)
        decay = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        fraction = ops.where(step < self.warmup_steps, warmup, decay)
        return self.peak_learning_rate * ops.clip(fraction, 0.0, 1.0)

    def get_config(self):
        """The arguments of the constructor."""
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
        }


def last_learning_rate(optimizer):
    """The learning rate that the optimizer's last update used.

    `optimizer.learning_rate` is that of the next one.

    Args:
        optimizer: a Keras optimizer.

    Returns:
        float. That of the first update if there was none yet.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # Its own count includes skipped updates.
        optimizer = optimizer.inner_optimizer
    rate = optimizer.get_config()["learning_rate"]
    if isinstance(rate, dict):
        schedule = keras.optimizers.schedules.deserialize(rate)
        rate = schedule(max(int(optimizer.iterations) - 1, 0))
    return float(rate)


def adamw(
    peak_learning_rate,
    warmup_steps,
    total_steps,
    weight_decay=0.01,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    gradient_clip_norm=1.0,
):
    """Builds the papers' optimizer.

    AdamW with linear warm-up and decay; biases and the scales and offsets of norms do
    not decay. The paper states neither `epsilon` nor clipping: 1e-6 and 1.0 are the
    usual choices for BERT.

    Args:
        peak_learning_rate: float. The paper's is 6e-4.
        warmup_steps: int, optimizer updates. The paper's is 4,000.
        total_steps: int, optimizer updates. The paper's is 400,000, and 1,000,000 for
            XLM-R.
        weight_decay: float.
        beta_1: float.
        beta_2: float.
        epsilon: float.
        gradient_clip_norm: float, the largest norm of all gradients together, or None
            for no clipping.

    Returns:
        `keras.optimizers.AdamW`.

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828), section 4.1.
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate=WarmupLinearDecay(peak_learning_rate, warmup_steps, total_steps),
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=epsilon,
        global_clipnorm=gradient_clip_norm,
    )
    # Every bias, and a norm's scale and offset. On TensorFlow, Keras looks at the names
    # of tf.Variables, which end in ":0", and in "/replica_1:0" on a second device.
    optimizer.exclude_from_weight_decay(var_names=[_NOT_DECAYED])
    return optimizer
