import functools
import re

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from real_tokenizers import real_tokenizer
from small_models import TOKENIZERS
from small_tokenizers import make_tokenizer, word_piece_vocabulary

from keras_minilmv2.backbones.hugging_face.tokenizers import split_words_like_gpt2
from keras_minilmv2.data.packing import tokenize_function
from keras_minilmv2.tokenization import fast
from keras_minilmv2.tokenization.fast import fast_tokenizer

TEXTS = [
    "the quick brown fox",
    "  the  fox,\n\njumps!\t(over) 12.5% ",
    "a\u00a0fox\u3000over\u2003dogs",
    "cafe\u0301 \u1e0d\u0307 Stra\u00dfe \ufb01n \u2116 \u00bd wait\u2026",
    "北京 the 狗fox 東京",
    "हिन्दी का ملف \u0627\u0644 \u1112\u1161\u11ab 한국 \U0001f600\U0001f600x",
    "[CLS] the</s> fox [MASK]<pad>",
    "soft\u00adhyphen zero\u200bwidth \u202ea\x1cb\x7f",
    "x" * 150 + " fox",
    "",
    " \u200b ",
]


@functools.cache
def real_texts(data_dir):
    """Paragraphs in 15 languages."""
    paths = sorted((data_dir / "corpus" / "multilingual").glob("*.txt"))
    assert len(paths) == 15
    return [text for path in paths for text in path.read_text()[:6_000].split("\n\n")]


REAL = ["bert_uncased", "bert_cased", "roberta", "albert", "xlm_roberta"]


def check(tokenizer, texts):
    """Ids are the tokenizer's; offsets lie in the text, in order."""
    encodings = fast_tokenizer(tokenizer).offsets(texts)
    separated = [([tokenizer.end_token_id], row.token_ids) for row in encodings]
    found = np.concatenate([part for parts in separated for part in parts])
    expected = tokenize_function(tokenizer)(texts, [True] * len(texts))
    np.testing.assert_array_equal(found, expected)
    for text, (token_ids, begins, ends) in zip(texts, encodings, strict=True):
        assert token_ids.dtype == begins.dtype == ends.dtype == np.int32
        assert len(begins) == len(ends) == len(token_ids)
        assert (begins <= ends).all()
        assert (np.diff(begins) >= 0).all()
        assert (np.diff(ends) >= 0).all()
        assert {0, len(text)} >= {*np.minimum(begins, 0), *np.maximum(ends, len(text))}


def pieces(tokenizer, text):
    """The text of each token by its offsets."""
    (encoding,) = fast_tokenizer(tokenizer).offsets([text])
    places = zip(encoding.begins, encoding.ends, strict=True)
    return [text[begin:end] for begin, end in places]


@pytest.mark.parametrize("family", TOKENIZERS.values())
def test_tokens_are_those_of_the_tokenizer(family, monkeypatch):
    monkeypatch.setattr(fast, "_BLOCK_TEXTS", 4)
    check(make_tokenizer(family), TEXTS)


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "split_on_cjk"),
    [(True, True, False), (True, False, True), (False, True, True)],
)
def test_tokens_of_word_pieces_follow_the_options(
    lowercase, strip_accents, split_on_cjk
):
    tokenizer = make_tokenizer(
        "Bert",
        lowercase=lowercase,
        strip_accents=strip_accents,
        split_on_cjk=split_on_cjk,
    )
    check(tokenizer, TEXTS)


def test_one_for_each_language_is_made_without_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    for _ in range(8):
        check(make_tokenizer("Bert"), ["the quick brown fox"])
    assert not [record for record in caplog.records if "retracing" in record.message]


def test_tokens_of_byte_pairs_may_begin_with_a_space():
    tokenizer = make_tokenizer("Roberta", add_prefix_space=True)
    check(tokenizer, [text for text in TEXTS if text])
    assert pieces(tokenizer, "fox fox") == ["fox", "fox"]


