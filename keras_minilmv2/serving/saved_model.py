"""A model as a SavedModel that takes raw strings."""

from pathlib import Path

import keras
import tensorflow as tf

from keras_minilmv2.backbones.families import (
    check_tokenizer,
    family_of,
    uses_segment_ids,
    vocabulary_size,
)
from keras_minilmv2.backbones.pruned import is_pruned
from keras_minilmv2.backbones.saving import check_space
from keras_minilmv2.serving.beside import write_beside
from keras_minilmv2.serving.manifest import write_manifest
from keras_minilmv2.serving.samples import (
    TEXTS,
    Sample,
    as_array,
    largest_difference,
    write_samples,
)
from keras_minilmv2.serving.signatures import (
    CLASSIFIER,
    SPAN,
    make_signatures,
    model_kind,
    reads_answer_mask,
)
from keras_minilmv2.serving.text_inputs import TextInputs
from keras_minilmv2.serving.versions import publish, unpublished
from keras_minilmv2.serving.warmup import write_warmup
from keras_minilmv2.serving.weights import STORED_AS, call_with_weights

TOLERANCE = 1e-5


def export_saved_model(
    model,
    tokenizer,
    directory,
    sequence_length=128,
    *,
    pairs=False,
    labels=None,
    normalize_embeddings=False,
    weights="float32",
    sample_texts=TEXTS,
):
    """Exports a model for TensorFlow Serving, tokenizer included.

    The export is `directory/<version>`, with the number after the highest one there.
    It appears whole or not at all; two exports at once get two numbers. Its
    signatures, with batches of any size:

    - `serving_default` takes strings: `text`, or `text_a` and `text_b` with `pairs`.
    - `token_ids` takes int32 `token_ids`, `padding_mask` and, for families that have
      them, `segment_ids`, each `(batch, length)`, and gives the same outputs but for
      those that are its inputs.
    - `embeddings` takes strings and gives `mean`, over real tokens, `[CLS]` and
      `[SEP]` included, and `cls`, each `(batch, hidden_dim)`.

    Outputs of the first two: `sequence_output`, `pooled_output` where the family has
    one, and `padding_mask` for a backbone; `probabilities`, `labels` and `label` for a
    classifier; `score` for one with a single output; `start_logits`, `end_logits` and
    `token_ids` for a model of answer spans. Numbers are float32.

    The token ids are those of training; special tokens in a text are text; bytes that
    are not UTF-8 become U+FFFD. A student that was not fine-tuned gives hidden states
    whose last layer is not trained above its queries, keys and values.

    Beside the SavedModel lie `manifest.json`, sample requests with Keras' answers,
    which `serve_check` sends, and requests that warm a server up, where
    tensorflow-serving-api is installed. In `directory` itself, a README with commands
    and examples of the server's configuration.

    Args:
        model: a keras-nlp backbone; a `keras_hub.models.TextClassifier`, for
            regression with one class; or a model of answer spans, see `model_kind`.
        tokenizer: its keras-nlp tokenizer.
        directory: str or path.
        sequence_length: int, tokens of a row, special ones included, or increasing
            sequence of int: then a batch is padded to the smallest that holds it.
        pairs: bool. Whether a row has two texts.
        labels: sequence of str, the names of a classifier's classes. Defaults to
            `"LABEL_0"` and so on.
        normalize_embeddings: bool. Whether embeddings are scaled to length 1.
        weights: `"float32"`; or `"float16"` or `"int8"` to store matrices so. They
            become float32 when the export is loaded. The manifest has the largest
            difference of each output on the sample requests.
        sample_texts: sequence of str for sample and warm-up requests.

    Returns:
        Path of the version.

    Raises:
        TypeError: if the model or the tokenizer is of no supported kind.
        ValueError: if an argument does not fit the model.
        OSError: if it cannot be written, for a full disk for instance.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`model` must be a model on TensorFlow. "
            f"Received: a model of Keras on {keras.backend.backend()}."
        )
    kind, backbone = model_kind(model)
    lengths = _checked_lengths(sequence_length, backbone)
    labels = _checked_labels(labels, kind, model)
    _check_options(kind, pairs, weights, sample_texts)
    text_names = ("text_a", "text_b") if pairs else ("text",)
    text_inputs = TextInputs(
        tokenizer,
        lengths,
        len(text_names),
        uses_segment_ids(backbone),
        reads_answer_mask(model),
    )
    check_tokenizer(backbone, tokenizer)

    def signatures_of(call):
        return make_signatures(
            model, text_inputs, text_names, call, labels, normalize_embeddings
        )

    call_keras, _ = call_with_weights(model, "float32")
    samples = _samples(
        signatures_of(call_keras), text_inputs, lengths, list(sample_texts)
    )
    call, stored = call_with_weights(model, weights)
    signatures = signatures_of(call)
    archive = keras.export.ExportArchive()
    # The variables that signatures read are tracked as it is. A model that is tracked
    # too has its weights in the files twice, with Keras 3.15.
    archive.track(text_inputs.trackable)
    if stored:
        archive.track(stored)
        archive.add_variable_collection("stored_weights", list(stored.variables))
    functions = {
        name: archive.add_endpoint(name, *signature)
        for name, signature in signatures.items()
    }
    differences = _differences(signatures, functions, samples) if stored else {}

    directory = Path(directory)
    with unpublished(directory) as fresh:
        if not stored:
            check_space(fresh, model)
        archive.write_out(fresh, verbose=False)
        write_samples(fresh, samples)
        content = {
            "model": _model_facts(kind, backbone, model),
            "labels": labels,
            "tokenizer": _tokenizer_facts(tokenizer),
            "sequence_lengths": list(lengths),
            "pairs": pairs,
            "normalized_embeddings": normalize_embeddings,
            "weights": {"stored_as": weights, "largest_difference": differences},
            "tolerance": TOLERANCE + 1.01 * max(differences.values(), default=0.0),
            "warmup": write_warmup(fresh, directory.resolve().name, samples),
        }
        manifest = write_manifest(fresh, content)
        version = publish(fresh, directory)
    write_beside(directory, manifest, samples)
    return version


def _check_options(kind, pairs, weights, sample_texts):
    if kind == SPAN and not pairs:
        raise ValueError(
            "`pairs` must be set for a model of answer spans: question and text. "
            f"Received: pairs={pairs}."
        )
    if weights not in STORED_AS:
        raise ValueError(
            f"`weights` must be one of {', '.join(STORED_AS)}. "
            f"Received: weights={weights!r}."
        )
    if isinstance(sample_texts, str) or not list(sample_texts):
        raise ValueError(
            "`sample_texts` must be a sequence of texts, one at least. "
            f"Received: sample_texts={sample_texts!r}."
        )


def _checked_lengths(sequence_length, backbone):
    """The sequence lengths as a tuple."""
    lengths = sequence_length
    if not isinstance(lengths, tuple | list):
        lengths = (lengths,)
    are_numbers = all(isinstance(length, int) for length in lengths)
    if not lengths or not are_numbers or list(lengths) != sorted(set(lengths)):
        raise ValueError(
            "`sequence_length` must be an int or increasing ints. "
            f"Received: sequence_length={sequence_length}."
        )
    if lengths[-1] > backbone.max_sequence_length:
        raise ValueError(
            "`sequence_length` must not be above the positions of the model. "
            f"Received: sequence_length={lengths[-1]}, "
            f"max_sequence_length={backbone.max_sequence_length}."
        )
    return tuple(lengths)


def _checked_labels(labels, kind, model):
    """The label names of a classifier, or None for other models."""
    if kind != CLASSIFIER:
        if labels is not None:
            raise ValueError(
                "`labels` must not be given for a model that is no classifier. "
                f"Received: labels={labels}, model of kind {kind}."
            )
        return None
    if labels is None:
        return [f"LABEL_{place}" for place in range(model.num_classes)]
    labels = list(labels)
    if len(labels) != model.num_classes or len(set(labels)) != len(labels):
        raise ValueError(
            "`labels` must name each class of the model, no two alike. "
            f"Received: labels={labels}, num_classes={model.num_classes}."
        )
    return labels


def _samples(signatures, text_inputs, lengths, texts):
    """Requests to all signatures and what Keras answers, without an export."""
    names = [spec.name for spec in signatures["serving_default"][1]]
    counts = text_inputs(*[tf.constant(["", "a"])] * len(names))["padding_mask"]
    num_special, num_tokens = tf.reduce_sum(counts, axis=1).numpy()
    tokens_of_word = max(1, num_tokens - num_special)
    batches = [texts]
    for length in lengths:
        # A row that fills the length, and one that does not.
        num_words = (length - num_special) // tokens_of_word
        batches.append([" ".join(["a"] * num_words), texts[0]])
    samples = []
    for batch in batches:
        # Of a pair, the second text is that of the next row.
        strings = {
            name: batch[place:] + batch[:place] for place, name in enumerate(names)
        }
        arrays = text_inputs(*map(tf.constant, strings.values()))
        numbers = {name: array.numpy().tolist() for name, array in arrays.items()}
        for signature, (function, specs) in signatures.items():
            inputs = numbers if signature == "token_ids" else strings
            outputs = _outputs(function, specs, inputs)
            samples.append(Sample(signature, inputs, outputs))
    return samples


def _outputs(function, specs, inputs):
    tensors = [tf.constant(inputs[spec.name], spec.dtype) for spec in specs]
    return {name: as_array(tensor) for name, tensor in function(*tensors).items()}


def _differences(signatures, functions, samples):
    """The largest difference of each output to that of the samples."""
    differences = {}
    for name, inputs, expected in samples:
        found = _outputs(functions[name], signatures[name][1], inputs)
        for output, array in expected.items():
            if array.dtype.kind == "f":
                key = f"{name}/{output}"
                difference = largest_difference(array, found[output])
                differences[key] = max(difference, differences.get(key, 0.0))
    return differences


def _model_facts(kind, backbone, model):
    counts = {}
    if is_pruned(backbone):
        names = ("head_counts", "neuron_counts")
        counts = {name: list(getattr(backbone, name)) for name in names}
    return {
        "kind": kind,
        "family": family_of(backbone).name,
        "class": type(model).__name__,
        "num_layers": backbone.num_layers,
        "num_heads": backbone.num_heads,
        "hidden_dim": backbone.hidden_dim,
        "intermediate_dim": backbone.intermediate_dim,
        **counts,
        "vocabulary_size": vocabulary_size(backbone),
        "max_sequence_length": backbone.max_sequence_length,
        "num_parameters": model.count_params(),
    }


def _tokenizer_facts(tokenizer):
    names = ("start_token_id", "end_token_id", "pad_token_id")
    return {
        "class": type(tokenizer).__name__,
        "vocabulary_size": tokenizer.vocabulary_size(),
        **{name: getattr(tokenizer, name) for name in names},
    }
