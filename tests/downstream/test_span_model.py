"""Models of answer spans: their logits and loss, saved, loaded and trained."""

import re

import keras
import keras_hub
import numpy as np
import pytest
from small_models import TOKENIZERS
from small_spans import SIZES, fresh, make_examples

from keras_minilmv2.downstream import span_model
from keras_minilmv2.downstream.batches import training_epochs
from keras_minilmv2.downstream.span_model import (
    SpanModel,
    load_span_model,
    save_span_model,
    span_loss,
)
from keras_minilmv2.downstream.windows import span_dataset, span_features
from keras_minilmv2.training.supervised import train, training_step


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


# Trained by Keras.


@pytest.mark.slow
def test_fit_trains_as_fine_tuning_does():
    model, tokenizer = fresh("bert")
    features = span_features(tokenizer, make_examples(16), **SIZES)
    optimizer = keras.optimizers.Adam(1e-2)
    losses = train(
        training_step(model.with_flat_blocks(), span_loss, optimizer),
        training_epochs(features, 8, 3, seed=1),
    )
    other, _ = fresh("bert")
    other.compile(keras.optimizers.Adam(1e-2))
    dataset = span_dataset(features, 8, num_epochs=3, seed=1)
    history = other.fit(
        dataset, epochs=3, steps_per_epoch=len(dataset) // 3, shuffle=False, verbose=0
    )
    np.testing.assert_allclose(losses, history.history["loss"], rtol=2e-3)
    assert losses[-1] < 0.9 * losses[0]
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-3)


@pytest.mark.parametrize("mask_question", [False, True])
@pytest.mark.parametrize("family", TOKENIZERS)
def test_flat_blocks_give_the_same_logits(family, mask_question):
    model, tokenizer = fresh(family, mask_question=mask_question)
    inputs = some_inputs(tokenizer)
    flat = model.with_flat_blocks()
    for name, logits in values(model(inputs)).items():
        found = flat(inputs)[name]
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


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


def test_another_loss_is_refused():
    model, _ = fresh("bert")
    message = (
        "`loss` must not be passed: a SpanModel has its own loss. Received: loss='mse'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.compile("adam", loss="mse")
