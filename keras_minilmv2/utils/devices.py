"""Whether there are GPUs or TPUs."""

import os

import keras


def has_gpu():
    """Whether this machine has a GPU, as TensorFlow sees it. Sets no devices up."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def has_accelerator():
    """Whether this machine has a GPU or a TPU, as TensorFlow sees it.

    Sets no devices up: a TPU or several workers can be afterwards.
    """
    import tensorflow as tf

    return bool(
        has_gpu()
        or tf.config.list_physical_devices("TPU")
        or "TPU_WORKER_ID" in os.environ
    )


def runs_on_accelerator():
    """Whether the running backend computes on a GPU or a TPU. Sets its devices up."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return any(d.device_type != "CPU" for d in tf.config.list_logical_devices())
