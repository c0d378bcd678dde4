"""From a model's logits to answers: the best parts of the contexts."""

from typing import NamedTuple

import numpy as np

from keras_minilmv2.utils.checks import check_int

_BLOCK_WINDOWS = 1_000


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

    def blanked(self, null_threshold):
        """The texts, `""` where the odds of no answer are above a threshold."""
        return {
            key: "" if self.null_odds[key] > null_threshold else text
            for key, text in self.texts.items()
        }


def best_answers(
    features,
    start_logits,
    end_logits,
    *,
    n_best=20,
    max_answer_length=30,
    no_answer=False,
):
    """Turns logits into answers, each a part of its context.

    The score of an answer is the sum of its first token's start logit and its last
    token's end logit. Its first token is one of the `n_best` tokens of a window with
    the highest start logits, in the window with most context around it, and its last
    token one of those with the highest end logits.
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
    check_int(n_best=n_best, max_answer_length=max_answer_length)
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
