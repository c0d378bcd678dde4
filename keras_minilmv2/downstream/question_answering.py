"""Extractive question answering: questions, windows of their contexts, answers."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras_hub
import numpy as np
import tensorflow as tf

from keras_minilmv2.downstream.fine_tuning import plan_batches
from keras_minilmv2.downstream.span_metrics import MLQA_LANGUAGES
from keras_minilmv2.tokenization.fast import fast_tokenizer

_BLOCK_WINDOWS = 1_000
# Batches are padded to multiples of this, so that there are few shapes.
_LENGTH_STEP = 64


@dataclass(frozen=True)
class SpanExample:
    """A question about a context, with its answers.

    Args:
        id: str.
        question: str.
        context: str.
        answers: tuple of str. Empty where the context has no answer.
        answer_starts: tuple, as long as `answers`. The first character of each answer
            in the context, or None where the answer does not stand where it should.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int | None, ...] = ()


def load_span_examples(name, split, data_dir=None, *, tfds_data_dir=None, strict=False):
    """Loads a question-answering dataset by name.

    Args:
        name: str. `"squad/v1.1"`, `"squad/v2.0"` or, for MLQA, `"mlqa/de"`, or
            `"mlqa/de-en"` for German contexts and English questions.
        split: str. `"train"`, `"dev"` or `"test"`.
        data_dir: str or path of a directory with the published files, or with the
            published directory `squad` or `MLQA_V1`. None takes the dataset of this
            name from TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its datasets.
        strict: bool. As for `read_span_examples`.

    Returns:
        list of `SpanExample`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if `name` is no such dataset, the file is none of SQuAD's or
            MLQA's, or TFDS has no such dataset.
    """
    languages = "|".join(MLQA_LANGUAGES)
    language_pair = rf"mlqa/({languages})(-({languages}))?"
    if not re.fullmatch(rf"squad/(v1\.1|v2\.0)|{language_pair}", name):
        raise ValueError(
            "`name` must be squad/v1.1, squad/v2.0 or mlqa/ and a language or two: "
            f"{', '.join(MLQA_LANGUAGES)}. Received: name={name!r}."
        )
    if data_dir is None:
        return _tfds_examples(name, split, tfds_data_dir, strict)
    path = _find_file(name, split, Path(data_dir).expanduser())
    return read_span_examples(path, strict=strict)


def read_span_examples(path, *, strict=False):
    """Reads a file of SQuAD 1.1, SQuAD 2.0 or MLQA.

    An impossible question has no answers, and an answer that is an empty string is
    none. See `num_misplaced` for answers that do not stand where the file says.

    Args:
        path: str or path of a JSON file in SQuAD's layout.
        strict: bool. Whether such an answer is an error.

    Returns:
        list of `SpanExample`, in the order of the file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is empty, no JSON, or a question lacks its text, context or
            id or has an id that another one has; with `strict`, if an answer does not
            stand in its context at its `answer_start`.
    """
    data = Path(path).read_bytes()
    if not data.strip():
        raise _file_error(path, "it is empty")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _file_error(path, f"it is not JSON: {error}") from error
    examples = [
        _example(record, path, place, strict)
        for record, place in _json_records(content, path)
    ]
    return _checked(examples, path)


def num_misplaced(examples):
    """Counts the answers that do not stand in the context where they should.

    They count in scores, whose texts alone matter, and are not trained on.

    Args:
        examples: iterable of `SpanExample`.

    Returns:
        int.
    """
    return sum(example.answer_starts.count(None) for example in examples)


