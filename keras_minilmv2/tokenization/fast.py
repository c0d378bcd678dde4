"""The one way from text to token ids, for every family and every path.

Packing, fine-tuning, question answering, evaluation and the shrinking of a vocabulary
call `fast_tokenizer`; served graphs call `graph_tokenizer` of `graphs.py`. Both give
the same ids.
"""

import functools
import itertools
import re
import unicodedata
import weakref
from typing import NamedTuple

import keras_hub
import numpy as np
import tensorflow as tf
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from keras_minilmv2.tokenization.byte_pairs import byte_pair_model
from keras_minilmv2.tokenization.packable import check_packable
from keras_minilmv2.tokenization.sentence_piece_graph import SPACE, SentencePieceGraph
from keras_minilmv2.tokenization.word_piece_graph import (
    MAX_WORD_CHARS,
    WordPieceGraph,
    word_piece_options,
)

# Texts tokenized at a time.
_BLOCK_TEXTS = 1_000
# Words that a tokenizer keeps the tokens of, about 20 MB.
_MAX_WORDS = 100_000
_MAX_WORD_CHARS = 32
_CHARS_WORTH_A_GRAPH = 500_000
# Characters that every version of Unicode has put into the same class.
COMMON = "".join(map(chr, [*range(0x250), *range(0x2010, 0x2028), 0x20AC, 0x2122]))

_FAST_TOKENIZERS = weakref.WeakKeyDictionary()


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


def fast_tokenizer(tokenizer):
    """The `FastTokenizer` of a keras-nlp tokenizer, built once for each.

    Token ids are those of transformers' tokenizer of the family, except that special
    tokens written out in a text, such as `[MASK]` or `</s>`, are plain text:

    - WordPiece: text is cleaned and split as by BERT (`BertNormalizer` and
      `BertPreTokenizer`). Every Unicode space separates words; control, format and
      private-use characters, NUL and U+FFFD are removed. Of the keras-nlp tokenizer
      its vocabulary, `lowercase`, `strip_accents`, `split_on_cjk`,
      `suffix_indicator` and `oov_token` count.
    - Byte-level BPE: words are split as by GPT-2.
    - SentencePiece: the model alone decides. Its normalization table says what
      becomes of spaces and of invisible characters.

    Args:
        tokenizer: keras-nlp tokenizer of WordPiece, byte-level BPE or SentencePiece.

    Returns:
        `FastTokenizer`.

    Raises:
        TypeError: if the tokenizer is of another kind, or has no start, end and pad
            token.
        ValueError: if it pads, truncates, adds special tokens itself, or does not
            split words.
    """
    if tokenizer not in _FAST_TOKENIZERS:
        check_packable(tokenizer)
        if isinstance(tokenizer, keras_hub.tokenizers.SentencePieceTokenizer):
            fast = _SentencePieces(tokenizer)
        elif isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
            fast = _BytePairs(tokenizer)
        else:
            fast = _WordPieces(tokenizer)
        _FAST_TOKENIZERS[tokenizer] = fast
    return _FAST_TOKENIZERS[tokenizer]


class FastTokenizer:
    """Token ids of texts, with or without the characters that they stand for.

    It may be called from several threads at once.
    """

    def ids(self, texts, keep_words=True):
        """Token ids of texts, without special tokens.

        Args:
            texts: list of str.
            keep_words: bool. Whether to keep the tokens of words. It takes a third of
                the time, but holds Python's lock: with many threads it is slower.

        Returns:
            tuple of int32 `(tokens,)`, the ids of all texts one after the other, and
            int64 `(texts,)`, the number of tokens of each text.
        """
        raise NotImplementedError

    def rows(self, texts):
        """Token ids, one int32 vector a text."""
        parts = [self.ids(block) for block in _blocks(texts)]
        return [
            row
            for tokens, lengths in parts
            for row in np.split(tokens, np.cumsum(lengths)[:-1])
        ]

    def offsets(self, texts):
        """Token ids and where they lie in their text.

        White space and invisible characters at either end of a token are not part of
        it. A character that became several tokens, as `…` may become three, belongs
        to all of them, or, in SentencePiece, not to a first one that has other
        characters too. Accents that were stripped belong to their letter.

        Args:
            texts: list of str.

        Returns:
            list of `TokenOffsets`.
        """
        parts = map(self._offsets, _blocks(texts))
        return list(itertools.chain.from_iterable(parts))


