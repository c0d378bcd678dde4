"""MLQA: questions in seven languages, to evaluate a model of SQuAD on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_minilmv2.downstream.span_metrics import MLQA_LANGUAGES, mlqa_metrics
from keras_minilmv2.downstream.squad import SpanExamples, SpanTask


@dataclass(frozen=True, kw_only=True)
class MlqaTask(SpanTask):
    """MLQA, answered with what was learned on English SQuAD.

    Args:
        languages: sequence of str, those of the contexts. None takes all that there
            are files of.
    """

    languages: Sequence | None = None
    splits: Sequence = ("dev", "test")

    options = (*SpanTask.options, "languages")

    def load(self, split, data_dir=None, tfds_data_dir=None):
        """Reads one split in its languages.

        Returns:
            `SpanExamples`.
        """
        self.check_split(split)
        for language in self.languages or ():
            if language not in MLQA_LANGUAGES:
                raise ValueError(
                    f"`languages` must be out of {', '.join(MLQA_LANGUAGES)}. "
                    f"Received: {language!r}."
                )
        found, missing = {}, None
        for language in self.languages or MLQA_LANGUAGES:
            name = f"{self.dataset}/{language}"
            try:
                found[language] = self._load(name, split, data_dir, tfds_data_dir)
            except FileNotFoundError as error:
                if self.languages:
                    raise
                missing = missing or error
        if not found:
            # That of the first one says where files were looked for.
            raise missing
        return SpanExamples(found)

    def score(self, examples, predictions):
        """Means over the languages, and the scores of each."""
        by_language = {
            language: mlqa_metrics(
                predictions[language].texts,
                {example.id: example.answers for example in questions},
                language,
            )
            for language, questions in examples.by_language.items()
        }
        metrics = {
            name: float(np.mean([values[name] for values in by_language.values()]))
            for name in self.metrics
        }
        for language, values in by_language.items():
            metrics.update({f"{name}_{language}": v for name, v in values.items()})
        return metrics


MLQA_TASKS = {"mlqa": MlqaTask(name="mlqa", title="MLQA", dataset="mlqa")}
