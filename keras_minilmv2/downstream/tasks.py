"""The contract of a downstream task: all that fine-tuning and evaluation ask of it."""

import abc
import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from keras_minilmv2.backbones.flat_blocks import with_flat_blocks
from keras_minilmv2.downstream.batches import predict
from keras_minilmv2.utils.tables import markdown_table, percent

# Rows of a batch that is not trained on.
_EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A downstream task: its data, its model, its scores and its settings.

    A subclass is a kind of task, a record of it one task. `fine_tune`,
    `evaluate_model` and `load_saved` need nothing but what is here.

    `load` reads examples and `features` turns them into the arrays of a model.
    `model` builds that model around an encoder and `loss` is what it is trained by.
    `decide` turns its outputs into predictions, `score` compares these with the
    answers, `write` writes them in the task's official format, and `table` shows
    scores.

    Examples are an object with a length, a method `sample(number)` (some of them, the
    same each time) and a str or None, `skipped` (what training skips) and `remark`
    (what a reader of the scores must know).

    Args:
        name: str. The name on the command line.
        title: str. The name that papers use.
        splits: names of the parts of the data. Those that begin with "dev" are scored
            after fine-tuning.
        metrics: tuple of str. The main one, which settings are chosen by, comes first.
        dev_split: str. The split that settings are chosen on.
        sequence_length: int, tokens. This and what follows are the paper's settings.
        batch_size: int, rows of the features.
        learning_rates: tuple of float.
        epochs: tuple of int.
        learning_rate: float. Of the grid, the rate of a single run.

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828), appendix C.
    """

    name: str
    title: str
    splits: Collection
    metrics: tuple
    dev_split: str = "dev"
    sequence_length: int = 128
    batch_size: int = 32
    learning_rates: tuple = (1e-5, 1.5e-5, 2e-5, 3e-5, 5e-5)
    epochs: tuple = (3, 5, 10)
    learning_rate: float = 3e-5

    # Fields that `fine_tune` and `evaluate_model` may set; `sizes` of them, int, are
    # those of the features, and are saved beside a model.
    options = ("sequence_length",)
    sizes = ("sequence_length",)
    # What an example is called, and the class of the model.
    unit = "examples"
    model_class = None
    # Whether outputs are values of tokens, as `predict` has it.
    by_token = False

    @property
    def main_metric(self):
        """The metric that settings are chosen by."""
        return self.metrics[0]

    def with_options(self, backbone, **options):
        """This task with other options.

        Args:
            backbone: keras-nlp backbone of the model, whose sizes are the defaults of
                some.
            **options: new values of fields in `options`.

        Raises:
            ValueError: if the task has no such option.
        """
        for name, value in options.items():
            if name not in self.options:
                raise ValueError(
                    f"`{name}` must not be given for {self.name}, which has no such "
                    f"option. Received: {name}={value!r}, task={self.name!r}."
                )
        return dataclasses.replace(self, **options)

    def check_split(self, split):
        """Raises a ValueError unless the task has such a split."""
        if split not in self.splits:
            raise ValueError(
                f"`split` must be one of {', '.join(self.splits)} for {self.name}. "
                f"Received: split={split!r}."
            )

    @abc.abstractmethod
    def load(self, split, data_dir=None, tfds_data_dir=None):
        """Reads one split.

        Args:
            split: str. One of `splits`.
            data_dir: str or path of the published files. None for TFDS.
            tfds_data_dir: str or path. Where TFDS keeps its data; None for its default.

        Returns:
            Examples.

        Raises:
            FileNotFoundError: if the file of the split is not there.
            ValueError: if there is no such split, or a file is not as it must be.
        """

    def has_split(self, split, data_dir=None):
        """Whether `load` finds a split; TFDS is taken to have them all."""
        return True

    @abc.abstractmethod
    def model(self, backbone, seed, dtype=None):
        """Builds the model around a copy of an encoder.

        Args:
            backbone: keras-nlp backbone. It is not changed.
            seed: int. New weights and dropout depend on it alone.
            dtype: dtype policy. Defaults to the backbone's.

        Returns:
            Keras model with an attribute `backbone`, saved by `save_model`.
        """

    def training_model(self, model):
        """A model of the same weights that trains fast, not to be saved."""
        return with_flat_blocks(model)

    @abc.abstractmethod
    def features(self, examples, backbone, tokenizer):
        """The examples as `Features` that a model around the backbone reads.

        Raises:
            TypeError, ValueError: if tokenizer, backbone and sizes do not fit each
                other.
        """

    @abc.abstractmethod
    def loss(self, targets, outputs, reduction="sum_over_batch_size"):
        """The loss of a batch, a scalar; see `Features.targets`.

        Args:
            targets: as `Features.targets` gives them.
            outputs: of the model.
            reduction: as for `keras.losses.Loss`; None gives the loss of each example,
                `(batch,)`.
        """

    @abc.abstractmethod
    def decide(self, examples, features, outputs):
        """Predictions from the outputs that `predict` gives for the features."""

    @abc.abstractmethod
    def score(self, examples, predictions):
        """Compares predictions with the answers.

        Returns:
            dict of float by name, `metrics` and more, shares from 0 to 1 (correlations
            from -1); None where the answers are not known. In several languages the
            mean has the metric's name, and each language has its own: `"f1_de"`.
        """

    @abc.abstractmethod
    def write(self, split, examples, predictions, directory):
        """Writes predictions in the task's format into a directory."""

    @abc.abstractmethod
    def table(self, evaluations):
        """Scores of one or more `Evaluation`: list of dicts by column.

        A float is a score, an int a number of examples, a str anything else.
        """

    @abc.abstractmethod
    def save_model(self, model, tokenizer, path):
        """Saves a model and its tokenizer into an empty directory."""

    def check_model(self, model, notes):
        """Raises unless a saved model is one for this task.

        Args:
            model: as `load_saved` gives it.
            notes: dict, what was written beside it.

        Raises:
            TypeError: if it is of another class.
        """
        if not isinstance(model, self.model_class):
            raise TypeError(
                f"`model` must be a {self.model_class.__name__} for {self.name}. "
                f"Received: model of type {type(model).__name__}, task={self.name!r}."
            )

    def notes(self):
        """What is written beside a model, a dict that JSON can hold."""
        return {
            "task": self.name,
            "sizes": {name: getattr(self, name) for name in self.sizes},
        }

    def evaluate(self, model, features, split, examples):
        """Predicts and scores.

        Args:
            model: Keras model.
            features: `Features` of the examples.
            split: str.
            examples: as `load` gives them.

        Returns:
            `Evaluation`.

        Raises:
            NotFiniteError: if the model's outputs are not finite.
        """
        outputs = predict(model, features, _EVALUATION_BATCH, by_token=self.by_token)
        predictions = self.decide(examples, features, outputs)
        metrics = self.score(examples, predictions)
        return Evaluation(self, split, examples, predictions, metrics)


