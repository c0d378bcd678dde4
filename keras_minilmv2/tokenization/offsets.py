"""Tokens of texts, each with the characters that it stands for."""

import functools
import itertools
import sys
import unicodedata
from typing import NamedTuple

import keras_hub
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
import tokenizers

_BLOCK_TEXTS = 1_000

# Kinds of characters.
_LETTER, _INVISIBLE, _PUNCTUATION, _CJK = range(4)
# The blocks that BERT takes for Chinese characters, first and last code.
_CJK_BLOCKS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class TokenOffsets(NamedTuple):
    """The tokens of one text, without special tokens.

    Args:
        token_ids: int32 `(tokens,)`.
        begins: int32 `(tokens,)`. The first character of each token.
        ends: int32 `(tokens,)`. The character after its last one; equal to `begins`
            where a token stands for no visible character.
    """

    token_ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def offset_tokenizer(tokenizer):
    """Makes a function that gives tokens and where they lie in their text.

    Token ids are those that `packed_examples` gives: those of the tokenizer's own ops,
    where

    - special tokens in text are text;
    - for WordPiece, every Unicode space is a plain one, and so is NUL, after which the
      ops stop reading;
    - for byte-level BPE, words are split as GPT-2 and Hugging Face do.

    White space and invisible characters at either end of a token are not part of it.
    A character that became several tokens, as `№` may become `n` and `o`, belongs to
    all of them, or, in SentencePiece, not to a first one that has other characters too.
    Where a WordPiece word cannot be laid over its pieces, each of them has the
    characters of the whole word; in text of 15 languages that was nowhere so.

    Args:
        tokenizer: keras-nlp tokenizer of WordPiece, byte-level BPE or SentencePiece.

    Returns:
        Function of a list of str to a list of `TokenOffsets`.

    Raises:
        TypeError: if the tokenizer is of another kind or has no start, end and pad
            token.
        ValueError: if the tokenizer pads, truncates, adds special tokens itself, or
            does not split words.
    """
    _check_tokenizer(tokenizer)
    if isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
        tokenize = _byte_pair_offsets(tokenizer)
    elif isinstance(tokenizer, keras_hub.tokenizers.SentencePieceTokenizer):
        tokenize = _sentence_piece_offsets(tokenizer)
    else:
        tokenize = _WordPieceOffsets(tokenizer)

    def encode(texts):
        blocks = range(0, len(texts), _BLOCK_TEXTS)
        parts = (tokenize(texts[begin : begin + _BLOCK_TEXTS]) for begin in blocks)
        return list(itertools.chain.from_iterable(parts))

    return encode


def _check_tokenizer(tokenizer):
    kinds = ("WordPieceTokenizer", "BytePairTokenizer", "SentencePieceTokenizer")
    if not isinstance(
        tokenizer, tuple(getattr(keras_hub.tokenizers, kind) for kind in kinds)
    ):
        raise TypeError(
            f"`tokenizer` must be one of {', '.join(kinds)}. "
            f"Received: tokenizer of type {type(tokenizer).__name__}."
        )
    for name in ("start_token_id", "end_token_id", "pad_token_id"):
        if getattr(tokenizer, name, None) is None:
            raise TypeError(
                f"`tokenizer` must have a `{name}`. "
                f"Received: tokenizer of type {type(tokenizer).__name__}."
            )
    for name, value in {
        "sequence_length": None,
        "add_bos": False,
        "add_eos": False,
        "split": True,
    }.items():
        if getattr(tokenizer, name, value) != value:
            raise ValueError(
                f"`tokenizer` must have `{name}={value}`: windows of text are packed "
                f"here. Received: {name}={getattr(tokenizer, name)}."
            )


@functools.cache
def _kinds():
    """The kind of every character, by code."""
    categories = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    kind_of = {"Cc": _INVISIBLE, "Cf": _INVISIBLE}
    kind_of.update(dict.fromkeys(("Zs", "Zl", "Zp"), _INVISIBLE))
    for category in ("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"):
        kind_of[category] = _PUNCTUATION
    kinds = np.array([kind_of.get(name, _LETTER) for name in categories], "uint8")
    for first, last in _CJK_BLOCKS:
        kinds[first : last + 1] = _CJK
    # BERT's punctuation is all of ASCII that is no letter and no digit.
    for code in range(33, 127):
        if not chr(code).isalnum():
            kinds[code] = _PUNCTUATION
    return kinds


def _kinds_of(text):
    return _kinds()[np.frombuffer(text.encode("utf-32-le"), "<u4")]


def _trimmed(text, begins, ends):
    """Offsets without the invisible characters at either end of a token."""
    visible = np.flatnonzero(_kinds_of(text) != _INVISIBLE)
    visible = np.append(visible, len(text))
    first = np.searchsorted(visible, begins)
    last = np.searchsorted(visible, ends) - 1
    empty = first > last
    trimmed_begins = np.where(empty, begins, visible[first])
    trimmed_ends = np.where(empty, begins, visible[last] + 1)
    return trimmed_begins.astype("int32"), trimmed_ends.astype("int32")


def _byte_pair_offsets(tokenizer):
    """By the `tokenizers` library."""
    merges = [
        tuple(merge.split(" "))
        for merge in tokenizer.merges
        if "#version:" not in merge
    ]
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=dict(tokenizer.vocabulary), merges=merges)
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=tokenizer.add_prefix_space, use_regex=True
    )

    def tokenize(texts):
        for text, encoding in zip(texts, encoder.encode_batch(texts), strict=True):
            offsets = np.array(encoding.offsets, "int32").reshape(-1, 2)
            yield TokenOffsets(
                np.array(encoding.ids, "int32"), *_trimmed(text, *offsets.T)
            )

    return tokenize


