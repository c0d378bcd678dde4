import re
import unicodedata

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from small_tokenizers import (
    FAMILIES,
    WORDS,
    byte_pair_vocabulary,
    make_tokenizer,
    word_piece_vocabulary,
)
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

from keras_minilmv2.data.packing import (
    batches,
    corpus_errors,
    packed_examples,
    require_examples,
    tokenize_function,
)
from keras_minilmv2.data.text import Corpus
from keras_minilmv2.tokenization.fast import COMMON


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return make_tokenizer(request.param)


@pytest.fixture(scope="module")
def bert_tokenizer():
    return make_tokenizer("Bert")


@pytest.fixture
def corpus(tmp_path):
    """60 documents of a few words, one of many."""
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(1, 30, size=30), 9_000, *rng.integers(1, 30, size=30)]
    documents = [" ".join(rng.choice(WORDS, size=length)) for length in lengths]
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents))
    return Corpus(path)


def reference(documents, tokenizer, sequence_length):
    """Packs by loops: token_ids and padding_mask, each a list of lists."""
    stream = []
    for index, document in enumerate(documents):
        if index:
            stream.append(tokenizer.end_token_id)
        stream.extend(int(token) for token in tokenizer([document])[0])
    token_ids, padding_mask = [], []
    while stream:
        content = stream[: sequence_length - 2]
        stream = stream[sequence_length - 2 :]
        row = [tokenizer.start_token_id, *content, tokenizer.end_token_id]
        padding = sequence_length - len(row)
        token_ids.append(row + padding * [tokenizer.pad_token_id])
        padding_mask.append([1] * len(row) + [0] * padding)
    return token_ids, padding_mask


def corpus_documents(corpus):
    text = "".join("\0" * starts_document + text for text, starts_document in corpus)
    return text.split("\0")[1:]


def columns(examples):
    rows = list(examples.as_numpy_iterator())
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


# Packing.


def test_packing_equals_the_reference_for_every_family(tokenizer, corpus):
    found = columns(packed_examples(corpus, tokenizer, 32))
    documents = corpus_documents(corpus)
    token_ids, padding_mask = reference(documents, tokenizer, 32)
    assert len(token_ids) > 200
    np.testing.assert_array_equal(found["token_ids"], token_ids)
    np.testing.assert_array_equal(found["padding_mask"], padding_mask)


@pytest.mark.parametrize("sequence_length", [16, 128, 512])
def test_packing_equals_the_reference_for_the_vocabulary_of_bert(
    data_dir, tmp_path, sequence_length
):
    tokenizer = keras_hub.models.BertTokenizer(
        str(data_dir / "vocab" / "bert-base-uncased" / "vocab.txt"), lowercase=True
    )
    text = (data_dir / "corpus" / "en" / "wikipedia_squad_train.txt").read_text()
    path = tmp_path / "a.txt"
    path.write_text(text[:100_000])
    corpus = Corpus(path)
    found = columns(packed_examples(corpus, tokenizer, sequence_length))
    token_ids, padding_mask = reference(
        corpus_documents(corpus), tokenizer, sequence_length
    )
    np.testing.assert_array_equal(found["token_ids"], token_ids)
    np.testing.assert_array_equal(found["padding_mask"], padding_mask)


def test_cutting_a_document_does_not_change_its_tokens(tokenizer, corpus):
    long = max(corpus_documents(corpus), key=len)
    whole = columns(packed_examples([(long, True)], tokenizer, 64))
    cut = [
        (word if i == 0 else " " + word, i == 0) for i, word in enumerate(long.split())
    ]
    chunks = columns(packed_examples(cut, tokenizer, 64))
    np.testing.assert_array_equal(chunks["token_ids"], whole["token_ids"])


def test_special_tokens_stand_where_the_family_wants_them(tokenizer, corpus):
    found = columns(packed_examples(corpus, tokenizer, 24))
    token_ids = found["token_ids"]
    lengths = found["padding_mask"].sum(axis=1)
    assert (token_ids[:, 0] == tokenizer.start_token_id).all()
    last = token_ids[np.arange(len(token_ids)), lengths - 1]
    assert (last == tokenizer.end_token_id).all()
    inside = token_ids[:, 1:][np.arange(23) < lengths[:, np.newaxis] - 2]
    assert (inside == tokenizer.end_token_id).sum() == 60  # between 61 documents
    for special in (tokenizer.start_token_id, tokenizer.pad_token_id):
        assert special not in inside


def test_only_the_last_example_is_padded(tokenizer, corpus):
    found = columns(packed_examples(corpus, tokenizer, 100))
    assert found["padding_mask"][:-1].all()
    padding = found["padding_mask"][-1] == 0
    assert padding.any()
    assert (np.diff(found["padding_mask"][-1]) <= 0).all()
    assert (found["token_ids"][-1][padding] == tokenizer.pad_token_id).all()