@dataclass(frozen=True, eq=False)
class SpanFeatures:
    """Windows of question and context as arrays, 13 bytes a token.

    The windows of an example stand together, in the order of `examples`. A window has
    the start token, the question, one end token (two for RoBERTa and XLM-R), part of
    the context, the end token, padding.

    Args:
        examples: list of `SpanExample`.
        example_index: int32 `(windows,)`. Whose window it is.
        token_ids: int32 `(windows, sequence_length)`.
        num_tokens: int32 `(windows,)`. Tokens without padding.
        context_begin: int32 `(windows,)`. The context's first token; its last one is
            at `num_tokens - 2`.
        context_segment: int. Segment id of the context, 0 for RoBERTa and XLM-R.
        char_begins: int32 `(windows, sequence_length)`. First character in the context
            of each of its tokens, 0 elsewhere.
        char_ends: int32 `(windows, sequence_length)`. The character after its last one.
        is_max_context: bool `(windows, sequence_length)`. For each token of the
            context, whether no other window shows more of what stands around it.
        start_positions: int32 `(windows,)`. First token of the answer; 0, the start
            token, where the window does not hold all of it; -1 where nobody knows.
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

    def __len__(self):
        return len(self.example_index)

    def padded_lengths(self, rows):
        """Tokens of a batch that holds a window, `(rows,)`."""
        steps = -(-self.num_tokens[rows] // _LENGTH_STEP)
        return np.minimum(steps * _LENGTH_STEP, self.token_ids.shape[1])

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
        doc_stride: int. Tokens from the beginning of a window to that of the next.
        max_question_length: int. Tokens after which a question is cut off.

    Returns:
        `SpanFeatures`.

    Raises:
        ValueError: if a size is not positive, `sequence_length` leaves no room for the
            context, or the tokenizer does more than tokenize.
        TypeError: if the tokenizer is of no supported kind.
    """
    encode = fast_tokenizer(tokenizer).offsets
    # RoBERTa's two end tokens between question and context, and no segments.
    is_roberta = isinstance(
        tokenizer,
        keras_hub.models.RobertaTokenizer | keras_hub.models.XLMRobertaTokenizer,
    )
    separators = [tokenizer.end_token_id] * (2 if is_roberta else 1)
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
        context_segment=0 if is_roberta else 1,
        char_begins=char_begins,
        char_ends=char_ends,
        is_max_context=is_max_context,
        start_positions=starts,
        end_positions=ends,
    )


def labelled_windows(features):
    """Indices of the windows whose label is known: those that can be trained on.

    Raises:
        ValueError: if there is none.
    """
    rows = np.flatnonzero(features.start_positions >= 0)
    if not len(rows):
        raise ValueError(
            "`features` must have a window whose label is known. "
            f"Received: features of {len(features)} windows."
        )
    return rows


