import functools
import json
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from small_models import TOKENIZERS
from small_tokenizers import make_tokenizer

from keras_minilmv2.downstream.question_answering import (
    SpanExample,
    best_answers,
    load_span_examples,
    num_misplaced,
    read_span_examples,
    span_dataset,
    span_features,
)
from keras_minilmv2.downstream.span_metrics import (
    MLQA_LANGUAGES,
    mlqa_metrics,
    squad_metrics,
)
from keras_minilmv2.tokenization.fast import fast_tokenizer

CONTEXT = "the quick brown fox jumps over the lazy dog"


def question(identity="q1", text="who jumps?", **more):
    return {"id": identity, "question": text, "answers": [], **more}


def answer(text, start):
    return {"text": text, "answer_start": start}


def write(path, *questions, context=CONTEXT):
    content = {"data": [{"title": "a", "paragraphs": [{"qas": list(questions)}]}]}
    if context is not None:
        content["data"][0]["paragraphs"][0]["context"] = context
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def read(tmp_path, *questions, strict=False, **more):
    return read_span_examples(
        write(tmp_path / "a.json", *questions, **more), strict=strict
    )


# Files.


def test_questions_are_read(tmp_path):
    answers = [answer("fox", 16), answer("quick brown fox", 4)]
    plausible = {"plausible_answers": [answer("dog", 40)]}
    found = read(
        tmp_path,
        question(answers=answers),
        question("q2", is_impossible=True, answers=[answer("dog", 40)], **plausible),
        question("q3", answers=[answer("", -1)]),
        {"id": "q4", "question": "why?"},
    )
    assert found[0] == SpanExample(
        "q1", "who jumps?", CONTEXT, ("fox", "quick brown fox"), (16, 4)
    )
    assert [example.id for example in found] == ["q1", "q2", "q3", "q4"]
    assert all(example.answers == () for example in found[1:])


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("squad/v1.1", "train", "train-v1.1.json"),
        ("squad/v2.0", "dev", "squad/dev-v2.0.json"),
        ("mlqa/zh", "test", "test/test-context-zh-question-zh.json"),
        ("mlqa/de-ar", "dev", "MLQA_V1/dev/dev-context-de-question-ar.json"),
    ],
)
def test_published_files_are_found(tmp_path, name, split, file):
    write(tmp_path / file, question())
    assert len(load_span_examples(name, split, tmp_path)) == 1


def test_misplaced_answers_are_counted(tmp_path):
    answers = [answer("fox", 15), answer("dog", -3), answer("dog", 40), answer("x", 99)]
    found = read(tmp_path, question(answers=answers), question("q2"))
    assert found[0].answers == ("fox", "dog", "dog", "x")
    assert found[0].answer_starts == (None, None, 40, None)
    assert num_misplaced(found) == 3


@pytest.mark.parametrize(
    ("name", "split", "num_examples", "num_without"),
    [
        ("squad/v1.1", "train", 87_599, 0),
        ("squad/v1.1", "dev", 10_570, 0),
        ("squad/v2.0", "dev", 11_873, 5_945),
        ("mlqa/vi", "dev", 511, 0),
    ],
)
def test_real_files_are_complete(data_dir, name, split, num_examples, num_without):
    found = load_span_examples(name, split, data_dir, strict=True)
    assert len(found) == num_examples
    assert sum(not example.answers for example in found) == num_without


# TFDS.


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A small dataset with the features of TFDS's own."""

    name = "small"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        answers = {"text": tfds.features.Text(), "answer_start": tf.int32}
        features = {
            **dict.fromkeys(("id", "question", "context"), tfds.features.Text()),
            **({"is_impossible": tf.bool} if self.is_v2 else {}),
            "answers": tfds.features.Sequence(answers),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    @property
    def is_v2(self):
        return self.builder_config.name == "v2.0"

    def _split_generators(self, dl_manager):
        return {key: self._generate_examples(key) for key in ("train", "validation")}

    def _generate_examples(self, split):
        answers = [answer("fox", 16), answer("dog", 0)]
        record = {**question(f"ä {split}", answers=answers), "context": CONTEXT}
        yield 0, {**record, **({"is_impossible": True} if self.is_v2 else {})}


class Squad(Builder, skip_registration=True):
    name = "squad"
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="v1.1"),
        tfds.core.BuilderConfig(name="v2.0"),
    ]


