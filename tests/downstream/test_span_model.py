import json
import re

import keras
import keras_hub
import numpy as np
import pytest
from small_models import TOKENIZERS, make_model

import keras_minilmv2 as km
from keras_minilmv2.downstream import question_answering, span_model
from keras_minilmv2.downstream.question_answering import (
    SpanExample,
    load_span_examples,
    span_dataset,
    span_features,
)
from keras_minilmv2.downstream.span_metrics import MLQA_LANGUAGES
from keras_minilmv2.downstream.span_model import (
    SpanModel,
    evaluate_spans,
    fine_tune_spans,
    load_span_model,
    save_span_model,
)

SIZES = {"sequence_length": 32, "doc_stride": 8, "max_question_length": 8}
WORDS = ["quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "runs"]


def make_examples(num_examples=8, seed=0, no_answer_every=None):
    """Questions of one word, the answer to which is that word."""
    generator = np.random.default_rng(seed)
    examples = []
    for number in range(num_examples):
        words = generator.permutation(WORDS).tolist()
        asked = words[number % len(words)]
        start = " ".join(words).index(asked)
        answers = ((asked,), (start,))
        if no_answer_every and number % no_answer_every == 0:
            answers = ((), ())
        examples.append(SpanExample(str(number), asked, " ".join(words), *answers))
    return examples


def fresh(family, dtype=None, **kwargs):
    """A model whose weights no other test trains, without dropout; its tokenizer."""
    backbone, tokenizer = make_model(family, max_sequence_length=64)
    config = {**backbone.get_config(), "dropout": 0.0}
    if dtype is not None:
        config["dtype"] = dtype
    clone = type(backbone).from_config(config)
    for variable, other in zip(clone.weights, backbone.weights, strict=True):
        variable.assign(other)
    model = SpanModel(clone, **kwargs)
    kernel = np.random.default_rng(0).normal(scale=0.02, size=(clone.hidden_dim, 2))
    model.span_head.kernel.assign(kernel)
    return model, tokenizer


def some_inputs(tokenizer):
    """A full window and two shorter ones."""
    features = span_features(tokenizer, make_examples(), **SIZES)
    order = np.argsort(features.num_tokens)
    return features.inputs(order[[-1, 0, 1]])


def values(outputs):
    return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


# The model.


@pytest.mark.parametrize("family", TOKENIZERS)
def test_logits_are_a_dense_layer_over_the_last_hidden_states(family):
    model, tokenizer = fresh(family)
    inputs = some_inputs(tokenizer)
    hidden = model.backbone({name: inputs[name] for name in model.backbone.input})
    if isinstance(hidden, dict):
        hidden = hidden["sequence_output"]
    kernel, bias = map(np.asarray, model.span_head.get_weights())
    expected = np.asarray(hidden) @ kernel + bias
    outputs = values(model(inputs))
    real = inputs["padding_mask"] == 1
    assert not real.all()
    assert real.any(axis=1).all()
    for i, name in enumerate(("start_logits", "end_logits")):
        assert outputs[name].shape == inputs["token_ids"].shape
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(
            outputs[name][real], expected[..., i][real], rtol=1e-4, atol=1e-5
        )
        assert (outputs[name][~real] == -1e9).all()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_question_is_masked_when_asked_for(family):
    model, tokenizer = fresh(family, mask_question=True)
    inputs = some_inputs(tokenizer)
    outputs = values(model(inputs))
    for logits in outputs.values():
        np.testing.assert_array_equal(logits > -1e8, inputs["answer_mask"] == 1)
    plain, _ = fresh(family)
    for name, logits in values(plain(inputs)).items():
        seen = inputs["answer_mask"] == 1
        np.testing.assert_allclose(outputs[name][seen], logits[seen], rtol=1e-5)


def test_padding_does_not_change_logits():
    model, tokenizer = fresh("bert")
    inputs = some_inputs(tokenizer)
    longest = int(inputs["padding_mask"].sum(axis=1).max())
    cut = values(model({name: value[:, :longest] for name, value in inputs.items()}))
    for name, logits in values(model(inputs)).items():
        np.testing.assert_allclose(logits[:, :longest], cut[name], rtol=1e-4, atol=1e-5)


def test_segment_ids_may_be_left_out():
    model, tokenizer = fresh("bert")
    inputs = some_inputs(tokenizer)
    zeros = {**inputs, "segment_ids": np.zeros_like(inputs["segment_ids"])}
    del inputs["segment_ids"]
    for name, logits in values(model(zeros)).items():
        np.testing.assert_array_equal(values(model(inputs))[name], logits)


@pytest.mark.parametrize("family", ["bert", "xlm_roberta"])
def test_logits_are_float32_under_mixed_precision(family):
    model, tokenizer = fresh(family, dtype="mixed_bfloat16")
    inputs = some_inputs(tokenizer)
    assert model.backbone.compute_dtype == "bfloat16"
    plain, _ = fresh(family)
    expected = values(plain(inputs))
    for name, logits in values(model(inputs)).items():
        assert logits.dtype == np.float32
        real = inputs["padding_mask"] == 1
        difference = np.abs(logits - expected[name])[real]
        assert 0 < difference.max() < 0.2


def test_loss_is_the_mean_of_two_cross_entropies():
    model, _ = fresh("bert")
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 5, 7))
    logits[:, :, 6] = -1e9
    labels = generator.integers(0, 6, size=(2, 5))
    weights = np.array([1.0, 0.0, 2.0, 1.0, 1.0])
    total = 0.0
    for side in range(2):
        for row in range(5):
            partition = sum(np.exp(value) for value in logits[side, row])
            nats = np.log(partition) - logits[side, row, labels[side, row]]
            total += nats * weights[row] / 5 / 2
    found = model.compute_loss(
        y={"start_positions": labels[0], "end_positions": labels[1]},
        y_pred={
            "start_logits": logits[0].astype("float32"),
            "end_logits": logits[1].astype("float32"),
        },
        sample_weight=weights,
    )
    assert float(found) == pytest.approx(total, rel=1e-6)


