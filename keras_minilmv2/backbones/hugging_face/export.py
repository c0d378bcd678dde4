"""A backbone or text classifier as a directory that transformers loads."""

from pathlib import Path

import keras_hub
import numpy as np
from safetensors.numpy import save_file

from keras_minilmv2.backbones.families import (
    check_tokenizer,
    family_of,
    uses_segment_ids,
    vocabulary_size,
)
from keras_minilmv2.backbones.hugging_face.model_card import model_card, read_facts
from keras_minilmv2.backbones.hugging_face.tokenizer_files import tokenizer_files
from keras_minilmv2.backbones.hugging_face.weights import encoder_weights
from keras_minilmv2.backbones.preset_files import check_new_directory
from keras_minilmv2.backbones.pruned import dense_copy, is_pruned
from keras_minilmv2.backbones.saving import check_space
from keras_minilmv2.backbones.variants import variant_of
from keras_minilmv2.utils.files import replacing_directory, write_json


def export_to_hugging_face(
    model,
    tokenizer,
    directory,
    *,
    facts=None,
    labels=None,
    sentence_transformers=False,
    dense=False,
    overwrite=False,
):
    """Writes a directory that Hugging Face transformers loads.

    `AutoModel` computes what the keras-nlp model computes, in inference mode, and
    `AutoTokenizer` gives its token ids. The directory holds `config.json`,
    `model.safetensors` in float32, `tokenizer.json`, the older vocabulary files and a
    model card, and `load_backbone` and `load_tokenizer` read it back. Written to a
    temporary directory and renamed.

    Transformers 4.45 or later reads the tokenizers. Where the two libraries part:

    - keras-nlp's WordPiece makes a word of more than 100 bytes unknown, transformers'
      one of more than 100 characters; keras-nlp folds the case of Cherokee and of nine
      old Cyrillic letters otherwise.
    - RoBERTa of keras-nlp loses the digit `६` inside of tf.data.
    - XLM-R has a choice where two ways to cut a word score the same, as in `....`.
    - Special tokens written out in the text are special to transformers.
    - transformers' ELECTRA has no pooler: it leaves out the weights of keras-nlp's.
    - A classifier's output is the logits, whatever its `activation`.

    Args:
        model: a keras-nlp backbone of a supported family, or a text classifier with
            one: `BertTextClassifier` and so on.
        tokenizer: its keras-nlp tokenizer; None for that of a classifier's
            preprocessor.
        directory: str or path.
        facts: the model's origin, for the model card: None, a dict, or the
            path of a run's directory, of its `recipe.json` or its `report.json`. Of
            a dict, `"teacher"`, `"results"` (Markdown, or a dict) and `"license"` have
            places of their own; all else becomes a row of a table.
        labels: list of str. Names of a classifier's classes.
        sentence_transformers: bool. Whether sentence-transformers is to load the
            directory as an encoder of sentences: the mean over tokens.
        dense: bool. Whether a pruned model is written at full shape, with zeros for
            the heads and neurons that are gone, since no class of transformers has
            layers of different shapes. It computes the same and is not faster or
            smaller than before it was pruned.
        overwrite: bool. Whether a directory that holds another model, and nothing
            else, is replaced.

    Raises:
        TypeError: if the model or the tokenizer is of no supported family.
        ValueError: if tokenizer and model do not fit, or the model is one that
            transformers has no place for, such as a pruned one without `dense`.
        FileExistsError: if the directory is not empty and `overwrite` is not set, or
            it holds a file that is no model's.
        OSError: if it cannot be written, for a full disk for instance.
    """
    directory = Path(directory)
    check_new_directory("directory", directory, overwrite)
    backbone, classifier = _backbone_and_classifier(model)
    family = family_of(backbone)
    pruned = is_pruned(backbone)
    if pruned and not dense:
        raise ValueError(
            "`model` must have in every layer the heads and neurons that its config "
            "names, as transformers' class has; set `dense` to write the removed ones "
            "as zeros, at full size and no faster. Received: a pruned model with "
            f"{_in_words(backbone)}."
        )
    if tokenizer is None:
        tokenizer = _own_tokenizer(classifier)
    files = tokenizer_files(tokenizer)
    check_tokenizer(backbone, tokenizer)
    if sentence_transformers and classifier is not None:
        raise ValueError(
            "`sentence_transformers` must not be set for a classifier. "
            f"Received: model of type {type(model).__name__}."
        )
    num_classes = None if classifier is None else classifier.num_classes
    if pruned:
        removed = f"{_in_words(backbone)}; the others are zeros, so no faster"
        facts = {**read_facts(facts), "left in each layer": removed}
        backbone = dense_copy(backbone)
    config = {
        **_config(family, backbone, tokenizer),
        **_label_config(labels, num_classes),
    }
    weights = encoder_weights(backbone)
    class_name = f"{family.transformers_prefix}Model"
    if classifier is not None:
        class_name = f"{family.transformers_prefix}ForSequenceClassification"
        config[family.classifier_dropout_name] = classifier.dropout
        weights = {family.scope + name: tensor for name, tensor in weights.items()}
        weights.update(_head_weights(family, classifier))
    config["architectures"] = [class_name]
    card = model_card(backbone, read_facts(facts), num_classes, sentence_transformers)
    input_names = ["input_ids", "attention_mask"]
    if uses_segment_ids(backbone):
        input_names.insert(1, "token_type_ids")

    with replacing_directory(directory) as fresh:
        check_space(fresh, model)
        write_json(fresh / "config.json", config)
        save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})
        files.write(fresh, backbone.max_sequence_length, input_names)
        if sentence_transformers:
            _write_sentence_transformers(fresh, backbone)
        (fresh / "README.md").write_text(card, encoding="utf-8")


