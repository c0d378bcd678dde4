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
from keras_minilmv2.tokenization.byte_pairs import plain_merges

_XLM_R_START = ["<s>", "<pad>", "</s>", "<unk>"]
_SPECIAL_TOKENS = {
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(*_XLM_R_START, "<mask>"),
}

# Classes that take tokenizer.json as it is.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")

# Steps of tokenizer.json by the type of its model. A field of a step that is not named
# here may have any value; one that is missing has the value named.
_EXPECTED_STEPS = {
    "WordPiece": {
        "normalizer": [{"type": "BertNormalizer", "clean_text": True}],
        "pre_tokenizer": [{"type": "BertPreTokenizer"}],
        "model": {"max_input_chars_per_word": 100},
    },
    "BPE": {
        "normalizer": [],
        "pre_tokenizer": [{"type": "ByteLevel", "use_regex": True}],
        "model": {
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "byte_fallback": False,
            "ignore_merges": False,
        },
    },
    "Unigram": {
        "normalizer": [
            {"type": "Precompiled"},
            {"type": "Strip"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}},
        ],
        "pre_tokenizer": [
            {"type": "WhitespaceSplit"},
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"},
            {
                "type": "Metaspace",
                "replacement": "\u2581",
                "prepend_scheme": "always",
                "split": True,
            },
        ],
        "model": {"byte_fallback": False},
    },
}
# Further steps of ALBERT's normalizer.
_ALBERT_CLEANING = [
    {"type": "NFKD"},
    {"type": "StripAccents"},
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
    {"type": "Replace", "pattern": {"String": "''"}, "content": '"'},
]

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

    What the directory says about its tokenizer is followed or refused by name.

    Args:
        preset: str. A hub handle or a directory.
        config: dict. The content of its `config.json`.
        saved: dict. The content of its `tokenizer.json`, or None where there is none.

    Returns:
        A `keras_hub.tokenizers.Tokenizer`.

    Raises:
        ValueError: as `load_tokenizer` does.
    """
    family_class = hugging_face_family(preset, config).tokenizer_class
    settings = read_json(preset, "tokenizer_config.json") or {}
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class") or ""
    tokenizer_class = family_class
    # Multilingual MiniLM and E5 are BERT encoders with XLM-R's vocabulary.
    if declared.startswith("XLMRoberta") or _has_xlm_roberta_pieces(preset, saved):
        tokenizer_class = keras_hub.models.XLMRobertaTokenizer
    kind, classes, build = _KINDS.get(tokenizer_class, _WORD_PIECE)
    is_generic = declared in _GENERIC_CLASSES
    if not is_generic and declared.removesuffix("Fast") not in classes:
        known = [*sorted(classes)[1:], *_GENERIC_CLASSES]
        raise preset_error(
            preset,
            f"have a tokenizer_class that is one of {', '.join(known)}",
            tokenizer_class=declared,
        )
    rule = f"hold the vocabulary of a {tokenizer_class.__name__}, which is {kind}"
    try:
        if saved is not None:
            model = saved["model"]
            # Versions before 0.9 of `tokenizers` write no type.
            if model.get("type", kind) != kind:
                raise preset_error(preset, rule, model_type=model["type"])
            _check_steps(preset, saved, tokenizer_class, kind, rule)
        _check_added_tokens(preset, settings, saved, tokenizer_class)
        settings_count = saved is None or not is_generic
        arguments = build(preset, settings, saved, settings_count)
    except _MALFORMED as error:
        raise preset_error(preset, rule, error=first_line(error)) from error
    try:
        tokenizer = tokenizer_class(**arguments)
    except (ValueError, RuntimeError, TypeError) as error:
        # A special token is missing, or a merge names an unknown piece.
        raise preset_error(preset, rule, error=first_line(error)) from error
    return split_words_like_gpt2(tokenizer)


def _has_xlm_roberta_pieces(preset, saved):
    """Whether the vocabulary is XLM-R's, whatever the layers are."""
    if saved is None:
        return (
            find_file(preset, "sentencepiece.bpe.model") is not None
            and find_file(preset, "vocab.txt") is None
        )
    model = saved.get("model")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(pieces, list):
        return False
    return [piece[0] for piece in pieces[:4] if piece] == _XLM_R_START


