"""Classification and regression of texts and of pairs of texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import keras_hub
import numpy as np

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.downstream.classifiers import text_classifier, text_preprocessor
from keras_minilmv2.downstream.metrics import scores
from keras_minilmv2.downstream.tasks import Task
from keras_minilmv2.downstream.texts import encode


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and what is known of them, in the order of the file.

    Args:
        texts: tuple of lists of str, one for each text column.
        labels: int32 or float32 `(examples,)`, or None.
        languages: list of str, or None.
        num_broken: int. Rows of the file that were skipped.
    """

    texts: tuple
    labels: np.ndarray | None = None
    languages: Sequence | None = None
    num_broken: int = 0

    def __len__(self):
        return len(self.texts[0])

    def take(self, indices):
        """The examples with these indices."""
        return Examples(
            tuple([column[i] for i in indices] for column in self.texts),
            None if self.labels is None else self.labels[np.asarray(indices)],
            self.languages and [self.languages[i] for i in indices],
            self.num_broken,
        )

    def sample(self, number):
        """Some of the examples, the same each time; all if there are not more."""
        if number >= len(self):
            return self
        order = np.random.default_rng(0).permutation(len(self))
        return self.take(order[:number])

    @property
    def skipped(self):
        """What was skipped, or None."""
        if not self.num_broken:
            return None
        return f"rows with too few columns, skipped: {self.num_broken:,}"

    remark = skipped


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """A classification or regression task on texts or pairs of texts.

    Args:
        label_names: tuple of str by class; None for regression.
        file_labels: tuple of str by class. How files write the classes.
        score_range: tuple of two float. Least and greatest score of a regression.
        languages: tuple of str. The languages of splits in several.
        pairs: bool. Whether an example has two texts.
        num_train: int or None. The published number of training examples.
    """

    label_names: tuple | None
    file_labels: tuple | None = None
    score_range: tuple | None = None
    languages: tuple = ()
    pairs: bool = False
    num_train: int | None = None

    model_class = keras_hub.models.TextClassifier

    @property
    def num_outputs(self):
        """Outputs of a model for the task: one a class, or the score."""
        return len(self.label_names) if self.label_names else 1

    def model(self, backbone, seed, dtype=None):
        """A `keras_hub.models.TextClassifier`, its preprocessor not set."""
        return text_classifier(backbone, self.num_outputs, seed, dtype)

    def features(self, examples, backbone, tokenizer):
        """`EncodedTexts`."""
        preprocessor = text_preprocessor(backbone, tokenizer, self.sequence_length)
        segment_ids = uses_segment_ids(backbone)
        return encode(examples.texts, preprocessor, segment_ids, examples.labels)

    def loss(self, targets, outputs, reduction="sum_over_batch_size"):
        """Cross-entropy of the classes, in nats, or squared error of the score."""
        if self.label_names is None:
            return keras.losses.MeanSquaredError(reduction)(targets, outputs)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction=reduction
        )
        return cross_entropy(targets, outputs)

    def decide(self, examples, features, outputs):
        """Classes or scores `(texts,)` from outputs `(texts, num_outputs)`."""
        if self.label_names is None:
            return outputs[:, 0]
        return outputs.argmax(axis=-1)

    def score(self, examples, predictions):
        """The metrics of the task, over all examples and for each language."""
        if examples.labels is None:
            return None
        return scores(self.metrics, examples.labels, predictions, examples.languages)

    def table(self, evaluations):
        """A row for each split, or for each language of a task in several."""
        if not self.languages:
            return [
                {
                    "split": evaluation.split,
                    self.unit: len(evaluation.examples),
                    **{name: evaluation.metrics[name] for name in self.metrics},
                }
                for evaluation in evaluations
            ]
        metric = self.main_metric
        names = {"mean of languages": metric}
        names |= {language: f"{metric}_{language}" for language in self.languages}
        return [
            {
                "language": language,
                **{
                    f"{evaluation.split} {metric}": evaluation.metrics.get(
                        name, "not measured"
                    )
                    for evaluation in evaluations
                },
            }
            for language, name in names.items()
        ]

    def save_model(self, model, tokenizer, path):
        """Saves a preset that `keras_hub.models.TextClassifier` reads."""
        model.preprocessor = text_preprocessor(
            model.backbone, tokenizer, self.sequence_length
        )
        model.save_to_preset(str(path))

    def check_model(self, model, notes):
        """Raises unless the model is a classifier with the labels of the task."""
        super().check_model(model, notes)
        names = notes.get("label_names", self.label_names)
        names = tuple(names) if names else None
        if names != self.label_names or model.num_classes != self.num_outputs:
            ours = ", ".join(self.label_names or ["a score"])
            theirs = ", ".join(names or ["a score"])
            raise ValueError(
                f"`task` must have the labels of the model. Received: "
                f"task={self.name!r} with {ours}, model with {theirs} and "
                f"{model.num_classes} outputs."
            )

    def notes(self):
        """With the names of the classes, and whether a row has two texts."""
        return {
            **super().notes(),
            "label_names": self.label_names,
            "pairs": self.pairs,
        }
