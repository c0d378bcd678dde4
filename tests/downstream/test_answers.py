"""Answers against a search through all spans."""

import re

import numpy as np
import pytest
from real_tokenizers import real_tokenizer
from small_tokenizers import make_tokenizer
from small_windows import SIZES, family_features

from keras_minilmv2.downstream.answers import best_answers
from keras_minilmv2.downstream.reader import SpanExample, load_span_examples
from keras_minilmv2.downstream.span_metrics import mlqa_metrics, squad_metrics
from keras_minilmv2.downstream.windows import span_features


def random_logits(features, seed=0):
    generator = np.random.default_rng(seed)
    shape = 2, *features.token_ids.shape
    return generator.normal(size=shape).astype("float32")


def all_answers(features, start_logits, end_logits, max_answer_length):
    """For each question every text and its best score, the best first, by loops."""
    found = [{} for _ in features.examples]
    for row in range(len(features)):
        number = features.example_index[row]
        context = features.examples[number].context
        begin, end = features.context_begin[row], features.num_tokens[row] - 1
        for first in range(begin, end):
            if not features.is_max_context[row, first]:
                continue
            for last in range(first, min(first + max_answer_length, end)):
                text = context[
                    features.char_begins[row, first] : features.char_ends[row, last]
                ]
                score = float(start_logits[row, first]) + float(end_logits[row, last])
                if text:
                    found[number][text] = max(found[number].get(text, -9e9), score)
    return [sorted(texts.items(), key=lambda entry: -entry[1]) for texts in found]


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("max_answer_length", [1, 4, 30])
def test_best_answers_are_the_best_of_all(family, max_answer_length, monkeypatch):
    path = "keras_minilmv2.downstream.answers._BLOCK_WINDOWS"
    monkeypatch.setattr(path, 7)
    features = family_features(family)
    start, end = random_logits(features)
    # So many that none is lost to the cut at n_best tokens.
    answers = best_answers(
        features, start, end, n_best=1_000, max_answer_length=max_answer_length
    )
    expected = all_answers(features, start, end, max_answer_length)
    for example, entries in zip(features.examples, expected, strict=True):
        nbest = answers.nbest[example.id]
        scores = [entry["start_logit"] + entry["end_logit"] for entry in nbest]
        np.testing.assert_allclose(scores, [score for _, score in entries], rtol=1e-5)
        assert {entry["text"] for entry in nbest} == {text for text, _ in entries}
        assert answers.texts[example.id] == entries[0][0]
        weights = np.exp([score for _, score in entries])
        np.testing.assert_allclose(
            [entry["probability"] for entry in nbest],
            weights / weights.sum(),
            rtol=1e-5,
        )


def test_n_best_answers_are_among_all():
    features = family_features("Bert")
    start, end = random_logits(features)
    answers = best_answers(features, start, end, n_best=3)
    every = all_answers(features, start, end, 30)
    for example, entries in zip(features.examples, every, strict=True):
        nbest = answers.nbest[example.id]
        assert len({entry["text"] for entry in nbest}) == len(nbest) <= 3
        for entry in nbest:
            score = entry["start_logit"] + entry["end_logit"]
            assert score <= dict(entries)[entry["text"]] + 1e-6


def test_null_odds_compare_no_answer_with_the_best_answer():
    features = family_features("Bert")
    start, end = random_logits(features)
    start[:, 0] += 4
    answers = best_answers(features, start, end, n_best=24, no_answer=True)
    for number, example in enumerate(features.examples):
        null = min((start + end)[features.example_index == number, 0])
        best = all_answers(features, start, end, 30)[number][0][1]
        assert answers.null_odds[example.id] == pytest.approx(null - best, rel=1e-5)
        nbest = answers.nbest[example.id]
        (entry,) = [entry for entry in nbest if not entry["text"]]
        assert entry["start_logit"] + entry["end_logit"] == pytest.approx(null)
        scores = [entry["start_logit"] + entry["end_logit"] for entry in nbest]
        assert scores == sorted(scores, reverse=True)
    assert min(answers.null_odds.values()) < 0 < max(answers.null_odds.values())


def test_context_without_tokens_has_the_empty_answer():
    examples = [SpanExample("a", "fox", "\u200b"), SpanExample("b", "fox", "dog")]
    features = span_features(make_tokenizer("Bert"), examples, **SIZES)
    answers = best_answers(features, *random_logits(features))
    assert answers.texts == {"a": "", "b": "dog"}
    assert [entry["text"] for entry in answers.nbest["a"]] == [""]
    assert np.isfinite(answers.null_odds["a"])


def test_labels_as_logits_give_the_answers(data_dir):
    for language, name, least in ((None, "roberta", 0.99), ("ar", "xlm_roberta", 0.94)):
        dataset = f"mlqa/{language}" if language else "squad/v1.1"
        examples = load_span_examples(dataset, "dev", data_dir)[:300]
        features = span_features(
            real_tokenizer(data_dir, name), examples, sequence_length=128, doc_stride=64
        )
        start, end = np.zeros((2, *features.token_ids.shape), "float32")
        rows = np.flatnonzero(features.start_positions)
        start[rows, features.start_positions[rows]] = 9
        end[rows, features.end_positions[rows]] = 9
        texts = best_answers(features, start, end, max_answer_length=128).texts
        golds = {example.id: example.answers for example in examples}
        metrics = squad_metrics(texts, golds)
        if language:
            metrics = mlqa_metrics(texts, golds, language)
        assert metrics["exact_match"] > least
        assert metrics["f1"] > least


@pytest.mark.parametrize("name", ["start_logits", "end_logits"])
def test_logits_must_fit_the_windows(name):
    features = family_features("Bert")
    shape = features.token_ids.shape
    logits = dict.fromkeys(("start_logits", "end_logits"), np.zeros(shape))
    logits[name] = np.zeros((1, 24))
    message = (
        f"`{name}` must have a row for each window and a column for each token, "
        f"{shape}. Received: {name} of shape (1, 24)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        best_answers(features, **logits)


def test_logits_must_be_finite():
    features = family_features("Bert")
    start, end = random_logits(features)
    end[0, :2] = np.nan
    message = (
        "`end_logits` must be finite. Received: end_logits with 2 values that are not."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        best_answers(features, start, end)


@pytest.mark.parametrize("name", ["n_best", "max_answer_length"])
def test_sizes_of_answers_must_be_positive(name):
    features = family_features("Bert")
    message = f"`{name}` must be an int of at least 1. Received: {name}=0."
    with pytest.raises(ValueError, match=re.escape(message)):
        best_answers(features, *random_logits(features), **{name: 0})
