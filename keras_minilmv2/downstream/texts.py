"""Texts and pairs of texts as packed token ids."""

import functools
import itertools

import numpy as np
import tensorflow as tf

from keras_minilmv2.backbones.families import tokenizer_family
from keras_minilmv2.downstream.batches import Features
from keras_minilmv2.tokenization.fast import fast_tokenizer

# Texts tokenized at a time.
_CHUNK = 4_096


class EncodedTexts(Features):
    """Packed token ids of texts, without padding.

    Args:
        token_ids: int32 `(tokens,)`, all texts one after the other.
        segment_ids: uint8 `(tokens,)`, or None for a model that has none.
        lengths: int `(texts,)`, tokens of each text.
        sequence_length: int. No text is longer.
        pad_id: int. The token that fills up a batch.
        labels: int32 or float32 `(texts,)`, or None.
    """

    def __init__(
        self, token_ids, segment_ids, lengths, sequence_length, pad_id, labels=None
    ):
        self.token_ids = token_ids
        self.segment_ids = segment_ids
        self.lengths = np.asarray(lengths)
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self.labels = labels
        self._begins = np.cumsum(self.lengths) - self.lengths

    def inputs(self, rows, length=None):
        """Inputs of a backbone: dict of int32 `(texts, length)`."""
        columns = np.arange(self.sequence_length if length is None else length)
        mask = columns < self.lengths[rows][:, None]
        places = (self._begins[rows][:, None] + columns)[mask]
        batch = {"padding_mask": mask.astype("int32")}
        batch["token_ids"] = np.full(mask.shape, self.pad_id, "int32")
        batch["token_ids"][mask] = self.token_ids[places]
        if self.segment_ids is not None:
            batch["segment_ids"] = np.zeros(mask.shape, "int32")
            batch["segment_ids"][mask] = self.segment_ids[places]
        return batch

    def targets(self, rows):
        """Labels of some texts, `(texts,)`."""
        return self.labels[rows]

    def identity(self):
        """Token ids, lengths and, where they are known, labels."""
        labels = () if self.labels is None else (self.labels,)
        return self.token_ids, self.lengths, *labels


def encode(texts, preprocessor, segment_ids, labels=None):
    """Tokenizes and packs texts or pairs of texts, as the preprocessor would.

    Args:
        texts: tuple of one or two lists of str.
        preprocessor: `keras_hub.models.TextClassifierPreprocessor`.
        segment_ids: bool. Whether the model reads segment ids.
        labels: int32 or float32 `(texts,)`, or None.

    Returns:
        `EncodedTexts`.
    """
    tokenizer = preprocessor.tokenizer
    tokenize = fast_tokenizer(tokenizer).rows
    second_segment = tokenizer_family(tokenizer).second_segment
    if preprocessor.packer is None:
        preprocessor.build(None)
    pack = _packing(preprocessor.packer, len(texts))
    token_ids, segments, lengths = [], [], []
    for begin in range(0, len(texts[0]), _CHUNK):
        columns = (tokenize(column[begin : begin + _CHUNK]) for column in texts)
        packed, segment = (x.numpy() for x in pack(tuple(map(_ragged, columns))))
        mask = packed != tokenizer.pad_token_id
        token_ids.append(packed[mask])
        segments.append(segment[mask].astype("uint8") * second_segment)
        lengths.append(mask.sum(axis=1))
    return EncodedTexts(
        np.concatenate(token_ids),
        np.concatenate(segments) if segment_ids else None,
        np.concatenate(lengths),
        preprocessor.sequence_length,
        tokenizer.pad_token_id,
        labels,
    )


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
