r"""A keras-nlp tokenizer as the files that transformers reads.

`tokenizer.json` holds what the keras-nlp class computes, step by step, so that both
give the same token ids; the older vocabulary files lie beside it. A WordPiece tokenizer
of keras-nlp is not transformers' `BertTokenizer`: it splits words by other rules, and
folds case where that one only lower-cases. Its steps are therefore spelled out, and
named `PreTrainedTokenizerFast`, the class that takes tokenizer.json as it is;
transformers 5 builds a `BertTokenizer` or `AlbertTokenizer` anew from the vocabulary.
"""

import json
from dataclasses import dataclass

import keras_hub
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from keras_minilmv2.tokenization import sentence_piece as spm
from keras_minilmv2.utils.files import write_json

# keras-nlp's expressions, as the contents of a character class. All of them:
# `\s` of RE2 is ASCII, and so spelled out.
_SPACE = r" \t\n\f\r\p{Cc}\p{Cf}"
_PUNCTUATION = r"!-/:-@\[-`{-~\p{P}"
_CJK = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}"
    r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
# Default_Ignorable_Code_Point, as far as NFKC leaves them and they are no spaces.
_IGNORABLE = (
    r"\x{34F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{FE00}-\x{FE0F}"
    r"\x{E0000}-\x{E0FFF}"
)


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer is written as.

    Args:
        backend: `tokenizers.Tokenizer`, the content of `tokenizer.json`.
        class_name: str. The class that transformers builds.
        special_tokens: dict of str by role: `"pad_token"` and so on.
        settings: dict. Further fields of `tokenizer_config.json`.
        vocabulary: dict of bytes by name of the file: the older vocabulary files.
    """

    backend: Tokenizer
    class_name: str
    special_tokens: dict
    settings: dict
    vocabulary: dict

    def write(self, directory, max_length, input_names):
        """Writes the files.

        Args:
            directory: path of an existing directory.
            max_length: int. Tokens that the model takes at most.
            input_names: list of str. The model's inputs, as transformers calls them.
        """
        special_tokens = list(dict.fromkeys(self.special_tokens.values()))
        self.backend.add_special_tokens(special_tokens)
        self.backend.save(str(directory / "tokenizer.json"))
        settings = {
            "tokenizer_class": self.class_name,
            "model_max_length": max_length,
            "model_input_names": input_names,
            "clean_up_tokenization_spaces": False,
            **self.settings,
            **self.special_tokens,
        }
        write_json(directory / "tokenizer_config.json", settings)
        write_json(directory / "special_tokens_map.json", self.special_tokens)
        for name, content in self.vocabulary.items():
            (directory / name).write_bytes(content)


def tokenizer_files(tokenizer):
    """A keras-nlp tokenizer in the form that transformers reads.

    Args:
        tokenizer: a keras-nlp tokenizer of a supported family.

    Returns:
        A `TokenizerFiles`.

    Raises:
        TypeError: if the tokenizer is of no supported family.
        ValueError: if its SentencePiece model is of another kind than the family's.
    """
    for tokenizer_class, build in (
        (keras_hub.tokenizers.WordPieceTokenizer, _word_piece),
        (keras_hub.models.RobertaTokenizer, _byte_pair),
        (keras_hub.models.XLMRobertaTokenizer, _xlm_roberta),
        (keras_hub.models.AlbertTokenizer, _albert),
    ):
        if isinstance(tokenizer, tokenizer_class):
            return build(tokenizer)
    raise TypeError(
        "`tokenizer` must be a tokenizer of BERT, RoBERTa, XLM-R, ALBERT, DistilBERT "
        f"or ELECTRA. Received: tokenizer of type {type(tokenizer).__name__}."
    )


def _template(backend, start, end, pair):
    """Puts the special tokens around one text and around two."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=pair,
        special_tokens=[(token, backend.token_to_id(token)) for token in (start, end)],
    )


