"""Encoders and tokenizers from a preset name, a hub handle or a directory.

Reads `KerasPresetLoader` of keras-hub, checked on keras-hub 0.32.
"""

import keras
import keras_hub
from keras_hub.src.utils.preset_utils import KerasPresetLoader

from keras_minilmv2.backbones.configs import (
    check_local_weights_fill,
    encoder_sizes,
    family_of_config,
    is_hugging_face,
    read_config,
    registered_class,
)
from keras_minilmv2.backbones.families import FAMILIES
from keras_minilmv2.backbones.hugging_face.tokenizers import (
    load_hugging_face_tokenizer,
    split_words_like_gpt2,
)
from keras_minilmv2.backbones.hugging_face.weights import load_hugging_face_backbone
from keras_minilmv2.backbones.preset_files import (
    check_file_names,
    check_preset,
    find_file,
    first_line,
    preset_error,
    read_json,
)
from keras_minilmv2.backbones.variants import ENTRY, saved_variant

# How transformers' models with a head that users need end.
_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
_WEIGHTS_FILE = "model.weights.h5"
# The index of a model saved in several files.
_INDEX_FILE = "model.weights.json"


def load_backbone(preset, dtype=None):
    """Loads an encoder with its weights.

    The encoder is a plain keras-nlp backbone of one of the families BERT, XLM-R,
    RoBERTa, ALBERT, DistilBERT and ELECTRA. From a Hugging Face model only the
    encoder is taken: the directory may have been saved from the bare model or from
    one with a head.

    The form of GELU (with erf or with tanh) and the epsilon of the layer
    normalizations are those that `hidden_act` and `layer_norm_eps` of a Hugging Face
    config name; presets of keras-nlp keep their class's own, tanh for BERT, ALBERT and
    ELECTRA. An activation that is no GELU is refused. Students inherit both, and
    `save_student` and the exports keep them. The class's constructor and
    `from_config` do not: a copy made with them has its class's own.

    Two things differ from what transformers computes:

    - One dropout rate, `hidden_dropout_prob`, serves attention weights too.
    - RoBERTa and XLM-R have no segment embedding: its first row is added to the
      position embeddings. That is exact where all segment ids are 0.
    - A missing pooler gives a warning: `pooled_dense` then stays as initialised.
      transformers' ELECTRA never has one.

    Args:
        preset: str or path. Name of a keras-nlp preset such as
            `"bert_base_en_uncased"`, a `hf://` or `kaggle://` handle, a directory
            written by `save_to_preset`, or a directory written by transformers'
            `save_pretrained` with safetensors weights.
        dtype: str or `keras.DTypePolicy`. Dtype policy of the encoder, such as
            `"mixed_bfloat16"`. Defaults to the global policy of Keras.

    Returns:
        A `keras_hub.models.Backbone`.

    Raises:
        TypeError: if `preset` is neither a string nor a path.
        ValueError: if there is no such preset, it is of another family, a file is
            missing, unreadable or does not fit `config.json`, or `dtype` is no dtype
            policy.
        ConnectionError: if the preset cannot be downloaded.
    """
    preset = check_preset(preset)
    _check_dtype(dtype)
    config = read_config(preset)
    family = family_of_config(preset, config)
    sizes = encoder_sizes(preset, config, family)
    if is_hugging_face(config):
        return load_hugging_face_backbone(preset, config, family, sizes, dtype)
    try:
        saved_variant(config)
    except (TypeError, ValueError) as error:
        raise preset_error(
            preset,
            f"have a form of GELU and an epsilon under {ENTRY} in its config.json",
            error=first_line(error),
        ) from error
    _check_weights_files(preset)
    check_local_weights_fill(preset, sizes, family, _WEIGHTS_FILE)
    try:
        return keras_hub.models.Backbone.from_preset(preset, dtype=dtype)
    except Exception as error:
        # keras and h5py raise OSError, KeyError, ValueError and TypeError here.
        raise preset_error(
            preset,
            f"hold a {_WEIGHTS_FILE} that can be read and fits its config.json",
            error=first_line(error),
        ) from error