def test_model_of_another_kind_is_refused():
    with pytest.raises(TypeError, match=r"^`backbone` must be one of BertBackbone, "):
        SpanModel(keras.Sequential())


# Saved and loaded.


@pytest.mark.parametrize("family", TOKENIZERS)
def test_saved_model_is_loaded_with_equal_logits(family, tmp_path):
    model, tokenizer = fresh(family, mask_question=family == "bert")
    model.span_head.bias.assign([0.5, -0.5])
    inputs = some_inputs(tokenizer)
    path = tmp_path / "models" / "span"
    save_span_model(model, tokenizer, path)
    loaded, loaded_tokenizer = load_span_model(path)
    assert loaded.mask_question == model.mask_question
    assert loaded_tokenizer.get_vocabulary() == tokenizer.get_vocabulary()
    expected = values(model(inputs))
    for name, logits in values(loaded(inputs)).items():
        np.testing.assert_array_equal(logits, expected[name])
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["span"]
    backbone = keras_hub.models.Backbone.from_preset(str(path))
    assert type(backbone) is type(model.backbone)


def test_model_is_loaded_in_mixed_precision(tmp_path):
    model, tokenizer = fresh("roberta")
    save_span_model(model, tokenizer, tmp_path / "span")
    loaded, _ = load_span_model(tmp_path / "span", dtype="mixed_bfloat16")
    assert loaded.backbone.compute_dtype == "bfloat16"
    assert loaded.span_head.compute_dtype == "float32"


