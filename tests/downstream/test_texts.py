"""Packed texts, and the classifiers that read them."""

import math

import keras_hub
import numpy as np
import pytest
from families import others_slow
from small_models import TOKENIZERS, make_model

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.downstream.batches import predict
from keras_minilmv2.downstream.classifiers import (
    CLASSIFIERS,
    ElectraTextClassifier,
    text_classifier,
    text_preprocessor,
)
from keras_minilmv2.downstream.texts import encode

LONG = "the lazy dog runs over the lazy dog a quick brown fox jumps over the lazy dog"
FIRST = ["a quick fox", "", LONG, "the dog"]
SECOND = ["dog", "the", LONG, LONG]


def encoded(family, texts=(FIRST, SECOND), length=16):
    backbone, tokenizer = make_model(family)
    preprocessor = text_preprocessor(backbone, tokenizer, length)
    return encode(texts, preprocessor, uses_segment_ids(backbone)), preprocessor


def whole(texts):
    return texts.inputs(np.arange(len(texts)), texts.sequence_length)


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


@pytest.mark.parametrize("family", others_slow(TOKENIZERS))
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


def test_predictions_do_not_depend_on_the_batch():
    classifier = text_classifier(make_model("bert")[0], 3, seed=0)
    texts, _ = encoded("bert")
    together = predict(classifier, texts, batch_size=4)
    for i, row in enumerate(together):
        alone = texts.inputs(np.array([i]), texts.lengths[i])
        np.testing.assert_allclose(row, np.asarray(classifier(alone))[0], atol=1e-5)
