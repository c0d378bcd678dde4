import json
import random

import keras_hub
import pytest
import tensorflow as tf
from small_exports import make_tokenizer

from keras_minilmv2.data.packing import tokenize_function
from keras_minilmv2.tokenization.byte_pair_graph import BytePairGraph

HARD_TEXTS = [
    "",
    " ",
    "a quick fox",
    "  two  spaces \n\n blank\n\n\nlines \t ",
    "</s> <s> <pad> ६ a६b Ġ Ĵ",
    "a\x00b \x00\x01 \x00\x02 \x01\x03\x01\x04 \x01",
    "it's we'll 's ''s 'S",
    "aaaa aaaaaaa bbbbb",
    "\t\n x\u3000y\u00a0 z\u2028",
    "👩\u200d👩\u200d👧 שלום مرحبا 你好世界 naïve",
]


def tokens(tokenizer, texts, max_tokens=1_000):
    graph = BytePairGraph(tokenizer, max_tokens)
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda x: graph(x), input_signature=signature)(texts).to_list()


def training_tokens(tokenizer, texts):
    tokenize = tokenize_function(tokenizer)
    return [tokenize([text], [False]).tolist() for text in texts]


def random_texts(number, seed):
    generator = random.Random(seed)
    every = [*range(0x250), *range(0x590, 0x700), *range(0x2000, 0x2070), 0x1F600]
    alphabets = [
        [chr(code) for code in every],
        list(" \n\ta'st"),
        list("ab 's\u00a0\u3000\x00\x01\x02\x03\x04"),
        ["quick", " quick", " fox", "fo", "x", " "],
    ]
    return [
        "".join(generator.choices(generator.choice(alphabets), k=length))
        for length in generator.choices([1, 3, 10, 100], k=number)
    ]


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_tokens_are_those_of_training(add_prefix_space):
    tokenizer = make_tokenizer("Roberta", add_prefix_space=add_prefix_space)
    texts = HARD_TEXTS + random_texts(500, seed=0)
    assert tokens(tokenizer, texts) == training_tokens(tokenizer, texts)


def test_tokens_of_the_real_vocabulary_are_those_of_training(data_dir):
    vocabulary = data_dir / "vocab" / "roberta-base"
    tokenizer = keras_hub.models.RobertaTokenizer(
        json.loads((vocabulary / "vocab.json").read_text(encoding="utf-8")),
        (vocabulary / "merges.txt").read_text(encoding="utf-8").splitlines(),
    )
    corpus = data_dir / "corpus" / "multilingual"
    texts = [
        line
        for file in sorted(corpus.iterdir())
        for line in file.read_text(encoding="utf-8").splitlines()[:20]
    ]
    texts += HARD_TEXTS + random_texts(1_000, seed=1)
    assert len(texts) > 1_200
    assert tokens(tokenizer, texts, 20_000) == training_tokens(tokenizer, texts)


def test_the_first_tokens_of_a_long_text_do_not_depend_on_the_rest():
    tokenizer = make_tokenizer("Roberta")
    texts = ["quick fox " * 1_000, "quick" * 5_000, "\n" * 9_000, " fox"]
    found = tokens(tokenizer, texts, max_tokens=7)
    expected = training_tokens(tokenizer, texts)
    assert [row[:7] for row in found] == [row[:7] for row in expected]


def test_bytes_without_an_id_are_left_out():
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "ab": 6}
    tokenizer = keras_hub.models.RobertaTokenizer({**vocabulary, "<mask>": 7}, ["a b"])
    texts = ["abcab", "c", "acb"]
    assert tokens(tokenizer, texts) == training_tokens(tokenizer, texts)


def test_no_texts_give_no_rows():
    tokenizer = make_tokenizer("Roberta")
    assert tokens(tokenizer, tf.constant([], tf.string)) == []
