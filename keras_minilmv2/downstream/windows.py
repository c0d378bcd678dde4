"""Contexts cut into overlapping windows, each with its question before it."""

import math
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
import tensorflow as tf

from keras_minilmv2.backbones.families import check_tokenizer, tokenizer_family
from keras_minilmv2.downstream.batches import Features, training_epochs
from keras_minilmv2.tokenization.fast import fast_tokenizer
from keras_minilmv2.utils.checks import check_int
from keras_minilmv2.utils.datasets import without_autotune


@dataclass(frozen=True, eq=False)
class SpanFeatures(Features):
    """Windows of question and context as arrays, 13 bytes a token.

    The windows of an example follow each other, in the order of `examples`. A window
    has the start token, the question, one end token (two for RoBERTa and XLM-R), part
    of the context, the end token, padding.

    Args:
        examples: list of `SpanExample`.
        example_index: int32 `(windows,)`. Index of the window's example.
        token_ids: int32 `(windows, sequence_length)`.
        num_tokens: int32 `(windows,)`. Tokens without padding.
        context_begin: int32 `(windows,)`. The context's first token; its last one is
            at `num_tokens - 2`.
        context_segment: int. Segment id of the context, 0 for RoBERTa and XLM-R.
        char_begins: int32 `(windows, sequence_length)`. First character in the context
            of each of its tokens, 0 elsewhere.
        char_ends: int32 `(windows, sequence_length)`. The character after its last one.
        is_max_context: bool `(windows, sequence_length)`. For each token of the
            context, whether no other window has more context around it.
        start_positions: int32 `(windows,)`. First token of the answer; 0, the start
            token, where the window does not hold all of it; -1 if it is unknown.
        end_positions: int32 `(windows,)`. Its last token.
    """

    examples: list
    example_index: np.ndarray
    token_ids: np.ndarray
    num_tokens: np.ndarray
    context_begin: np.ndarray
    context_segment: int
    char_begins: np.ndarray
    char_ends: np.ndarray
    is_max_context: np.ndarray
    start_positions: np.ndarray
    end_positions: np.ndarray

    length_step = 64
    has_few_shapes = True

    @property
    def lengths(self):
        """Tokens of each window."""
        return self.num_tokens

    @property
    def sequence_length(self):
        """Tokens of a window, padding included."""
        return self.token_ids.shape[1]

    def training_rows(self):
        """Indices of the windows with a known label.

        Raises:
            ValueError: if there is none.
        """
        rows = np.flatnonzero(self.start_positions >= 0)
        if not len(rows):
            raise ValueError(
                "`features` must have a window whose label is known. "
                f"Received: features of {len(self)} windows."
            )
        return rows

    def targets(self, rows):
        """Labels of some windows: dict of int32 `(batch,)`."""
        return {
            "start_positions": self.start_positions[rows],
            "end_positions": self.end_positions[rows],
        }

    def identity(self):
        """The bytes of each example."""
        return [
            np.frombuffer(repr(astuple(example)).encode(), "uint8")
            for example in self.examples
        ]

    def of_examples(self, first, last):
        """The windows of the examples `first` to `last - 1`, as `SpanFeatures`."""
        rows = slice(*np.searchsorted(self.example_index, (first, last)))
        values = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        values["example_index"] = values["example_index"] - first
        return rows, replace(self, examples=self.examples[first:last], **values)

    def inputs(self, rows, length=None):
        """What a `SpanModel` reads of some windows.

        Args:
            rows: int `(batch,)`. Which windows.
            length: int. Tokens, where none of these windows is longer; None for all.

        Returns:
            dict of int32 `(batch, length)`: `"token_ids"`, `"padding_mask"` (1 = real
            token), `"segment_ids"`, and `"answer_mask"` (1 = the start token and the
            context, where an answer may be).
        """
        token_ids = self.token_ids[rows, :length]
        place = np.arange(token_ids.shape[1])
        begin = self.context_begin[rows][:, np.newaxis]
        end = self.num_tokens[rows][:, np.newaxis]
        is_answer = (place == 0) | ((place >= begin) & (place < end - 1))
        segment = (place >= begin) & (place < end)
        return {
            "token_ids": token_ids,
            "padding_mask": (place < end).astype("int32"),
            "segment_ids": segment.astype("int32") * self.context_segment,
            "answer_mask": is_answer.astype("int32"),
        }