def _check_steps(preset, saved, tokenizer_class, kind, rule):
    """Refuses a tokenizer.json with other steps than those that are computed."""
    expected = _EXPECTED_STEPS[kind]
    for name in ("normalizer", "pre_tokenizer"):
        steps = _steps(saved.get(name))
        known = expected[name]
        if name == "normalizer" and tokenizer_class is keras_hub.models.AlbertTokenizer:
            known = [*known, *_ALBERT_CLEANING]
        # A normalizer of byte pairs or SentencePiece may be missing, no other step.
        if not steps and (name == "pre_tokenizer" or kind == "WordPiece"):
            steps = [{"type": None}]
        for step in steps:
            if not any(_is_step(step, other) for other in known):
                names = " or ".join(dict.fromkeys(other["type"] for other in known))
                raise preset_error(
                    preset,
                    f"{rule}, with a {name} of {names or 'none'} as its family has it",
                    **{name: _shortened(step)},
                )
    if kind == "Unigram":
        _check_complete(preset, saved, rule)
    elif max(len(_types(saved, name)) for name in ("normalizer", "pre_tokenizer")) > 1:
        raise preset_error(preset, f"{rule}, with each step once")
    model = saved["model"]
    for name, value in expected["model"].items():
        if (model.get(name) or value) != value:
            raise preset_error(
                preset, f"{rule}, with {name}={value!r}", **{name: model[name]}
            )


def _check_complete(preset, saved, rule):
    """Refuses steps of a unigram model without those that belong to them."""
    pre_tokenizer = _types(saved, "pre_tokenizer")
    # Spaces in a row count as one, as in the model that is built.
    joins = any(
        "Regex" in step.get("pattern", {}) for step in _steps(saved.get("normalizer"))
    )
    if "Metaspace" not in pre_tokenizer or not (joins or len(pre_tokenizer) > 1):
        raise preset_error(
            preset,
            f"{rule}, with WhitespaceSplit and Metaspace in its pre_tokenizer",
            pre_tokenizer=pre_tokenizer,
        )
    cleaning = _albert_cleaning(saved)
    quotes = cleaning.count("Replace") == 2
    accents = ("NFKD" in cleaning) == ("StripAccents" in cleaning)
    if cleaning and not (quotes and accents):
        raise preset_error(
            preset,
            f"{rule}, with a normalizer that replaces both double quotes and has NFKD "
            "and StripAccents, or neither",
            normalizer=_types(saved, "normalizer"),
        )


def _albert_cleaning(saved):
    """Types of the steps of ALBERT's text cleaning in a normalizer."""
    return [
        step["type"]
        for step in _steps(saved.get("normalizer"))
        if any(_is_step(step, known) for known in _ALBERT_CLEANING)
    ]


def _is_step(step, expected):
    """Whether a step of tokenizer.json has the fields of the expected one."""
    return all(step.get(name, value) == value for name, value in expected.items())


def _shortened(step):
    return {name: value for name, value in step.items() if len(str(value)) < 100}


def _check_added_tokens(preset, settings, saved, tokenizer_class):
    """Refuses tokens beside the vocabulary: text would be split at them."""
    special = set()
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        token = settings.get(f"{role}_token")
        special.add(token.get("content") if isinstance(token, dict) else token)
    special.update(_SPECIAL_TOKENS)
    added = [token["content"] for token in _added_tokens(saved or {}).values()]
    if saved is None:
        added += read_json(preset, "added_tokens.json") or {}
        decoder = settings.get("added_tokens_decoder") or {}
        added += [token["content"] for token in decoder.values()]
    if more := sorted(set(added) - special):
        raise preset_error(
            preset,
            "hold a vocabulary without added tokens, which keras-nlp does not keep "
            f"whole in text, for a {tokenizer_class.__name__}",
            added_tokens=more,
        )


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


def _types(saved, name):
    """The types of the steps of a part of tokenizer.json."""
    return [step["type"] for step in _steps(saved.get(name))]


def _steps(part):
    """The steps of a part of tokenizer.json, nested sequences laid flat."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        return [step for inner in part[name] for step in _steps(inner)]
    return [part]


def _word_piece_arguments(preset, settings, saved, settings_count):
    """Arguments of a tokenizer with BERT's vocabulary."""
    normalizer = {}
    options = {}
    if saved is None:
        for name, value in (("do_basic_tokenize", True), ("never_split", None)):
            if (settings.get(name) or value) != value or settings.get(name) is False:
                raise preset_error(
                    preset,
                    f"have {name}={value} in its tokenizer_config.json",
                    **{name: settings[name]},
                )
        with open(_require(preset, "vocab.txt"), encoding="utf-8") as file:
            # Not splitlines: a piece may be some other kind of line break.
            vocabulary = [line.rstrip("\n") for line in file]
    else:
        model = saved["model"]
        ids = dict(model["vocab"])
        vocabulary = sorted(ids, key=ids.get)
        if [ids[piece] for piece in vocabulary] != list(range(len(ids))):
            raise preset_error(preset, "hold a vocabulary whose ids have no gap")
        options["suffix_indicator"] = model["continuing_subword_prefix"]
        options["oov_token"] = model["unk_token"]
        [normalizer] = _steps(saved.get("normalizer"))
    # transformers' BertTokenizer sets the normalizer anew; a generic class does not.
    if not settings_count:
        settings = {}
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


