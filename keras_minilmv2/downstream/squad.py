"""SQuAD 1.1 and 2.0: questions whose answer is a part of a context."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_minilmv2.backbones.variants import rebuild
from keras_minilmv2.downstream.answers import best_answers
from keras_minilmv2.downstream.reader import load_span_examples, num_misplaced
from keras_minilmv2.downstream.span_metrics import squad_metrics, squad_v2_metrics
from keras_minilmv2.downstream.span_model import SpanModel, save_span_model, span_loss
from keras_minilmv2.downstream.tasks import Task
from keras_minilmv2.downstream.windows import model_windows
from keras_minilmv2.utils.files import write_json
from keras_minilmv2.utils.seeds import set_seed

_COLUMNS = ("exact_match", "exact", "f1", "best_exact", "best_f1")


@dataclass(frozen=True, eq=False)
class SpanExamples:
    """Questions of one split, those of a language one after the other.

    Args:
        by_language: dict of lists of `SpanExample` by language, None for English
            alone.
    """

    by_language: dict

    def __len__(self):
        return sum(map(len, self.by_language.values()))

    def __iter__(self):
        for examples in self.by_language.values():
            yield from examples

    def take(self, indices):
        """The examples with these indices, in their own order."""
        wanted, first, chosen = set(map(int, indices)), 0, {}
        for language, examples in self.by_language.items():
            places = enumerate(examples, start=first)
            chosen[language] = [each for place, each in places if place in wanted]
            first += len(examples)
        return SpanExamples(chosen)

    def sample(self, number):
        """Some of the examples of each language, the same each time."""
        chosen = {}
        for language, examples in self.by_language.items():
            order = np.random.default_rng(0).permutation(len(examples))
            chosen[language] = [examples[i] for i in sorted(order[:number])]
        return SpanExamples(chosen)

    @property
    def skipped(self):
        """What training skips, or None."""
        number = num_misplaced(self)
        if not number:
            return None
        return f"answers that are not at their answer_start, skipped: {number:,}"

    @property
    def remark(self):
        """What a reader of the scores must know, or None."""
        number = num_misplaced(self)
        if not number:
            return None
        return (
            "answers that are not at their answer_start, counted in the scores: "
            f"{number:,}"
        )


@dataclass(frozen=True, kw_only=True)
class SpanTask(Task):
    """A question-answering dataset in the layout of SQuAD.

    The default settings are the paper's for SQuAD 2.0.

    Args:
        dataset: str, as `load_span_examples` takes it.
        no_answer: bool. Whether no answer is one, as in SQuAD 2.0.
        doc_stride: int, tokens from the start of a window to that of the next.
        max_question_length: int, tokens after which a question is cut off.
        strict: bool. Whether an answer that is not at its `answer_start` is an error;
            else it is skipped in training and counts in scores.
        null_threshold: float. With `no_answer`, a question whose `null_odds` are above
            it is not answered.
        n_best: int, as for `best_answers`.
        max_answer_length: int, tokens.
    """

    dataset: str
    no_answer: bool = False
    sequence_length: int = 384
    doc_stride: int = 128
    max_question_length: int = 64
    strict: bool = False
    null_threshold: float = 0.0
    n_best: int = 20
    max_answer_length: int = 30
    splits: Sequence = ("train", "dev", "test")
    metrics: tuple = ("f1", "exact_match")
    learning_rates: tuple = (3e-5, 6e-5, 8e-5, 9e-5)
    epochs: tuple = (3,)
    learning_rate: float = 6e-5

    sizes = ("sequence_length", "doc_stride", "max_question_length")
    options = (*sizes, "strict")
    unit = "questions"
    model_class = SpanModel
    by_token = True

    def with_options(self, backbone, sequence_length=None, doc_stride=None, **options):
        """This task with other options; windows are no longer than the backbone's.

        The paper's stride is for its lengths; shorter windows have a shorter one, and
        questions that leave room for a context.
        """
        if sequence_length is None:
            sequence_length = min(self.sequence_length, backbone.max_sequence_length)
        if doc_stride is None:
            doc_stride = min(self.doc_stride, max(1, sequence_length // 3))
        longest = min(self.max_question_length, max(1, sequence_length // 4))
        options.setdefault("max_question_length", longest)
        return super().with_options(
            backbone,
            sequence_length=sequence_length,
            doc_stride=doc_stride,
            **options,
        )

    def load(self, split, data_dir=None, tfds_data_dir=None):
        """Reads one split, as `load_span_examples` does.

        Returns:
            `SpanExamples`.
        """
        self.check_split(split)
        return SpanExamples(
            {None: self._load(self.dataset, split, data_dir, tfds_data_dir)}
        )

    def _load(self, dataset, split, data_dir, tfds_data_dir):
        examples = load_span_examples(
            dataset, split, data_dir, tfds_data_dir=tfds_data_dir, strict=self.strict
        )
        missing = [example.id for example in examples if not example.answers]
        if missing and not self.no_answer:
            raise ValueError(
                f"`data_dir` must have an answer to each question of {self.name}. "
                f"Received: question {missing[0]!r} without one."
            )
        return examples

    def model(self, backbone, seed, dtype=None):
        """A `SpanModel`."""
        set_seed(seed)
        # The encoder of a preset that was saved frozen is trained, too.
        copy = rebuild(backbone, dtype, trainable=True)
        copy.set_weights(backbone.get_weights())
        return SpanModel(copy)

    def training_model(self, model):
        """A functional model of the same weights."""
        return model.with_flat_blocks()

    def features(self, examples, backbone, tokenizer):
        """`SpanFeatures`."""
        sizes = {name: getattr(self, name) for name in self.sizes}
        return model_windows(backbone, tokenizer, list(examples), **sizes)

    def loss(self, targets, outputs, reduction="sum_over_batch_size"):
        """Mean of the cross-entropies of start and end, in nats."""
        return span_loss(targets, outputs, reduction=reduction)

    def decide(self, examples, features, outputs):
        """Returns a dict of `SpanAnswers` by language; None for English alone."""
        answers, first = {}, 0
        for language, questions in examples.by_language.items():
            # The same question may be asked in two languages, with one id.
            rows, part = features.of_examples(first, first + len(questions))
            answers[language] = best_answers(
                part,
                **{name: logits[rows] for name, logits in outputs.items()},
                n_best=self.n_best,
                max_answer_length=self.max_answer_length,
                no_answer=self.no_answer,
            )
            first += len(questions)
        return answers

    def score(self, examples, predictions):
        """SQuAD's official scores as shares; of SQuAD 2.0 those of all thresholds."""
        ((_, answers),) = predictions.items()
        golds = {example.id: example.answers for example in examples}
        if not self.no_answer:
            return squad_metrics(answers.texts, golds)
        return squad_v2_metrics(
            answers.texts, golds, answers.null_odds, self.null_threshold
        )

    def write(self, split, examples, predictions, directory):
        """Writes answers in the official format, and the best of each question.

        Of SQuAD 2.0 also the answers that are not blanked and the null odds, in which
        the official script finds the best threshold.
        """
        for language, answers in predictions.items():
            name = "-".join(filter(None, (split, language)))
            files = {"": answers.texts, "-nbest": answers.nbest}
            if self.no_answer:
                files[""] = answers.blanked(self.null_threshold)
                files["-null_odds"] = answers.null_odds
                files["-not_blanked"] = answers.texts
            for kind, content in files.items():
                write_json(Path(directory) / f"{name}{kind}.json", content)

    def table(self, evaluations):
        """A row for each split or language, and the mean of several languages."""
        names = [name for name in _COLUMNS if name in evaluations[0].metrics]
        rows = []

        def add(evaluation, language, number, suffix=""):
            scores = {n: evaluation.metrics[n + suffix] for n in names}
            rows.append({"language": language, self.unit: number, **scores})

        for evaluation in evaluations:
            parts = evaluation.examples.by_language
            for language, examples in parts.items():
                suffix = f"_{language}" if language else ""
                add(evaluation, language or "en", len(examples), suffix)
            if len(parts) > 1:
                add(evaluation, "mean", len(evaluation.examples))
        return rows

    def save_model(self, model, tokenizer, path):
        """Saves what `load_span_model` reads."""
        save_span_model(model, tokenizer, path)


SQUAD_TASKS = {
    task.name: task
    for task in (
        SpanTask(
            name="squad1",
            title="SQuAD 1.1",
            dataset="squad/v1.1",
            # The paper's for MLQA, which is trained on SQuAD 1.1.
            learning_rates=(3e-5, 4e-5, 5e-5, 6e-5),
            epochs=(4,),
            sequence_length=512,
        ),
        SpanTask(
            name="squad2",
            title="SQuAD 2.0",
            dataset="squad/v2.0",
            no_answer=True,
            metrics=("best_f1", "f1", "best_exact", "exact"),
        ),
    )
}
