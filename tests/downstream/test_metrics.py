import numpy as np
import pytest

from keras_minilmv2.downstream.metrics import scores
from keras_minilmv2.downstream.registry import TASKS


def task_metrics(name, labels, predictions, languages=None):
    return scores(TASKS[name].metrics, labels, predictions, languages)


def counts(labels, predictions):
    pairs = list(zip(labels, predictions, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0))]


def draw(seed=0, size=200):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, size)
    return labels, np.where(generator.random(size) < 0.7, labels, 1 - labels)


def test_classification_metrics_are_what_their_definitions_say():
    labels, predictions = draw()
    both, false_alarms, missed, neither = counts(labels, predictions)
    matthews = (both * neither - false_alarms * missed) / np.sqrt(
        (both + false_alarms)
        * (both + missed)
        * (neither + false_alarms)
        * (neither + missed)
    )
    f1 = 2 * both / (2 * both + false_alarms + missed)
    accuracy = (both + neither) / len(labels)
    assert task_metrics("cola", labels, predictions) == pytest.approx(
        {"matthews": matthews}
    )
    for name in ("mrpc", "qqp"):
        assert task_metrics(name, labels, predictions) == pytest.approx(
            {"accuracy": accuracy, "f1": f1}
        )
    for name in ("sst2", "mnli", "qnli", "rte", "xnli"):
        assert task_metrics(name, labels, predictions) == pytest.approx(
            {"accuracy": accuracy}
        )


def test_correlations_are_what_their_definitions_say():
    generator = np.random.default_rng(0)
    labels = generator.permutation(50) / 10
    predictions = labels + generator.normal(size=50)
    ranks = [np.argsort(np.argsort(x)) for x in (labels, predictions)]
    assert task_metrics("stsb", labels, predictions) == pytest.approx(
        {
            "spearman": np.corrcoef(*ranks)[0, 1],
            "pearson": np.corrcoef(labels, predictions)[0, 1],
        }
    )


def test_constant_predictions_score_zero_without_a_warning():
    ones = np.ones(4, int)
    labels = np.array([0, 1, 0, 1])
    assert task_metrics("cola", labels, ones) == {"matthews": 0.0}
    assert task_metrics("stsb", labels / 2, ones / 2) == {
        "spearman": 0.0,
        "pearson": 0.0,
    }
    assert task_metrics("mrpc", 0 * ones, 0 * ones) == {"accuracy": 1.0, "f1": 0.0}


def test_several_languages_count_the_same():
    labels = np.array([0, 1, 2, 0])
    predictions = np.array([0, 1, 2, 1])
    languages = ["en", "en", "en", "de"]
    assert task_metrics("xnli", labels, predictions, languages) == {
        "accuracy": 0.5,
        "accuracy_de": 0.0,
        "accuracy_en": 1.0,
    }


def test_the_main_metric_is_the_papers():
    metrics = {name: task.main_metric for name, task in TASKS.items()}
    assert metrics.pop("cola") == "matthews"
    assert metrics.pop("stsb") == "spearman"
    assert [metrics.pop(name) for name in ("squad1", "mlqa")] == ["f1", "f1"]
    assert metrics.pop("squad2") == "best_f1"
    assert set(metrics.values()) == {"accuracy"}


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], r"at least one. Received: predictions of shape \(0,\)"),
        ([1, 0], [1], r"Received: predictions of shape \(1,\), labels of shape \(2,\)"),
        ([1.0, 2.0], [np.nan, 1.0], "Received: 1 of 2 that are not"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        task_metrics("stsb", labels, predictions)
