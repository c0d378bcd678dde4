"""Which tokens are masked, what the loss is, and what is trained."""

import json
import shutil
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import small_tokenizers
import tensorflow as tf
from safetensors.numpy import load_file, save_file
from small_trainers import (
    NUM_SPECIAL,
    VOCABULARY,
    make_batch,
    make_student,
    make_teacher,
    make_tokenizer,
)

import keras_minilmv2 as km
from keras_minilmv2.backbones.families import zero_segment_ids
from keras_minilmv2.backbones.variants import Variant, set_variant, variant_of
from keras_minilmv2.distillation.masked_tokens import (
    MaskedTokenTrainer,
    begins_word,
    has_masked_token_head,
    load_masked_token_trainer,
    special_token_ids,
)

REFERENCE = Path(__file__).parents[1] / "reference"
HEADS = json.loads((REFERENCE / "masked_lm.json").read_text())


def make_trainer(dropout=0.0, **kwargs):
    student = make_student(make_teacher(), dropout=dropout)
    return MaskedTokenTrainer(student, make_tokenizer(), **kwargs)


def chosen(targets):
    """Positions that count, as a bool array `(batch, length)`."""
    weights = np.asarray(targets["weights"]) > 0
    batch, length = targets["token_ids"].shape
    where = np.zeros((batch, length), "bool")
    for row, (positions, counts) in enumerate(
        zip(np.asarray(targets["positions"]), weights, strict=True)
    ):
        where[row, positions[counts]] = True
        assert counts.sum() == where[row].sum()
    return where


@pytest.mark.parametrize("whole_words", [False, True])
def test_the_right_share_of_the_right_tokens_is_chosen(whole_words):
    trainer = make_trainer(whole_words=whole_words)
    batch = make_batch(size=40)
    inputs = {k: tf.constant(v) for k, v in batch.items()}
    targets = trainer._targets(inputs, training=True)
    where = chosen(targets)
    ids = batch["token_ids"]
    can_be_chosen = (ids >= NUM_SPECIAL) & (batch["padding_mask"] == 1)
    assert not where[~can_be_chosen].any()
    available = can_be_chosen.sum(axis=1)
    expected = np.maximum(1, np.round(0.15 * available))
    np.testing.assert_array_equal(where.sum(axis=1), expected)
    # What is not chosen is as it was; labels are what was there.
    new = np.asarray(targets["token_ids"])
    np.testing.assert_array_equal(new[~where], ids[~where])
    labels = np.take_along_axis(ids, np.asarray(targets["positions"]), axis=1)
    np.testing.assert_array_equal(targets["labels"], labels)
    again = trainer._targets(inputs, training=True)
    assert (chosen(again) != where).any()


def test_chosen_tokens_become_the_mask_any_token_or_stay():
    trainer = make_trainer()
    batch = make_batch(size=2_000)
    inputs = {k: tf.constant(v) for k, v in batch.items()}
    targets = trainer._targets(inputs, training=True)
    where = chosen(targets)
    new, old = np.asarray(targets["token_ids"])[where], batch["token_ids"][where]
    assert np.mean(new == VOCABULARY.index("[MASK]")) == pytest.approx(0.8, abs=0.03)
    # A tenth stays, and of those drawn anew one in 40 is what it was.
    assert np.mean(new == old) == pytest.approx(0.1025, abs=0.02)
    assert set(new) > set(range(NUM_SPECIAL, len(VOCABULARY)))


def test_all_tokens_of_a_word_are_chosen_together():
    trainer = make_trainer(whole_words=True)
    ids = np.full((64, 20), VOCABULARY.index("##p0"))
    # Words of three word pieces.
    ids[:, 1::3] = VOCABULARY.index("w1")
    ids[:, 0], ids[:, 19] = 2, 3
    inputs = {"token_ids": tf.constant(ids, "int32")}
    inputs["padding_mask"] = tf.ones_like(inputs["token_ids"])
    where = chosen(trainer._targets(inputs, training=True))
    # 15% of 18 are 3, one word.
    words = where[:, 1:19].reshape(64, 6, 3)
    assert (words.all(axis=2) == words.any(axis=2)).all()
    assert (words.any(axis=2).sum(axis=1) == 1).all()


