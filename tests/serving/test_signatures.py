import keras
import numpy as np
import pytest
import tensorflow as tf
from small_exports import (
    KINDS,
    LENGTH,
    make_tokenizer,
    small_backbone,
    small_classifier,
)

from keras_minilmv2.downstream.reader import SpanExample
from keras_minilmv2.downstream.span_model import SpanModel
from keras_minilmv2.downstream.windows import span_features
from keras_minilmv2.serving.signatures import (
    DESCRIPTIONS,
    make_signatures,
    model_kind,
)
from keras_minilmv2.serving.text_inputs import TextInputs

TEXTS = ["the quick brown fox", "", "dog " * 30]


def call(part, inputs):
    return part(inputs, training=False)


def answers(model, signature, *texts, labels=None, normalize=False):
    """What a signature gives, and what it was computed from."""
    pack = TextInputs(make_tokenizer("Bert"), (LENGTH,), len(texts), True)
    names = ("text",) if len(texts) == 1 else ("text_a", "text_b")
    made = make_signatures(model, pack, names, call, labels, normalize)
    function, specs = made[signature]
    assert [spec.name for spec in specs] == list(names)
    outputs = function(*map(tf.constant, texts))
    assert outputs.keys() <= DESCRIPTIONS.keys()
    inputs = pack(*map(tf.constant, texts))
    return {name: tensor.numpy() for name, tensor in outputs.items()}, inputs


def test_probabilities_are_the_softmax_of_logits():
    classifier = small_classifier(3)
    names = ["yes", "no", "peut-être"]
    outputs, inputs = answers(classifier, "serving_default", TEXTS, labels=names)
    logits = call(classifier, inputs).numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)
    best = [names[place].encode() for place in expected.argmax(axis=1)]
    assert outputs["label"].tolist() == best
    assert outputs["labels"].tolist() == [[name.encode() for name in names]] * 3


def test_probabilities_of_a_classifier_with_an_activation_are_its_outputs():
    classifier = small_classifier(2, activation="sigmoid")
    outputs, inputs = answers(classifier, "serving_default", TEXTS, labels=["a", "b"])
    expected = call(classifier, inputs).numpy()
    np.testing.assert_array_equal(outputs["probabilities"], expected)


def test_one_class_is_a_score():
    regressor = small_classifier(1)
    assert model_kind(regressor)[0] == "regressor"
    outputs, inputs = answers(regressor, "serving_default", TEXTS)
    assert outputs.keys() == {"score"}
    np.testing.assert_array_equal(
        outputs["score"], call(regressor, inputs).numpy()[:, 0]
    )


@pytest.mark.parametrize("mask_question", [False, True])
@pytest.mark.parametrize("kind", ["word_piece", "byte_pair"])
def test_answer_spans_are_those_of_the_windows_of_fine_tuning(kind, mask_question):
    name, family = KINDS[kind]
    tokenizer = make_tokenizer(family)
    backbone = small_backbone(name, max_sequence_length=40)
    model = SpanModel(backbone, mask_question=mask_question)
    example = SpanExample("1", "quick fox", "a lazy dog runs")
    features = span_features(
        tokenizer, [example], sequence_length=40, max_question_length=20
    )
    inputs = features.inputs(np.array([0]))
    length = int(features.num_tokens[0])
    assert length < 40
    pack = TextInputs(tokenizer, (40,), 2, "segment_ids" in backbone.input, True)
    texts = tf.constant([example.question]), tf.constant([example.context])
    for name, array in pack(*texts).items():
        np.testing.assert_array_equal(array, inputs[name], err_msg=name)
    made = make_signatures(model, pack, ("text_a", "text_b"), call, None, False)
    function, specs = made["token_ids"]
    assert ("answer_mask" in [spec.name for spec in specs]) is mask_question
    expected = model({k: tf.constant(v) for k, v in inputs.items()})
    of_texts = made["serving_default"][0](*texts)
    np.testing.assert_array_equal(of_texts.pop("token_ids"), inputs["token_ids"])
    for outputs in (
        of_texts,
        function(*[tf.constant(inputs[spec.name]) for spec in specs]),
    ):
        assert outputs.keys() == {"start_logits", "end_logits"}
        for name, values in expected.items():
            np.testing.assert_allclose(outputs[name], values, atol=1e-6)
            assert (outputs[name][0, length:] == np.float32(-1e9)).numpy().all()


def test_embeddings_have_length_1_when_asked():
    model = small_backbone("bert")
    plain, _ = answers(model, "embeddings", TEXTS)
    normalized, _ = answers(model, "embeddings", TEXTS, normalize=True)
    assert plain.keys() == normalized.keys() == {"mean", "cls"}
    for name, vectors in plain.items():
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        assert not np.allclose(lengths, 1)
        np.testing.assert_allclose(normalized[name], vectors / lengths, atol=1e-6)


def test_hidden_states_in_half_precision_leave_as_float32():
    model = small_backbone("bert", dtype="mixed_bfloat16")
    outputs, _ = answers(model, "serving_default", TEXTS)
    assert outputs["sequence_output"].dtype == np.float32
    assert outputs["pooled_output"].dtype == np.float32


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="`model` must be") as caught:
        model_kind(keras.Sequential())
    assert str(caught.value) == (
        "`model` must be a keras-nlp backbone, a text classifier or a model of answer "
        "spans. Received: model of type Sequential."
    )


def test_a_model_around_an_encoder_of_another_family_is_refused():
    model = keras.Sequential()
    model.backbone = keras.Sequential()
    with pytest.raises(TypeError, match="`backbone` must be one of"):
        model_kind(model)
