import re

import numpy as np
import pytest

from keras_minilmv2.downstream.span_metrics import (
    MLQA_LANGUAGES,
    exact_match,
    mlqa_metrics,
    normalize_answer,
    squad_metrics,
    squad_v2_metrics,
    token_f1,
)

# Prediction, answers, exact match, F1.
SQUAD = [
    ("The Cat", ["cat"], 1, 1),
    ("a cat", ["the cat!"], 1, 1),
    ("cat sat", ["cat"], 0, 2 / 3),
    ("", [], 1, 1),
    ("cat", [], 0, 0),
    ("", ["cat"], 0, 0),
    ("U.S.", ["US"], 1, 1),
    ("anthem", ["them"], 0, 0),
    ("$5 million", ["5 million dollars"], 0, 4 / 5),
    ("cat cat dog", ["cat dog dog"], 0, 2 / 3),
    ("dog", ["cat", "the dog"], 1, 1),
    ("big dog", ["cat", "dog", "dog big"], 0, 1),
    ("rock-and-roll", ["rock and roll"], 0, 0),
    ("rock-and-roll", ["rock 'and' roll", "rockandroll"], 1, 1),
    ("Beyoncé", ["beyonce"], 0, 0),
    ("“yes”", ["yes"], 0, 0),
    ("  New\u00a0York\n", ["new york"], 1, 1),
    ("A", ["the"], 1, 1),
    ("an a the", [""], 1, 1),
    ("the  the United the States", ["United States"], 1, 1),
    ("O'Neil the", ["o neil"], 0, 0),
]
MLQA = [
    ("en", "“The Beatles”", ["beatles"], 1, 1),
    ("en", "der Hund", ["Hund"], 0, 2 / 3),
    ("de", "Der Hund", ["den Hund"], 1, 1),
    ("de", "dessen Hund", ["Hund"], 0, 2 / 3),
    ("de", "ein-Euro-Job", ["Euro Job"], 0, 0),
    ("de", "Straße", ["STRASSE"], 0, 0),
    ("de", "„des einen Hundes“", ["eines Hundes"], 1, 1),
    ("es", "El niño", ["un niño"], 1, 1),
    ("es", "¿La Habana?", ["habana"], 1, 1),
    ("es", "los unos y las otras", ["y otras"], 1, 1),
    ("es", "del sistema", ["el sistema"], 0, 2 / 3),
    ("vi", "những con mèo", ["con mèo"], 1, 1),
    ("vi", "Là của cái chiếc", [""], 1, 1),
    ("vi", "con mèo của tôi", ["con mèo"], 0, 4 / 5),
    ("hi", "दिल्ली।", ["दिल्ली"], 1, 1),
    ("hi", "नई दिल्ली", ["दिल्ली"], 0, 2 / 3),
    ("hi", "the दिल्ली", ["दिल्ली"], 0, 2 / 3),
    ("ar", "الكتاب", ["كتاب"], 1, 1),
    ("ar", "والبلقان", ["البلقان"], 0, 2 / 3),
    ("ar", "كتاب،", ["كتاب"], 1, 1),
    ("ar", "المال", ["م"], 1, 1),
    ("zh", "北京大学", ["北京"], 0, 2 / 3),
    ("zh", "1998年3月", ["1998 年 3 月"], 1, 1),
    ("zh", "《红楼梦》", ["红楼梦"], 1, 1),
    ("zh", "iPhone 手机", ["手机iphone"], 0, 1),
    ("zh", "the 北", ["北"], 0, 2 / 3),
    ("zh", "75-80\uff05", ["7580%"], 1, 1),
]


@pytest.mark.parametrize(
    ("language", "prediction", "answers", "match", "f1"),
    [(None, *case) for case in SQUAD] + MLQA,
)
def test_scores_are_those_computed_by_hand(language, prediction, answers, match, f1):
    assert exact_match(prediction, answers, language) == match
    assert token_f1(prediction, answers, language) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        (None, "The U.S.A., an (ex-)colony", "usa excolony"),
        ("en", "—The “U.S.”—", "us"),
        ("de", "Dem das Ding", "ding"),
        ("es", "Unas UÑAS", "uñas"),
        ("vi", "Cái CHIẾC mũ", "mũ"),
        ("hi", "भारत, का", "भारत का"),
        ("ar", "القمر البعيد", "قمر بعيد"),
        ("zh", "在2013年,AI公司", "在 2013 年 ai 公 司"),
    ],
)
def test_answers_are_normalized(language, text, expected):
    assert normalize_answer(text, language) == expected


def test_squad_scores_are_means():
    predictions = {"a": "the cat", "b": "dog", "c": "red bird", "other": ""}
    answers = {"a": ["cat"], "b": ["fish"], "c": ["bird", "blue bird of prey"]}
    metrics = squad_metrics(predictions, answers)
    assert metrics == pytest.approx({"exact_match": 1 / 3, "f1": 5 / 9})


def test_words_that_are_no_words_match_without_f1_in_squad_and_mlqa():
    expected = {"exact_match": 1.0, "f1": 0.0}
    assert squad_metrics({"a": "the"}, {"a": ["a"]}) == expected
    assert mlqa_metrics({"a": "!"}, {"a": ["?"]}, "zh") == expected


