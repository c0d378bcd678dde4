"""Raw strings to the inputs of an encoder, as a graph of TensorFlow ops.

The token ids are those of training: `graph_tokenizer` gives what `fast_tokenizer`
does.
"""

import tensorflow as tf

from keras_minilmv2.backbones.families import tokenizer_family
from keras_minilmv2.tokenization.graphs import graph_tokenizer


class TextInputs:
    """Tokenizes and packs one text or two a row.

    One text is start, text, end. Two are start, text, end, text, end, with a second
    end token in the middle for RoBERTa and XLM-R, and segment ids 0 and 1 for the
    others. What does not fit is cut from the end, of two texts from the longer one,
    as keras-nlp's round robin does. Bytes that are not UTF-8 become U+FFFD.

    Args:
        tokenizer: a keras-nlp tokenizer.
        sequence_lengths: increasing tuple of int. A batch is padded to the smallest
            that holds its longest row; text beyond the last one is cut.
        num_texts: int, 1 or 2.
        segment_ids: bool. Whether the encoder reads them.
        answer_mask: bool. Whether a model of answer spans reads one.

    Raises:
        ValueError: if the tokenizer pads, truncates or adds special tokens itself, or
            a sequence length leaves no room for text.
        TypeError: if the tokenizer is of no supported kind or has no start, end and
            pad token.
    """

    def __init__(
        self, tokenizer, sequence_lengths, num_texts, segment_ids, answer_mask=False
    ):
        self._tokenize = graph_tokenizer(tokenizer, sequence_lengths[-1])
        self._start = [tokenizer.start_token_id]
        self._end = [tokenizer.end_token_id]
        self._pad = tokenizer.pad_token_id
        family = tokenizer_family(tokenizer)
        self._between = self._end * family.num_separators
        self._second_segment = family.second_segment
        self._lengths = sequence_lengths
        self._segment_ids, self._answer_mask = segment_ids, answer_mask
        self._num_special = 2 + (num_texts - 1) * len(self._between)
        if sequence_lengths[0] < self._num_special + num_texts:
            raise ValueError(
                f"`sequence_length` must be at least {self._num_special + num_texts}: "
                f"{self._num_special} special tokens and a token of each text. "
                f"Received: sequence_length={sequence_lengths[0]}."
            )
        # A graph in eager calls too, where keras-hub has another tokenizer.
        self._packed = tf.function(
            self._pack,
            input_signature=[tf.TensorSpec([None], tf.string)] * num_texts,
            autograph=False,
        )

    @property
    def trackable(self):
        """What holds the vocabulary, for an export archive to track."""
        return self._tokenize

    def __call__(self, *texts):
        """Packs a batch.

        Args:
            *texts: string tensors `(batch,)`, as many as `num_texts`.

        Returns:
            dict of int32 `(batch, length)`: `"token_ids"`, `"padding_mask"` (1 = real
            token) and, where the model reads them, `"segment_ids"` and
            `"answer_mask"` (1 = the start token and the second text).
        """
        return self._packed(*texts)

    def _pack(self, *texts):
        segments = [
            self._tokenize(
                tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
            )
            for text in texts
        ]
        if len(segments) == 1:
            (segment,) = segments
            segment = segment[:, : self._lengths[-1] - self._num_special]
            parts = [self._start, segment, self._end]
        else:
            first, second = self._trimmed(*segments)
            parts = [self._start, first, self._between, second, self._end]
        num_rows = tf.shape(texts[0])[0]
        parts = [
            tf.tile([part], [num_rows, 1]) if isinstance(part, list) else part
            for part in parts
        ]
        rows = tf.concat(parts, axis=1)
        num_tokens = rows.row_lengths()
        length = self._length(num_tokens)

        def dense(rows, padding=0):
            return rows.to_tensor(padding, shape=tf.stack([-1, length]))

        def numbered(numbers):
            """A number for each part; one text has only the first three."""
            pairs = zip(parts, numbers, strict=False)
            return dense(tf.concat([0 * p + number for p, number in pairs], axis=1))

        inputs = {
            "token_ids": dense(rows, self._pad),
            "padding_mask": tf.sequence_mask(num_tokens, length, tf.int32),
        }
        if self._segment_ids:
            second = self._second_segment
            inputs["segment_ids"] = numbered([0, 0, 0, second, second])
        if self._answer_mask:
            inputs["answer_mask"] = numbered([1, 0, 0, 1, 0])
        return inputs

    def _trimmed(self, first, second):
        """Cuts two texts to what fits, a token at a time from the longer one."""
        room = tf.constant(self._lengths[-1] - self._num_special, tf.int64)
        lengths = first.row_lengths(), second.row_lengths()
        for_first = tf.minimum(
            lengths[0], tf.maximum((room + 1) // 2, room - lengths[1])
        )
        for_second = tf.minimum(lengths[1], room - for_first)
        return _heads(first, for_first), _heads(second, for_second)

    def _length(self, num_tokens):
        """The length that a batch is padded to."""
        if len(self._lengths) == 1:
            return self._lengths[0]
        # An empty batch has no longest row.
        longest = tf.reduce_max(tf.concat([[0], tf.cast(num_tokens, tf.int32)], axis=0))
        lengths = tf.constant(self._lengths)
        return tf.gather(lengths, tf.searchsorted(lengths, [longest])[0])


def _heads(rows, num_tokens):
    """The first tokens of each row."""
    begins = rows.row_starts()
    return tf.gather(rows.values, tf.ragged.range(begins, begins + num_tokens))