def test_keras_saves_the_model_too(tmp_path):
    model, tokenizer = fresh("electra", mask_question=True, name="finder")
    inputs = some_inputs(tokenizer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.mask_question
    assert loaded.name == "finder"
    for name, logits in values(loaded(inputs)).items():
        np.testing.assert_array_equal(logits, values(model(inputs))[name])


def test_existing_directory_is_replaced_only_when_allowed(tmp_path):
    model, tokenizer = fresh("bert")
    path = tmp_path / "span"
    path.mkdir()
    (path / "mine.txt").write_text("mine")
    message = f"`path` must not exist unless `overwrite` is set. Received: path={path}."
    with pytest.raises(FileExistsError, match=re.escape(message)):
        save_span_model(model, tokenizer, path, overwrite=False)
    assert (path / "mine.txt").read_text() == "mine"
    save_span_model(model, tokenizer, path)
    assert not (path / "mine.txt").exists()


def test_failed_save_leaves_the_earlier_model(tmp_path, monkeypatch):
    model, tokenizer = fresh("bert")
    path = tmp_path / "span"
    save_span_model(model, tokenizer, path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(span_model, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_span_model(model, tokenizer, path)
    assert {file: file.read_bytes() for file in before} == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("span_model.json", None, "it has no span_model.json."),
        ("span_head.safetensors", None, "it has no span_head.safetensors."),
        ("span_model.json", b"{", "span_model.json is not one of a SpanModel."),
        ("span_model.json", b"[1]", "span_model.json is not one of a SpanModel."),
        ("span_model.json", b"{}", "span_model.json is not one of a SpanModel."),
        ("span_head.safetensors", b"a", "span_head.safetensors cannot be read."),
    ],
)
def test_damaged_model_is_named(tmp_path, name, content, reason):
    model, tokenizer = fresh("bert")
    path = tmp_path / "span"
    save_span_model(model, tokenizer, path)
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    message = (
        "`path` must be a directory that save_span_model wrote. "
        f"Received: path={str(path)!r}; {reason}"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        load_span_model(path)


@pytest.mark.parametrize(
    "head",
    [
        {"kernel": np.zeros((3, 2), "float32"), "bias": np.zeros(2, "float32")},
        {"kernel": np.zeros((24, 2), "float32")},
    ],
)
def test_head_of_another_shape_is_named(tmp_path, head):
    model, tokenizer = fresh("bert")
    save_span_model(model, tokenizer, tmp_path / "span")
    span_model.save_file(head, tmp_path / "span" / "span_head.safetensors")
    message = "; span_head.safetensors does not fit the encoder."
    with pytest.raises(ValueError, match=re.escape(message)):
        load_span_model(tmp_path / "span")


# Training.


def train(model, tokenizer, num_epochs=2, examples=None, **kwargs):
    kwargs = {"optimizer": keras.optimizers.Adam(1e-2), "batch_size": 8, **kwargs}
    return fine_tune_spans(
        model,
        tokenizer,
        make_examples(16) if examples is None else examples,
        num_epochs=num_epochs,
        verbose=0,
        **{**SIZES, **kwargs},
    )


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
    losses = train(model, tokenizer, num_epochs=6).history["loss"]
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
    before = evaluate_spans(model, tokenizer, examples, **sizes).metrics
    train(model, tokenizer, 60, examples, batch_size=4, **sizes)
    after = evaluate_spans(model, tokenizer, examples, **sizes).metrics
    assert after["f1"] > before["f1"] + 30


def test_loss_of_evaluate_is_that_of_the_windows():
    model, tokenizer = fresh("bert")
    features = span_features(tokenizer, make_examples(), **SIZES)
    model.compile()
    found = model.evaluate(span_dataset(features, 3), verbose=0)
    outputs = model(features.inputs(np.arange(len(features))))
    labels = {
        name: getattr(features, name) for name in ("start_positions", "end_positions")
    }
    assert found == pytest.approx(float(model.compute_loss(None, labels, outputs)))


def test_optimizer_moves_every_row_of_the_embedding():
    model, tokenizer = fresh("bert")
    optimizer = keras.optimizers.Adam(1e-2)
    row = tokenizer.token_to_id("runs")

    def vector():
        return np.array(model.backbone.token_embedding.embeddings)[row]

    train(model, tokenizer, 1, make_examples(1), optimizer=optimizer)
    before = vector()
    other = SpanExample("a", "dog", "the fox", ("fox",), (4,))
    train(model, tokenizer, 1, [other], optimizer=optimizer)
    # By its momentum; a sparse gradient would leave it where it is.
    assert (vector() != before).all()


def test_optimizer_may_be_made_for_the_number_of_updates():
    model, tokenizer = fresh("bert")
    asked = []

    def optimizer(total_steps):
        asked.append(total_steps)
        return km.adamw(1e-3, 1, total_steps)

    train(model, tokenizer, 3, optimizer=optimizer, batch_size=5)
    features = span_features(tokenizer, make_examples(16), **SIZES)
    assert asked == [3 * -(-len(features) // 5)]
    assert int(model.optimizer.iterations) == asked[0]


@pytest.mark.slow
def test_training_is_the_same_for_a_seed():
    losses = []
    for seed in (1, 1, 2):
        model, tokenizer = fresh("bert")
        losses.append(train(model, tokenizer, seed=seed).history["loss"])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_xla_is_for_accelerators(monkeypatch):
    model, _ = fresh("bert")
    assert not model.jit_compile
    model.compile()
    assert not model.jit_compile
    monkeypatch.setattr(span_model, "runs_on_accelerator", lambda: True)
    model.compile()
    assert model.jit_compile
    model.compile(jit_compile=False)
    assert not model.jit_compile


# Evaluation.


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta"])
def test_predictions_are_texts_of_the_contexts(family):
    model, tokenizer = fresh(family)
    examples = make_examples()
    evaluation = evaluate_spans(model, tokenizer, examples, n_best=5, **SIZES)
    assert list(evaluation.predictions) == [example.id for example in examples]
    for example in examples:
        text = evaluation.predictions[example.id]
        assert text
        assert text in example.context
        nbest = evaluation.nbest[example.id]
        assert nbest[0]["text"] == text
        assert sum(entry["probability"] for entry in nbest) == pytest.approx(1)
    assert set(evaluation.metrics) == {"exact_match", "f1"}
    json.dumps(vars(evaluation))


def test_batches_do_not_change_answers(monkeypatch):
    model, tokenizer = fresh("bert")
    examples = make_examples(12)
    expected = evaluate_spans(model, tokenizer, examples, batch_size=100, **SIZES)
    monkeypatch.setattr(question_answering, "_LENGTH_STEP", 8)
    found = evaluate_spans(model, tokenizer, examples, batch_size=5, **SIZES)
    assert found.predictions == expected.predictions
    for key, odds in expected.null_odds.items():
        assert found.null_odds[key] == pytest.approx(odds, abs=1e-4)


def test_questions_without_an_answer_have_the_scores_of_squad_v2():
    model, tokenizer = fresh("bert")
    examples = make_examples(no_answer_every=2)
    evaluation = evaluate_spans(model, tokenizer, examples, **SIZES)
    assert evaluation.metrics["NoAns_total"] == evaluation.metrics["HasAns_total"] == 4
    odds = evaluation.null_odds
    for key, text in evaluation.predictions.items():
        assert (text == "") == (odds[key] > 0)
        assert "" in [entry["text"] for entry in evaluation.nbest[key]]
    for threshold, is_answered in ((max(odds.values()), True), (-1e9, False)):
        other = evaluate_spans(
            model, tokenizer, examples, null_threshold=threshold, **SIZES
        )
        assert all(bool(text) == is_answered for text in other.predictions.values())
        assert other.metrics["best_f1"] == evaluation.metrics["best_f1"]
    assert other.metrics["NoAns_exact"] == 100
    assert other.metrics["HasAns_exact"] == 0


@pytest.mark.slow
def test_best_threshold_gives_the_best_score():
    model, tokenizer = fresh("bert")
    examples = make_examples(20, no_answer_every=3)
    train(model, tokenizer, 10, examples)
    metrics = evaluate_spans(model, tokenizer, examples, **SIZES).metrics
    assert metrics["best_f1"] > 100 * metrics["NoAns_total"] / metrics["total"]
    threshold = metrics["best_f1_thresh"]
    again = evaluate_spans(
        model, tokenizer, examples, null_threshold=threshold, **SIZES
    ).metrics
    assert again["f1"] == pytest.approx(metrics["best_f1"])


def test_no_answer_may_be_asked_for_or_not():
    model, tokenizer = fresh("bert")
    examples = make_examples(4)
    with_null = evaluate_spans(model, tokenizer, examples, no_answer=True, **SIZES)
    assert "best_f1" in with_null.metrics
    examples = make_examples(4, no_answer_every=2)
    without = evaluate_spans(model, tokenizer, examples, no_answer=False, **SIZES)
    assert set(without.metrics) == {"exact_match", "f1"}


def test_language_gives_the_scores_of_mlqa():
    model, tokenizer = fresh("bert")
    example = SpanExample("a", "fox", "the", ("a",), (None,))
    for language, score in (("en", 100.0), ("de", 0.0)):
        metrics = evaluate_spans(
            model, tokenizer, [example], language=language, **SIZES
        ).metrics
        assert metrics["exact_match"] == score


@pytest.mark.parametrize("language", MLQA_LANGUAGES)
def test_mlqa_runs_in_every_language(data_dir, language):
    model, tokenizer = fresh("xlm_roberta")
    examples = load_span_examples(f"mlqa/{language}", "dev", data_dir)[:10]
    sizes = {"sequence_length": 64, "doc_stride": 32, "max_question_length": 16}
    evaluation = evaluate_spans(model, tokenizer, examples, language=language, **sizes)
    for example in examples:
        assert evaluation.predictions[example.id] in example.context


@pytest.mark.parametrize(
    ("examples", "counts"),
    [([], "0 examples with 0"), (make_examples(2) * 2, "4 examples with 2")],
)
def test_examples_must_have_ids_of_their_own(examples, counts):
    model, tokenizer = fresh("bert")
    message = (
        "`examples` must have one example or more, each with an id of its own. "
        f"Received: {counts} ids."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_spans(model, tokenizer, examples, **SIZES)


def test_language_is_not_for_questions_without_an_answer():
    model, tokenizer = fresh("bert")
    examples = make_examples(no_answer_every=2)
    message = (
        "`language` must be None where there are questions without an answer. "
        "Received: language='en'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_spans(model, tokenizer, examples, language="en", **SIZES)


def test_windows_must_not_be_longer_than_the_encoder_has_positions():
    model, tokenizer = fresh("bert")
    message = (
        "`sequence_length` must not be above the backbone's `max_sequence_length`. "
        "Received: sequence_length=65, max_sequence_length=64."
    )
    for function in (evaluate_spans, train):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(
                model,
                tokenizer,
                examples=make_examples(),
                sequence_length=65,
                max_question_length=8,
            )


@pytest.mark.parametrize("name", ["batch_size", "num_epochs"])
def test_sizes_must_be_positive(name):
    model, tokenizer = fresh("bert")
    message = f"`{name}` must be positive. Received: {name}=0."
    functions = (train, evaluate_spans) if name == "batch_size" else (train,)
    for function in functions:
        with pytest.raises(ValueError, match=re.escape(message)):
            function(model, tokenizer, examples=make_examples(), **{name: 0})


def test_name_of_an_optimizer_is_refused():
    model, tokenizer = fresh("bert")
    message = (
        "`optimizer` must be a Keras optimizer or a function that makes one. "
        "Received: optimizer='adam'."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        train(model, tokenizer, optimizer="adam")


def test_another_loss_is_refused():
    model, _ = fresh("bert")
    message = (
        "`loss` must not be passed: a SpanModel has its own loss. Received: loss='mse'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.compile("adam", loss="mse")


def test_tokenizer_must_fit_the_encoder():
    model, _ = fresh("albert")
    _, tokenizer = fresh("bert")
    with pytest.raises(ValueError, match=r"^`tokenizer` must not have more token ids"):
        evaluate_spans(model, tokenizer, make_examples(), **SIZES)