def _byte_pair_arguments(preset, settings, saved, settings_count):
    """Arguments of a tokenizer with RoBERTa's vocabulary."""
    pre_tokenizer = {}
    if saved is None:
        with open(_require(preset, "vocab.json"), encoding="utf-8") as file:
            vocabulary = json.load(file)
        with open(_require(preset, "merges.txt"), encoding="utf-8") as file:
            merges = plain_merges(line.rstrip("\n") for line in file)
    else:
        model = saved["model"]
        added = {token["content"]: i for i, token in _added_tokens(saved).items()}
        vocabulary = {**model["vocab"], **added}
        merges = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in model["merges"]
        ]
        [pre_tokenizer] = _steps(saved.get("pre_tokenizer"))
    if not settings_count:
        settings = {}
    return {
        "vocabulary": vocabulary,
        "merges": merges,
        "add_prefix_space": settings.get(
            "add_prefix_space", pre_tokenizer.get("add_prefix_space", False)
        ),
    }


def _scored_pieces(saved):
    """The pieces of a unigram model in tokenizer.json, each with its score."""
    pieces = saved["model"]["vocab"]
    if not isinstance(pieces, list):
        raise TypeError(f"vocab is a {type(pieces).__name__}, and no list of pairs")
    return [(piece[0], piece[1]) for piece in pieces]


def _charsmap(saved):
    """The normalization table of a SentencePiece model in tokenizer.json."""
    for step in _steps(saved.get("normalizer")):
        if step["type"] == "Precompiled":
            return base64.b64decode(step["precompiled_charsmap"])
    if "WhitespaceSplit" in _types(saved, "pre_tokenizer"):
        return spm.whitespace_charsmap()
    return b""


def _xlm_roberta_arguments(preset, settings, saved, settings_count):
    """Arguments of a tokenizer with XLM-R's vocabulary."""
    if saved is None:
        model = spm.read_model(_require(preset, "sentencepiece.bpe.model"))
        return {"proto": model.SerializeToString()}
    vocabulary = _scored_pieces(saved)
    names = [piece for piece, _ in vocabulary]
    # XLMRobertaTokenizer knows these five by their places and has no others.
    if names[:4] != _XLM_R_START or names[-1] != "<mask>":
        raise preset_error(
            preset,
            "hold a vocabulary that starts with <s> <pad> </s> <unk> and ends with "
            "<mask>",
            starts_with=names[:4],
            ends_with=names[-1],
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


def _albert_arguments(preset, settings, saved, settings_count):
    """Arguments of a tokenizer with ALBERT's vocabulary."""
    if saved is None:
        model = spm.read_model(_require(preset, "spiece.model"))
        if not spm.is_folded(model.normalizer_spec.precompiled_charsmap):
            _discourage_number_commas(model)
        steps = {"Lowercase", "StripAccents"}
    else:
        vocabulary = _scored_pieces(saved)
        kinds = dict.fromkeys(_added_tokens(saved), spm.CONTROL)
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
        steps = _albert_cleaning(saved)
    if not settings_count:
        settings = {}
    table = model.normalizer_spec.precompiled_charsmap
    lowercase = settings.get("do_lower_case", "Lowercase" in steps)
    strip_accents = not settings.get("keep_accents", "StripAccents" not in steps)
    # The table of an exported tokenizer is all the cleaning there is.
    if spm.is_folded(table) or not (steps or lowercase or strip_accents):
        return {"proto": model.SerializeToString()}
    model.normalizer_spec.precompiled_charsmap = spm.folded_charsmap(
        table, lowercase=lowercase, strip_accents=strip_accents
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


_WORD_PIECE = (
    "WordPiece",
    {"", "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"},
    _word_piece_arguments,
)
# By class, the model of tokenizer.json, the classes of transformers, what reads it.
_KINDS = {
    keras_hub.models.RobertaTokenizer: (
        "BPE",
        {"", "RobertaTokenizer"},
        _byte_pair_arguments,
    ),
    keras_hub.models.XLMRobertaTokenizer: (
        "Unigram",
        {"", "XLMRobertaTokenizer"},
        _xlm_roberta_arguments,
    ),
    keras_hub.models.AlbertTokenizer: (
        "Unigram",
        {"", "AlbertTokenizer"},
        _albert_arguments,
    ),
}