@pytest.mark.parametrize("name", REAL)
def test_tokens_of_real_text_are_those_of_the_tokenizer(data_dir, name):
    check(real_tokenizer(data_dir, name), [*real_texts(data_dir), *TEXTS])


def test_tokens_of_real_byte_pairs_are_those_of_keras_hub(data_dir):
    tokenizer = split_words_like_gpt2(real_tokenizer(data_dir, "roberta"))
    texts = real_texts(data_dir)
    for encoding, expected in zip(
        fast_tokenizer(tokenizer).offsets(texts), tokenizer(texts), strict=True
    ):
        np.testing.assert_array_equal(encoding.token_ids, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Über-Straßen", ["Über", "-", "St", "raße", "n"]),
        ("Cafe\u0301s déjà", ["Cafe\u0301s", "dé", "jà"]),
        ("½ №12 \ufb01ne", ["½", "№", "12", "\ufb01", "ne"]),
        ("東京 (Tōkyō)", ["東", "京", "(", "Tōkyō", ")"]),
        ("  U.S.\u00a0$5", ["U", ".", "S", ".", "$", "5"]),
        ("naïvete\u0301", ["naïve", "te\u0301"]),
    ],
)
def test_offsets_of_real_word_pieces(data_dir, text, expected):
    assert pieces(real_tokenizer(data_dir, "bert_uncased"), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello  world… ﬁ", ["Hello", "", "world", "…", "ﬁ", "ﬁ", "ﬁ"]),
        ("x\n\ny", ["x", "", "", "y"]),
        ("京é", ["京", "京", "é"]),
    ],
)
def test_offsets_of_real_byte_pairs(data_dir, text, expected):
    assert pieces(real_tokenizer(data_dir, "roberta"), text) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("xlm_roberta", "Hello  world…", ["Hello", "world", "…"]),
        ("xlm_roberta", "北京 हिन्दी", ["", "北京", "हिन्दी"]),
        (
            "xlm_roberta",
            "e\u0301te\u0301 \U0001f600",
            ["e\u0301te\u0301", "\U0001f600"],
        ),
        ("albert", "wait… ½", ["wait", "…", "…", "…", "½", "½", "½"]),
        ("albert", "the \ufb01x", ["the", "\ufb01x"]),
    ],
)
def test_offsets_of_real_sentence_pieces(data_dir, name, text, expected):
    assert pieces(real_tokenizer(data_dir, name), text) == expected


def test_removed_characters_within_a_word_are_part_of_its_token():
    tokenizer = make_tokenizer("Bert")
    text = "a fo\u00adx\u200b, a\0the"
    ids = fast_tokenizer(tokenizer).ids([text])[0].tolist()
    assert [tokenizer.id_to_token(i) for i in ids][:3] == ["a", "fox", ","]
    assert pieces(tokenizer, text)[:3] == ["a", "fo\u00adx", ","]
    assert "".join(pieces(tokenizer, text)[3:]) == "athe"


# Errors.


def test_other_tokenizers_are_refused():
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    message = (
        "`tokenizer` must be one of WordPieceTokenizer, BytePairTokenizer, "
        "SentencePieceTokenizer. Received: tokenizer of type ByteTokenizer."
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        fast_tokenizer(tokenizer)


def test_tokenizer_without_special_tokens_is_refused():
    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(word_piece_vocabulary())
    with pytest.raises(TypeError, match=r"^`tokenizer` must have a `start_token_id`"):
        fast_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("family", "option", "value", "message"),
    [
        (
            "Bert",
            "sequence_length",
            8,
            "not set `sequence_length`: packing does it. Received: sequence_length=8.",
        ),
        ("Bert", "split", False, "split words. Received: split=False."),
        (
            "XLMRoberta",
            "add_bos",
            True,
            "not set `add_bos`: packing does it. Received: add_bos=True.",
        ),
    ],
)
def test_tokenizer_that_does_more_or_less_is_refused(family, option, value, message):
    with pytest.raises(ValueError, match=re.escape(f"`tokenizer` must {message}")):
        fast_tokenizer(make_tokenizer(family, **{option: value}))
