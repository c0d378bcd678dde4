"""Pieces of fine-tuning: texts as token ids, batches of like lengths, steps."""

import functools
import itertools
import math

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from keras_minilmv2.tokenization.fast import fast_tokenizer
from keras_minilmv2.training.gradients import dense

# Texts tokenized at a time.
_CHUNK = 4_096
# Batches are padded to multiples of this, so that there are few shapes.
LENGTH_STEP = 16


class EncodedTexts:
    """Packed token ids of texts, without padding.

    Args:
        token_ids: int32 `(tokens,)`, all texts one after the other.
        segment_ids: uint8 `(tokens,)`, or None for a model that has none.
        lengths: int `(texts,)`, tokens of each text.
        sequence_length: int. No text is longer.
        pad_id: int. The token that fills up a batch.
    """

    def __init__(self, token_ids, segment_ids, lengths, sequence_length, pad_id):
        self.token_ids = token_ids
        self.segment_ids = segment_ids
        self.lengths = np.asarray(lengths)
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self._begins = np.cumsum(self.lengths) - self.lengths

    def __len__(self):
        return len(self.lengths)

    def batch(self, indices, length):
        """Inputs of a backbone: dict of int32 `(texts, length)`.

        Args:
            indices: int `(texts,)`.
            length: int, tokens. None of the texts is longer.
        """
        columns = np.arange(length)
        mask = columns < self.lengths[indices][:, None]
        places = (self._begins[indices][:, None] + columns)[mask]
        batch = {"padding_mask": mask.astype("int32")}
        batch["token_ids"] = np.full(mask.shape, self.pad_id, "int32")
        batch["token_ids"][mask] = self.token_ids[places]
        if self.segment_ids is not None:
            batch["segment_ids"] = np.zeros(mask.shape, "int32")
            batch["segment_ids"][mask] = self.segment_ids[places]
        return batch

    def padded_lengths(self):
        """Length of a batch that holds the text, `(texts,)`."""
        steps = -(-self.lengths // LENGTH_STEP)
        return np.minimum(steps * LENGTH_STEP, self.sequence_length)


def encode(texts, preprocessor, segment_ids):
    """Tokenizes and packs texts or pairs of texts, as the preprocessor would.

    Args:
        texts: tuple of one or two lists of str.
        preprocessor: `keras_hub.models.TextClassifierPreprocessor`.
        segment_ids: bool. Whether the model reads segment ids.

    Returns:
        `EncodedTexts`.
    """
    tokenizer = preprocessor.tokenizer
    tokenize = fast_tokenizer(tokenizer).rows
    if preprocessor.packer is None:
        preprocessor.build(None)
    pack = _packing(preprocessor.packer, len(texts))
    has_segments = not isinstance(
        tokenizer,
        keras_hub.models.RobertaTokenizer | keras_hub.models.XLMRobertaTokenizer,
    )
    token_ids, segments, lengths = [], [], []
    for begin in range(0, len(texts[0]), _CHUNK):
        columns = (tokenize(column[begin : begin + _CHUNK]) for column in texts)
        packed, segment = (x.numpy() for x in pack(tuple(map(_ragged, columns))))
        mask = packed != tokenizer.pad_token_id
        token_ids.append(packed[mask])
        # Two end tokens between texts stand for segments in RoBERTa and XLM-R.
        segments.append(segment[mask].astype("uint8") * has_segments)
        lengths.append(mask.sum(axis=1))
    return EncodedTexts(
        np.concatenate(token_ids),
        np.concatenate(segments) if segment_ids else None,
        np.concatenate(lengths),
        preprocessor.sequence_length,
        tokenizer.pad_token_id,
    )


def plan_batches(padded_lengths, batch_size, generator):
    """Shares texts out to batches of one length each, in random order.

    What does not fill a batch goes to the next length, and what is left at the end
    makes one smaller batch: there are always `ceil(texts / batch_size)`.

    Args:
        padded_lengths: int `(texts,)`.
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


def training_epochs(encoded, labels, batch_size, num_epochs, seed):
    """Batches of a training run.

    Args:
        encoded: `EncodedTexts`.
        labels: `(texts,)`.
        batch_size: int.
        num_epochs: int.
        seed: int. The batches depend on it alone.

    Yields:
        For each epoch an iterator of pairs, inputs and labels.
    """
    padded_lengths = encoded.padded_lengths()

    def epoch(number):
        generator = np.random.default_rng((seed, number))
        for indices, length in plan_batches(padded_lengths, batch_size, generator):
            yield encoded.batch(indices, length), labels[indices]

    yield from map(epoch, range(num_epochs))


def task_loss(task):
    """The loss of a task: cross-entropy of its classes, squared error of its score."""
    if task.label_names is None:
        return keras.losses.MeanSquaredError()
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(model, loss, optimizer, epochs, on_step=None):
    """Trains a model.

    Args:
        model: Keras model.
        loss: function of targets and outputs, a scalar.
        optimizer: Keras optimizer.
        epochs: iterable of iterables of pairs, inputs and targets, of any one
            structure. The first axis is the batch.
        on_step: function of the step, counted from 1, and its loss.

    Returns:
        list of float, the mean loss of each epoch.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    step, number, means = training_step(model, loss, optimizer), 0, []
    for epoch in epochs:
        total, count = 0.0, 0
        for batch in epoch:
            number += 1
            value = float(step(*batch))
            if not math.isfinite(value):
                raise FloatingPointError(f"The loss was not finite at step {number}.")
            size = len(tf.nest.flatten(batch)[0])
            total, count = total + size * value, count + size
            if on_step is not None:
                on_step(number, value)
        means.append(total / count)
    return means


def training_step(model, loss, optimizer):
    """One update of a model, as a compiled function.

    Gradients of embeddings are dense, so that Adam moves every row in every step, as
    it does in the papers' code.

    Args:
        model: Keras model.
        loss: function of targets and outputs, a scalar.
        optimizer: Keras optimizer.

    Returns:
        Function of inputs and targets that updates the model and returns the loss. It
        is compiled for the first batch's structure, for all lengths.
    """
    variables = model.trainable_variables
    optimizer.build(variables)

    # In one compiled pass: op by op the moments of a large embedding are read and
    # written many times.
    update = tf.function(optimizer.apply, jit_compile=True)

    def step(inputs, targets):
        with tf.GradientTape() as tape:
            value = loss(targets, model(inputs, training=True))
            scaled = optimizer.scale_loss(value)
        gradients = tape.gradient(scaled, variables)
        update([dense(g, v) for g, v in zip(gradients, variables, strict=True)])
        return value

    compiled = None

    def run(*batch):
        nonlocal compiled
        compiled = compiled or _graph(step, *batch)
        return compiled(*batch)

    return run


def predict(model, encoded, batch_size):
    """Outputs of a model, without dropout.

    Args:
        model: Keras model of one output.
        encoded: `EncodedTexts`.
        batch_size: int.

    Returns:
        float32 `(texts, ...)`, in the order of the texts.
    """

    def forward(inputs):
        return tf.cast(model(inputs, training=False), "float32")

    compiled = None
    padded_lengths = encoded.padded_lengths()
    order = np.argsort(padded_lengths, kind="stable")
    outputs = []
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        batch = encoded.batch(indices, padded_lengths[indices[-1]])
        compiled = compiled or _graph(forward, batch)
        outputs.append(compiled(batch).numpy())
    return np.concatenate(outputs)[np.argsort(order)]


def decide(task, outputs):
    """Classes or scores `(texts,)` from outputs `(texts, num_outputs)`."""
    return outputs[:, 0] if task.label_names is None else outputs.argmax(axis=-1)


@functools.lru_cache(maxsize=4)
def _packing(packer, num_columns):
    """A packer in a graph; outside one it takes longer than the tokenizer."""
    column = tf.RaggedTensorSpec([None, None], "int32", ragged_rank=1)
    return tf.function(packer.call, input_signature=[(column,) * num_columns])


def _ragged(rows):
    """Lists of token ids as a `tf.RaggedTensor`."""
    lengths = [len(row) for row in rows]
    tokens = itertools.chain.from_iterable(rows)
    flat = np.fromiter(tokens, "int32", sum(lengths))
    return tf.RaggedTensor.from_row_lengths(flat, lengths)


def _graph(function, *arguments):
    """A function compiled for arguments of these kinds and any size."""
    specs = tf.nest.map_structure(
        lambda value: tf.TensorSpec([None] * np.ndim(value), value.dtype), arguments
    )
    # The concrete function: a grid makes many, of which tf.function would warn.
    return tf.function(function).get_concrete_function(*specs)
