"""Questions read from files and from TFDS, right ones and wrong ones."""

import json
import re

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_minilmv2.downstream.reader import (
    SpanExample,
    load_span_examples,
    num_misplaced,
    read_span_examples,
)
from keras_minilmv2.downstream.span_metrics import MLQA_LANGUAGES

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
        (
            question(answers={}),
            CONTEXT,
            "question 'q1' must have a list as 'answers', not {}.",
        ),
        (
            question(7),
            CONTEXT,
            "question 1 of paragraph 0 of article 0 must have a string as 'id', not 7.",
        ),
        (
            question(is_impossible="false"),
            CONTEXT,
            "question 'q1' must have true or false as 'is_impossible', not 'false'.",
        ),
        (
            question(answers=[answer("fox", "16")]),
            CONTEXT,
            "an answer to question 'q1' must have an integer as 'answer_start', not "
            "'16'.",
        ),
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
        "`answer_start` must be where the answer is in its context. Received: "
        "answer_start=15, answer='fox', question 'q7', "
        f"path={str(tmp_path / 'a.json')!r}."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        read(tmp_path, question(), record, strict=True)
