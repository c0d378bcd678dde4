import math

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from small_models import TOKENIZERS, make_model

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.downstream.classifiers import (
    CLASSIFIERS,
    ElectraTextClassifier,
    text_classifier,
    text_preprocessor,
)
from keras_minilmv2.downstream.fine_tuning import (
    LENGTH_STEP,
    EncodedTexts,
    decide,
    encode,
    plan_batches,
    predict,
    task_loss,
    train,
    training_epochs,
)
from keras_minilmv2.downstream.tasks import TASKS

LONG = "the lazy dog runs over the lazy dog a quick brown fox jumps over the lazy dog"
FIRST = ["a quick fox", "", LONG, "the dog"]
SECOND = ["dog", "the", LONG, LONG]


def encoded(family, texts=(FIRST, SECOND), length=16):
    backbone, tokenizer = make_model(family)
    preprocessor = text_preprocessor(backbone, tokenizer, length)
    return encode(texts, preprocessor, uses_segment_ids(backbone)), preprocessor


def whole(texts):
    return texts.batch(np.arange(len(texts)), texts.sequence_length)


def of_lengths(lengths, sequence_length=64):
    """Texts whose tokens all say their own number."""
    numbers = np.repeat(np.arange(len(lengths)), lengths).astype("int32")
    return EncodedTexts(numbers, None, lengths, sequence_length, pad_id=-1)


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("columns", [(FIRST,), (FIRST, SECOND)], ids=["text", "pair"])
def test_texts_are_packed_as_keras_hub_packs_them(family, columns):
    texts, preprocessor = encoded(family, columns)
    # By name: a tuple of two alone would be taken for texts and labels.
    theirs = preprocessor(x=columns if len(columns) > 1 else columns[0])
    ours = whole(texts)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, np.asarray(theirs[name]))
        assert value.dtype == "int32"
    assert texts.lengths.max() == 16  # truncated


def test_bert_gets_segment_ids_and_one_separator():
    ours = whole(encoded("bert", (["a fox"], ["the lazy dog"]))[0])
    ids = make_model("bert")[1].token_to_id
    words = ["[CLS]", "a", "fox", "[SEP]", "the", "lazy", "dog", "[SEP]"]
    assert ours["token_ids"][0, :9].tolist() == [*map(ids, words), 0]
    assert ours["segment_ids"][0, :9].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    assert ours["padding_mask"][0, :9].tolist() == [1] * 8 + [0]


