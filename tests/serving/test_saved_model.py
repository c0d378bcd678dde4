import hashlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 (registers its ops)
from small_exports import (
    KINDS,
    LENGTH,
    make_tokenizer,
    manifest_of,
    small_backbone,
    small_classifier,
    small_export,
)

from keras_minilmv2.data.packing import tokenize_function
from keras_minilmv2.downstream.span_model import SpanModel
from keras_minilmv2.serving.saved_model import export_saved_model

TEXTS = ["the quick brown fox", "", "dog " * 30]


def served(version, signature="serving_default", **inputs):
    loaded = tf.saved_model.load(str(version))
    tensors = {name: tf.constant(values) for name, values in inputs.items()}
    outputs = loaded.signatures[signature](**tensors)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def training_inputs(backbone, tokenizer):
    """The texts, tokenized as for training and packed by loops."""
    tokenize = tokenize_function(tokenizer)
    token_ids = np.full((len(TEXTS), LENGTH), tokenizer.pad_token_id)
    mask = np.zeros_like(token_ids)
    for row, text in enumerate(TEXTS):
        tokens = tokenize([text], [False]).tolist() if text else []
        tokens = tokens[: LENGTH - 2]
        tokens = [tokenizer.start_token_id, *tokens, tokenizer.end_token_id]
        token_ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    inputs = {"token_ids": token_ids, "padding_mask": mask}
    inputs["segment_ids"] = np.zeros_like(mask)
    return {name: inputs[name].astype("int32") for name in backbone.input}


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_gives_what_keras_gives(kind, export_of):
    name, family = KINDS[kind]
    backbone = small_backbone(name)
    options = {"lowercase": True} if family == "Bert" else {}
    inputs = training_inputs(backbone, make_tokenizer(family, **options))
    expected = backbone(inputs, training=False)
    hidden = expected["sequence_output"] if isinstance(expected, dict) else expected
    mask = inputs["padding_mask"][:, :, np.newaxis]
    hidden = hidden.numpy() * mask
    loaded = tf.saved_model.load(str(export_of(kind)))
    texts = tf.constant(TEXTS)
    of_texts = loaded.signatures["serving_default"](text=texts)
    np.testing.assert_array_equal(of_texts.pop("padding_mask"), mask[:, :, 0])
    for outputs in (of_texts, loaded.signatures["token_ids"](**inputs)):
        np.testing.assert_allclose(outputs["sequence_output"], hidden, atol=1e-5)
        if isinstance(expected, dict):
            pooled = expected["pooled_output"].numpy()
            np.testing.assert_allclose(outputs["pooled_output"], pooled, atol=1e-5)
        assert len(outputs) == 1 + isinstance(expected, dict)
    outputs = loaded.signatures["embeddings"](text=texts)
    mean = hidden.sum(axis=1) / mask.sum(axis=1)
    np.testing.assert_allclose(outputs["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(outputs["cls"], hidden[:, 0], atol=1e-5)
    assert len(outputs) == 2


@pytest.mark.slow
def test_pairs_and_several_lengths(tmp_path):
    version = small_export(
        tmp_path, "byte_pair", pairs=True, sequence_length=(8, LENGTH)
    )
    manifest = manifest_of(version)
    assert manifest["sequence_lengths"] == [8, LENGTH]
    assert manifest["pairs"] is True
    inputs = manifest["signatures"]["serving_default"]["inputs"]
    assert list(inputs) == ["text_a", "text_b"]
    short = served(version, text_a=["fox"], text_b=["a"])
    long = served(version, text_a=["fox", "a"], text_b=["a", "quick " * 9])
    assert short["sequence_output"].shape[:2] == (1, 8)
    assert long["sequence_output"].shape[:2] == (2, LENGTH)
    np.testing.assert_allclose(
        long["sequence_output"][0, :8], short["sequence_output"][0], atol=1e-5
    )
    swapped = served(version, text_a=["a"], text_b=["fox"])
    assert not np.allclose(swapped["sequence_output"], short["sequence_output"])


def test_a_classifier_gives_probabilities_and_names(tmp_path):
    classifier = small_classifier(3)
    tokenizer = make_tokenizer("Bert")
    names = ["yes", "no", "peut-être"]
    version = export_saved_model(classifier, tokenizer, tmp_path, LENGTH, labels=names)
    outputs = served(version, text=TEXTS)
    inputs = training_inputs(classifier.backbone, tokenizer)
    logits = classifier(inputs, training=False).numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    assert [x.decode() for x in outputs["labels"][1]] == names
    assert outputs["labels"].shape == (3, 3)
    best = [names[place] for place in expected.argmax(axis=1)]
    assert [x.decode() for x in outputs["label"]] == best
    assert outputs.keys() == {"probabilities", "labels", "label"}
    manifest = manifest_of(version)
    assert manifest["labels"] == names
    assert manifest["model"]["kind"] == "classifier"


@pytest.mark.slow
def test_a_model_of_answer_spans(tmp_path):
    model = SpanModel(small_backbone("bert"), mask_question=True)
    version = export_saved_model(
        model, make_tokenizer("Bert"), tmp_path, LENGTH, pairs=True, weights="int8"
    )
    manifest = manifest_of(version)
    assert manifest["model"]["kind"] == "span"
    assert manifest["signatures"]["token_ids"]["inputs"].keys() == {
        "token_ids",
        "padding_mask",
        "segment_ids",
        "answer_mask",
    }
    outputs = served(version, text_a=["quick"], text_b=["a fox"])
    assert outputs.keys() == {"start_logits", "end_logits", "token_ids"}
    # [CLS] quick [SEP] a fox [SEP]
    may_begin = outputs["start_logits"][0] > -1e9
    assert may_begin[:6].tolist() == [True, False, False, True, True, False]
    assert not may_begin[6:].any()


def test_a_model_of_answer_spans_without_pairs_is_refused():
    refused(
        "`pairs` must be set for a model of answer spans: question and text. "
        "Received: pairs=False.",
        model=SpanModel(small_backbone("bert")),
        sequence_length=8,
    )


def test_the_manifest_tells_what_the_export_is(export_of):
    version = export_of("word_piece")
    manifest = manifest_of(version)
    assert manifest["model"] == {
        "kind": "encoder",
        "family": "BERT",
        "class": "BertBackbone",
        "num_layers": 1,
        "num_heads": 4,
        "hidden_dim": 24,
        "intermediate_dim": 32,
        "vocabulary_size": 400,
        "max_sequence_length": 16,
        "num_parameters": small_backbone("bert").count_params(),
    }
    assert manifest["tokenizer"]["class"] == "BertTokenizer"
    assert manifest["tolerance"] == 1e-5
    assert manifest["weights"] == {"stored_as": "float32", "largest_difference": {}}
    assert manifest["versions"]["tensorflow"] == tf.__version__
    found = {
        str(file.relative_to(version)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in version.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    assert manifest["files"] == found
    assert "saved_model.pb" in found


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_lists_the_signatures(kind, export_of):
    version = export_of(kind)
    signatures = manifest_of(version)["signatures"]
    assert signatures.keys() == {"serving_default", "token_ids", "embeddings"}
    loaded = tf.saved_model.load(str(version))
    for name, signature in signatures.items():
        function = loaded.signatures[name]
        _, inputs = function.structured_input_signature
        assert inputs.keys() == signature["inputs"].keys()
        assert function.structured_outputs.keys() == signature["outputs"].keys()
        for tensor in [*signature["inputs"].values(), *signature["outputs"].values()]:
            assert tensor["shape"][0] is None
            assert tensor["description"]
        for key in [*signature["inputs"], *signature["outputs"]]:
            # To REST a tensor of such a name is base64.
            assert not key.endswith("_bytes")


@pytest.mark.parametrize(
    ("kind", "ops"),
    [
        (
            "word_piece",
            [
                "FastWordpieceTokenizeWithOffsets",
                "RegexSplitWithOffsets",
            ],
        ),
        ("byte_pair", ["RegexSplitWithOffsets"]),
        ("sentence_piece", ["SentencepieceOp", "SentencepieceTokenizeOp"]),
    ],
)
def test_the_manifest_lists_the_ops_of_tf_text(kind, ops, export_of):
    expected = [{"op": op, "tensorflow_serving": "2.12.2"} for op in ops]
    assert manifest_of(export_of(kind))["custom_ops"] == expected


def test_weights_are_in_the_files_once(export_of):
    version = export_of("word_piece")
    size = 4 * manifest_of(version)["model"]["num_parameters"]
    data = version / "variables" / "variables.data-00000-of-00001"
    assert size <= data.stat().st_size < 1.3 * size


@pytest.mark.parametrize(
    ("weights", "bits"),
    [pytest.param("float16", 16, marks=pytest.mark.slow), ("int8", 8)],
)
def test_weights_stored_smaller_differ_by_what_the_manifest_says(
    weights, bits, tmp_path, export_of
):
    version = small_export(tmp_path, "sentence_piece", weights=weights)
    manifest = manifest_of(version)
    assert manifest["weights"]["stored_as"] == weights
    data = "variables/variables.data-00000-of-00001"
    sizes = [(v / data).stat().st_size for v in (version, export_of("sentence_piece"))]
    # Vectors and the names of variables are not smaller.
    assert sizes[0] < 1.5 * sizes[1] * bits / 32
    texts = json.loads((version / "samples.json").read_text())[0]["inputs"]["text"]
    expected = served(export_of("sentence_piece"), text=texts)["sequence_output"]
    found = served(version, text=texts)["sequence_output"]
    difference = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert difference.max() > 1e-4
    told = manifest["weights"]["largest_difference"]
    assert told.keys() == {
        "serving_default/sequence_output",
        "token_ids/sequence_output",
        "embeddings/mean",
        "embeddings/cls",
    }
    assert told["serving_default/sequence_output"] >= difference.max() - 1e-5
    assert manifest["tolerance"] == pytest.approx(1e-5 + 1.01 * max(told.values()))


@pytest.mark.slow
def test_versions_of_smaller_weights_do_not_share_variables(tmp_path):
    """Two in one process, as when a server loads a new version."""
    tokenizer = make_tokenizer("Bert")
    backbones = [small_backbone("bert", seed=seed) for seed in (0, 1)]
    before = backbones[0].get_weights()
    (tmp_path / "7").mkdir()
    versions = [
        export_saved_model(backbone, tokenizer, tmp_path, 8, weights="int8")
        for backbone in backbones
    ]
    assert versions == [tmp_path / "8", tmp_path / "9"]
    names = {path.name for path in tmp_path.iterdir()}
    beside = {"README.md", "models.config", "batching_parameters.txt"}
    assert names == {"7", "8", "9"} | beside
    loaded = [tf.saved_model.load(str(version)) for version in versions]
    answers = [
        export.signatures["embeddings"](text=tf.constant(["fox"]))["mean"].numpy()
        for export in loaded
    ]
    assert not np.allclose(*answers, atol=1e-2)
    for old, new in zip(before, backbones[0].get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("keras_minilmv2.serving.saved_model.write_manifest", fail)
    with pytest.raises(OSError, match="no space left"):
        small_export(tmp_path, "word_piece")
    assert list(tmp_path.iterdir()) == []


def refused(message, model=None, **options):
    model = model or small_backbone("bert")
    with pytest.raises(ValueError, match="`") as caught:
        export_saved_model(model, make_tokenizer("Bert"), "never_written", **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("length", [(), (8, 8), (16, 8), 8.0, "8", (8, None)])
def test_lengths_that_do_not_increase_are_refused(length):
    refused(
        "`sequence_length` must be an int or increasing ints. "
        f"Received: sequence_length={length}.",
        sequence_length=length,
    )


def test_a_length_beyond_the_positions_is_refused():
    refused(
        "`sequence_length` must not be above the positions of the model. "
        "Received: sequence_length=17, max_sequence_length=16.",
        sequence_length=(8, 17),
    )


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"], ["a", "a"]])
def test_labels_that_do_not_fit_are_refused(labels):
    refused(
        "`labels` must name each class of the model, no two alike. "
        f"Received: labels={labels}, num_classes=2.",
        model=small_classifier(2),
        sequence_length=8,
        labels=labels,
    )


def test_labels_of_a_model_without_classes_are_refused():
    refused(
        "`labels` must not be given for a model that is no classifier. "
        "Received: labels=['a'], model of kind encoder.",
        sequence_length=8,
        labels=["a"],
    )


def test_weights_of_another_name_are_refused():
    refused(
        "`weights` must be one of float32, float16, int8. "
        "Received: weights='bfloat16'.",
        sequence_length=8,
        weights="bfloat16",
    )


@pytest.mark.parametrize("texts", [[], "a text"])
def test_sample_texts_that_are_none_are_refused(texts):
    refused(
        "`sample_texts` must be a sequence of texts, one at least. "
        f"Received: sample_texts={texts!r}.",
        sequence_length=8,
        sample_texts=texts,
    )


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused():
    refused(
        "`tokenizer` must not have more token ids than the backbone has embeddings. "
        "Received: tokenizer with 150 ids, backbone with 50 embeddings.",
        model=small_backbone("bert", vocabulary_size=50),
        sequence_length=8,
    )


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    refused(
        "`model` must be a model on TensorFlow. Received: a model of Keras on jax.",
    )
