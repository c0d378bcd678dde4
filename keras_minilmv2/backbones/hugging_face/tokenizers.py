"""Tokenizers of Hugging Face models as keras-nlp tokenizers.

Reads `BytePairTokenizer._tokenizer`, checked on keras-hub 0.32.
"""

import base64
import json

import keras_hub
from google.protobuf.message import DecodeError
from tokenizers import pre_tokenizers

from keras_minilmv2.backbones.configs import hugging_face_family
from keras_minilmv2.backbones.preset_files import (
    find_file,
    first_line,
    preset_error,
    read_json,
)
from keras_minilmv2.tokenization import sentence_piece as spm

_XLM_R_START = ["<s>", "<pad>", "</s>", "<unk>"]

# What reading a vocabulary of another form than expected raises.
_MALFORMED = (
    AttributeError,
    DecodeError,
    IndexError,
    KeyError,
    TypeError,
    UnicodeDecodeError,
    json.JSONDecodeError,
)


def load_hugging_face_tokenizer(preset, config, saved):
    """Builds the tokenizer of a Hugging Face model.

    Args:
        preset: str. A hub handle or a directory.
        config: dict. The content of its `config.json`.
        saved: dict. The content of its `tokenizer.json`, or None where there is none.

    Returns:
        A `keras_hub.tokenizers.Tokenizer`.

    Raises:
        ValueError: as `load_tokenizer` does.
    """
    tokenizer_class = hugging_face_family(preset, config).tokenizer_class
    settings = read_json(preset, "tokenizer_config.json") or {}
    # Multilingual MiniLM and E5 are BERT encoders with XLM-R's vocabulary.
    if "XLMRoberta" in (settings.get("tokenizer_class") or ""):
        tokenizer_class = keras_hub.models.XLMRobertaTokenizer
    build = {
        keras_hub.models.RobertaTokenizer: _byte_pair_arguments,
        keras_hub.models.XLMRobertaTokenizer: _xlm_roberta_arguments,
        keras_hub.models.AlbertTokenizer: _albert_arguments,
    }.get(tokenizer_class, _word_piece_arguments)
    rule = f"hold the vocabulary of a {tokenizer_class.__name__}"
    try:
        arguments = build(preset, settings, saved)
    except _MALFORMED as error:
        raise preset_error(preset, rule, error=first_line(error)) from error
    try:
        tokenizer = tokenizer_class(**arguments)
    except (ValueError, RuntimeError, TypeError) as error:
        # A special token is missing, or a merge names an unknown piece.
        raise preset_error(preset, rule, error=first_line(error)) from error
    return split_words_like_gpt2(tokenizer)


def split_words_like_gpt2(tokenizer):
    """Makes eager calls of a byte-pair tokenizer split words as tf.data does.

    keras-hub 0.32 splits words with GPT-2's expression inside a `tf.data` pipeline,
    as RoBERTa does, and not at all outside it: its expression for eager calls is
    given to `tokenizers` as a literal string.

    Args:
        tokenizer: any keras-nlp tokenizer; one of another kind is left alone.

    Returns:
        The same tokenizer.
    """
    if isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
        tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=tokenizer.add_prefix_space, use_regex=True
        )
    return tokenizer


def _require(preset, name):
    """Path of a file of the vocabulary."""
    path = find_file(preset, name)
    if path is None:
        raise preset_error(preset, f"hold tokenizer.json or {name}")
    return path


def _added_tokens(saved):
    """Tokens beside the model's own vocabulary, by id."""
    return {token["id"]: token for token in saved.get("added_tokens", [])}


def _steps(normalizer):
    """The steps of a normalizer of tokenizer.json, nested sequences laid flat."""
    if normalizer is None:
        return []
    if normalizer["type"] == "Sequence":
        return [step for part in normalizer["normalizers"] for step in _steps(part)]
    return [normalizer]


def _word_piece_arguments(preset, settings, saved):
    """Arguments of a tokenizer with BERT's vocabulary."""
    normalizer = {}
    options = {}
    if saved is None:
        with open(_require(preset, "vocab.txt"), encoding="utf-8") as file:
            # Not splitlines: a piece may be some other kind of line break.
            vocabulary = [line.rstrip("\n") for line in file]
    else:
        model = saved["model"]
        ids = dict(model["vocab"])
        ids.update({token["content"]: i for i, token in _added_tokens(saved).items()})
        vocabulary = sorted(ids, key=ids.get)
        if [ids[piece] for piece in vocabulary] != list(range(len(ids))):
            raise preset_error(preset, "hold a vocabulary whose ids have no gap")
        options["suffix_indicator"] = model["continuing_subword_prefix"]
        options["oov_token"] = model["unk_token"]
        for step in _steps(saved["normalizer"]):
            if step["type"] == "BertNormalizer":
                normalizer = step
    lowercase = settings.get("do_lower_case", normalizer.get("lowercase", True))
    strip_accents = settings.get("strip_accents", normalizer.get("strip_accents"))
    return {
        "vocabulary": vocabulary,
        "lowercase": lowercase,
        # As in the first BERT, uncased is without accents unless told otherwise.
        "strip_accents": lowercase if strip_accents is None else strip_accents,
        "split_on_cjk": settings.get(
            "tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)
        ),
        **options,
    }