def span_features(
    tokenizer,
    examples,
    *,
    sequence_length=384,
    doc_stride=128,
    max_question_length=64,
):
    """Cuts contexts into overlapping windows, each with its question before it.

    Args:
        tokenizer: keras-nlp tokenizer of the model's family.
        examples: list of `SpanExample`. Of several answers, the first one that has a
            place in the context is the label.
        sequence_length: int. Tokens of a window, padding included.
        doc_stride: int. Tokens from the start of a window to that of the next.
        max_question_length: int. Tokens after which a question is cut off.

    Returns:
        `SpanFeatures`.

    Raises:
        ValueError: if a size is not positive, `sequence_length` leaves no room for the
            context, or the tokenizer does more than tokenize.
        TypeError: if the tokenizer is of no supported kind.
    """
    encode = fast_tokenizer(tokenizer).offsets
    family = tokenizer_family(tokenizer)
    separators = [tokenizer.end_token_id] * family.num_separators
    num_special = 2 + len(separators)
    _check_sizes(sequence_length, doc_stride, max_question_length, num_special)

    questions = [
        encoding.token_ids[:max_question_length]
        for encoding in encode([example.question for example in examples])
    ]
    texts = list(dict.fromkeys(example.context for example in examples))
    encoding_of = dict(zip(texts, encode(texts), strict=True))
    contexts = [encoding_of[example.context] for example in examples]

    rooms = sequence_length - num_special - np.array(list(map(len, questions)), int)
    sizes = np.array([len(context.token_ids) for context in contexts], int)
    strides = np.minimum(doc_stride, rooms)
    num_windows = 1 - np.minimum(rooms - sizes, 0) // strides
    example_index = np.repeat(np.arange(len(examples), dtype="int32"), num_windows)

    shape = (len(example_index), sequence_length)
    token_ids = np.full(shape, tokenizer.pad_token_id, "int32")
    char_begins, char_ends = np.zeros(shape, "int32"), np.zeros(shape, "int32")
    is_max_context = np.zeros(shape, bool)
    num_tokens, context_begin, starts, ends = np.zeros((4, shape[0]), "int32")
    row = 0
    for i, (example, question, context) in enumerate(
        zip(examples, questions, contexts, strict=True)
    ):
        first, last = _answer_tokens(example, context)
        begins = np.arange(num_windows[i]) * strides[i]
        counts = np.minimum(sizes[i] - begins, rooms[i])
        best_window = _best_windows(begins, counts, sizes[i])
        prefix = np.array([tokenizer.start_token_id, *question, *separators])
        offset = len(prefix)
        for number, (begin, count) in enumerate(zip(begins, counts, strict=True)):
            of_context = slice(begin, begin + count)
            of_window = slice(offset, offset + count)
            token_ids[row, :offset] = prefix
            token_ids[row, of_window] = context.token_ids[of_context]
            token_ids[row, offset + count] = tokenizer.end_token_id
            char_begins[row, of_window] = context.begins[of_context]
            char_ends[row, of_window] = context.ends[of_context]
            is_max_context[row, of_window] = best_window[of_context] == number
            num_tokens[row] = offset + count + 1
            context_begin[row] = offset
            if first is None:
                starts[row] = ends[row] = -1
            elif begin <= first and last < begin + count:
                starts[row] = offset + first - begin
                ends[row] = offset + last - begin
            row += 1
    return SpanFeatures(
        examples=list(examples),
        example_index=example_index,
        token_ids=token_ids,
        num_tokens=num_tokens,
        context_begin=context_begin,
        context_segment=family.second_segment,
        char_begins=char_begins,
        char_ends=char_ends,
        is_max_context=is_max_context,
        start_positions=starts,
        end_positions=ends,
    )


