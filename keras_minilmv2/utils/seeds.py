"""The seed that Keras draws weights and the seeds of dropout from."""

import random

import numpy as np


def set_seed(seed):
    """Sets the seeds of Python and NumPy, which are all that Keras draws from.

    `keras.utils.set_random_seed` also sets TensorFlow's. That resets its kernels, and
    every SentencePiece tokenizer in the process loses its model.

    Args:
        seed: int, from 0, of 32 bits.

    Raises:
        ValueError: if it is not.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(
            f"`seed` must be at least 0, below {2**32}. Received: seed={seed}."
        )
    random.seed(seed)
    np.random.seed(seed)