def _in_words(pruned):
    """Heads and neurons that are left in each layer."""
    heads = ", ".join(map(str, pruned.head_counts))
    return f"{heads} heads, {', '.join(map(str, pruned.neuron_counts))} neurons"


def _backbone_and_classifier(model):
    """The encoder of a model, and the model if it is a classifier."""
    if isinstance(model, keras_hub.models.Backbone):
        return model, None
    if not isinstance(model, keras_hub.models.TextClassifier):
        raise TypeError(
            "`model` must be a keras-nlp backbone or text classifier. "
            f"Received: model of type {type(model).__name__}."
        )
    return model.backbone, model


def _own_tokenizer(classifier):
    if classifier is None or classifier.preprocessor is None:
        raise ValueError(
            "`tokenizer` must be given for a model without a preprocessor. "
            "Received: tokenizer=None."
        )
    return classifier.preprocessor.tokenizer


def _config(family, backbone, tokenizer):
    """`config.json` of the encoder."""
    padding_rows = family.num_padding_positions
    # Positions count from the one after the padding token's.
    if padding_rows and tokenizer.pad_token_id != 1:
        raise ValueError(
            "`tokenizer` must have the padding token at id 1, as transformers' class "
            f"has. Received: pad_token_id={tokenizer.pad_token_id}."
        )
    variant = variant_of(backbone)
    arguments = backbone.get_config()
    arguments["vocabulary_size"] = vocabulary_size(backbone)
    arguments["max_sequence_length"] += padding_rows
    config = {
        "model_type": family.model_type,
        "dtype": "float32",
        "pad_token_id": tokenizer.pad_token_id,
        **{theirs: arguments[ours] for ours, theirs in family.size_names.items()},
        family.activation_name: variant.gelu,
        family.dropout_name: backbone.dropout,
        family.attention_dropout_name: backbone.dropout,
        **family.config_constants,
    }
    if family.epsilon_name:
        config[family.epsilon_name] = variant.layer_norm_epsilon
    if family.states_end_tokens:
        config["bos_token_id"] = tokenizer.start_token_id
        config["eos_token_id"] = tokenizer.end_token_id
    return config


def _label_config(labels, num_classes):
    """The names of the classes, which also tell transformers their number."""
    if labels is None:
        labels = [f"LABEL_{i}" for i in range(num_classes or 0)]
    elif len(labels) != (num_classes or 0):
        raise ValueError(
            "`labels` must name every class of a classifier. "
            f"Received: labels={labels}, num_classes={num_classes}."
        )
    if not labels:
        return {}
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _head_weights(family, classifier):
    """The dense layers of a classifier, by their names in transformers."""
    weights = {}
    hidden_dim = classifier.backbone.hidden_dim
    for name, attribute in family.classifier_layers.items():
        layer = getattr(classifier, attribute, None)
        if layer is None:
            raise TypeError(
                f"`model` must be a text classifier with a layer {attribute}. "
                f"Received: model of type {type(classifier).__name__}."
            )
        kernel = np.asarray(layer.kernel, dtype="float32")
        if kernel.shape not in (
            (hidden_dim, hidden_dim),
            (hidden_dim, classifier.num_classes),
        ):
            raise ValueError(
                f"`model` must have a head as wide as its backbone, {hidden_dim}, as "
                f"transformers' class has. Received: {attribute} of shape "
                f"{kernel.shape}."
            )
        weights[f"{name}.weight"] = np.ascontiguousarray(kernel.T)
        weights[f"{name}.bias"] = np.asarray(layer.bias, dtype="float32")
    return weights


def _write_sentence_transformers(directory, backbone):
    """The files that make sentence-transformers take the mean over tokens."""
    write_json(
        directory / "modules.json",
        [
            {
                "idx": 0,
                "name": "0",
                "path": "",
                "type": "sentence_transformers.models.Transformer",
            },
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.models.Pooling",
            },
        ],
    )
    (directory / "1_Pooling").mkdir()
    write_json(
        directory / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": backbone.hidden_dim,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": backbone.max_sequence_length, "do_lower_case": False},
    )