def span_dataset(features, batch_size, *, num_epochs=1, seed=0):
    """Batches of windows of like lengths, in another order in every epoch.

    Args:
        features: `SpanFeatures`. Windows whose label is not known are left out.
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
    check_positive(batch_size=batch_size, num_epochs=num_epochs)
    rows = labelled_windows(features)
    lengths = features.padded_lengths(rows)

    def batches():
        for epoch in range(num_epochs):
            generator = np.random.default_rng((seed, epoch))
            for places, length in plan_batches(lengths, batch_size, generator):
                chosen = rows[places]
                yield (
                    features.inputs(chosen, length),
                    {
                        "start_positions": features.start_positions[chosen],
                        "end_positions": features.end_positions[chosen],
                    },
                )

    signature = tuple(
        {name: tf.TensorSpec([None] * np.ndim(v), "int32") for name, v in part.items()}
        for part in next(batches())
    )
    num_batches = num_epochs * math.ceil(len(rows) / batch_size)
    return (
        tf.data.Dataset.from_generator(batches, output_signature=signature)
        .apply(tf.data.experimental.assert_cardinality(num_batches))
        .prefetch(tf.data.AUTOTUNE)
    )


class SpanAnswers(NamedTuple):
    """What a model answers, by question id.

    Args:
        texts: dict of str. The best answer that is not empty, or `""` if there is none.
        nbest: dict of lists of dicts, the best first: `"text"`, `"probability"`,
            `"start_logit"`, `"end_logit"`.
        null_odds: dict of float. By how much the score of no answer, the lowest that a
            window gives it, is above that of the best answer.
    """

    texts: dict
    nbest: dict
    null_odds: dict


def best_answers(
    features,
    start_logits,
    end_logits,
    *,
    n_best=20,
    max_answer_length=30,
    no_answer=False,
):
    """Turns logits into answers, which are cut out of the contexts.

    The score of an answer is the sum of its first token's start logit and its last
    token's end logit. It begins at one of the `n_best` tokens with the highest start
    logit, in the window that shows most of what stands around it, and ends likewise.
    The score of no answer is that of the window's start token.

    Args:
        features: `SpanFeatures`.
        start_logits: float `(windows, sequence_length)`.
        end_logits: float `(windows, sequence_length)`.
        n_best: int. Answers to keep of each question, equal texts counted once.
        max_answer_length: int, tokens.
        no_answer: bool. Whether to add no answer, an empty text.

    Returns:
        `SpanAnswers`.

    Raises:
        ValueError: if the logits have another shape than `features.token_ids` or are
            not finite, or `n_best` or `max_answer_length` is not positive.
    """
    logits = {"start_logits": start_logits, "end_logits": end_logits}
    for name, values in logits.items():
        if np.shape(values) != features.token_ids.shape:
            raise ValueError(
                f"`{name}` must have a row for each window and a column for each "
                f"token, {features.token_ids.shape}. "
                f"Received: {name} of shape {np.shape(values)}."
            )
        if not np.isfinite(values).all():
            raise ValueError(
                f"`{name}` must be finite. Received: {name} with "
                f"{int(np.sum(~np.isfinite(values)))} values that are not."
            )
    check_positive(n_best=n_best, max_answer_length=max_answer_length)
    num_blocks = len(features) // _BLOCK_WINDOWS + 1
    blocks = [
        _best_of_windows(features, rows, *logits.values(), n_best, max_answer_length)
        for rows in np.array_split(np.arange(len(features)), num_blocks)
    ]
    rows, begins, ends, scores = map(np.concatenate, zip(*blocks, strict=True))
    order = np.lexsort((-scores, features.example_index[rows]))
    rows, begins, ends = rows[order], begins[order], ends[order]
    num_examples = len(features.examples)
    bounds = np.searchsorted(features.example_index[rows], np.arange(num_examples + 1))
    null_rows = _null_rows(features, start_logits[:, 0] + end_logits[:, 0])

    answers = SpanAnswers({}, {}, {})
    for i, example in enumerate(features.examples):
        entries = {}
        for k in range(bounds[i], bounds[i + 1]):
            row, begin, end = rows[k], begins[k], ends[k]
            first = features.char_begins[row, begin]
            text = example.context[first : features.char_ends[row, end]]
            if text and text not in entries:
                entries[text] = start_logits[row, begin], end_logits[row, end]
                if len(entries) == n_best:
                    break
        best_text = next(iter(entries), "")
        null = start_logits[null_rows[i], 0], end_logits[null_rows[i], 0]
        answers.texts[example.id] = best_text
        # Without any answer to compare with, as the original BERT code does.
        best_score = sum(entries.get(best_text, (0.0, 0.0)))
        answers.null_odds[example.id] = float(sum(null) - best_score)
        if no_answer or not entries:
            entries[""] = null
        answers.nbest[example.id] = _with_probabilities(entries)
    return answers


def _with_probabilities(entries):
    """Entries, the best first, with the softmax of their scores."""
    ranked = sorted(entries.items(), key=lambda entry: -sum(entry[1]))
    scores = np.array([sum(logits) for _, logits in ranked], "float64")
    weights = np.exp(scores - scores.max())
    return [
        {
            "text": text,
            "probability": float(probability),
            "start_logit": float(start_logit),
            "end_logit": float(end_logit),
        }
        for (text, (start_logit, end_logit)), probability in zip(
            ranked, weights / weights.sum(), strict=True
        )
    ]


def _best_of_windows(features, rows, start_logits, end_logits, n_best, max_length):
    """Rows, first tokens, last tokens and scores of the best spans of some windows."""
    place = np.arange(features.token_ids.shape[1])
    begin = features.context_begin[rows][:, np.newaxis]
    end = features.num_tokens[rows][:, np.newaxis] - 1
    is_context = (place >= begin) & (place < end)
    may_begin = is_context & features.is_max_context[rows]
    start_logits = np.where(may_begin, start_logits[rows], -np.inf)
    end_logits = np.where(is_context, end_logits[rows], -np.inf)
    begins, begin_scores = _largest(start_logits, n_best)
    ends, end_scores = _largest(end_logits, n_best)
    begins, ends = begins[:, :, np.newaxis], ends[:, np.newaxis, :]
    scores = begin_scores[:, :, np.newaxis] + end_scores[:, np.newaxis, :]
    is_span = (begins <= ends) & (ends - begins < max_length)
    scores = np.where(is_span, scores, -np.inf)  # (windows, begins, ends)
    num_pairs = scores.shape[1] * scores.shape[2]
    best, best_scores = _largest(scores.reshape(len(rows), num_pairs), n_best)
    windows, ranks = np.nonzero(np.isfinite(best_scores))
    i, j = np.divmod(best[windows, ranks], scores.shape[2])
    return (
        rows[windows],
        begins[windows, i, 0],
        ends[windows, 0, j],
        best_scores[windows, ranks],
    )


def _largest(values, count):
    """Columns and values of the largest values of each row, the largest first."""
    count = min(count, values.shape[1])
    columns = np.argpartition(-values, count - 1, axis=1)[:, :count]
    found = np.take_along_axis(values, columns, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return tuple(np.take_along_axis(x, order, axis=1) for x in (columns, found))


def _null_rows(features, null_scores):
    """For each example, the window that gives no answer the lowest score."""
    order = np.lexsort((null_scores, features.example_index))
    _, first = np.unique(features.example_index[order], return_index=True)
    return order[first]


def _best_windows(begins, counts, num_tokens):
    """For each token of a context, the window with most context on both its sides."""
    place = np.arange(num_tokens)
    left = place - begins[:, np.newaxis]  # (windows, tokens)
    right = (begins + counts - 1)[:, np.newaxis] - place
    # The longer window of two that are alike otherwise, as in the original BERT code.
    scores = np.minimum(left, right) + 0.01 * counts[:, np.newaxis]
    return np.argmax(np.where((left < 0) | (right < 0), -1.0, scores), axis=0)


def _answer_tokens(example, context):
    """First and last token of the answer; -1 for no answer, None for an unknown one."""
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
    check_positive(doc_stride=doc_stride, max_question_length=max_question_length)
    if sequence_length <= max_question_length + num_special:
        raise ValueError(
            "`sequence_length` must leave room for the context after "
            f"`max_question_length` tokens and {num_special} special ones. "
            f"Received: sequence_length={sequence_length}, "
            f"max_question_length={max_question_length}."
        )


def check_positive(**sizes):
    """Raises unless all sizes are positive.

    Raises:
        ValueError: with the name of the first one that is not.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"`{name}` must be positive. Received: {name}={value}.")


