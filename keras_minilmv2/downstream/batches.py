"""Batches of like lengths: what is trained on, and the outputs for all of it."""

import abc

import numpy as np
import tensorflow as tf

from keras_minilmv2.training.supervised import NotFiniteError, compiled
from keras_minilmv2.utils.devices import runs_on_accelerator

# Logits of padding: their exponential is 0.
MASKED = -1e9


class Features(abc.ABC):
    """The inputs and targets of a model as arrays, one row a text or window.

    A subclass has the attributes `lengths`, int `(rows,)`, the tokens of each row, and
    `sequence_length`, int, which none exceeds.
    """

    # Batches are padded to multiples of this, so that there are few shapes.
    length_step = 16
    # Whether shapes are so few that compiling each by XLA pays on an accelerator.
    has_few_shapes = False

    @property
    def jit_compile(self):
        """Whether XLA compiles the model; it makes steps slower on a CPU."""
        return self.has_few_shapes and runs_on_accelerator()

    def __len__(self):
        return len(self.lengths)

    def padded_lengths(self, rows=slice(None)):
        """Tokens of a batch that holds a row, int `(rows,)`."""
        steps = -(-self.lengths[rows] // self.length_step)
        return np.minimum(steps * self.length_step, self.sequence_length)

    def training_rows(self):
        """Indices of the rows whose targets are known."""
        return np.arange(len(self))

    @abc.abstractmethod
    def inputs(self, rows, length=None):
        """What a model reads of some rows: dict of int32 `(batch, length)`.

        Args:
            rows: int `(batch,)`.
            length: int, tokens. None of the rows is longer. None for
                `sequence_length`.
        """

    @abc.abstractmethod
    def targets(self, rows):
        """What a loss compares the outputs for some rows with: arrays `(batch, ...)`.

        Args:
            rows: int `(batch,)`, out of `training_rows()`.
        """

    @abc.abstractmethod
    def identity(self):
        """Arrays that tell these data from other data."""


def plan_batches(padded_lengths, batch_size, generator):
    """Shares rows out to batches of one length each, in random order.

    What does not fill a batch goes to the next length, and what is left at the end
    makes one smaller batch: there are always `ceil(rows / batch_size)`.

    Args:
        padded_lengths: int `(rows,)`.
        batch_size: int.
        generator: `numpy.random.Generator`. The plan depends on it alone.

    Returns:
        list of pairs, int indices `(batch_size,)` and the length.
    """
    order = generator.permutation(len(padded_lengths))
    batches, rest = [], order[:0]
    for length in np.unique(padded_lengths):
        rest = np.concatenate([rest, order[padded_lengths[order] == length]])
        while len(rest) >= batch_size:
            batches.append((rest[:batch_size], length))
            rest = rest[batch_size:]
    if len(rest):
        batches.append((rest, length))
    return [batches[i] for i in generator.permutation(len(batches))]


def training_epochs(features, batch_size, num_epochs, seed, rows=None):
    """Batches of a training run.

    Args:
        features: `Features`.
        batch_size: int, rows.
        num_epochs: int.
        seed: int. The batches depend on it alone.
        rows: int `(rows,)`, those to train on. Defaults to `training_rows()`.

    Yields:
        For each epoch an iterator of pairs, inputs and targets.
    """
    rows = features.training_rows() if rows is None else rows
    padded_lengths = features.padded_lengths(rows)

    def epoch(number):
        generator = np.random.default_rng((seed, number))
        for places, length in plan_batches(padded_lengths, batch_size, generator):
            chosen = rows[places]
            yield features.inputs(chosen, length), features.targets(chosen)

    yield from map(epoch, range(num_epochs))


def predict(model, features, batch_size, *, by_token=False):
    """Outputs of a model for all rows, without dropout, on one device.

    Args:
        model: Keras model.
        features: `Features`.
        batch_size: int, rows.
        by_token: bool. Whether an output has a value, or values, for each token. It
            is then padded with -1e9 to `sequence_length`.

    Returns:
        float32 `(rows, ...)`, in the order of the rows; a dict of them if the model
        has several outputs.

    Raises:
        NotFiniteError: if an output is not finite.
    """

    def forward(inputs):
        outputs = model(inputs, training=False)
        return tf.nest.map_structure(lambda x: tf.cast(x, "float32"), outputs)

    run = compiled(forward, features.jit_compile)
    order = np.argsort(features.padded_lengths(), kind="stable")
    outputs = None
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        length = features.padded_lengths(rows[-1:])[0]
        found = tf.nest.map_structure(
            lambda x: x.numpy(), run(features.inputs(rows, length))
        )
        if outputs is None:
            outputs = tf.nest.map_structure(
                lambda x: _empty(x, features, by_token), found
            )
        for whole, part in zip(
            tf.nest.flatten(outputs), tf.nest.flatten(found), strict=True
        ):
            if by_token:
                whole[rows, :length] = part
            else:
                whole[rows] = part
    if not all(np.isfinite(x).all() for x in tf.nest.flatten(outputs)):
        raise NotFiniteError("`model` must have finite weights and outputs.")
    return outputs


def _empty(part, features, by_token):
    """Room for the outputs of all rows, given those of some."""
    shape = part.shape[1:]
    if by_token:
        shape = (features.sequence_length, *shape[1:])
    return np.full((len(features), *shape), MASKED, "float32")