class _Library(FastTokenizer):
    """A tokenizer of the `tokenizers` library.

    Args:
        backend: `tokenizers.Tokenizer`, without special tokens.
        find_words: function of a text to its words, which have the same tokens alone.
        is_common: function of a text to whether its words can be found so. Other
            text is left to the library, whose version of Unicode counts.
    """

    strips_accents = False

    def __init__(self, backend, find_words, is_common):
        self.backend = backend
        self._find_words = find_words
        self._is_common = is_common
        self._tokens_of_words = _TokensOfWords(backend)

    def new_backend(self):
        """A `tokenizers.Tokenizer` of its own for each caller."""
        return tokenizers.Tokenizer.from_str(self.backend.to_str())

    def _tokens_of(self, text):
        words = map(self._tokens_of_words.__getitem__, self._find_words(text))
        return itertools.chain.from_iterable(words)

    def ids(self, texts, keep_words=True):
        common = [keep_words and self._is_common(text) for text in texts]
        rest = [text for text, kept in zip(texts, common, strict=True) if not kept]
        rest = iter(self._rows_of_rest(rest))
        tokens, ends = [], []
        for text, kept in zip(texts, common, strict=True):
            tokens.extend(self._tokens_of(text) if kept else next(rest))
            ends.append(len(tokens))
        return np.array(tokens, "int32"), np.diff(np.array(ends, "int64"), prepend=0)

    def _rows_of_rest(self, texts):
        """Token ids of texts whose words are not looked up, one sequence a text."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts)]

    def _offsets(self, texts):
        for text, encoding in zip(texts, self.backend.encode_batch(texts), strict=True):
            offsets = np.array(encoding.offsets, "int32").reshape(-1, 2)
            begins, ends = offsets.T
            if self.strips_accents:
                ends = _after_marks(text, ends)
            yield TokenOffsets(
                np.array(encoding.ids, "int32"), *_trimmed(text, begins, ends)
            )


class _TokensOfWords(dict):
    """Tokens by word; a word that is not there yet is tokenized."""

    def __init__(self, backend):
        super().__init__()
        self._backend = backend

    def __missing__(self, word):
        tokens = tuple(self._backend.encode(word).ids)
        if len(self) < _MAX_WORDS and len(word) <= _MAX_WORD_CHARS:
            self[word] = tokens
        return tokens


class _WordPieces(_Library):
    """BERT, DistilBERT and ELECTRA."""

    def __init__(self, tokenizer):
        self.strips_accents = tokenizer.strip_accents
        vocabulary = tokenizer.get_vocabulary()
        backend = tokenizers.Tokenizer(
            models.WordPiece(
                {piece: i for i, piece in enumerate(vocabulary)},
                unk_token=tokenizer.oov_token,
                continuing_subword_prefix=tokenizer.suffix_indicator,
                max_input_chars_per_word=MAX_WORD_CHARS,
            )
        )
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=tokenizer.split_on_cjk,
            strip_accents=tokenizer.strip_accents,
            lowercase=tokenizer.lowercase,
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        # Removed characters join what stands around them, and are not common here.
        kept = "\t\n\r" + "".join(
            c for c in COMMON if unicodedata.category(c) not in ("Cc", "Cf")
        )
        alone = re.escape("".join(c for c in kept if _is_punctuation(c)))
        spaces = re.escape("".join(c for c in kept if c.isspace()))
        super().__init__(
            backend,
            re.compile(f"[{alone}]|[^{alone}{spaces}]+").findall,
            re.compile(f"[{re.escape(kept)}]*").fullmatch,
        )
        self._options = word_piece_options(tokenizer)
        self._num_chars_of_rest = 0

    @functools.cached_property
    def _graph(self):
        """The concrete function of the ops: tf.function would warn of many."""
        signature = [tf.TensorSpec([None], tf.string)]
        graph = WordPieceGraph(**self._options)
        return tf.function(
            graph.__call__, input_signature=signature
        ).get_concrete_function()

    def _rows_of_rest(self, texts):
        # The library takes twice the time of the ops, whose making takes seconds.
        self._num_chars_of_rest += sum(map(len, texts))
        if self._num_chars_of_rest < _CHARS_WORTH_A_GRAPH:
            return super()._rows_of_rest(texts)
        tokens = self._graph(tf.constant(texts, tf.string))
        ends = tokens.row_splits.numpy()[1:-1]
        return np.split(tokens.flat_values.numpy(), ends)


class _BytePairs(_Library):
    """RoBERTa."""

    def __init__(self, tokenizer):
        backend = tokenizers.Tokenizer(byte_pair_model(tokenizer))
        # The space before a text is added below: words are looked up without it.
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=True
        )
        letters, numbers = (
            "".join(c for c in COMMON if unicodedata.category(c)[0] == group)
            for group in "LN"
        )
        # White space of Unicode; Python's has the separators of files and records too.
        spaces = "\t\n\v\f\r \x85\xa0"
        # GPT-2's expression for words, over the common characters.
        words = re.compile(
            f"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+"
            f"| ?[^{spaces}{letters}{numbers}]+|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
        )
        is_common = re.compile(f"[{re.escape(COMMON)}]*").fullmatch
        super().__init__(backend, words.findall, is_common)
        self._add_prefix_space = tokenizer.add_prefix_space

    def _needs_space(self, text):
        return self._add_prefix_space and text[:1] != " "

    def ids(self, texts, keep_words=True):
        texts = [" " + text if self._needs_space(text) else text for text in texts]
        return super().ids(texts, keep_words)

    def _offsets(self, texts):
        spaced = [" " + text if self._needs_space(text) else text for text in texts]
        for text, row in zip(texts, super()._offsets(spaced), strict=True):
            if not self._needs_space(text):
                yield row
                continue
            begins, ends = (np.maximum(x - 1, 0) for x in (row.begins, row.ends))
            yield TokenOffsets(row.token_ids, begins, ends)


class _SentencePieces(FastTokenizer):
    """XLM-R and ALBERT, by the ops that a served graph has too.

    `tokenizers` computes unigram models as well, but normalizes a letter with its
    marks at a time, where SentencePiece takes the longest match.
    """

    def __init__(self, tokenizer):
        self._graph = SentencePieceGraph(tokenizer)
        self._is_space = self._graph.pieces == SPACE
        signature = [tf.TensorSpec([None], tf.string)]
        # The concrete function: there is one for each language, of which tf.function
        # would warn.
        self._tokenize = tf.function(
            self._graph.__call__, input_signature=signature
        ).get_concrete_function()

    def ids(self, texts, keep_words=True):
        tokens = self._tokenize(tf.constant(texts, tf.string))  # ragged
        return tokens.flat_values.numpy(), tokens.row_lengths().numpy()

    def _offsets(self, texts):
        cleaned = self._graph.cleaned(tf.constant(texts, tf.string))
        columns = self._graph.model.tokenize_with_offsets(cleaned)  # ragged
        splits = columns[0].row_splits.numpy()[1:-1]
        rows = [np.split(column.flat_values.numpy(), splits) for column in columns]
        contents = cleaned.numpy()
        for text, content, ids, *offsets in zip(texts, contents, *rows, strict=True):
            # Offsets are in bytes.
            content = np.frombuffer(content, "uint8")
            starts_character = content & 0xC0 != 0x80
            characters_before = np.append(0, np.cumsum(starts_character))
            begins, ends = (characters_before[column] for column in offsets)
            empty = np.equal(*_trimmed(text, begins, ends))
            # Of a character that became several pieces the last one has it all.
            for i in np.flatnonzero(empty & ~self._is_space[ids])[::-1]:
                ends[i] = ends[min(i + 1, len(ends) - 1)]
            token_ids = self._graph.token_ids[ids]
            yield TokenOffsets(token_ids, *_trimmed(text, begins, ends))


def _blocks(texts):
    texts = list(texts)
    return [texts[i : i + _BLOCK_TEXTS] for i in range(0, len(texts), _BLOCK_TEXTS)]


def _is_punctuation(character):
    """Whether BERT takes a common character for punctuation."""
    category = unicodedata.category(character)
    # All of ASCII that is no letter and no digit is.
    return category[0] == "P" or (category[0] == "S" and character.isascii())


def _after_marks(text, ends):
    """Ends of tokens, each after the combining marks that follow it."""
    if text.isascii():
        return ends
    is_mark = np.array([unicodedata.category(c) == "Mn" for c in text])
    if not is_mark.any():
        return ends
    others = np.append(np.flatnonzero(~is_mark), len(text))
    return others[np.searchsorted(others, ends)]


def _trimmed(text, begins, ends):
    """Offsets without the invisible characters at either end of a token."""
    is_visible = [unicodedata.category(c)[0] not in "ZC" for c in text]
    visible = np.append(np.flatnonzero(is_visible), len(text))
    first = np.searchsorted(visible, begins)
    last = np.searchsorted(visible, ends) - 1
    empty = first > last
    trimmed_begins = np.where(empty, begins, visible[first])
    trimmed_ends = np.where(empty, begins, visible[last] + 1)
    return trimmed_begins.astype("int32"), trimmed_ends.astype("int32")