def _find_file(name, split, data_dir):
    """The file of a dataset below a directory."""
    dataset, _, variant = name.partition("/")
    if dataset == "squad":
        folders, file = ("", "squad"), f"{split}-{variant}.json"
    else:
        context, _, question = variant.partition("-")
        folders = ("", split, f"MLQA_V1/{split}")
        file = f"{split}-context-{context}-question-{question or context}.json"
    names = [str(Path(folder) / file) for folder in folders]
    for candidate in names:
        if (data_dir / candidate).is_file():
            return data_dir / candidate
    raise FileNotFoundError(
        f"`data_dir` must hold the file of name={name!r}, split={split!r}. "
        f"Received: data_dir={str(data_dir)!r}, which has none of {', '.join(names)}."
    )


def _json_records(content, path):
    """Each question of a file as a dict with all that belongs to it, and its place."""
    articles = _field(content, "data", list, path, "the file")
    for i, article in enumerate(articles):
        paragraphs = _field(article, "paragraphs", list, path, f"article {i}")
        for j, paragraph in enumerate(paragraphs):
            place = f"paragraph {j} of article {i}"
            questions = _field(paragraph, "qas", list, path, place)
            for k, question in enumerate(questions):
                where = f"question {k} of {place}"
                identity = _field(question, "id", str, path, where)
                record = {**question, "context": paragraph.get("context")}
                yield record, f"question {identity!r}"