def test_roberta_gets_two_separators():
    texts, preprocessor = encoded("roberta", (["x"], ["y"]))
    ids = preprocessor.tokenizer.token_to_id
    words = ["<s>", "x", "</s>", "</s>", "y", "</s>", "<pad>"]
    assert whole(texts)["token_ids"][0, :7].tolist() == [*map(ids, words)]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_saved_classifier_is_keras_hubs(family, tmp_path):
    backbone, _ = make_model(family)
    classifier = text_classifier(backbone, 3, seed=0)
    assert type(classifier) is CLASSIFIERS[type(backbone)]
    texts, preprocessor = encoded(family)
    ours = predict(classifier, texts, batch_size=3)
    classifier.preprocessor = preprocessor
    classifier.save_to_preset(str(tmp_path))
    loaded = keras_hub.models.TextClassifier.from_preset(str(tmp_path))
    theirs = loaded(loaded.preprocessor(x=(FIRST, SECOND)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.shape == (4, 3)
    assert loaded.preprocessor.sequence_length == 16


def test_electra_has_its_own_head():
    backbone, _ = make_model("electra")
    classifier = ElectraTextClassifier(backbone, num_classes=2, dropout=0.3)
    copy = ElectraTextClassifier.from_config(classifier.get_config())
    assert (copy.num_classes, copy.dropout) == (2, 0.3)
    assert copy.preprocessor is None
    inputs = whole(encoded("electra")[0])
    first = np.asarray(backbone(inputs)["sequence_output"])[:, 0].astype("float64")
    hidden, bias = (np.asarray(w, "float64") for w in classifier.hidden_dense.weights)
    out, offset = (np.asarray(w, "float64") for w in classifier.output_dense.weights)
    before = first @ hidden + bias
    gelu = 0.5 * before * (1 + np.vectorize(math.erf)(before / math.sqrt(2)))
    expected = gelu @ out + offset
    np.testing.assert_allclose(classifier(inputs), expected, rtol=1e-4, atol=1e-6)


def test_a_classifier_is_around_a_copy_and_depends_on_the_seed():
    backbone, _ = make_model("bert")
    before = backbone.get_weights()
    models = [text_classifier(backbone, 2, seed) for seed in (1, 1, 2)]
    inputs = whole(encoded("bert")[0])
    # In training mode: dropout follows the seed too.
    a, b, c = (np.asarray(model(inputs, training=True)) for model in models)
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)
    models[0].backbone.token_embedding.weights[0].assign(0 * before[0])
    for x, y in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_classifier_may_have_another_precision():
    backbone, _ = make_model("bert")
    classifier = text_classifier(backbone, 2, seed=0, dtype="mixed_bfloat16")
    assert classifier.backbone.dtype_policy.name == "mixed_bfloat16"
    assert predict(classifier, encoded("bert")[0], 4).dtype == "float32"


def test_a_tokenizer_that_does_not_fit_is_refused():
    backbone, tokenizer = make_model("bert")
    with pytest.raises(TypeError, match="must be a BertTokenizer.*RobertaTokenizer"):
        text_preprocessor(backbone, make_model("roberta")[1], 16)
    with pytest.raises(ValueError, match="must not have more token ids"):
        text_preprocessor(make_model("bert", vocabulary_size=20)[0], tokenizer, 16)


@pytest.mark.parametrize("length", [7, 17])
def test_a_sequence_length_that_does_not_fit_is_refused(length):
    message = f"Received: sequence_length={length}, max_sequence_length=16"
    with pytest.raises(ValueError, match=message):
        text_preprocessor(*make_model("bert"), length)


def test_batches_hold_every_text_once_at_its_length():
    generator = np.random.default_rng(0)
    texts = of_lengths(generator.integers(1, 65, 101))
    lengths = texts.padded_lengths()
    batches = plan_batches(lengths, 8, np.random.default_rng(0))
    assert len(batches) == math.ceil(101 / 8)
    assert sorted(np.concatenate([i for i, _ in batches])) == list(range(101))
    assert sorted({len(indices) for indices, _ in batches}) == [101 % 8, 8]
    for indices, length in batches:
        batch = texts.batch(indices, length)
        assert length % LENGTH_STEP == 0
        np.testing.assert_array_equal(
            batch["padding_mask"].sum(axis=1), texts.lengths[indices]
        )
        own = np.where(batch["padding_mask"], indices[:, None], -1)
        np.testing.assert_array_equal(batch["token_ids"], own)
    # Most of a batch is text.
    padding = sum(length * len(i) for i, length in batches) / texts.lengths.sum()
    assert padding < 1.4


def test_no_batch_is_longer_than_the_position_table():
    assert of_lengths([3, 17, 20], 20).padded_lengths().tolist() == [16, 20, 20]


def test_epochs_depend_on_the_seed_and_differ():
    texts = of_lengths(np.full(40, 5))

    def drawn(seed):
        epochs = training_epochs(texts, np.arange(40), 8, 2, seed)
        return [np.concatenate([labels for _, labels in epoch]) for epoch in epochs]

    one, same, other = drawn(0), drawn(0), drawn(1)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], other[0])
    assert sorted(one[1]) == list(range(40))


