"""The ids of a text are the same on every path, and those of transformers."""

import itertools
import json

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from small_tokenizers import FAMILIES, make_tokenizer

from keras_minilmv2.backbones.loading import load_tokenizer
from keras_minilmv2.backbones.vocabulary import token_counter
from keras_minilmv2.data.packing import packed_examples, tokenize_function
from keras_minilmv2.downstream.texts import encode
from keras_minilmv2.serving.text_inputs import TextInputs
from keras_minilmv2.tokenization.fast import COMMON, fast_tokenizer

ODD_TEXTS = [
    "the\u00a0fox \u2009over\u3000the\u202fdog",
    "a</s>b <mask> <pad> [MASK] [SEP]",
    "a\0b \0 the\x07bell\x0bx\x7f",
    "la\u00adzy ju\u200bmps ru\u200cns \u2060fox\ufeff \ue000dog \ufffd",
    "tab\tand\r\nline\u2028sep\u0085nel",
    "Straße ﬁne Ⅷ ① … № ½",
    "ΟΔΟΣ Σίσυφος İstanbul ẞ",
    "x" * 100 + " " + "x" * 101 + " " + "é" * 101,
    "e\u0301 a\u0316\u0301, \u0301b a≠b c\u037ed",
    "北京 हिन्दी १२६ \u1112\u1161\u11ab 👩\u200d👩\u200d👧",
    "",
    " \u200b ",
]


def check_same_ids(tokenizer, texts):
    fast = fast_tokenizer(tokenizer)
    rows = [row.tolist() for row in fast.rows(texts)]
    # Packing, by a function and by tf.data.
    tokenize = tokenize_function(tokenizer)
    assert [tokenize([text], [False]).tolist() for text in texts] == rows
    stream = list(itertools.chain.from_iterable(rows))
    many_threads = tokenize_function(tokenizer, num_threads=64)
    assert many_threads(texts, [False] * len(texts)).tolist() == stream
    (example,) = packed_examples(
        [(text, i == 0) for i, text in enumerate(texts)], tokenizer, len(stream) + 2
    )
    assert example["token_ids"].numpy()[1:-1].tolist() == stream
    # Question answering.
    assert [row.token_ids.tolist() for row in fast.offsets(texts)] == rows
    # Shrinking a vocabulary.
    counts = np.bincount(stream, minlength=tokenizer.vocabulary_size())
    np.testing.assert_array_equal(token_counter(tokenizer)(texts), counts)
    # Serving.
    length = max(map(len, rows)) + 2
    found = TextInputs(tokenizer, (length,), 1, False)(tf.constant(texts))
    lengths = found["padding_mask"].numpy().sum(axis=1)
    ids = found["token_ids"].numpy()
    assert [r[1 : n - 1].tolist() for r, n in zip(ids, lengths, strict=True)] == rows
    # Fine-tuning and evaluation.
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor
    if not isinstance(tokenizer, keras_hub.models.BertTokenizer):
        preprocessor = type(
            "Preprocessor", (preprocessor,), {"tokenizer_cls": type(tokenizer)}
        )
    encoded = encode(
        (texts,), preprocessor(tokenizer, sequence_length=length), segment_ids=False
    )
    inner = np.split(encoded.token_ids, np.cumsum(encoded.lengths)[:-1])
    assert [row[1:-1].tolist() for row in inner] == rows


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_odd_texts_are_the_same_on_every_path(family):
    check_same_ids(make_tokenizer(family), ODD_TEXTS)


@pytest.mark.parametrize("strip_accents", [True, False])
def test_ids_of_uncased_word_pieces_are_the_same_on_every_path(strip_accents):
    options = {"lowercase": True, "strip_accents": strip_accents}
    check_same_ids(make_tokenizer("Bert", **options), ODD_TEXTS)


def test_words_kept_by_python_are_those_of_the_library():
    places = ("{0}", "a{0}b", "1{0}2", " {0} {0}{0}  {0}", "{0}\n\n{0} ")
    texts = [place.format(sign) for sign in COMMON for place in places]
    for tokenizer in (make_tokenizer("Bert", lowercase=True), make_tokenizer("Bert")):
        ids = fast_tokenizer(tokenizer).ids
        for kept, library in zip(ids(texts), ids(texts, keep_words=False), strict=True):
            np.testing.assert_array_equal(kept, library)


def test_text_after_nul_is_read_and_invisible_characters_join_words():
    tokenizer = make_tokenizer("Bert")
    rows = fast_tokenizer(tokenizer).rows(["fox\0 dog", "fo\u00adx do\u200bg"])
    expected = [tokenizer.token_to_id(word) for word in ("fox", "dog")]
    assert [row.tolist() for row in rows] == [expected, expected]


@pytest.fixture(scope="module")
def cases(data_dir):
    directory = data_dir.parent / "cases"
    if not directory.is_dir():
        pytest.skip(f"no cases at {directory}")
    return directory


@pytest.mark.parametrize(
    ("name", "refused_for"),
    [
        ("bert_bpe", "WordPiece. .*model_type='BPE'"),
        ("japanese_char", "tokenizer_class='BertJapaneseTokenizer'"),
        ("roberta_trained_lower", "normalizer={'type': 'Lowercase'}"),
        ("wp_cased_none", "normalizer={'type': None}"),
        ("wp_lower_keepaccents", "normalizer={'type': 'NFC'}"),
        ("wp_trained_cased", "normalizer={'type': 'NFD'}"),
    ],
)
def test_tokenizers_of_other_steps_are_refused_by_name(cases, name, refused_for):
    with pytest.raises(ValueError, match=refused_for) as error:
        load_tokenizer(cases / "tokenizers" / name)
    assert str(error.value).startswith("`preset` must ")


@pytest.mark.parametrize(
    "name", ["bert-base-uncased", "roberta-base", "xlm-roberta-base"]
)
def test_ids_are_those_of_transformers(data_dir, cases, tmp_path, name):
    model_type = name.removesuffix("-base").removesuffix("-base-uncased")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for file in (data_dir / "vocab" / name).iterdir():
        (tmp_path / file.name).symlink_to(file)
    texts = json.loads((cases / "texts.json").read_text(encoding="utf-8"))
    expected = json.loads((cases / "expected_ids.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(tmp_path)
    rows = [row.tolist() for row in fast_tokenizer(tokenizer).rows(texts)]
    assert rows == expected[name]
    check_same_ids(tokenizer, texts)