def test_evaluate_masks_the_same_tokens_each_time():
    trainer = make_trainer(dropout=0.3)
    trainer.compile("sgd")
    dataset = tf.data.Dataset.from_tensors(make_batch())
    first = trainer.evaluate(dataset, return_dict=True, verbose=0)
    second = trainer.evaluate(dataset, return_dict=True, verbose=0)
    assert first == second
    assert set(first) == {"loss", "accuracy"}


def test_the_loss_is_the_log_probability_of_what_was_there():
    trainer = make_trainer()
    trainer.compile("sgd")
    batch = make_batch()
    inputs = {k: tf.constant(v) for k, v in batch.items()}
    targets = trainer._targets(inputs, training=False)
    hidden = trainer.student({**inputs, "token_ids": targets["token_ids"]})
    head, table = trainer.head, np.asarray(trainer.student.token_embedding.embeddings)
    dense, norm = head._intermediate_dense, head._intermediate_layer_norm
    losses = []
    for row in range(len(batch["token_ids"])):
        ours = []
        for position, weight in zip(
            np.asarray(targets["positions"][row]), targets["weights"][row], strict=True
        ):
            if weight == 0:
                continue
            x = hidden["sequence_output"][row, position][None]
            logits = np.asarray(norm(dense(x)), "float64") @ table.T.astype("float64")
            logits = logits[0] + np.asarray(head._bias)
            right = logits[batch["token_ids"][row, position]]
            ours.append(np.log(np.sum(np.exp(logits))) - right)
        losses.append(np.mean(ours))
    dataset = tf.data.Dataset.from_tensors(batch)
    value = trainer.evaluate(dataset, return_dict=True, verbose=0)["loss"]
    assert value == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "whole_words", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_training_learns_what_always_follows(whole_words):
    trainer = make_trainer(whole_words=whole_words)
    batch = make_batch(size=16)
    # Every text is the same word again and again, so that it can be told.
    batch["token_ids"] = np.where(
        batch["token_ids"] >= NUM_SPECIAL,
        NUM_SPECIAL + np.arange(16)[:, None] % 8,
        batch["token_ids"],
    ).astype("int32")
    dataset = tf.data.Dataset.from_tensors(batch)
    trainer.compile(km.adamw(0.02, 5, 80))
    pooler = [np.asarray(w) for w in trainer.student.pooled_dense.weights]
    before = trainer.evaluate(dataset, return_dict=True, verbose=0)
    trainer.fit(dataset.repeat(80), verbose=0, shuffle=False)
    after = trainer.evaluate(dataset, return_dict=True, verbose=0)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.8
    for weight, value in zip(trainer.student.pooled_dense.weights, pooler, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_variable_that_head_and_student_share_is_trained_once():
    trainer = make_trainer()
    ids = [id(variable) for variable in trainer.distilled_variables]
    assert len(ids) == len(set(ids))
    assert id(trainer.student.token_embedding.embeddings) in ids


def test_words_begin_where_the_tokenizer_marks_them():
    begins = begins_word(make_tokenizer())
    assert begins[VOCABULARY.index("w3")]
    assert not begins[VOCABULARY.index("##p3")]


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("Bert", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        ("Roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        ("XLMRoberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        ("Albert", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
    ],
)
def test_special_tokens_are_never_masked(name, special):
    tokenizer = small_tokenizers.make_tokenizer(name)
    ids = special_token_ids(tokenizer)
    vocabulary = tokenizer.get_vocabulary()
    special = [piece for piece in special if piece in vocabulary]
    assert sorted(map(tokenizer.id_to_token, ids)) == sorted(special)
    assert len(ids) >= 4


def test_a_tokenizer_without_a_mask_token_is_refused():
    class Tokenizer:
        mask_token_id = None

    student = make_student(make_teacher())
    with pytest.raises(ValueError, match="must have a `mask_token_id`"):
        MaskedTokenTrainer(student, Tokenizer())


@pytest.mark.slow
def test_mixed_precision_trains():
    policy = keras.DTypePolicy("mixed_bfloat16")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=24,
        dtype=policy,
    )
    trainer = MaskedTokenTrainer(backbone, make_tokenizer())
    trainer.compile(km.adamw(0.01, 2, 5))
    dataset = tf.data.Dataset.from_tensors(make_batch()).repeat(5)
    history = trainer.fit(dataset, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"][0])


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_student_and_head_are_saved_and_loaded(dtype, tmp_path):
    """With the GELU of the student, which is not its class's own."""
    teacher = make_teacher()
    set_variant(teacher, Variant("gelu", 1e-6))
    student = make_student(teacher, dropout=0.0, dtype=dtype)
    trainer = MaskedTokenTrainer(student, make_tokenizer())
    trainer.compile(km.adamw(0.01, 1, 5))
    batch = make_batch(size=8)
    for _ in range(3):
        trainer.train_on_batch(batch)
    data = tf.data.Dataset.from_tensors(batch)
    loss = trainer.evaluate(data, verbose=0)[0]
    km.save_student(trainer.model_to_save, make_tokenizer(), tmp_path)

    loaded = load_masked_token_trainer(tmp_path, dtype=dtype)
    loaded.compile(km.adamw(0.01, 1, 5))
    assert loaded.evaluate(data, verbose=0)[0] == loss
    # keras-hub reads the same model; the rest of the package an encoder.
    model = keras_hub.models.MaskedLM.from_preset(str(tmp_path))
    assert variant_of(model.backbone) == Variant("gelu", 1e-6)
    for ours, theirs in zip(
        (*student.weights, *trainer.head.weights),
        (*model.backbone.weights, *model.masked_lm_head.weights),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert isinstance(km.load_saved(tmp_path).model, keras_hub.models.BertBackbone)

    (tmp_path / "task.weights.h5").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="hold a task.weights.h5 that can be read"):
        load_masked_token_trainer(tmp_path)
    km.save_student(student, make_tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="have a head for masked tokens"):
        load_masked_token_trainer(tmp_path)


@pytest.mark.parametrize("directory", sorted(HEADS))
def test_heads_of_transformers_are_loaded(directory, tmp_path):
    """Logits as PyTorch computes them; see tests/reference/make_masked_lm.py."""
    expected = HEADS[directory]
    path = copy_with_head(directory, tmp_path / "model")
    trainer = load_masked_token_trainer(path)
    ids = np.array([expected["token_ids"]], "int32")
    inputs = zero_segment_ids(
        trainer.student, {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    )
    (states,) = trainer.student_part(inputs).values()
    logits = trainer.head(states, np.array([[1, ids.shape[1] - 1]]))
    # The head of keras-hub has another epsilon.
    np.testing.assert_allclose(logits[0], expected["logits"], rtol=2e-4, atol=2e-4)
    assert has_masked_token_head(path)
    assert not has_masked_token_head(REFERENCE / directory)
    with pytest.raises(ValueError, match="have a head for masked tokens"):
        load_masked_token_trainer(REFERENCE / directory)


def test_a_head_of_transformers_that_does_not_fit_is_named(tmp_path):
    path = copy_with_head("roberta_teacher", tmp_path / "model", {"lm_head.bias": [0]})
    with pytest.raises(ValueError, match="a weight lm_head.bias that fits"):
        load_masked_token_trainer(path)


def copy_with_head(directory, path, changes=None):
    """A model of transformers with the head that the reference was made with."""
    expected = HEADS[directory]
    shutil.copytree(REFERENCE / directory, path)
    dense, norm, bias = expected["names"]
    inner, rows = expected["inner"], expected["vocabulary_size"]
    generator = np.random.default_rng(0)
    shapes = {
        f"{dense}.weight": (inner, expected["width"]),
        f"{dense}.bias": inner,
        f"{norm}.weight": inner,
        f"{norm}.bias": inner,
        bias: rows,
    }
    weights = load_file(path / "model.safetensors")
    weights |= {
        name: generator.normal(size=shape).astype("float32")
        for name, shape in shapes.items()
    }
    for name, value in (changes or {}).items():
        weights[name] = np.array(value, "float32")
    save_file(weights, path / "model.safetensors")
    return path
