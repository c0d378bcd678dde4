"""Byte-level byte-pair encoding as a graph of TensorFlow ops.

The ops of keras-hub 0.32 are not used for it. They differ from GPT-2 in blank lines,
in `"</s>"` within a text, in the Devanagari digit six and in NUL, and they keep every
word they ever saw in a table, which in a server grows without end.
"""

import tensorflow as tf
import tensorflow_text as tf_text
from tokenizers.pre_tokenizers import ByteLevel

from keras_minilmv2.tokenization.byte_pairs import byte_pair_model, plain_merges

# White space of Unicode; RE2's \s is that of ASCII.
_SPACE = (
    r"\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
    r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
)
# GPT-2 leaves the last space of a run to the word after it, by looking ahead, which
# RE2 cannot: a mark is put there instead, the characters 1 and 2. A real 1 becomes 1
# and 3; NUL, where TF Text ends a string, becomes 1 and 4.
_MARK = "\x01\x02"
_ESCAPES = {"\x01": "\x01\x03", "\x00": "\x01\x04"}
_BEFORE_LAST_SPACE = f"([{_SPACE}])([^{_SPACE}])"
_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+"
    rf"| ?(?:[^{_SPACE}\x01\p{{L}}\p{{N}}]|\x01[\x03\x04])+|[{_SPACE}]+"
)