class Mlqa(Builder, skip_registration=True):
    name = "mlqa"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="hi")]  # noqa: RUF012


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    for builder, config in ((Squad, "v1.1"), (Squad, "v2.0"), (Mlqa, "hi")):
        builder(data_dir=path, config=config).download_and_prepare()
    return path


@pytest.fixture
def local_builders(monkeypatch):
    """TFDS as if its own builders had the version that is on disk."""
    find = tfds.builder

    def builder(name, data_dir):
        return find(f"{name}:1.0.0", data_dir=data_dir)

    monkeypatch.setattr(tfds, "builder", builder)


@pytest.mark.usefixtures("local_builders")
@pytest.mark.parametrize("name", ["squad/v1.1", "squad/v2.0", "mlqa/hi"])
def test_tfds_records_are_questions(tfds_dir, name):
    (found,) = load_span_examples(name, "train", tfds_data_dir=tfds_dir)
    expected = (("fox", "dog"), (16, None))
    if name == "squad/v2.0":
        expected = ((), ())
    assert found == SpanExample("ä train", "who jumps?", CONTEXT, *expected)


@pytest.mark.usefixtures("local_builders")
def test_dev_is_the_validation_split_of_tfds(tfds_dir):
    (found,) = load_span_examples("squad/v1.1", "dev", tfds_data_dir=tfds_dir)
    assert found.id == "ä validation"


@pytest.mark.usefixtures("local_builders")
def test_strict_reading_names_the_tfds_dataset(tfds_dir):
    with pytest.raises(
        ValueError, match=r"question 'ä train', path='tfds:mlqa/hi@train'\.$"
    ):
        load_span_examples("mlqa/hi", "train", tfds_data_dir=tfds_dir, strict=True)


def test_unknown_tfds_dataset_is_named(tmp_path):
    message = "Received: name='mlqa/de-en', split='dev' ("
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_span_examples("mlqa/de-en", "dev", tfds_data_dir=tmp_path)
    assert "\n" not in str(caught.value)


# Files that are not right.