def load_tokenizer(preset):
    """Loads the tokenizer of an encoder.

    From a Hugging Face model both layouts are read: `tokenizer.json` alone, as
    current versions of transformers save it, and the older `vocab.txt`,
    `vocab.json` with `merges.txt`, `spiece.model` and `sentencepiece.bpe.model`.
    Where both are there, `tokenizer.json` counts.

    What the directory says about its tokenizer is followed, or refused by name: other
    normalizers, pre-tokenizers or models in `tokenizer.json` than those of the
    families, added tokens, and tokenizer classes such as `BertJapaneseTokenizer`. A
    BERT encoder over XLM-R's vocabulary gets an `XLMRobertaTokenizer`.

    The result is a plain keras-nlp tokenizer: a vocabulary and its options. Packing,
    fine-tuning, question answering, evaluation, `shrink_vocabulary` and exports do not
    call it. They compute the token ids of transformers with its vocabulary, with two
    exceptions:

    - Special tokens written out in a text, such as `[MASK]` or `</s>`, are plain text.
    - SentencePiece normalizes the longest match, transformers one letter with its
      marks at a time: they differ in a few decomposed letters. ALBERT reads
      punctuation as its own tokenizer and the published `tokenizer.json` do;
      transformers 5, where it converts a `spiece.model` itself, starts a new word
      after brackets, quotes, hyphens and full stops.

    Called by itself, the keras-nlp tokenizer gives other ids than those in these
    cases:

    - WordPiece takes only ASCII white space for a space, splits words at invisible
      characters such as the soft hyphen, which BERT removes, stops at NUL, and makes a
      word of more than 100 bytes unknown, transformers one of more than 100
      characters. An uncased one folds case by NFKC_Casefold: `ß` becomes `ss`, a final
      sigma a plain one, `…` three full stops.
    - RoBERTa's makes special tokens of `</s>`, `<mask>` and `<pad>` in a text, and
      loses the digit `६` inside of tf.data.
    - SentencePiece's has a piece for U+0085, which transformers takes for white space.

    Args:
        preset: str or path, as for `load_backbone`. A directory that holds nothing
            but a keras-nlp tokenizer will do.

    Returns:
        A `keras_hub.tokenizers.Tokenizer`.

    Raises:
        TypeError: if `preset` is neither a string nor a path.
        ValueError: if there is no such preset, it is of another family, a file of the
            vocabulary is missing or unreadable, or the tokenizer is one that keras-nlp
            cannot be.
        ConnectionError: if the preset cannot be downloaded.
    """
    preset = check_preset(preset)
    # keras-nlp and transformers both have a file of this name.
    saved = read_json(preset, "tokenizer.json")
    if saved is None or "registered_name" not in saved:
        config = read_config(preset)
        if not is_hugging_face(config):
            family_of_config(preset, config)
            raise preset_error(preset, "hold a tokenizer, in a tokenizer.json")
        return load_hugging_face_tokenizer(preset, config, saved)
    classes = tuple(family.tokenizer_class for family in FAMILIES)
    registered_class(preset, saved, classes, "tokenizer")
    try:
        # Not Tokenizer.from_preset: it wants the config.json of a backbone beside.
        loader = KerasPresetLoader(preset, config=None)
        tokenizer = loader.load_tokenizer(cls=None)
    except Exception as error:
        raise preset_error(
            preset,
            "hold the vocabulary of its tokenizer in assets/tokenizer",
            error=first_line(error),
        ) from error
    return split_words_like_gpt2(tokenizer)


def check_no_head(preset):
    """Refuses a Hugging Face model with a head that only its encoder would be left of.

    A head for masked tokens is no loss: a student has none.

    Args:
        preset: str or path, as for `load_backbone`.

    Raises:
        ValueError: if `config.json` names a classifier or the like.
    """
    preset = check_preset(preset)
    for name in (read_json(preset, "config.json") or {}).get("architectures") or ():
        if name.endswith(_HEADS):
            raise preset_error(
                preset,
                "be an encoder alone, or a model that this package fine-tuned: the "
                f"head of a {name} would be lost",
                architectures=name,
            )


def _check_weights_files(preset):
    """Refuses a keras-nlp preset without weights, or with an index that leads away."""
    index = read_json(preset, _INDEX_FILE)
    if index is None and not find_file(preset, _WEIGHTS_FILE):
        raise preset_error(preset, f"hold {_WEIGHTS_FILE}")
    if index is not None:
        names = index.get("weight_map")
        if not isinstance(names, dict):
            raise preset_error(preset, f"hold a weight_map in its {_INDEX_FILE}")
        for files in names.values():
            files = files if isinstance(files, list) else [files]
            check_file_names(preset, _INDEX_FILE, files)


def _check_dtype(dtype):
    """Refuses what is no dtype policy before anything is downloaded."""
    try:
        keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`dtype` must be a dtype policy such as 'float32' or 'mixed_bfloat16'. "
            f"Received: dtype={dtype!r}."
        ) from error