def test_mlqa_scores_follow_the_language():
    predictions, answers = {"a": "el gato"}, {"a": ["gato"]}
    assert mlqa_metrics(predictions, answers, "es")["exact_match"] == 1
    assert mlqa_metrics(predictions, answers, "en")["exact_match"] == 0


ANSWERS = {"a": ["cat"], "b": ["cat dog dog"], "c": [], "d": ["fish"], "e": []}
PREDICTIONS = {"a": "cat", "b": "cat", "c": "x", "d": "fish", "e": "x"}
ODDS = {"a": -5.0, "b": -1.0, "c": 2.0, "d": 3.0, "e": 5.0}


def test_squad_v2_scores_are_those_computed_by_hand():
    metrics = squad_v2_metrics(PREDICTIONS, ANSWERS, ODDS, null_threshold=0.0)
    assert metrics == pytest.approx(
        {
            "exact": 0.6,
            "f1": 0.7,
            "total": 5,
            "HasAns_exact": 1 / 3,
            "HasAns_f1": 0.5,
            "HasAns_total": 3,
            "NoAns_exact": 1.0,
            "NoAns_f1": 1.0,
            "NoAns_total": 2,
            "best_exact": 0.6,
            "best_exact_thresh": -5.0,
            "best_f1": 0.7,
            "best_f1_thresh": -1.0,
        }
    )


def test_squad_v2_scores_without_odds_take_predictions_as_they_are():
    metrics = squad_v2_metrics({**PREDICTIONS, "c": "", "d": ""}, ANSWERS)
    assert metrics["exact"] == pytest.approx(0.4)
    assert metrics["HasAns_f1"] == pytest.approx(0.5)
    assert metrics["NoAns_exact"] == pytest.approx(0.5)
    assert "best_f1" not in metrics


def test_it_may_be_best_to_answer_nothing():
    answers, predictions = {"a": [], "b": ["cat"]}, {"a": "x", "b": "dog"}
    metrics = squad_v2_metrics(predictions, answers, {"a": 1.0, "b": 2.0})
    assert metrics["best_exact"] == 0.5
    assert metrics["best_exact_thresh"] == 0.0


def test_answer_that_is_an_article_counts_as_none_in_squad_v2():
    metrics = squad_v2_metrics({"a": "", "b": "x"}, {"a": ["the"], "b": ["a", "x"]})
    assert metrics["HasAns_exact"] == 1.0
    assert metrics["HasAns_f1"] == 1.0
    assert "NoAns_total" not in metrics


def test_only_questions_without_an_answer_have_no_scores_of_others():
    metrics = squad_v2_metrics({"a": ""}, {"a": []})
    assert metrics["NoAns_exact"] == metrics["exact"] == 1.0
    assert "HasAns_exact" not in metrics


def test_best_threshold_is_the_best_of_all():
    generator = np.random.default_rng(0)
    words = ["cat", "dog", "fish", "bird"]
    keys = [str(i) for i in range(200)]
    answers = {
        key: [" ".join(generator.choice(words, 2))] * int(generator.integers(0, 2))
        for key in keys
    }
    predictions = {
        key: answers[key][0] if answers[key] and i % 3 else "cat bird"
        for i, key in enumerate(keys)
    }
    odds = {key: generator.normal() - len(answers[key]) for key in keys}
    metrics = squad_v2_metrics(predictions, answers, odds)
    for name, score in (("exact", exact_match), ("f1", token_f1)):
        totals = {}
        for threshold in [min(odds.values()) - 1, *odds.values()]:
            total = 0.0
            for key in keys:
                text = predictions[key] if odds[key] <= threshold else ""
                total += score(text, answers[key])
            totals[threshold] = total / len(keys)
        assert metrics[f"best_{name}"] == pytest.approx(max(totals.values()))
        threshold = metrics[f"best_{name}_thresh"]
        assert totals[threshold] == pytest.approx(max(totals.values()))
        at_best = squad_v2_metrics(predictions, answers, odds, threshold)
        assert at_best[name] == pytest.approx(metrics[f"best_{name}"])


# Errors.


@pytest.mark.parametrize("language", ["fr", "EN"])
def test_unknown_language_is_refused(language):
    message = (
        f"`language` must be one of {', '.join(MLQA_LANGUAGES)}. "
        f"Received: language={language!r}."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        normalize_answer("a", language)


def test_mlqa_scores_need_a_language():
    with pytest.raises(ValueError, match=r"Received: language=None\.$"):
        mlqa_metrics({"a": ""}, {"a": []}, None)


@pytest.mark.parametrize("function", [squad_metrics, squad_v2_metrics])
def test_missing_prediction_is_named(function):
    message = (
        "`predictions` must have every question. Received: predictions without 2 of 3 "
        "questions, the first one 'b'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        function({"a": ""}, {"a": [], "b": [], "c": []})


def test_missing_odds_are_named():
    message = "Received: null_odds without 1 of 1 questions, the first one 'a'."
    with pytest.raises(ValueError, match=re.escape(message)):
        squad_v2_metrics({"a": ""}, {"a": []}, {})


@pytest.mark.parametrize("function", [squad_metrics, squad_v2_metrics])
def test_scores_need_a_question(function):
    with pytest.raises(ValueError, match=r"^`answers` must have a question\."):
        function({}, {})