class BytePairGraph(tf.Module):
    """Tokens of texts as GPT-2 splits and merges them.

    The ids are those of the `tokenizers` library. A word that is one token is looked
    up; the others are merged, all of a batch at once, pair by pair from the lowest
    rank.

    A word of more than `max_tokens` times the bytes of the longest token is cut
    there, which leaves its first `max_tokens` tokens as they are but for merges that
    reach back from the cut.

    Args:
        tokenizer: a keras-nlp byte-pair tokenizer.
        max_tokens: int. How many tokens of a text are needed; the rest may be missing.

    Call arguments:
        texts: string `(batch,)`, valid UTF-8.

    Returns:
        int32 `tf.RaggedTensor` `(batch, None)`.
    """

    def __init__(self, tokenizer, max_tokens):
        super().__init__()
        self._add_prefix_space = tokenizer.add_prefix_space
        ids = dict(tokenizer.vocabulary)
        pairs = [tuple(merge.split(" ")) for merge in plain_merges(tokenizer.merges)]
        byte_of_character = _bytes_of_characters()
        self._num_ids = max(ids.values()) + 1
        self._ids_of_bytes = _table(
            {
                bytes([byte]): ids[character]
                for character, byte in byte_of_character.items()
                if character in ids
            }
        )
        model = byte_pair_model(tokenizer)
        words = {
            token: index
            for token, index in ids.items()
            if set(token) <= byte_of_character.keys()
            and [piece.id for piece in model.tokenize(token)] == [index]
        }
        as_bytes = {
            bytes(byte_of_character[character] for character in word): index
            for word, index in words.items()
        }
        self._ids_of_words = _table(as_bytes)
        self._max_bytes = max_tokens * max(map(len, as_bytes))
        # Where every byte has an id, a word is a token or more.
        has_all_bytes = byte_of_character.keys() <= ids.keys()
        self._max_words = max_tokens if has_all_bytes else None
        ranks = {
            ids[left] * self._num_ids + ids[right]: rank
            for rank, (left, right) in enumerate(pairs)
        }
        self._no_rank = len(pairs)
        self._last_rank = max(len(pairs) - 1, 0)
        self._rank_of_pair = _table(ranks or {-1: 0}, default=self._no_rank)
        self._id_of_rank = tf.constant(
            [ids[left + right] for left, right in pairs] or [0], tf.int64
        )

    def __call__(self, texts):
        """The tokens of a batch of texts."""
        words = self._split(texts)[:, : self._max_words]
        unique, index = tf.unique(words.values)
        tokens = tf.gather(self._merged(unique), index)
        return tf.RaggedTensor.from_row_splits(
            tf.cast(tokens.values, tf.int32),
            tf.gather(tokens.row_splits, words.row_splits),
        )

    def _split(self, texts):
        """Texts to words, as GPT-2's expression does."""
        if self._add_prefix_space:
            bare = tf.strings.substr(texts, 0, 1) != " "
            texts = tf.where(bare, tf.strings.join([" ", texts]), texts)
        for character, escape in _ESCAPES.items():
            texts = tf.strings.regex_replace(texts, character, escape)
        texts = tf.strings.regex_replace(texts, _BEFORE_LAST_SPACE, rf"{_MARK}\1\2")
        words = tf_text.regex_split(texts, f"{_MARK}|{_WORDS}", _WORDS)
        values = words.values
        for character, escape in reversed(_ESCAPES.items()):
            values = tf.strings.regex_replace(values, escape, character)
        return words.with_values(values)

    def _merged(self, words):
        """Unique words `(words,)` to int64 ragged `(words, None)`."""
        whole = self._ids_of_words.lookup(words)
        known = whole >= 0
        rest = tf.strings.substr(tf.where(known, "", words), 0, self._max_bytes)
        # The one byte of a known word only keeps a place for its token.
        symbols = tf.strings.bytes_split(tf.where(known, " ", rest))
        rows = symbols.value_rowids()
        ids = tf.where(
            tf.gather(known, rows),
            tf.gather(whole, rows),
            self._ids_of_bytes.lookup(symbols.values),
        )
        # A byte without an id is skipped, as the library does.
        present = ids >= 0
        rows, ids = tf.boolean_mask(rows, present), tf.boolean_mask(ids, present)
        # A token of its own per known word: no pair starts or ends in it.
        num_words = tf.size(words, tf.int64)
        _, rows, ids = tf.while_loop(
            lambda continues, rows, ids: continues,
            lambda continues, rows, ids: self._merge_once(rows, ids, num_words),
            (tf.size(rows) > 1, rows, ids),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None]),
                tf.TensorShape([None]),
            ),
        )
        return tf.RaggedTensor.from_value_rowids(
            ids, rows, nrows=num_words, validate=False
        )

    def _merge_once(self, rows, ids, num_words):
        """Merges the pair of lowest rank in each word, wherever it occurs there."""
        ranks = self._rank_of_pair.lookup(ids[:-1] * self._num_ids + ids[1:])
        ranks = tf.where(rows[:-1] == rows[1:], ranks, self._no_rank)
        lowest = tf.math.unsorted_segment_min(ranks, rows[:-1], num_words)
        chosen = (ranks == tf.gather(lowest, rows[:-1])) & (ranks < self._no_rank)
        # In "aaa" the pair occurs twice and can be merged once: every other place of
        # an unbroken run, from its left.
        places = tf.range(tf.size(ranks))
        begins = chosen & ~tf.concat([[False], chosen[:-1]], axis=0)
        run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        first = tf.gather(
            tf.concat([tf.boolean_mask(places, begins), [0]], axis=0),
            tf.maximum(run, 0),
        )
        chosen &= (places - first) % 2 == 0
        merged = tf.gather(self._id_of_rank, tf.minimum(ranks, self._last_rank))
        ids = tf.concat([tf.where(chosen, merged, ids[:-1]), ids[-1:]], axis=0)
        keep = tf.concat([[True], ~chosen], axis=0)
        rows, ids = tf.boolean_mask(rows, keep), tf.boolean_mask(ids, keep)
        return tf.reduce_any(chosen), rows, ids


def _bytes_of_characters():
    """GPT-2's letters for bytes: the printable ones themselves, others from 256 on."""
    letters = ByteLevel.alphabet()
    own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return {**own, **{chr(256 + place): byte for place, byte in enumerate(others)}}


def _table(content, default=-1):
    keys = tf.constant(list(content))
    if keys.dtype != tf.string:
        keys = tf.cast(keys, tf.int64)
    values = tf.constant(list(content.values()), tf.int64)
    initializer = tf.lookup.KeyValueTensorInitializer(keys, values)
    return tf.lookup.StaticHashTable(initializer, default)