@pytest.mark.parametrize("name", ["squad", "squad/v3.0", "mlqa/fr", "mlqa/en-", "glue"])
def test_unknown_name_is_refused(tmp_path, name):
    message = (
        "`name` must be squad/v1.1, squad/v2.0 or mlqa/ and a language or two: "
        f"{', '.join(MLQA_LANGUAGES)}. Received: name={name!r}."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_span_examples(name, "dev", tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "looked_for"),
    [
        ("squad/v1.1", "dev", "dev-v1.1.json, squad/dev-v1.1.json"),
        (
            "mlqa/es-en",
            "test",
            "test-context-es-question-en.json, test/test-context-es-question-en.json, "
            "MLQA_V1/test/test-context-es-question-en.json",
        ),
    ],
)
def test_files_that_were_looked_for_are_named(tmp_path, name, split, looked_for):
    message = (
        f"`data_dir` must hold the file of name={name!r}, split={split!r}. Received: "
        f"data_dir={str(tmp_path)!r}, which has none of {looked_for}."
    )
    with pytest.raises(FileNotFoundError, match="^" + re.escape(message) + "$"):
        load_span_examples(name, split, tmp_path)


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file.*nothing\.json"):
        read_span_examples(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"id\tquestion", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b'{"data": [', "it is not JSON: Expecting value: line 1 column 11 (char 10)"),
        (b'{"data": ["\xff"]}', "it is not JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"[]", "the file has no 'data'"),
        (b'{"data": [{"title": "a"}]}', "article 0 has no 'paragraphs'"),
        (b'{"data": [{"paragraphs": [{}]}]}', "paragraph 0 of article 0 has no 'qas'"),
        (b'{"data": []}', "it has no question"),
    ],
)
def test_file_of_another_layout_is_named(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = (
        "`path` must be a file in the layout of SQuAD. "
        f"Received: path={str(path)!r}; {reason}"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        read_span_examples(path)


@pytest.mark.parametrize(
    ("record", "context", "reason"),
    [
        (question(), None, "question 'q1' has no 'context'."),
        (question(), " \n", "question 'q1' has an empty 'context'."),
        (question(), "a\ud800", "question 'q1' has half of a surrogate pair."),
        (question(text=None), CONTEXT, "question 'q1' has no 'question'."),
        (
            question(None),
            CONTEXT,
            "question 1 of paragraph 0 of article 0 has no 'id'.",
        ),
        (question("q0"), CONTEXT, "it has question 'q0' twice."),
        (question(answers={}), CONTEXT, "question 'q1' has no 'answers'."),
        (
            question(answers=[{"text": "fox"}]),
            CONTEXT,
            "an answer to question 'q1' has no 'answer_start'.",
        ),
    ],
)
def test_question_that_lacks_something_is_named(tmp_path, record, context, reason):
    records = [record] if context is None or len(context) < 5 else [question("q0")]
    records += [record] * (len(records[0]) and records[0] is not record)
    with pytest.raises(ValueError, match=re.escape(f"; {reason}") + "$"):
        read(tmp_path, *records, context=context)


def test_strict_reading_stops_at_a_misplaced_answer(tmp_path):
    record = question("q7", answers=[answer("fox", 15)])
    message = (
        "`answer_start` must be where the answer stands in its context. Received: "
        "answer_start=15, answer='fox', question 'q7', "
        f"path={str(tmp_path / 'a.json')!r}."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        read(tmp_path, question(), record, strict=True)


# Windows.


def long_examples(seed=0, num_examples=12):
    """Contexts of other lengths, each with an answer somewhere, some without one."""
    generator = np.random.default_rng(seed)
    words = CONTEXT.split()
    examples = []
    for number in range(num_examples):
        size = int(generator.integers(1, 60))
        context = " ".join(generator.choice(words, size))
        begin = int(generator.integers(0, len(context)))
        text = context[begin : begin + int(generator.integers(1, 12))]
        answers = ((text,), (begin,))
        if number % 4 == 3:
            answers = ((), ())
        asked = " ".join(generator.choice(words, int(generator.integers(1, 9))))
        examples.append(SpanExample(str(number), asked, context, *answers))
    return examples


SIZES = {"sequence_length": 24, "doc_stride": 5, "max_question_length": 9}


@functools.cache
def family_features(family):
    return span_features(make_tokenizer(family), long_examples(), **SIZES)


@functools.cache
def encode(family):
    return fast_tokenizer(make_tokenizer(family)).offsets


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
    from test_token_offsets import real_tokenizer

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
    message = f"`{name}` must be positive. Received: {name}=0."
    with pytest.raises(ValueError, match=re.escape(message)):
        span_features(make_tokenizer("Bert"), [], **{name: 0})


# Batches.


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
    with pytest.raises(ValueError, match=f"^`{name}` must be positive."):
        span_dataset(family_features("Bert"), **{"batch_size": 2, name: 0})


# Answers.


def random_logits(features, seed=0):
    generator = np.random.default_rng(seed)
    shape = 2, *features.token_ids.shape
    return generator.normal(size=shape).astype("float32")


def all_answers(features, start_logits, end_logits, max_answer_length):
    """For each question every text and its best score, the best first, by loops."""
    found = [{} for _ in features.examples]
    for row in range(len(features)):
        number = features.example_index[row]
        context = features.examples[number].context
        begin, end = features.context_begin[row], features.num_tokens[row] - 1
        for first in range(begin, end):
            if not features.is_max_context[row, first]:
                continue
            for last in range(first, min(first + max_answer_length, end)):
                text = context[
                    features.char_begins[row, first] : features.char_ends[row, last]
                ]
                score = float(start_logits[row, first]) + float(end_logits[row, last])
                if text:
                    found[number][text] = max(found[number].get(text, -9e9), score)
    return [sorted(texts.items(), key=lambda entry: -entry[1]) for texts in found]


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("max_answer_length", [1, 4, 30])
def test_best_answers_are_the_best_of_all(family, max_answer_length, monkeypatch):
    path = "keras_minilmv2.downstream.question_answering._BLOCK_WINDOWS"
    monkeypatch.setattr(path, 7)
    features = family_features(family)
    start, end = random_logits(features)
    # So many that none is lost to the cut at n_best tokens.
    answers = best_answers(
        features, start, end, n_best=1_000, max_answer_length=max_answer_length
    )
    expected = all_answers(features, start, end, max_answer_length)
    for example, entries in zip(features.examples, expected, strict=True):
        nbest = answers.nbest[example.id]
        scores = [entry["start_logit"] + entry["end_logit"] for entry in nbest]
        np.testing.assert_allclose(scores, [score for _, score in entries], rtol=1e-5)
        assert {entry["text"] for entry in nbest} == {text for text, _ in entries}
        assert answers.texts[example.id] == entries[0][0]
        weights = np.exp([score for _, score in entries])
        np.testing.assert_allclose(
            [entry["probability"] for entry in nbest],
            weights / weights.sum(),
            rtol=1e-5,
        )


def test_n_best_answers_are_among_all():
    features = family_features("Bert")
    start, end = random_logits(features)
    answers = best_answers(features, start, end, n_best=3)
    every = all_answers(features, start, end, 30)
    for example, entries in zip(features.examples, every, strict=True):
        nbest = answers.nbest[example.id]
        assert len({entry["text"] for entry in nbest}) == len(nbest) <= 3
        for entry in nbest:
            score = entry["start_logit"] + entry["end_logit"]
            assert score <= dict(entries)[entry["text"]] + 1e-6


def test_null_odds_compare_no_answer_with_the_best_answer():
    features = family_features("Bert")
    start, end = random_logits(features)
    start[:, 0] += 4
    answers = best_answers(features, start, end, n_best=24, no_answer=True)
    for number, example in enumerate(features.examples):
        null = min((start + end)[features.example_index == number, 0])
        best = all_answers(features, start, end, 30)[number][0][1]
        assert answers.null_odds[example.id] == pytest.approx(null - best, rel=1e-5)
        nbest = answers.nbest[example.id]
        (entry,) = [entry for entry in nbest if not entry["text"]]
        assert entry["start_logit"] + entry["end_logit"] == pytest.approx(null)
        scores = [entry["start_logit"] + entry["end_logit"] for entry in nbest]
        assert scores == sorted(scores, reverse=True)
    assert min(answers.null_odds.values()) < 0 < max(answers.null_odds.values())


def test_context_without_tokens_has_the_empty_answer():
    examples = [SpanExample("a", "fox", "\u200b"), SpanExample("b", "fox", "dog")]
    features = span_features(make_tokenizer("Bert"), examples, **SIZES)
    answers = best_answers(features, *random_logits(features))
    assert answers.texts == {"a": "", "b": "dog"}
    assert [entry["text"] for entry in answers.nbest["a"]] == [""]
    assert np.isfinite(answers.null_odds["a"])


def test_labels_as_logits_give_the_answers(data_dir):
    from test_token_offsets import real_tokenizer

    for language, name, least in ((None, "roberta", 99), ("ar", "xlm_roberta", 94)):
        dataset = f"mlqa/{language}" if language else "squad/v1.1"
        examples = load_span_examples(dataset, "dev", data_dir)[:300]
        features = span_features(
            real_tokenizer(data_dir, name), examples, sequence_length=128, doc_stride=64
        )
        start, end = np.zeros((2, *features.token_ids.shape), "float32")
        rows = np.flatnonzero(features.start_positions)
        start[rows, features.start_positions[rows]] = 9
        end[rows, features.end_positions[rows]] = 9
        texts = best_answers(features, start, end, max_answer_length=128).texts
        golds = {example.id: example.answers for example in examples}
        metrics = squad_metrics(texts, golds)
        if language:
            metrics = mlqa_metrics(texts, golds, language)
        assert metrics["exact_match"] > least
        assert metrics["f1"] > least


@pytest.mark.parametrize("name", ["start_logits", "end_logits"])
def test_logits_must_fit_the_windows(name):
    features = family_features("Bert")
    shape = features.token_ids.shape
    logits = dict.fromkeys(("start_logits", "end_logits"), np.zeros(shape))
    logits[name] = np.zeros((1, 24))
    message = (
        f"`{name}` must have a row for each window and a column for each token, "
        f"{shape}. Received: {name} of shape (1, 24)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        best_answers(features, **logits)


def test_logits_must_be_finite():
    features = family_features("Bert")
    start, end = random_logits(features)
    end[0, :2] = np.nan
    message = (
        "`end_logits` must be finite. Received: end_logits with 2 values that are not."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        best_answers(features, start, end)


@pytest.mark.parametrize("name", ["n_best", "max_answer_length"])
def test_sizes_of_answers_must_be_positive(name):
    features = family_features("Bert")
    message = f"`{name}` must be positive. Received: {name}=0."
    with pytest.raises(ValueError, match=re.escape(message)):
        best_answers(features, *random_logits(features), **{name: 0})
