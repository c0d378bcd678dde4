"""Windows against loops written from the original BERT code, and their batches."""

import re

import numpy as np
import pytest
import tensorflow as tf
from real_tokenizers import real_tokenizer
from small_models import TOKENIZERS
from small_tokenizers import make_tokenizer
from small_windows import SIZES, encode, family_features

from keras_minilmv2.downstream.answers import best_answers
from keras_minilmv2.downstream.reader import SpanExample, load_span_examples
from keras_minilmv2.downstream.windows import span_dataset, span_features


def reference_windows(family, example):
    """Windows of one example by loops, as the original BERT code cuts them."""
    tokenizer = make_tokenizer(family)
    asked, context = encode(family)([example.question, example.context])
    asked = asked.token_ids.tolist()[: SIZES["max_question_length"]]
    end = [tokenizer.end_token_id]
    separators = end * (2 if "Roberta" in family else 1)
    prefix = [tokenizer.start_token_id, *asked, *separators]
    room = SIZES["sequence_length"] - len(prefix) - 1
    spans, begin, size = [], 0, len(context.token_ids)
    while True:
        count = min(size - begin, room)
        spans.append((begin, count))
        if begin + count == size:
            break
        begin += min(count, SIZES["doc_stride"])
    for number, (begin, count) in enumerate(spans):
        tokens = [*prefix, *context.token_ids[begin : begin + count].tolist(), *end]
        is_max_context = []
        for place in range(begin, begin + count):
            scores = [
                min(place - other, other + length - 1 - place) + 0.01 * length
                if other <= place < other + length
                else -1
                for other, length in spans
            ]
            is_max_context.append(scores.index(max(scores)) == number)
        inside = None
        if example.answers:
            (start,), (text,) = example.answer_starts, example.answers
            # A part of a word is the whole word; white space belongs to no token.
            touched = [
                place
                for place in range(size)
                if max(context.begins[place], start)
                < min(context.ends[place], start + len(text))
            ]
            if not touched:
                inside = (-1, -1)
            elif begin <= touched[0] and touched[-1] < begin + count:
                shift = len(prefix) - begin
                inside = touched[0] + shift, touched[-1] + shift
        yield tokens, len(prefix), is_max_context, inside or (0, 0)


@pytest.mark.parametrize("family", TOKENIZERS.values())
def test_windows_are_those_of_the_reference(family):
    features = family_features(family)
    tokenizer = make_tokenizer(family)
    row = 0
    for number, example in enumerate(features.examples):
        for tokens, begin, is_max_context, label in reference_windows(family, example):
            size = len(tokens)
            assert features.example_index[row] == number
            assert features.num_tokens[row] == size
            assert features.context_begin[row] == begin
            assert features.token_ids[row, :size].tolist() == tokens
            assert (features.token_ids[row, size:] == tokenizer.pad_token_id).all()
            of_context = features.is_max_context[row, begin : size - 1]
            assert of_context.tolist() == is_max_context
            found = features.start_positions[row], features.end_positions[row]
            assert found == label
            row += 1
    assert row == len(features)
    assert row > 3 * len(features.examples)
    assert (features.start_positions > 0).any()
    assert (features.start_positions == 0).any()


