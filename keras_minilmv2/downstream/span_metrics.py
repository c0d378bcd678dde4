"""Scores of extracted answers: SQuAD 1.1, SQuAD 2.0 and MLQA."""

import functools
import re
import string
import sys
import unicodedata
from collections import Counter

import numpy as np

# Articles by language; SQuAD is in English.
_ARTICLES = {
    "ar": "ال",  # Within words too, as MLQA's own script has it.
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "hi": None,
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "zh": None,
}
MLQA_LANGUAGES = tuple(_ARTICLES)
_CHINESE = re.compile("([\u4e00-\u9fa5])")


def normalize_answer(text, language=None):
    """Normalizes an answer for comparison.

    Lower case, without punctuation and articles, single spaces between words. For
    MLQA, punctuation is that of Unicode, articles are those of the language, and in
    Chinese every Chinese character is a word.

    Args:
        text: str.
        language: str. One of MLQA's languages, or None for SQuAD, where punctuation is
            that of ASCII.

    Returns:
        str, its words separated by spaces.

    Raises:
        ValueError: if `language` is not one of MLQA's.
    """
    if language is not None:
        _check_language(language)
    text = text.lower().translate(_punctuation(ascii_only=language is None))
    articles = _ARTICLES[language or "en"]
    if articles is not None:
        text = re.sub(articles, " ", text)
    if language == "zh":
        text = _CHINESE.sub(r" \1 ", text)
    return " ".join(text.split())


def exact_match(prediction, answers, language=None):
    """Whether a prediction is one of the answers, after `normalize_answer`.

    Args:
        prediction: str.
        answers: sequence of str. Without answers, the empty string is right.
        language: str or None, as for `normalize_answer`.

    Returns:
        float, 1.0 or 0.0.
    """
    prediction = normalize_answer(prediction, language)
    answers = {normalize_answer(answer, language) for answer in answers or ("",)}
    return float(prediction in answers)


def token_f1(prediction, answers, language=None, *, both_empty=1.0):
    """Harmonic mean of precision and recall of the words of a prediction.

    Args:
        prediction: str.
        answers: sequence of str; the best one counts. Without answers, the empty
            string is right.
        language: str or None, as for `normalize_answer`.
        both_empty: float. The score where neither has a word: 1 in SQuAD 2.0, 0 in
            SQuAD 1.1 and MLQA.

    Returns:
        float between 0 and 1.
    """
    words = Counter(normalize_answer(prediction, language).split())
    scores = []
    for answer in answers or ("",):
        expected = Counter(normalize_answer(answer, language).split())
        num_words = words.total() + expected.total()
        num_common = (words & expected).total()
        # 2 p r / (p + r) with p = common / words and r = common / expected.
        scores.append(2 * num_common / num_words if num_words else both_empty)
    return max(scores)


def squad_metrics(predictions, answers):
    """Scores of SQuAD 1.1.

    Args:
        predictions: dict of str by question id. Others than those asked for are
            ignored.
        answers: dict by question id of sequences of str.

    Returns:
        dict of float, shares from 0 to 1: `"exact_match"` and `"f1"`.

    Raises:
        ValueError: if there is no question, or one has no prediction.
    """
    return _mean_scores(predictions, answers, language=None)


def mlqa_metrics(predictions, answers, language):
    """Scores of MLQA.

    Args:
        predictions: dict of str by question id.
        answers: dict by question id of sequences of str.
        language: str. The language of the contexts, and so of the answers.

    Returns:
        dict of float, shares from 0 to 1: `"exact_match"` and `"f1"`.

    Raises:
        ValueError: if there is no question, one has no prediction, or `language` is
            not one of MLQA's.
    """
    _check_language(language)
    return _mean_scores(predictions, answers, language)


