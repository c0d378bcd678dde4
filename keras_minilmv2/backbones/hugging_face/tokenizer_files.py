"""A keras-nlp tokenizer as the files that transformers reads.

`tokenizer.json` gives the token ids of `fast_tokenizer`; the older vocabulary files lie
beside it. ALBERT's is named `PreTrainedTokenizerFast`, the class that takes
tokenizer.json as it is: transformers 5 builds an `AlbertTokenizer` anew from the
vocabulary, without its normalization table.
"""

import json
from dataclasses import dataclass

import keras_hub
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from keras_minilmv2.tokenization import sentence_piece as spm
from keras_minilmv2.tokenization.byte_pairs import plain_merges
from keras_minilmv2.tokenization.fast import fast_tokenizer
from keras_minilmv2.utils.files import write_json

# The class that takes tokenizer.json as it is.
_GENERIC_CLASS = "PreTrainedTokenizerFast"


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
    backend = fast_tokenizer(tokenizer).new_backend()
    backend.decoder = decoders.WordPiece(prefix=tokenizer.suffix_indicator)
    start, end = tokenizer.cls_token, tokenizer.sep_token
    _template(backend, start, end, f"{start} $A {end} $B:1 {end}:1")
    return TokenizerFiles(
        backend,
        # transformers 5 builds a BertTokenizer anew, with this indicator.
        "BertTokenizer" if tokenizer.suffix_indicator == "##" else _GENERIC_CLASS,
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


def _byte_pair(tokenizer):
    """RoBERTa."""
    backend = fast_tokenizer(tokenizer).new_backend()
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
    merges = "".join(
        f"{merge}\n" for merge in ["#version: 0.2", *plain_merges(tokenizer.merges)]
    )
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
        _GENERIC_CLASS,
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