@pytest.mark.parametrize("family", TOKENIZERS.values())
def test_windows_look_as_the_family_wants_them(family):
    tokenizer = make_tokenizer(family)
    example = SpanExample("a", "fox", "the dog")
    asked, context = (
        [tokenizer.id_to_token(int(index)) for index in encoding.token_ids]
        for encoding in encode(family)([example.question, example.context])
    )
    if "Roberta" in family:
        expected = ["<s>", *asked, "</s>", "</s>", *context, "</s>"]
        context_segment = 0
    else:
        expected = ["[CLS]", *asked, "[SEP]", *context, "[SEP]"]
        context_segment = 1
    size, rest = len(expected), 30 - len(expected)
    pad = "[PAD]" if family in ("Bert", "DistilBert", "Electra") else "<pad>"
    before = [0] * (size - len(context) - 1)
    sizes = {"sequence_length": 30, "max_question_length": 9}
    inputs = span_features(tokenizer, [example], **sizes).inputs([0])
    tokens = [tokenizer.id_to_token(int(index)) for index in inputs["token_ids"][0]]
    assert tokens == expected + [pad] * rest
    assert inputs["padding_mask"][0].tolist() == [1] * size + [0] * rest
    segments = [*before, *[context_segment] * (len(context) + 1), *[0] * rest]
    assert inputs["segment_ids"][0].tolist() == segments
    may_answer = [1, *before[1:], *[1] * len(context), *[0] * (rest + 1)]
    assert inputs["answer_mask"][0].tolist() == may_answer
    assert all(values.dtype == np.int32 for values in inputs.values())


def test_inputs_can_be_cut_to_a_length():
    features = family_features("Bert")
    rows = np.array([3, 1])
    cut, whole = features.inputs(rows, 10), features.inputs(rows)
    for name, values in whole.items():
        np.testing.assert_array_equal(cut[name], values[:, :10])


def test_labels_cut_the_answer_out_of_the_context(data_dir):
    for name, dataset, least in (
        ("bert_uncased", "squad/v1.1", 0.98),
        ("roberta", "squad/v1.1", 0.98),
        ("xlm_roberta", "mlqa/hi", 0.99),
        ("xlm_roberta", "mlqa/zh", 0.94),
    ):
        examples = load_span_examples(dataset, "dev", data_dir)[:500]
        features = span_features(real_tokenizer(data_dir, name), examples)
        assert features.start_positions.min() >= 0
        rows = np.flatnonzero(features.start_positions)
        assert len(set(features.example_index[rows])) == 500
        matches = []
        for row in rows:
            example = examples[features.example_index[row]]
            begin = features.char_begins[row, features.start_positions[row]]
            end = features.char_ends[row, features.end_positions[row]]
            assert example.answers[0].strip("\u200b ") in example.context[begin:end]
            matches.append(example.context[begin:end] == example.answers[0])
        assert np.mean(matches) > least


def test_answer_without_a_place_is_not_known():
    context, nowhere = "the fox", ((" ",), (3,))
    examples = [
        SpanExample("a", "fox", context, ("dog",), (None,)),
        SpanExample("b", "fox", context, ("dog", "fox"), (None, 4)),
        SpanExample("c", "fox", context, *nowhere),
        SpanExample("d", "fox", context),
        SpanExample("e", "fox", "\u200b", ("\u200b",), (0,)),
    ]
    features = span_features(make_tokenizer("Bert"), examples, **SIZES)
    assert features.start_positions.tolist() == [-1, 4, -1, 0, -1]
    assert features.end_positions.tolist() == [-1, 4, -1, 0, -1]
    assert features.num_tokens.tolist() == [6, 6, 6, 6, 4]


def test_windows_take_13_bytes_a_token():
    features = family_features("Bert")
    num_tokens = len(features) * SIZES["sequence_length"]
    arrays = [value for value in vars(features).values() if hasattr(value, "nbytes")]
    per_window = 5 * 4  # example, tokens, context, start, end
    num_bytes = sum(array.nbytes for array in arrays)
    assert num_bytes == 13 * num_tokens + per_window * len(features)


def test_no_examples_make_no_windows():
    features = span_features(make_tokenizer("Bert"), [], **SIZES)
    assert len(features) == 0
    logits = np.zeros((0, SIZES["sequence_length"]), "float32")
    assert best_answers(features, logits, logits) == ({}, {}, {})


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_room_for_the_context_is_needed(family):
    num_special = 4 if family == "Roberta" else 3
    message = (
        "`sequence_length` must leave room for the context after `max_question_length` "
        f"tokens and {num_special} special ones. Received: "
        f"sequence_length={8 + num_special}, max_question_length=8."
    )
    sizes = {"sequence_length": 8 + num_special, "max_question_length": 8}
    with pytest.raises(ValueError, match=re.escape(message)):
        span_features(make_tokenizer(family), [], **sizes)