@dataclass(frozen=True)
class Evaluation:
    """Predictions for one split, and their scores.

    Args:
        task: `Task`.
        split: str.
        examples: as `Task.load` gives them.
        predictions: as `Task.decide` gives them.
        metrics: dict of float by name, or None where the answers are not known.
    """

    task: Task
    split: str
    examples: object
    predictions: object
    metrics: dict | None

    def __str__(self):
        text = f"{self.task.title} {self.split}, {len(self.examples):,} "
        text += self.task.unit
        if self.examples.remark:
            text += f" ({self.examples.remark})"
        if self.metrics is None:
            return f"{text}: no labels"
        if len(self.metrics) > len(self.task.metrics):
            return f"{text}\n\n{_markdown(self.task.table([self]))}"
        values = (f"{name} {percent(value)}" for name, value in self.metrics.items())
        return f"{text}: {', '.join(values)}"


def score_columns(rows):
    """Names of the columns of `Task.table` that hold scores."""
    return [name for name in rows[0] if any(isinstance(r[name], float) for r in rows)]


def _markdown(rows):
    """Rows of `Task.table` as people read them."""

    def shown(value):
        if isinstance(value, float):
            return percent(value)
        return f"{value:,}" if isinstance(value, int) else value

    return markdown_table(list(rows[0]), [map(shown, row.values()) for row in rows])
