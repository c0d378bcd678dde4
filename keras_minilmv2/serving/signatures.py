"""What an export computes: one function for each signature."""

import keras
import keras_hub
import tensorflow as tf

from keras_minilmv2.backbones.families import family_of, uses_segment_ids

ENCODER, CLASSIFIER, REGRESSOR, SPAN = "encoder", "classifier", "regressor", "span"

DESCRIPTIONS = {
    "text": "the text, UTF-8",
    "text_a": "the first text, UTF-8",
    "text_b": "the second text, UTF-8",
    "token_ids": "token ids, special tokens and padding included",
    "padding_mask": "1 for a real token, 0 for padding",
    "segment_ids": "0 for tokens of the first text, 1 for those of the second",
    "sequence_output": "the hidden state of each token, 0 at padding",
    "pooled_output": "the pooled first token",
    "probabilities": "probability of each label, in the order of `labels`",
    "labels": "the names of the labels, the same in every row",
    "label": "the name of the most probable label",
    "score": "the predicted number",
    "answer_mask": "1 for the first token and those of the second text",
    "start_logits": "logit of each token to begin the answer, -1e9 where none may",
    "end_logits": "logit of each token to end the answer, -1e9 where none may",
    "mean": "mean of the hidden states of real tokens, special ones included",
    "cls": "the hidden state of the first token",
}


def model_kind(model):
    """What a model is and the encoder in it.

    Args:
        model: a keras-nlp backbone, a `keras_hub.models.TextClassifier`, or a model
            of answer spans such as `SpanModel`: with a `backbone`, and outputs
            `"start_logits"` and `"end_logits"`.

    Returns:
        tuple of `ENCODER`, `CLASSIFIER`, `REGRESSOR` (one output) or `SPAN`, and the
        backbone.

    Raises:
        TypeError: if the model is none of these.
    """
    if isinstance(model, keras_hub.models.TextClassifier):
        family_of(model.backbone)
        return REGRESSOR if model.num_classes == 1 else CLASSIFIER, model.backbone
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        family_of(backbone)
        return SPAN, backbone
    try:
        family_of(model)
    except TypeError:
        raise TypeError(
            "`model` must be a keras-nlp backbone, a text classifier or a model of "
            f"answer spans. Received: model of type {type(model).__name__}."
        ) from None
    return ENCODER, model


def reads_answer_mask(model):
    """Whether a model of answer spans wants to know where the question is."""
    return getattr(model, "mask_question", False)


def make_signatures(model, text_inputs, text_names, call, labels, normalize):
    """Makes the functions of an export.

    Args:
        model: as for `model_kind`.
        text_inputs: `TextInputs`.
        text_names: tuple of str, the names of the string inputs.
        call: function `(model or its backbone, inputs) -> outputs`.
        labels: sequence of str for a classifier, or None.
        normalize: bool. Whether embeddings have length 1.

    Returns:
        dict by name of `(function, input signature)`, as
        `keras.export.ExportArchive.add_endpoint` takes them. `"serving_default"` and
        `"embeddings"` take strings, `"token_ids"` what the encoder takes.
    """
    _, backbone = model_kind(model)
    strings = [tf.TensorSpec([None], tf.string, name) for name in text_names]
    names = ["token_ids", "padding_mask"]
    names += ["segment_ids"] if uses_segment_ids(backbone) else []
    names += ["answer_mask"] if reads_answer_mask(model) else []
    numbers = [tf.TensorSpec([None, None], tf.int32, name) for name in names]
    predict = _prediction(model, call, labels)

    def from_strings(*texts):
        return predict(text_inputs(*texts))

    def from_token_ids(*arrays):
        inputs = dict(zip(names, arrays, strict=True))
        outputs = predict(inputs)
        # Who sends an input has it, and tf2onnx fails on one that is an output, too.
        return {name: outputs[name] for name in outputs if name not in inputs}

    def embeddings(*texts):
        inputs = text_inputs(*texts)
        encoder_inputs = {name: inputs[name] for name in backbone.input}
        hidden = _sequence_output(call(backbone, encoder_inputs))
        weights = tf.cast(inputs["padding_mask"], tf.float32)[:, :, tf.newaxis]
        mean = tf.reduce_sum(hidden * weights, axis=1) / tf.reduce_sum(weights, axis=1)
        vectors = {"mean": mean, "cls": hidden[:, 0, :]}
        if normalize:
            vectors = {
                name: tf.math.l2_normalize(vector, axis=-1)
                for name, vector in vectors.items()
            }
        return vectors

    return {
        "serving_default": (from_strings, strings),
        "token_ids": (from_token_ids, numbers),
        "embeddings": (embeddings, strings),
    }


def _prediction(model, call, labels):
    """The function of token ids and masks to named outputs."""
    kind, _ = model_kind(model)
    if kind == ENCODER:
        return lambda inputs: _encoder_outputs(call(model, inputs), inputs)
    if kind == SPAN:
        return lambda inputs: _span_outputs(call(model, inputs), inputs)
    if kind == REGRESSOR:
        return lambda inputs: {"score": _float32(call(model, inputs))[:, 0]}
    activation = keras.activations.get(getattr(model, "activation", None))
    has_logits = activation is keras.activations.linear
    names = tf.constant(labels)

    def probabilities(inputs):
        outputs = _float32(call(model, inputs))
        if has_logits:
            outputs = tf.nn.softmax(outputs, axis=-1)
        return {
            "probabilities": outputs,
            "labels": tf.tile(names[tf.newaxis, :], [tf.shape(outputs)[0], 1]),
            "label": tf.gather(names, tf.argmax(outputs, axis=-1)),
        }

    return probabilities


def _encoder_outputs(outputs, inputs):
    # What stands at padding means nothing, and differs from one runtime to another.
    mask = tf.cast(inputs["padding_mask"], tf.float32)[:, :, tf.newaxis]
    named = {"sequence_output": _sequence_output(outputs) * mask}
    if isinstance(outputs, dict) and "pooled_output" in outputs:
        named["pooled_output"] = _float32(outputs["pooled_output"])
    return {**named, "padding_mask": tf.identity(inputs["padding_mask"])}


def _span_outputs(outputs, inputs):
    return {
        "start_logits": _float32(outputs["start_logits"]),
        "end_logits": _float32(outputs["end_logits"]),
        "token_ids": tf.identity(inputs["token_ids"]),
    }


def _sequence_output(outputs):
    if isinstance(outputs, dict):
        outputs = outputs["sequence_output"]
    return _float32(outputs)


def _float32(tensor):
    return tf.cast(tensor, tf.float32)