@pytest.mark.parametrize("name", ["doc_stride", "max_question_length"])
def test_sizes_of_windows_must_be_positive(name):
    message = f"`{name}` must be an int of at least 1. Received: {name}=0."
    with pytest.raises(ValueError, match=re.escape(message)):
        span_features(make_tokenizer("Bert"), [], **{name: 0})


def rows_of(batch):
    """Which windows a batch has."""
    features = family_features("Bert")
    token_ids = batch["token_ids"].numpy()[:, np.newaxis]
    return np.argmax((token_ids == features.token_ids).all(axis=2), axis=1).tolist()


def test_batches_hold_every_known_window_in_another_order_each_epoch():
    features = family_features("Bert")
    known = np.flatnonzero(features.start_positions >= 0)
    num_batches = -(-len(known) // 4)

    def rows(seed=1, num_epochs=2):
        dataset = span_dataset(features, 4, num_epochs=num_epochs, seed=seed)
        assert int(dataset.cardinality()) == num_epochs * num_batches
        return [rows_of(inputs) for inputs, _ in dataset]

    def epoch(batches):
        return [row for batch in batches for row in batch]

    found = rows()
    assert sorted(map(len, found[:num_batches]))[1:] == [4] * (num_batches - 1)
    first, second = epoch(found[:num_batches]), epoch(found[num_batches:])
    assert sorted(first) == sorted(second)
    assert len(first) == len(known)
    assert len(set(first)) > len(first) // 2  # some windows are alike
    assert first != second
    assert rows() == found
    assert epoch(rows(num_epochs=1)) == first
    assert epoch(rows(seed=2, num_epochs=1)) != first


def test_batches_are_as_long_as_their_windows():
    tokenizer = make_tokenizer("Bert")
    examples = [
        SpanExample(str(i), "fox", "fox " * (20 * i + 1), ("fox",), (0,))
        for i in range(16)
    ]
    features = span_features(
        tokenizer, examples, sequence_length=300, doc_stride=40, max_question_length=8
    )
    dataset = span_dataset(features, 2)
    shapes = [inputs["token_ids"].shape for inputs, _ in dataset]
    assert {length for _, length in shapes} == {64, 128, 192, 256, 300}
    assert sum(rows for rows, _ in shapes) == len(features)
    assert sum(rows * length for rows, length in shapes) < 0.7 * 300 * len(features)


def test_batches_have_their_labels():
    features = family_features("Roberta")
    dataset = span_dataset(features, 4)
    inputs, labels = dataset.element_spec
    assert set(inputs) == {"token_ids", "padding_mask", "segment_ids", "answer_mask"}
    assert {tuple(spec.shape) for spec in inputs.values()} == {(None, None)}
    assert all(spec.dtype == tf.int32 for spec in {**inputs, **labels}.values())
    names = ("token_ids", "start_positions", "end_positions")
    known = np.concatenate([np.c_[getattr(features, name)] for name in names], axis=1)
    known = {tuple(row) for row in known.tolist()}
    for inputs, labels in dataset:
        columns = [inputs["token_ids"], *(np.c_[value] for value in labels.values())]
        assert known.issuperset(map(tuple, np.concatenate(columns, axis=1).tolist()))


def test_nothing_to_train_on_is_named():
    example = SpanExample("a", "fox", "the fox", ("dog",), (None,))
    features = span_features(make_tokenizer("Bert"), [example], **SIZES)
    message = (
        "`features` must have a window whose label is known. "
        "Received: features of 1 windows."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        span_dataset(features, 2)


@pytest.mark.parametrize("name", ["batch_size", "num_epochs"])
def test_sizes_of_batches_must_be_positive(name):
    with pytest.raises(ValueError, match=f"^`{name}` must be an int of at least 1."):
        span_dataset(family_features("Bert"), **{"batch_size": 2, name: 0})