def test_a_step_follows_the_gradient():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(6, 3)).astype("float32")
    targets = generator.normal(size=6).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    kernel, bias = model.get_weights()
    error = inputs @ kernel[:, 0] + bias[0] - targets
    seen = []
    losses = train(
        model,
        task_loss(TASKS["stsb"]),
        keras.optimizers.SGD(0.1),
        [[(inputs[:4], targets[:4])], [(inputs[4:], targets[4:])]],
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    assert losses[0] == pytest.approx(np.mean(error[:4] ** 2), rel=1e-5)
    kernel -= 0.1 * 2 * np.mean(error[:4, None] * inputs[:4], axis=0)[:, None]
    bias -= 0.1 * 2 * np.mean(error[:4])
    error = inputs[4:] @ kernel[:, 0] + bias[0] - targets[4:]
    assert losses[1] == pytest.approx(np.mean(error**2), rel=1e-5)
    assert seen == [(1, losses[0]), (2, losses[1])]


def test_an_epochs_loss_is_the_mean_over_its_examples():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.set_weights([np.zeros((1, 1)), np.zeros(1)])
    ones = np.ones((3, 1), "float32")
    targets = np.float32([1, 1, 4])
    batches = [(ones[:2], targets[:2]), (ones[2:], targets[2:])]
    loss = task_loss(TASKS["stsb"])
    (mean,) = train(model, loss, keras.optimizers.SGD(1e-9), [batches])
    assert mean == pytest.approx((1 + 1 + 16) / 3, rel=1e-4)


def test_adam_moves_rows_of_an_embedding_that_a_batch_does_not_have():
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="int32"),
            keras.layers.Embedding(4, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.Adam(0.1)
    rows = []
    for token in (1, 2):
        batch = np.full((2, 1), token, "int32"), np.ones(2, "float32")
        train(model, task_loss(TASKS["stsb"]), optimizer, [[batch]])
        rows.append(np.array(model.layers[0].embeddings))
    moved = np.abs(rows[1] - rows[0]).max(axis=1) > 1e-3
    assert moved.tolist() == [False, True, True, False]


def test_a_loss_that_is_not_finite_ends_training():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    good = np.ones((1, 1), "float32"), np.ones(1, "float32")
    bad = good[0], np.float32([np.inf])
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        train(
            model,
            task_loss(TASKS["stsb"]),
            keras.optimizers.SGD(0.1),
            [[good, bad]],
        )


def test_one_graph_serves_batches_of_every_size():
    traced = []

    class Counts(keras.layers.Layer):
        def call(self, inputs):
            traced.append(inputs.shape)
            return tf.cast(inputs[:, :1], "float32")

    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    model = keras.Model(inputs, Counts()(inputs["token_ids"]))
    traced.clear()
    texts = of_lengths([3, 20, 40, 1, 64])
    outputs = predict(model, texts, batch_size=2)
    assert outputs[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(traced) == 1


def test_predictions_do_not_depend_on_the_batch():
    classifier = text_classifier(make_model("bert")[0], 3, seed=0)
    texts, _ = encoded("bert")
    together = predict(classifier, texts, batch_size=4)
    for i, row in enumerate(together):
        alone = texts.batch(np.array([i]), texts.lengths[i])
        np.testing.assert_allclose(row, np.asarray(classifier(alone))[0], atol=1e-5)


def test_outputs_become_classes_or_scores():
    outputs = np.array([[0.1, 0.7, 0.2], [3.0, 1.0, 2.0]])
    assert decide(TASKS["mnli"], outputs).tolist() == [1, 0]
    assert decide(TASKS["stsb"], outputs[:, :1]).tolist() == [0.1, 3.0]


def test_the_loss_of_classes_is_their_cross_entropy():
    logits = np.float32([[1.0, 2.0], [0.5, -0.5]])
    loss = task_loss(TASKS["sst2"])(np.array([1, 1]), logits)
    expected = -np.mean(
        [
            np.log(np.exp(2) / (np.exp(1) + np.exp(2))),
            np.log(np.exp(-0.5) / (np.exp(0.5) + np.exp(-0.5))),
        ]
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)