def _sentence_piece_offsets(tokenizer):
    """By the ops that the tokenizer has, whose offsets are in bytes."""
    model = tf_text.SentencepieceTokenizer(model=tokenizer.proto, out_type=tf.int32)
    pieces = model.id_to_string(tf.range(model.vocab_size())).numpy()
    # XLM-R's ids are not those of its model.
    token_ids = np.array([tokenizer.token_to_id(piece) for piece in pieces], "int32")
    is_space = pieces == "\u2581".encode()

    def tokenize(texts):
        columns = model.tokenize_with_offsets(texts)  # ragged (texts, tokens)
        splits = columns[0].row_splits.numpy()[1:-1]
        rows = [np.split(column.flat_values.numpy(), splits) for column in columns]
        for text, ids, *offsets in zip(texts, *rows, strict=True):
            starts_character = np.frombuffer(text.encode(), "uint8") & 0xC0 != 0x80
            characters_before = np.append(0, np.cumsum(starts_character))
            begins, ends = (characters_before[column] for column in offsets)
            empty = np.equal(*_trimmed(text, begins, ends))
            # Of a character that became several pieces the last one has it all.
            for i in np.flatnonzero(empty & ~is_space[ids])[::-1]:
                ends[i] = ends[min(i + 1, len(ends) - 1)]
            yield TokenOffsets(token_ids[ids], *_trimmed(text, begins, ends))

    return tokenize


class _WordPieceOffsets:
    """By the tokenizer's own ops, word by word; each word is tokenized once."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._pieces = tokenizer.get_vocabulary()
        self._alone = [_PUNCTUATION, _CJK] if tokenizer.split_on_cjk else [_PUNCTUATION]
        # The concrete function: there is one for each language, of which tf.function
        # would warn.
        self._tokenize = tf.function(
            lambda words: tokenizer(words)
        ).get_concrete_function(tf.TensorSpec([None], tf.string))
        self._known = {}

    def __call__(self, texts):
        words = [self._words(text) for text in texts]
        self._learn({word for parts in words for word, _ in parts} - self._known.keys())
        for parts in words:
            known = [self._known[word] for word, _ in parts]
            shifts = [begin for _, begin in parts]
            counts = [len(offsets.token_ids) for offsets in known]
            columns = [
                np.concatenate([np.empty(0, "int32"), *column])
                for column in (zip(*known, strict=True) if known else ([], [], []))
            ]
            shift = np.repeat(np.array(shifts, "int32"), counts)
            yield TokenOffsets(columns[0], columns[1] + shift, columns[2] + shift)

    def _words(self, text):
        """The words of a text and where they begin."""
        kinds = _kinds_of(text)
        is_alone = np.isin(kinds, self._alone)
        is_inside = ~is_alone & (kinds != _INVISIBLE)
        follows_inside = np.append(False, is_inside[:-1])[: len(kinds)]
        begins = np.flatnonzero(is_alone | (is_inside & ~follows_inside))
        precedes_inside = np.append(is_inside[1:], False)[: len(kinds)]
        ends = np.flatnonzero(is_alone | (is_inside & ~precedes_inside)) + 1
        return [
            (text[begin:end], begin)
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        ]

    def _learn(self, words):
        if not words:
            return
        words = list(words)
        tokens = self._tokenize(tf.constant(words))  # ragged (words, tokens)
        splits = tokens.row_splits.numpy()[1:-1]
        rows = np.split(tokens.flat_values.numpy().astype("int32"), splits)
        for word, token_ids in zip(words, rows, strict=True):
            self._known[word] = TokenOffsets(token_ids, *self._offsets(word, token_ids))

    def _offsets(self, word, token_ids):
        """Lays pieces over the word that they came from."""
        begins = np.zeros(len(token_ids), "int32")
        ends = np.full(len(token_ids), len(word), "int32")
        if len(token_ids) < 2:
            return begins, ends
        pieces = [self._pieces[index] for index in token_ids]
        suffix_indicator = self._tokenizer.suffix_indicator
        pieces[1:] = [piece.removeprefix(suffix_indicator) for piece in pieces[1:]]
        if "".join(pieces) != self._folded(word):
            return begins, ends
        # How long what became of the first 0, 1, 2, ... characters is.
        lengths = [len(self._folded(word[:i])) for i in range(len(word) + 1)]
        lengths = np.maximum.accumulate(lengths)
        cuts = np.cumsum([0, *map(len, pieces)])
        begins = np.searchsorted(lengths, cuts[:-1], side="right") - 1
        # Accents that vanished belong to the letter before them.
        ends = np.maximum(
            np.searchsorted(lengths, cuts[1:], side="left"),
            np.searchsorted(lengths, cuts[1:], side="right") - 1,
        )
        return begins.astype("int32"), ends.astype("int32")

    def _folded(self, text):
        """What keras-hub makes of the characters of a word before it is cut."""
        if self._tokenizer.strip_accents:
            text = unicodedata.normalize("NFD", text)
            text = "".join(c for c in text if unicodedata.category(c) != "Mn")
        if self._tokenizer.lowercase:
            text = unicodedata.normalize("NFKC", text).casefold()
            text = unicodedata.normalize("NFKC", text)
        return text
