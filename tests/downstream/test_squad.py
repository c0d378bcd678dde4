"""Fine-tuning and evaluation of question answering, through its tasks."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from small_spans import SIZES, fresh, make_examples

from keras_minilmv2.downstream import tasks
from keras_minilmv2.downstream.batches import training_epochs
from keras_minilmv2.downstream.reader import SpanExample, load_span_examples
from keras_minilmv2.downstream.registry import TASKS
from keras_minilmv2.downstream.span_metrics import MLQA_LANGUAGES
from keras_minilmv2.downstream.squad import SpanExamples
from keras_minilmv2.downstream.windows import SpanFeatures
from keras_minilmv2.training.supervised import NotFiniteError, train, training_step


def evaluate(model, tokenizer, examples, language=None, **options):
    """The evaluation of a task of these examples."""
    task = dataclasses.replace(
        TASKS["mlqa" if language else "squad1"], **{**SIZES, **options}
    )
    examples = SpanExamples({language: examples})
    features = task.features(examples, model.backbone, tokenizer)
    return task.evaluate(model, features, "dev", examples)


def train_spans(
    model, tokenizer, num_epochs=2, examples=None, *, seed=0, batch_size=8, **options
):
    """Losses by epoch."""
    optimizer = options.pop("optimizer", None) or keras.optimizers.Adam(1e-2)
    task = dataclasses.replace(TASKS["squad1"], **{**SIZES, **options})
    examples = SpanExamples({None: examples or make_examples(16)})
    features = task.features(examples, model.backbone, tokenizer)
    epochs = training_epochs(features, batch_size, num_epochs, seed)
    return train(
        training_step(task.training_model(model), task.loss, optimizer), epochs
    )


# Training.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("bert", None),
        ("roberta", "mixed_bfloat16"),
        *(
            pytest.param(family, None, marks=pytest.mark.slow)
            for family in ("distil_bert", "electra", "xlm_roberta", "albert")
        ),
    ],
)
def test_loss_falls(family, dtype):
    model, tokenizer = fresh(family, dtype=dtype)
    before = [np.array(variable) for variable in model.backbone.trainable_variables]
    losses = train_spans(model, tokenizer, num_epochs=6)
    assert losses[-1] < 0.9 * losses[0]
    moved = {
        variable.path
        for variable, old in zip(
            model.backbone.trainable_variables, before, strict=True
        )
        if (np.array(variable) != old).any()
    }
    left = {variable.path for variable in model.backbone.trainable_variables} - moved
    assert all("pooled_dense" in path for path in left)
    assert bool(left) == (family in ("bert", "albert", "electra"))


@pytest.mark.slow
def test_training_learns_to_answer():
    model, tokenizer = fresh("bert")
    examples = make_examples(4)
    sizes = {**SIZES, "sequence_length": 64}
    before = evaluate(model, tokenizer, examples, **sizes).metrics
    train_spans(model, tokenizer, 60, examples, batch_size=4, **sizes)
    after = evaluate(model, tokenizer, examples, **sizes).metrics
    assert after["f1"] > before["f1"] + 0.3


@pytest.mark.slow
def test_optimizer_moves_every_row_of_the_embedding():
    model, tokenizer = fresh("bert")
    optimizer = keras.optimizers.Adam(1e-2)
    row = tokenizer.token_to_id("runs")

    def vector():
        return np.array(model.backbone.token_embedding.embeddings)[row]

    train_spans(model, tokenizer, 1, make_examples(1), optimizer=optimizer)
    before = vector()
    other = SpanExample("a", "dog", "the fox", ("fox",), (4,))
    train_spans(model, tokenizer, 1, [other], optimizer=optimizer)
    # By its momentum; a sparse gradient would leave it where it is.
    assert (vector() != before).all()


@pytest.mark.slow
def test_training_is_the_same_for_a_seed():
    losses = []
    for seed in (1, 1, 2):
        model, tokenizer = fresh("bert")
        losses.append(train_spans(model, tokenizer, seed=seed))
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


# Evaluation.


def answers_of(evaluation):
    (answers,) = evaluation.predictions.values()
    return answers


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta"])
def test_predictions_are_texts_of_the_contexts(family):
    model, tokenizer = fresh(family)
    examples = make_examples()
    evaluation = evaluate(model, tokenizer, examples, n_best=5)
    answers = answers_of(evaluation)
    assert list(answers.texts) == [example.id for example in examples]
    for example in examples:
        text = answers.texts[example.id]
        assert text
        assert text in example.context
        nbest = answers.nbest[example.id]
        assert nbest[0]["text"] == text
        assert sum(entry["probability"] for entry in nbest) == pytest.approx(1)
    assert set(evaluation.metrics) == {"exact_match", "f1"}
    assert all(0 <= value <= 1 for value in evaluation.metrics.values())
    json.dumps([answers, evaluation.metrics])


def test_batches_do_not_change_answers(monkeypatch):
    model, tokenizer = fresh("bert")
    examples = make_examples(12)
    expected = answers_of(evaluate(model, tokenizer, examples))
    monkeypatch.setattr(SpanFeatures, "length_step", 8)
    monkeypatch.setattr(tasks, "_EVALUATION_BATCH", 5)
    found = answers_of(evaluate(model, tokenizer, examples))
    assert found.texts == expected.texts
    for key, odds in expected.null_odds.items():
        assert found.null_odds[key] == pytest.approx(odds, abs=1e-4)


def test_questions_without_an_answer_have_the_scores_of_squad_v2():
    model, tokenizer = fresh("bert")
    examples = make_examples(no_answer_every=2)
    evaluation = evaluate(model, tokenizer, examples, no_answer=True)
    assert evaluation.metrics["NoAns_total"] == evaluation.metrics["HasAns_total"] == 4
    answers = answers_of(evaluation)
    for key, text in answers.blanked(0.0).items():
        assert (text == "") == (answers.null_odds[key] > 0)
        assert "" in [entry["text"] for entry in answers.nbest[key]]
    highest = max(answers.null_odds.values())
    for threshold, is_answered in ((highest, True), (-1e9, False)):
        other = evaluate(
            model, tokenizer, examples, no_answer=True, null_threshold=threshold
        )
        texts = answers_of(other).blanked(threshold).values()
        assert all(bool(text) == is_answered for text in texts)
        assert other.metrics["best_f1"] == evaluation.metrics["best_f1"]
    assert other.metrics["NoAns_exact"] == 1
    assert other.metrics["HasAns_exact"] == 0


@pytest.mark.slow
def test_best_threshold_gives_the_best_score():
    model, tokenizer = fresh("bert")
    examples = make_examples(20, no_answer_every=3)
    train_spans(model, tokenizer, 10, examples)
    metrics = evaluate(model, tokenizer, examples, no_answer=True).metrics
    assert metrics["best_f1"] > metrics["NoAns_total"] / metrics["total"]
    threshold = metrics["best_f1_thresh"]
    again = evaluate(
        model, tokenizer, examples, no_answer=True, null_threshold=threshold
    ).metrics
    assert again["f1"] == pytest.approx(metrics["best_f1"])


def test_taken_examples_keep_their_language_and_order():
    ours, theirs = make_examples(3), make_examples(2)
    both = SpanExamples({"en": ours, "de": theirs})
    taken = both.take([4, 0, 2])
    assert taken.by_language == {"en": [ours[0], ours[2]], "de": [theirs[1]]}


def test_language_gives_the_scores_of_mlqa():
    model, tokenizer = fresh("bert")
    example = SpanExample("a", "fox", "the", ("a",), (None,))
    for language, score in (("en", 1.0), ("de", 0.0)):
        metrics = evaluate(model, tokenizer, [example], language).metrics
        assert metrics["exact_match"] == metrics[f"exact_match_{language}"] == score


def test_a_question_in_two_languages_has_an_answer_in_each():
    model, tokenizer = fresh("bert")
    questions = {
        "en": [SpanExample("a", "fox", "the dog", ("dog",), (4,))],
        "de": [SpanExample("a", "fox", "quick brown", ("brown",), (6,))],
    }
    task = dataclasses.replace(TASKS["mlqa"], **SIZES)
    examples = SpanExamples(questions)
    features = task.features(examples, model.backbone, tokenizer)
    evaluation = task.evaluate(model, features, "dev", examples)
    for language, (question,) in questions.items():
        answers = evaluation.predictions[language]
        assert answers.texts["a"] in question.context
        alone = evaluate(model, tokenizer, [question], language)
        assert alone.predictions[language].texts == answers.texts
        name = f"f1_{language}"
        assert evaluation.metrics[name] == alone.metrics[name]
    each = [evaluation.metrics[f"f1_{language}"] for language in questions]
    assert evaluation.metrics["f1"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("language", MLQA_LANGUAGES)
def test_mlqa_runs_in_every_language(data_dir, language):
    model, tokenizer = fresh("xlm_roberta")
    examples = load_span_examples(f"mlqa/{language}", "dev", data_dir)[:10]
    sizes = {"sequence_length": 64, "doc_stride": 32, "max_question_length": 16}
    answers = answers_of(evaluate(model, tokenizer, examples, language, **sizes))
    for example in examples:
        assert answers.texts[example.id] in example.context


def test_windows_must_not_be_longer_than_the_encoder_has_positions():
    model, tokenizer = fresh("bert")
    message = (
        "`sequence_length` must not be above the backbone's `max_sequence_length`. "
        "Received: sequence_length=65, max_sequence_length=64."
    )
    for function in (evaluate, train_spans):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(model, tokenizer, examples=make_examples(), sequence_length=65)


def test_sizes_follow_the_encoder():
    backbone = fresh("bert")[0].backbone
    task = TASKS["squad1"].with_options(backbone)
    assert [getattr(task, name) for name in task.sizes] == [64, 21, 16]
    task = TASKS["squad1"].with_options(backbone, sequence_length=40, doc_stride=30)
    assert [getattr(task, name) for name in task.sizes] == [40, 30, 10]


def test_an_option_of_another_task_is_refused():
    message = (
        "`languages` must not be given for squad1, which has no such option. "
        "Received: languages=['de'], task='squad1'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        TASKS["squad1"].with_options(fresh("bert")[0].backbone, languages=["de"])


def test_outputs_that_are_not_finite_are_refused():
    model, tokenizer = fresh("bert")
    model.span_head.bias.assign([np.nan, 0.0])
    with pytest.raises(NotFiniteError, match="`model` must have finite weights"):
        evaluate(model, tokenizer, make_examples())


def test_tokenizer_must_fit_the_encoder():
    model, _ = fresh("albert")
    _, tokenizer = fresh("bert")
    with pytest.raises(ValueError, match=r"^`tokenizer` must not have more token ids"):
        evaluate(model, tokenizer, make_examples())