def test_a_stream_that_fills_its_examples_has_no_padding(bert_tokenizer):
    examples = packed_examples([("the fox " * 15, True)], bert_tokenizer, 17)
    found = columns(examples)
    assert found["padding_mask"].shape == (2, 17)
    assert found["padding_mask"].all()


def test_shapes_and_dtypes_are_static(bert_tokenizer, corpus):
    examples = packed_examples(corpus, bert_tokenizer, 32, segment_ids=True)
    spec = tf.TensorSpec([32], tf.int32)
    keys = ("token_ids", "padding_mask", "segment_ids")
    assert examples.element_spec == dict.fromkeys(keys, spec)
    assert not columns(examples)["segment_ids"].any()
    examples = packed_examples(corpus, bert_tokenizer, 32)
    assert "segment_ids" not in examples.element_spec


def test_examples_are_the_same_in_every_pass(bert_tokenizer, corpus):
    examples = packed_examples(corpus, bert_tokenizer, 32)
    first, second = columns(examples), columns(examples)
    np.testing.assert_array_equal(first["token_ids"], second["token_ids"])


def test_corpus_without_text_gives_no_examples(bert_tokenizer):
    assert list(packed_examples([], bert_tokenizer, 32)) == []


def test_document_without_tokens_keeps_its_separator(bert_tokenizer):
    chunks = [("fox", True), ("\u200b", True), ("dog", True)]
    (example,) = packed_examples(chunks, bert_tokenizer, 6)
    end = bert_tokenizer.end_token_id
    fox, dog = (bert_tokenizer.token_to_id(word) for word in ("fox", "dog"))
    expected = [bert_tokenizer.start_token_id, fox, end, end, dog, end]
    np.testing.assert_array_equal(example["token_ids"], expected)


# Special tokens in text.


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_text_are_text(family):
    kwargs = {}
    if family in ("Bert", "DistilBert", "Electra"):
        kwargs = {"special_tokens_in_strings": True, "lowercase": True}
    tokenizer = make_tokenizer(family, **kwargs)
    special = ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "<s>", "</s>", "<pad>", "<mask>"]
    text = " ".join(special) + "fox" + "".join(special)
    (example,) = packed_examples([(text, True)], tokenizer, 128)
    num_tokens = int(np.sum(example["padding_mask"]))
    content = example["token_ids"].numpy()[1 : num_tokens - 1]
    ids = {tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id}
    ids.add(tokenizer.mask_token_id)
    assert len(content) > 20
    assert ids.isdisjoint(content.tolist())


UNICODE_SPACES = [
    chr(code)
    for code in range(128, 0x110000)
    if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp")
]


def test_word_piece_splits_at_unicode_white_space_as_hugging_face_does():
    vocabulary = word_piece_vocabulary()
    ids = {token: index for index, token in enumerate(vocabulary)}
    expected = BertWordPieceTokenizer(ids, lowercase=True)
    tokenizer = make_tokenizer("Bert", lowercase=True)
    assert len(UNICODE_SPACES) > 15
    text = " ".join(f"The{space}Fox" for space in UNICODE_SPACES)
    (example,) = packed_examples([(text, True)], tokenizer, 128)
    found = example["token_ids"].numpy()[1 : 2 * len(UNICODE_SPACES) + 1]
    assert found.tolist() == expected.encode(text, add_special_tokens=False).ids
    assert ids["[UNK]"] not in found
    function = tokenize_function(tokenizer)
    np.testing.assert_array_equal(function([text], [False]), found)


@pytest.mark.parametrize("family", ["XLMRoberta", "Albert"])
def test_sentence_piece_splits_at_a_no_break_space(family):
    tokenizer = make_tokenizer(family)
    tokens = [
        packed_examples([(f"the{space}fox", True)], tokenizer, 32)
        for space in " \u00a0"
    ]
    plain, no_break = (columns(examples)["token_ids"] for examples in tokens)
    np.testing.assert_array_equal(no_break, plain)


def test_tokens_without_tf_data_are_the_same(tokenizer, corpus):
    chunks = list(corpus)
    function = tokenize_function(tokenizer)
    texts, starts = zip(*chunks, strict=True)
    found = function(texts, [False, *starts[1:]])
    (example,) = packed_examples(chunks, tokenizer, len(found) + 2)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(example["token_ids"][1:-1], found)


def test_word_piece_options_survive_packing():
    tokenizer = make_tokenizer(
        "Bert", special_tokens_in_strings=True, lowercase=True, split_on_cjk=False
    )
    text = "Fox [SEP] 語fox ÉA"
    (example,) = packed_examples([(text, True)], tokenizer, 16)
    plain = make_tokenizer("Bert", lowercase=True, split_on_cjk=False)
    num_tokens = int(np.sum(example["padding_mask"]))
    np.testing.assert_array_equal(
        example["token_ids"][1 : num_tokens - 1], plain([text])[0]
    )


