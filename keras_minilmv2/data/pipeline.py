"""Prepared examples become batches, shuffled over the whole corpus.

A batch depends only on its step, the seed and the worker, never on what was read
before. Needs NumPy alone; TensorFlow is imported by `as_dataset` only.
"""

import itertools

import numpy as np

from keras_minilmv2.utils.datasets import without_autotune

_ROUNDS = 8


def training_batches(
    examples,
    batch_size,
    *,
    seed,
    start_step=0,
    num_workers=1,
    worker=0,
    segment_ids=False,
):
    """Iterates without end over shuffled batches, from any step on.

    An epoch is every example once, in an order that the seed and the number of the
    epoch decide; epochs follow one another without a gap, so a batch may hold
    examples of two of them. The batches of all workers at a step, one after the
    other, are the batch of a single worker. To resume, pass the number of steps done
    as `start_step`: it costs the same at every step.

    Args:
        examples: `PreparedExamples`, or anything with a length whose items at an array
            of indices are a dict of arrays.
        batch_size: int. Examples of a step, over all workers.
        seed: int, at least 0.
        start_step: int, from 0. The first step.
        num_workers: int. Must divide `batch_size`.
        worker: int, from 0. Which of them this is.
        segment_ids: bool. Whether to add `"segment_ids"`, which are all 0.

    Yields:
        dict of int32 `(batch_size / num_workers, sequence_length)`.

    Raises:
        ValueError: if an argument is out of its range or there are no examples; when
            an example is read, as `PreparedExamples` does.
    """
    _check(examples, batch_size, seed, start_step, num_workers, worker)
    return (
        _batch(examples, batch_size, step, seed, num_workers, worker, segment_ids)
        for step in itertools.count(start_step)
    )


def as_dataset(
    examples,
    batch_size,
    *,
    seed,
    start_step=0,
    num_workers=1,
    worker=0,
    segment_ids=False,
):
    """The batches of `training_batches` as a `tf.data.Dataset`.

    It starts at `start_step` at once, its shapes are static, and the state of its
    iterator is the number of the step. An error while reading surfaces from tf.data
    with a trace; `corpus_errors(examples)` turns it back.

    Args:
        examples: as for `training_batches`, and so are the other arguments.
        batch_size: int. Examples of a step, over all workers.
        seed: int, at least 0.
        start_step: int, from 0.
        num_workers: int.
        worker: int, from 0.
        segment_ids: bool.

    Returns:
        `tf.data.Dataset` of dicts of int32
        `(batch_size / num_workers, sequence_length)`, without end.

    Raises:
        ValueError: as `training_batches` does.
    """
    import tensorflow as tf

    _check(examples, batch_size, seed, start_step, num_workers, worker)
    names = ["token_ids", "padding_mask"] + ["segment_ids"] * segment_ids
    shape = (batch_size // num_workers, examples.sequence_length)

    def read(step):
        batch = _batch(
            examples, batch_size, int(step), seed, num_workers, worker, segment_ids
        )
        return [batch[name] for name in names]

    def batch_of(step):
        values = tf.numpy_function(
            read, [step], [tf.int32] * len(names), stateful=False
        )
        return {
            name: tf.ensure_shape(value, shape)
            for name, value in zip(names, values, strict=True)
        }

    options = tf.data.Options()
    # The batches are this worker's already.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return without_autotune(
        tf.data.Dataset.range(start_step, tf.int64.max)
        .map(batch_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )


def sample(examples, num_examples, *, seed=0):
    """Draws examples without replacement, from everywhere in the corpus.

    Args:
        examples: as for `training_batches`.
        num_examples: int. How many, or all if there are fewer.
        seed: int, at least 0.

    Returns:
        dict of arrays, `(num_examples, sequence_length)`.
    """
    indices = np.arange(min(num_examples, len(examples)))
    return examples[shuffled(indices, len(examples), seed)]


def batch_indices(num_examples, batch_size, step, *, seed, num_workers=1, worker=0):
    """Which examples a batch has.

    Args:
        num_examples: int. Examples of an epoch.
        batch_size: int. Examples of a step, over all workers.
        step: int, from 0.
        seed: int, at least 0.
        num_workers: int. Must divide `batch_size`.
        worker: int, from 0.

    Returns:
        int64 `(batch_size / num_workers,)`.
    """
    size = batch_size // num_workers
    first = step * batch_size + worker * size
    # Python's integers first: step * batch_size may be any size.
    epoch, offset = divmod(first, num_examples)
    positions = offset + np.arange(size)
    epochs, positions = np.divmod(positions, num_examples)
    indices = np.empty(size, "int64")
    for number in np.unique(epochs):
        chosen = epochs == number
        indices[chosen] = shuffled(
            positions[chosen], num_examples, seed, epoch + int(number)
        )
    return indices


def shuffled(positions, size, seed, epoch=0):
    """Where a random permutation of `range(size)` sends some positions.

    A Feistel network over the bits of the position, applied again until the result
    is below `size` (cycle walking); from 128 examples on that takes at most twice on
    average. So no permutation is ever held, however large the corpus.

    Args:
        positions: int array, each at least 0 and below `size`.
        size: int. Numbers that are permuted.
        seed: int, at least 0.
        epoch: int, at least 0. Another one is another permutation.

    Returns:
        int64 array as long as `positions`.

    Reference:
        [Black and Rogaway, 2002](https://doi.org/10.1007/3-540-45760-7_9).
    """
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, "uint64")
    # In fewer bits than 8 some permutations would be likelier than others.
    num_bits = max(8, (size - 1).bit_length())
    low_bits = np.uint64(num_bits // 2)
    low_mask = np.uint64((1 << (num_bits // 2)) - 1)
    high_mask = np.uint64((1 << (num_bits - num_bits // 2)) - 1)

    def permute(values):
        low, high = values & low_mask, values >> low_bits
        for low_key, high_key in keys.reshape(-1, 2):
            low = low ^ (_hash(high, low_key) & low_mask)
            high = high ^ (_hash(low, high_key) & high_mask)
        return high << low_bits | low

    values = permute(np.asarray(positions).astype("uint64"))
    while (beyond := values >= size).any():
        values[beyond] = permute(values[beyond])
    return values.astype("int64")


def _hash(values, key):
    """The finalizer of SplitMix64, of values and a key; overflow is intended."""
    values = values + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _batch(examples, batch_size, step, seed, num_workers, worker, segment_ids):
    """One batch."""
    indices = batch_indices(
        len(examples),
        batch_size,
        step,
        seed=seed,
        num_workers=num_workers,
        worker=worker,
    )
    batch = examples[indices]
    if segment_ids:
        batch["segment_ids"] = np.zeros_like(batch["token_ids"])
    return batch


def _check(examples, batch_size, seed, start_step, num_workers, worker):
    """Raises unless the arguments are in their ranges."""
    if not len(examples):
        raise ValueError("`examples` must not be empty. Received: 0 examples.")
    if num_workers < 1 or batch_size < 1 or batch_size % num_workers:
        raise ValueError(
            "`num_workers` must divide `batch_size`, and both be at least 1. "
            f"Received: num_workers={num_workers}, batch_size={batch_size}."
        )
    if not 0 <= worker < num_workers:
        raise ValueError(
            "`worker` must be at least 0 and below `num_workers`. "
            f"Received: worker={worker}, num_workers={num_workers}."
        )
    for name, value in (("seed", seed), ("start_step", start_step)):
        if value < 0:
            raise ValueError(f"`{name}` must be at least 0. Received: {name}={value}.")