def _example(record, path, place, strict):
    """A `SpanExample` of one question of a file."""
    question = _field(record, "question", str, path, place)
    context = _field(record, "context", str, path, place)
    if not context.strip():
        raise _file_error(path, f"{place} has an empty 'context'")
    try:
        (question + context).encode()
    except UnicodeEncodeError as error:
        raise _file_error(path, f"{place} has half of a surrogate pair") from error
    answers = []
    if not record.get("is_impossible", False):
        answers = _field({"answers": [], **record}, "answers", list, path, place)
    texts, starts = [], []
    for answer in answers:
        text = _field(answer, "text", str, path, f"an answer to {place}")
        start = _field(answer, "answer_start", int, path, f"an answer to {place}")
        if not text:
            continue
        if start < 0 or not context.startswith(text, start):
            if strict:
                raise ValueError(
                    "`answer_start` must be where the answer stands in its context. "
                    f"Received: answer_start={start}, answer={text!r}, {place}, "
                    f"path={str(path)!r}."
                )
            start = None
        texts.append(text)
        starts.append(start)
    return SpanExample(record["id"], question, context, tuple(texts), tuple(starts))


def _field(record, name, kind, path, place):
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise _file_error(path, f"{place} has no {name!r}")
    return value


def _checked(examples, path):
    """The examples, once it is known that there are some and no id is there twice."""
    if not examples:
        raise _file_error(path, "it has no question")
    seen = set()
    for example in examples:
        if example.id in seen:
            raise _file_error(path, f"it has question {example.id!r} twice")
        seen.add(example.id)
    return examples


def _file_error(path, reason):
    return ValueError(
        "`path` must be a file in the layout of SQuAD. "
        f"Received: path={str(path)!r}; {reason}."
    )


def _tfds_examples(name, split, tfds_data_dir, strict):
    """The examples of a TFDS dataset."""
    # Importing it takes seconds that reading a file need not wait.
    import tensorflow_datasets as tfds

    # A wrong name raises ValueError or AssertionError, a failed download
    # anything from urllib's, requests' or the dataset's own errors.
    try:
        builder = tfds.builder(name, data_dir=tfds_data_dir)
        if not builder.is_prepared():
            builder.download_and_prepare()
        dataset = builder.as_dataset(split={"dev": "validation"}.get(split, split))
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            "`name` and `split` must be of a TFDS dataset that is on this machine or "
            f"can be downloaded. Received: name={name!r}, split={split!r} ({reason})."
        ) from error
    source = f"tfds:{name}@{split}"
    examples = []
    for record in tfds.as_numpy(dataset):
        answers = zip(
            record["answers"]["text"], record["answers"]["answer_start"], strict=True
        )
        record = {
            "id": record["id"].decode(),
            "question": record["question"].decode(),
            "context": record["context"].decode(),
            "is_impossible": bool(record.get("is_impossible", False)),
            "answers": [
                {"text": text.decode(), "answer_start": int(start)}
                for text, start in answers
            ],
        }
        place = f"question {record['id']!r}"
        examples.append(_example(record, source, place, strict))
    return _checked(examples, source)