def _byte_pair_arguments(preset, settings, saved):
    """Arguments of a tokenizer with RoBERTa's vocabulary."""
    pre_tokenizer = {}
    if saved is None:
        with open(_require(preset, "vocab.json"), encoding="utf-8") as file:
            vocabulary = json.load(file)
        with open(_require(preset, "merges.txt"), encoding="utf-8") as file:
            merges = [line.rstrip("\n") for line in file]
        merges = [merge for merge in merges if merge and "#version" not in merge]
    else:
        model = saved["model"]
        added = {token["content"]: i for i, token in _added_tokens(saved).items()}
        vocabulary = {**model["vocab"], **added}
        merges = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in model["merges"]
        ]
        pre_tokenizer = saved["pre_tokenizer"]
    return {
        "vocabulary": vocabulary,
        "merges": merges,
        "add_prefix_space": settings.get(
            "add_prefix_space", pre_tokenizer.get("add_prefix_space", False)
        ),
    }


def _charsmap(saved):
    """The normalization table of a SentencePiece model in tokenizer.json."""
    for step in _steps(saved["normalizer"]):
        if step["type"] == "Precompiled":
            return base64.b64decode(step["precompiled_charsmap"])
    return spm.whitespace_charsmap()


def _xlm_roberta_arguments(preset, settings, saved):
    """Arguments of a tokenizer with XLM-R's vocabulary."""
    if saved is None:
        model = spm.read_model(_require(preset, "sentencepiece.bpe.model"))
        return {"proto": model.SerializeToString()}
    vocabulary = saved["model"]["vocab"]
    names = [piece for piece, _ in vocabulary]
    added = [token["content"] for token in _added_tokens(saved).values()]
    # XLMRobertaTokenizer knows these five by their places and has no others.
    if names[:4] != _XLM_R_START or names[-1] != "<mask>" or set(added) - set(names):
        raise preset_error(
            preset,
            "hold a vocabulary that begins with <s> <pad> </s> <unk> and ends with "
            "<mask>, without added tokens",
            begins_with=names[:4],
            ends_with=names[-1],
            added_tokens=sorted(set(added) - set(names)),
        )
    # The three special pieces of the SentencePiece model; the tokenizer shifts ids.
    pieces = [
        ("<unk>", 0.0, spm.UNKNOWN),
        ("<s>", 0.0, spm.CONTROL),
        ("</s>", 0.0, spm.CONTROL),
    ]
    pieces += [(piece, score, spm.NORMAL) for piece, score in vocabulary[4:-1]]
    model = spm.build_model(
        pieces, _charsmap(saved), unk_id=0, bos_id=1, eos_id=2, pad_id=-1
    )
    return {"proto": model.SerializeToString()}


def _albert_arguments(preset, settings, saved):
    """Arguments of a tokenizer with ALBERT's vocabulary."""
    if saved is None:
        model = spm.read_model(_require(preset, "spiece.model"))
        if not spm.is_folded(model.normalizer_spec.precompiled_charsmap):
            _discourage_number_commas(model)
        steps = {"Lowercase", "StripAccents"}
    else:
        vocabulary = saved["model"]["vocab"]
        kinds = {
            i: spm.CONTROL if token["special"] else spm.USER_DEFINED
            for i, token in _added_tokens(saved).items()
        }
        if max(kinds, default=0) >= len(vocabulary):
            raise preset_error(preset, "hold a vocabulary without added tokens")
        unk_id = saved["model"]["unk_id"]
        kinds[unk_id] = spm.UNKNOWN
        pieces = [
            (piece, score, kinds.get(i, spm.NORMAL))
            for i, (piece, score) in enumerate(vocabulary)
        ]
        names = [piece for piece, _ in vocabulary]
        model = spm.build_model(
            pieces,
            _charsmap(saved),
            unk_id=unk_id,
            bos_id=-1,
            eos_id=-1,
            pad_id=names.index("<pad>") if "<pad>" in names else -1,
        )
        steps = {step["type"] for step in _steps(saved["normalizer"])}
    table = model.normalizer_spec.precompiled_charsmap
    # The table of an exported tokenizer is all the cleaning there is.
    if steps == {"Precompiled"} or spm.is_folded(table):
        return {"proto": model.SerializeToString()}
    model.normalizer_spec.precompiled_charsmap = spm.folded_charsmap(
        table,
        lowercase=settings.get("do_lower_case", "Lowercase" in steps),
        strip_accents=not settings.get("keep_accents", "StripAccents" not in steps),
    )
    return {"proto": model.SerializeToString()}


def _discourage_number_commas(model):
    """Keeps a comma after a digit apart, as ALBERT's own tokenizer does.

    tokenizer.json of the published models has these scores already.
    """
    for piece in model.pieces:
        if (
            len(piece.piece) > 1
            and piece.piece[-1] == ","
            and piece.piece[-2].isdigit()
        ):
            piece.score -= 100.0