# Byte-level BPE.


def graph_tokens(tokenizer, texts):
    """Tokens of keras-hub's own ops."""
    dataset = tf.data.Dataset.from_tensors(texts).map(
        lambda texts: tokenizer(texts).flat_values
    )
    return next(dataset.as_numpy_iterator())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("en/novel_Doyle_Hound_1902", marks=pytest.mark.slow),
        "multilingual/zh",
    ],
)
def test_roberta_tokens_are_those_of_the_ops_of_keras_hub(data_dir, name):
    vocabulary = data_dir / "vocab" / "roberta-base"
    tokenizer = keras_hub.models.RobertaTokenizer(
        str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt")
    )
    text = (data_dir / "corpus" / f"{name}.txt").read_text()[:12_000]
    # Where keras-hub has one token for two newlines, GPT-2 and Hugging Face have two.
    text = text.replace("\n\n", "\n")
    (example,) = packed_examples([(text, True)], tokenizer, 40_000)
    num_tokens = int(np.sum(example["padding_mask"]))
    expected = graph_tokens(tokenizer, [text])
    found = example["token_ids"].numpy()[1 : num_tokens - 1]
    assert num_tokens > 2_000
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_tokens_kept_by_word_are_those_of_the_library(add_prefix_space):
    vocabulary, merges = byte_pair_vocabulary()
    expected = ByteLevelBPETokenizer(
        vocabulary,
        [tuple(merge.split()) for merge in merges],
        add_prefix_space=add_prefix_space,
    )
    tokenizer = make_tokenizer("Roberta", add_prefix_space=add_prefix_space)
    places = ("{0}", "a{0}b", "1{0}2", " {0} {0}{0}  {0}", "'{0}s '{0}", "{0}\n\n{0} ")
    texts = [place.format(sign) for sign in COMMON for place in places]
    rng = np.random.default_rng(0)
    signs = list("abé1\u00a0 \n\t'!\x85\x1c\u2019語\u3000")
    texts += ["".join(rng.choice(signs, size=20)) for _ in range(5_000)]
    encodings = expected.encode_batch(texts)
    end = tokenizer.end_token_id
    tokens = [token for encoding in encodings for token in (end, *encoding.ids)]
    for num_threads in (1, 100):
        function = tokenize_function(tokenizer, num_threads)
        for _ in range(2):  # the second time all words are known
            assert function(texts, [True] * len(texts)).tolist() == tokens


def test_newline_is_a_token_of_byte_pairs():
    tokenizer = make_tokenizer("Roberta")
    (example,) = packed_examples([("a\n\nb\0", True)], tokenizer, 7)
    tokens = [tokenizer.id_to_token(int(index)) for index in example["token_ids"]]
    assert tokens == ["<s>", "a", "Ċ", "Ċ", "b", "Ā", "</s>"]


def test_prefix_space_of_byte_pairs_is_kept():
    tokenizer = make_tokenizer("Roberta", add_prefix_space=True)
    (example,) = packed_examples([("fox", True)], tokenizer, 3)
    assert tokenizer.id_to_token(int(example["token_ids"][1])) == "Ġfox"


# Batches.


@pytest.fixture(scope="module")
def numbers():
    return tf.data.Dataset.range(100).map(lambda n: {"token_ids": tf.fill([4], n)})


def order(dataset, num_batches=None):
    dataset = dataset if num_batches is None else dataset.take(num_batches)
    return np.concatenate([batch["token_ids"][:, 0] for batch in dataset])


def test_batches_keep_the_order_without_shuffling(numbers):
    dataset = batches(numbers, 8)
    assert dataset.element_spec["token_ids"].shape == (8, 4)
    np.testing.assert_array_equal(order(dataset), np.arange(96))


def test_last_batch_is_kept_when_asked_for(numbers):
    dataset = batches(numbers, 8, drop_remainder=False)
    np.testing.assert_array_equal(order(dataset), np.arange(100))


def test_shuffle_is_the_same_for_a_seed_and_new_in_every_epoch(numbers):
    def epochs(seed):
        dataset = batches(numbers, 10, shuffle_buffer=50, seed=seed)
        return order(dataset), order(dataset)

    first, second = epochs(seed=1)
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    assert (first != second).any()
    assert (epochs(seed=2)[0] != first).any()
    np.testing.assert_array_equal(epochs(seed=1), (first, second))