def squad_v2_metrics(predictions, answers, null_odds=None, null_threshold=1.0):
    """Scores of SQuAD 2.0: overall, with and without an answer, at the best threshold.

    An answer of which `normalize_answer` leaves nothing does not count; where there is
    no other, `""` is right.

    The best thresholds are those of the official script: questions are taken in
    the order of their odds, and the threshold is the highest odds at which the
    prediction still stands; 0.0 where it is best to answer nothing.

    Args:
        predictions: dict of str by question id, `""` for no answer.
        answers: dict by question id of sequences of str.
        null_odds: dict of float by question id: the higher, the more likely there is
            no answer. None takes predictions as they are.
        null_threshold: float. A prediction whose odds are above it counts as `""`.

    Returns:
        dict of float, shares from 0 to 1: `"exact"` and `"f1"`, with the number
        `"total"`; the same with the prefixes `HasAns_` and `NoAns_` where there are
        such questions; with `null_odds`, `"best_exact"` and `"best_f1"`, and for each,
        with the suffix
        `_thresh`, the threshold, which is no share.

    Raises:
        ValueError: if there is no question, or one has no prediction or no odds.
    """
    _check_ids("predictions", predictions, answers)
    has_answer = np.array([len(texts) > 0 for texts in answers.values()])
    answers = {
        key: [answer for answer in texts if normalize_answer(answer)]
        for key, texts in answers.items()
    }
    raw = {
        "exact": _scores(exact_match, predictions, answers),
        "f1": _scores(token_f1, predictions, answers),
    }
    scores = raw
    if null_odds is not None:
        _check_ids("null_odds", null_odds, answers)
        odds = np.array([null_odds[key] for key in answers])
        is_null = odds > null_threshold
        scores = {
            name: np.where(is_null, ~has_answer, values) for name, values in raw.items()
        }
    metrics = _means(scores, np.full(len(answers), True))
    if has_answer.any():
        metrics.update(_means(scores, has_answer, "HasAns_"))
    if not has_answer.all():
        metrics.update(_means(scores, ~has_answer, "NoAns_"))
    if null_odds is not None:
        is_empty = np.array([not predictions[key] for key in answers])
        for name, values in raw.items():
            best, threshold = _best_threshold(values, odds, has_answer, is_empty)
            metrics[f"best_{name}"] = best
            metrics[f"best_{name}_thresh"] = threshold
    return metrics


def _best_threshold(scores, odds, has_answer, is_empty):
    """The highest mean score that a threshold on the odds gives, and the threshold."""
    order = np.argsort(odds, kind="stable")
    # What the total gains when a question is answered after all.
    gains = np.where(has_answer, scores, np.where(is_empty, 0.0, -1.0))[order]
    totals = np.sum(~has_answer) + np.append(0.0, np.cumsum(gains))
    best = int(np.argmax(totals))
    threshold = float(odds[order[best - 1]]) if best else 0.0
    return float(totals[best]) / len(scores), threshold


def _means(scores, chosen, prefix=""):
    means = {
        prefix + name: float(np.mean(values[chosen])) for name, values in scores.items()
    }
    return {**means, f"{prefix}total": int(np.sum(chosen))}


def _scores(function, predictions, answers, **kwargs):
    scores = [function(predictions[key], answers[key], **kwargs) for key in answers]
    return np.array(scores)


def _mean_scores(predictions, answers, language):
    _check_ids("predictions", predictions, answers)
    matches = _scores(exact_match, predictions, answers, language=language)
    f1 = _scores(token_f1, predictions, answers, language=language, both_empty=0.0)
    return {
        "exact_match": float(np.mean(matches)),
        "f1": float(np.mean(f1)),
    }


@functools.cache
def _punctuation(ascii_only):
    """A table that removes punctuation from a str."""
    characters = set(string.punctuation)
    if not ascii_only:
        every = map(chr, range(sys.maxunicode + 1))
        characters.update(c for c in every if unicodedata.category(c)[0] == "P")
    return str.maketrans("", "", "".join(characters))


def _check_language(language):
    if language not in _ARTICLES:
        raise ValueError(
            f"`language` must be one of {', '.join(MLQA_LANGUAGES)}. "
            f"Received: language={language!r}."
        )


def _check_ids(name, values, answers):
    if not answers:
        raise ValueError("`answers` must have a question. Received: answers={}.")
    missing = [key for key in answers if key not in values]
    if missing:
        raise ValueError(
            f"`{name}` must have every question. Received: {name} without "
            f"{len(missing)} of {len(answers)} questions, the first one "
            f"{missing[0]!r}."
        )