def model_windows(backbone, tokenizer, examples, *, sequence_length, **sizes):
    """Windows that an encoder can read.

    Args:
        backbone: a keras-nlp backbone.
        tokenizer: its keras-nlp tokenizer.
        examples: list of `SpanExample`.
        sequence_length: int, as for `span_features`.
        **sizes: int, `doc_stride` and `max_question_length`.

    Returns:
        `SpanFeatures`.

    Raises:
        ValueError: if the encoder has too few positions or token embeddings, or the
            sizes do not fit each other.
    """
    check_tokenizer(backbone, tokenizer)
    if sequence_length > backbone.max_sequence_length:
        raise ValueError(
            "`sequence_length` must not be above the backbone's `max_sequence_length`. "
            f"Received: sequence_length={sequence_length}, "
            f"max_sequence_length={backbone.max_sequence_length}."
        )
    return span_features(tokenizer, examples, sequence_length=sequence_length, **sizes)


def span_dataset(features, batch_size, *, num_epochs=1, seed=0):
    """Batches of windows of like lengths, in another order in every epoch.

    Args:
        features: `SpanFeatures`. Windows whose label is not known are skipped.
        batch_size: int. Windows of a batch; the last one of an epoch may have fewer.
        num_epochs: int. All epochs are one dataset, `cardinality() / num_epochs`
            batches each.
        seed: int. The orders depend on it alone.

    Returns:
        `tf.data.Dataset` of pairs, a dict as `SpanFeatures.inputs` gives it, as long
        as the longest window in steps of 64 tokens, and a dict of int32 `(batch,)`:
        `"start_positions"` and `"end_positions"`.

    Raises:
        ValueError: if no window is left, or a size is not positive.
    """
    check_int(batch_size=batch_size, num_epochs=num_epochs)
    num_rows = len(features.training_rows())

    def batches():
        for epoch in training_epochs(features, batch_size, num_epochs, seed):
            yield from epoch

    signature = tuple(
        {name: tf.TensorSpec([None] * np.ndim(v), "int32") for name, v in part.items()}
        for part in next(batches())
    )
    num_batches = num_epochs * math.ceil(num_rows / batch_size)
    return without_autotune(
        tf.data.Dataset.from_generator(batches, output_signature=signature)
        .apply(tf.data.experimental.assert_cardinality(num_batches))
        .prefetch(2)
    )


def _best_windows(begins, counts, num_tokens):
    """For each token of a context, the window with most context on both its sides."""
    place = np.arange(num_tokens)
    left = place - begins[:, np.newaxis]  # (windows, tokens)
    right = (begins + counts - 1)[:, np.newaxis] - place
    # The longer window of two that are alike otherwise, as in the original BERT code.
    scores = np.minimum(left, right) + 0.01 * counts[:, np.newaxis]
    return np.argmax(np.where((left < 0) | (right < 0), -1.0, scores), axis=0)


def _answer_tokens(example, context):
    """First and last token of the answer; -1 for none, None for an unknown one."""
    if not example.answers:
        return -1, -1
    for text, start in zip(example.answers, example.answer_starts, strict=True):
        if start is None:
            continue
        begin = start + len(text) - len(text.lstrip())
        end = start + len(text.rstrip())
        first = int(np.searchsorted(context.ends, begin, side="right"))
        last = int(np.searchsorted(context.begins, end, side="left")) - 1
        if first <= last:
            return first, last
    return None, None


def _check_sizes(sequence_length, doc_stride, max_question_length, num_special):
    check_int(doc_stride=doc_stride, max_question_length=max_question_length)
    if sequence_length <= max_question_length + num_special:
        raise ValueError(
            "`sequence_length` must leave room for the context after "
            f"`max_question_length` tokens and {num_special} special ones. "
            f"Received: sequence_length={sequence_length}, "
            f"max_question_length={max_question_length}."
        )
