"""WordPiece tokenization with BERT's text cleaning as a graph of TensorFlow ops.

The tokenizer of keras-hub 0.32 is not used for it: it takes ASCII white space alone for
spaces, splits words at invisible characters that BERT removes, and folds case by
NFKC_Casefold where BERT lower-cases.
"""

import functools

import tensorflow as tf
import tensorflow_text as tf_text
from tokenizers import normalizers, pre_tokenizers

# The longest word, in characters, that BERT looks up.
MAX_WORD_CHARS = 100
_MAX_BYTES_PER_CHAR = 4


class WordPieceGraph(tf.Module):
    """Tokens of texts as BERT cleans, splits and looks them up.

    Args:
        vocabulary: list of str.
        lowercase: bool.
        strip_accents: bool.
        split_on_cjk: bool.
        suffix_indicator: str.
        oov_token: str.

    Call arguments:
        texts: string `(batch,)`, valid UTF-8.

    Returns:
        int32 `tf.RaggedTensor` `(batch, None)`.
    """

    def __init__(
        self,
        vocabulary,
        lowercase,
        strip_accents,
        split_on_cjk,
        suffix_indicator,
        oov_token,
    ):
        super().__init__()
        classes = _character_classes()
        self._removed = f"[{classes['removed']}]"
        self._spaces = f"[{classes['spaces']}]"
        self._punctuation = f"[{classes['punctuation']}]"
        self._cjk = f"[{classes['cjk']}]" if split_on_cjk else None
        self._marks = f"[{classes['marks']}]" if strip_accents else None
        self._lowercase = lowercase
        max_bytes = MAX_WORD_CHARS * _MAX_BYTES_PER_CHAR
        # A word of too many characters, in place of one of too many bytes.
        self._unknown_word = "x" * (max_bytes + 1)
        self._look_up = tf_text.FastWordpieceTokenizer(
            vocab=vocabulary,
            suffix_indicator=suffix_indicator,
            unknown_token=oov_token,
            max_bytes_per_word=max_bytes,
            token_out_type=tf.int32,
            no_pretokenization=True,
        )

    def __call__(self, texts):
        """The tokens of a batch of texts."""
        texts = tf.strings.regex_replace(texts, self._removed, "")
        texts = tf.strings.regex_replace(texts, self._spaces, " ")
        if self._cjk:
            texts = tf.strings.regex_replace(texts, self._cjk, r" \0 ")
        if self._marks:
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, self._marks, "")
        if self._lowercase:
            # Unicode's lower-casing knows a final sigma, BERT's does not.
            texts = tf.strings.regex_replace(texts, "\u03a3", "\u03c3")
            texts = tf.strings.lower(texts, encoding="utf-8")
        words = tf_text.regex_split(texts, f" |{self._punctuation}", self._punctuation)
        too_long = tf.strings.length(words.values, "UTF8_CHAR") > MAX_WORD_CHARS
        words = words.with_values(tf.where(too_long, self._unknown_word, words.values))
        return self._look_up.tokenize(words).merge_dims(-2, -1)


def word_piece_options(tokenizer):
    """The arguments of `WordPieceGraph` for a keras-nlp WordPiece tokenizer."""
    names = (
        "lowercase",
        "strip_accents",
        "split_on_cjk",
        "suffix_indicator",
        "oov_token",
    )
    options = {name: getattr(tokenizer, name) for name in names}
    return {"vocabulary": tokenizer.get_vocabulary(), **options}


@functools.cache
def _character_classes():
    """BERT's classes of characters as `tokenizers` has them, as contents of `[]`.

    They are asked of the library: its version of Unicode is another than that of
    Python and of TensorFlow.
    """
    # Without surrogates and the planes that no version of Unicode uses.
    codes = [
        *range(0xD800),
        *range(0xE000, 0x30000),
        *range(0xE0000, 0xE1000),
        *range(0xF0000, 0x110000),
    ]
    # "|" separates them.
    codes.remove(ord("|"))
    characters = list(map(chr, codes))
    joined = "|".join(characters)

    steps = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")

    def codes_that_become(result, step):
        normalizer = normalizers.BertNormalizer(**{s: s == step for s in steps})
        parts = normalizer.normalize_str(joined).split("|")
        pairs = zip(codes, characters, parts, strict=True)
        return [code for code, c, part in pairs if part == result.format(c)]

    removed = codes_that_become("", "clean_text")
    spaces = codes_that_become(" ", "clean_text")
    gone = {*removed, *spaces}
    words = " ".join(f"a{chr(code)}" for code in codes if code not in gone)
    pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(words)
    punctuation = [ord(p) for p, _ in pieces if len(p) == 1 and p != "a"]
    return {
        "removed": _ranges(removed),
        "spaces": _ranges(spaces),
        "punctuation": _ranges(sorted([*punctuation, ord("|")])),
        "cjk": _ranges(codes_that_become(" {} ", "handle_chinese_chars")),
        "marks": _ranges(codes_that_become("", "strip_accents")),
    }


def _ranges(codes):
    """Ascending codes of characters as ranges of RE2."""
    ranges = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in ranges)