def _word_piece(tokenizer):
    """BERT, DistilBERT and ELECTRA."""
    vocabulary = tokenizer.get_vocabulary()
    backend = Tokenizer(
        models.WordPiece(
            {piece: i for i, piece in enumerate(vocabulary)},
            unk_token=tokenizer.oov_token,
            continuing_subword_prefix=tokenizer.suffix_indicator,
            max_input_chars_per_word=100,
        )
    )
    backend.normalizer = word_piece_normalizer(
        tokenizer.lowercase, tokenizer.strip_accents, tokenizer.split_on_cjk
    )
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    backend.decoder = decoders.WordPiece(prefix=tokenizer.suffix_indicator)
    start, end = tokenizer.cls_token, tokenizer.sep_token
    _template(backend, start, end, f"{start} $A {end} $B:1 {end}:1")
    return TokenizerFiles(
        backend,
        "PreTrainedTokenizerFast",
        {
            "unk_token": tokenizer.oov_token,
            "sep_token": tokenizer.sep_token,
            "pad_token": tokenizer.pad_token,
            "cls_token": tokenizer.cls_token,
            "mask_token": tokenizer.mask_token,
        },
        {
            "do_lower_case": tokenizer.lowercase,
            "strip_accents": tokenizer.strip_accents,
            "tokenize_chinese_chars": tokenizer.split_on_cjk,
        },
        {"vocab.txt": "".join(f"{piece}\n" for piece in vocabulary).encode()},
    )


def word_piece_normalizer(lowercase, strip_accents, split_on_cjk):
    r"""The text cleaning of keras-nlp's WordPiece tokenizers.

    Words come out with `"\n"` between them: keras-nlp folds case after it has split
    words, and "…" becomes one word of three full stops.

    Args:
        lowercase: bool.
        strip_accents: bool.
        split_on_cjk: bool.

    Returns:
        A `tokenizers.normalizers.Normalizer`. It folds case by Unicode's
        NFKC_Casefold, save for Cherokee and nine old forms of Cyrillic letters.
    """
    words = _PUNCTUATION
    steps = []
    if split_on_cjk:
        words += _CJK
        steps.append(_apart(_CJK))
    if strip_accents:
        steps += [normalizers.NFD(), _replace(r"\p{Mn}", "")]
    steps += [_replace(_SPACE, "\n"), _apart(words)]
    if lowercase:
        steps += [
            normalizers.NFKD(),
            normalizers.Lowercase(),
            # What folding changes and lower-casing does not.
            normalizers.Replace("ß", "ss"),
            normalizers.Replace(
                "\N{GREEK SMALL LETTER FINAL SIGMA}", "\N{GREEK SMALL LETTER SIGMA}"
            ),
            normalizers.Replace(
                "\N{COMBINING GREEK YPOGEGRAMMENI}", "\N{GREEK SMALL LETTER IOTA}"
            ),
            normalizers.NFKC(),
            _replace(_IGNORABLE, ""),
        ]
    return normalizers.Sequence(steps)


def _replace(characters, content):
    return normalizers.Replace(Regex(f"[{characters}]"), content)


def _apart(characters):
    """Sets these characters apart from what stands around them."""
    # Not at the ends of the text: tokenizers 0.23 panics over a match there.
    return normalizers.Replace(
        Regex(rf"(?<=[{characters}])(?!\z)|(?!\A)(?=[{characters}])"), "\n"
    )


def _byte_pair(tokenizer):
    """RoBERTa."""
    merges = [merge for merge in tokenizer.merges if "#version:" not in merge]
    backend = Tokenizer(
        models.BPE(tokenizer.vocabulary, [tuple(merge.split(" ")) for merge in merges])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=tokenizer.add_prefix_space
    )
    backend.decoder = decoders.ByteLevel()
    start, end = tokenizer.start_token, tokenizer.end_token
    backend.post_processor = processors.RobertaProcessing(
        (end, tokenizer.end_token_id),
        (start, tokenizer.start_token_id),
        add_prefix_space=tokenizer.add_prefix_space,
    )
    special_tokens = _roberta_special_tokens(tokenizer)
    if "<unk>" in tokenizer.vocabulary:
        special_tokens["unk_token"] = "<unk>"
    vocabulary = json.dumps(dict(tokenizer.vocabulary), ensure_ascii=False)
    merges = "".join(f"{merge}\n" for merge in ["#version: 0.2", *merges])
    return TokenizerFiles(
        backend,
        "RobertaTokenizer",
        special_tokens,
        {"add_prefix_space": tokenizer.add_prefix_space},
        {"vocab.json": vocabulary.encode(), "merges.txt": merges.encode()},
    )


