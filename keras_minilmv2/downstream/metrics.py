"""The official metrics of GLUE and XNLI."""

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def f1(labels, predictions):
    """F1 of class 1, of two classes; 0 where neither has that class."""
    return f1_score(labels, predictions, zero_division=0)


def pearson(labels, predictions):
    """Pearson's correlation; 0 where either side is constant."""
    return _correlation(stats.pearsonr, labels, predictions)


def spearman(labels, predictions):
    """Spearman's rank correlation; 0 where either side is constant."""
    return _correlation(stats.spearmanr, labels, predictions)


METRICS = {
    "accuracy": accuracy_score,
    "f1": f1,
    "matthews": matthews_corrcoef,
    "pearson": pearson,
    "spearman": spearman,
}


def scores(metrics, labels, predictions, languages=None):
    """Some metrics of predictions.

    Args:
        metrics: names in `METRICS`.
        labels: `(examples,)`, int class or float score.
        predictions: `(examples,)`, int class or float score.
        languages: sequence of str `(examples,)`, or None.

    Returns:
        dict of float by name, -1 to 1. With `languages`, the mean over them under the
        metric's name, and that of each one: `"accuracy"`, `"accuracy_de"`.

    Raises:
        ValueError: if there are no labels, not as many predictions, or a prediction
            is not finite.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if not labels.size or labels.shape != predictions.shape:
        raise ValueError(
            "`predictions` must be as many as `labels`, and at least one. Received: "
            f"predictions of shape {predictions.shape}, labels of shape "
            f"{labels.shape}."
        )
    if not np.isfinite(predictions).all():
        raise ValueError(
            "`predictions` must be finite. Received: "
            f"{np.sum(~np.isfinite(predictions))} of {predictions.size} that are not."
        )
    if languages is None:
        return {name: float(METRICS[name](labels, predictions)) for name in metrics}
    languages = np.asarray(languages)
    by_language = {
        language: scores(
            metrics, labels[languages == language], predictions[languages == language]
        )
        for language in np.unique(languages)
    }
    result = {
        name: float(np.mean([values[name] for values in by_language.values()]))
        for name in metrics
    }
    for language, values in by_language.items():
        result.update({f"{name}_{language}": v for name, v in values.items()})
    return result


def _correlation(function, labels, predictions):
    # Undefined, and a warning of SciPy's.
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return function(labels, predictions).statistic