def test_repeated_batches_are_shuffled_anew_and_reproducible(numbers):
    def two_epochs():
        dataset = batches(numbers, 10, shuffle_buffer=50, seed=3, repeat=True)
        return order(dataset, 20)

    found = two_epochs()
    np.testing.assert_array_equal(np.sort(found[:100]), np.arange(100))
    np.testing.assert_array_equal(np.sort(found[100:]), np.arange(100))
    assert (found[:100] != found[100:]).any()
    np.testing.assert_array_equal(two_epochs(), found)


def test_repeated_batches_lose_no_example(numbers):
    dataset = batches(numbers, 30, repeat=True)
    np.testing.assert_array_equal(order(dataset, 10), np.tile(np.arange(100), 3))


# Errors.


def bad_corpus(tmp_path):
    path = tmp_path / "bäd 語.txt"
    path.write_bytes(b"the quick fox\n" * 20_000 + b"\xff")
    return Corpus(path)


def test_error_of_the_corpus_keeps_its_text_in_a_loop(tmp_path, bert_tokenizer):
    corpus = bad_corpus(tmp_path)
    examples = packed_examples(corpus, bert_tokenizer, 32)
    with (
        pytest.raises(ValueError, match=r"^`sources` must be UTF-8 .* offset 280000"),
        corpus_errors(corpus),
    ):
        list(examples)


def test_error_of_the_corpus_keeps_its_text_in_fit(tmp_path, bert_tokenizer):
    corpus = bad_corpus(tmp_path)
    dataset = batches(packed_examples(corpus, bert_tokenizer, 32), 8, repeat=True).map(
        lambda batch: (tf.cast(batch["token_ids"], "float32"), tf.zeros([8, 1]))
    )
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with (
        pytest.raises(ValueError, match=r"^`sources` must be UTF-8 .* offset 280000"),
        corpus_errors(Corpus(tmp_path), corpus),
    ):
        model.fit(dataset, verbose=0, shuffle=False)


def test_error_of_another_cause_passes(tmp_path, bert_tokenizer):
    corpus = bad_corpus(tmp_path)
    with pytest.raises(ValueError, match="UTF-8"), corpus_errors(corpus):
        list(packed_examples(corpus, bert_tokenizer, 32))
    with (
        pytest.raises(tf.errors.InvalidArgumentError, match=r"assertion failed|\[1\]"),
        corpus_errors(corpus),
    ):
        tf.debugging.assert_equal(1, 2)


def test_corpus_that_fills_its_examples_passes(tokenizer, corpus):
    require_examples(corpus, tokenizer, 128, num_examples=32)


def test_require_examples_reads_no_more_than_it_needs(tmp_path, bert_tokenizer):
    corpus = bad_corpus(tmp_path)
    require_examples(corpus, bert_tokenizer, 128)
    with pytest.raises(ValueError, match=r"^`sources` must be UTF-8"):
        require_examples(corpus, bert_tokenizer, 128, num_examples=10_000)


@pytest.mark.parametrize("text", ["", "fox fox\n\nfox"])
def test_corpus_with_too_few_tokens_is_named(tmp_path, bert_tokenizer, text):
    path = tmp_path / "a.txt"
    path.write_text(text)
    num_tokens = 4 if text else 0  # one of them between the documents
    message = (
        "`corpus` must have at least 60 tokens, 2 x (32 - 2). "
        f"Received: corpus with {num_tokens} tokens, sources=('{path}',)."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        require_examples(Corpus(path), bert_tokenizer, 32, num_examples=2)


def test_empty_held_out_part_is_named(tmp_path, bert_tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("the quick brown fox " * 50)
    corpus = Corpus(path, held_out_every=10, part="held_out")
    message = (
        "`corpus` must have at least 14 tokens, 1 x (16 - 2). Received: corpus with 0 "
        f"tokens, sources=('{path}',), part='held_out', held_out_every=10."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        require_examples(corpus, bert_tokenizer, 16)


def test_too_short_sequence_length_is_named(bert_tokenizer, corpus):
    message = (
        "`sequence_length` must be at least 3: a start token, a token and an end "
        "token. Received: sequence_length=2."
    )
    for function in (packed_examples, require_examples):
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            function(corpus, bert_tokenizer, 2)


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [("Bert", "sequence_length", 8), ("XLMRoberta", "add_bos", True)],
)
def test_tokenizer_that_packs_itself_is_refused(corpus, family, option, value):
    tokenizer = make_tokenizer(family, **{option: value})
    message = (
        f"`tokenizer` must not set `{option}`: packing does it. "
        f"Received: {option}={value}."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        packed_examples(corpus, tokenizer, 32)


def test_tokenizer_without_special_tokens_is_refused(corpus):
    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(word_piece_vocabulary())
    message = (
        "`tokenizer` must have a `start_token_id`. "
        "Received: tokenizer of type WordPieceTokenizer."
    )
    with pytest.raises(TypeError, match="^" + re.escape(message) + "$"):
        packed_examples(corpus, tokenizer, 32)