def _roberta_special_tokens(tokenizer):
    return {
        "bos_token": tokenizer.start_token,
        "eos_token": tokenizer.end_token,
        "sep_token": tokenizer.end_token,
        "pad_token": tokenizer.pad_token,
        "cls_token": tokenizer.start_token,
        "mask_token": "<mask>",
    }


def _unigram(model, vocabulary, unk_id, cleaning=()):
    """A backend with the pieces and the normalization table of a SentencePiece model.

    Args:
        model: the message `ModelProto`.
        vocabulary: list of (piece, score) in the order of the ids.
        unk_id: int. Place of the unknown piece.
        cleaning: normalizers that come before the table.
    """
    backend = Tokenizer(models.Unigram(vocabulary, unk_id, byte_fallback=False))
    table = model.normalizer_spec.precompiled_charsmap
    if table:
        cleaning = [*cleaning, normalizers.Precompiled(table)]
    if cleaning:
        backend.normalizer = normalizers.Sequence(cleaning)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return backend


def _scored_pieces(model):
    """Pairs of piece and score, as a model without types of pieces has them."""
    spm.check_unigram(model)
    best = max((p.score for p in model.pieces if p.type == spm.NORMAL), default=0.0)
    # What SentencePiece scores a piece that its trainer was told to keep whole.
    return [
        (
            p.piece,
            len(p.piece) * best - 0.1 if p.type == spm.USER_DEFINED else p.score,
        )
        for p in model.pieces
    ]


def _xlm_roberta(tokenizer):
    model = spm.parse_model(tokenizer.proto)
    special_tokens = {
        **_roberta_special_tokens(tokenizer),
        "unk_token": tokenizer.unk_token,
    }
    # The pieces of the model after its first three, which have other places here.
    start = [(piece, 0.0) for piece in tokenizer.get_vocabulary()[:4]]
    vocabulary = [*start, *_scored_pieces(model)[3:], ("<mask>", 0.0)]
    backend = _unigram(model, vocabulary, tokenizer.unk_token_id)
    start, end = tokenizer.start_token, tokenizer.end_token
    _template(backend, start, end, f"{start} $A {end} {end} $B {end}")
    return TokenizerFiles(
        backend,
        "XLMRobertaTokenizer",
        special_tokens,
        {},
        {"sentencepiece.bpe.model": tokenizer.proto},
    )


def _albert(tokenizer):
    model = spm.parse_model(tokenizer.proto)
    pieces = _scored_pieces(model)
    [unk_id] = [i for i, p in enumerate(model.pieces) if p.type == spm.UNKNOWN]
    table = model.normalizer_spec.precompiled_charsmap
    cleaning = []
    if spm.is_folded(table):
        # transformers looks up one letter with its marks at a time, and no pairs.
        cleaning = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
    upper, accent = spm.apply_charsmap(table, ["A", "é"])
    backend = _unigram(model, pieces, unk_id, cleaning)
    start, end = tokenizer.cls_token, tokenizer.sep_token
    _template(backend, start, end, f"{start} $A {end} $B:1 {end}:1")
    return TokenizerFiles(
        backend,
        "PreTrainedTokenizerFast",
        {
            "bos_token": start,
            "eos_token": end,
            "unk_token": pieces[unk_id][0],
            "sep_token": end,
            "pad_token": tokenizer.pad_token,
            "cls_token": start,
            "mask_token": tokenizer.mask_token,
        },
        {"do_lower_case": upper == "a", "keep_accents": accent != "e"},
        {"spiece.model": tokenizer.proto},
    )
