"""Questions about contexts, read from files of SQuAD and MLQA and from TFDS."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from keras_minilmv2.downstream.span_metrics import MLQA_LANGUAGES


@dataclass(frozen=True)
class SpanExample:
    """A question about a context, with its answers.

    Args:
        id: str.
        question: str.
        context: str.
        answers: tuple of str. Empty where the context has no answer.
        answer_starts: tuple, as long as `answers`. The first character of each answer
            in the context, or None where the answer is not there.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int | None, ...] = ()


def load_span_examples(name, split, data_dir=None, *, tfds_data_dir=None, strict=False):
    """Loads a question-answering dataset by name.

    Args:
        name: str. `"squad/v1.1"`, `"squad/v2.0"` or, for MLQA, `"mlqa/de"`, or
            `"mlqa/de-en"` for German contexts and English questions.
        split: str. `"train"`, `"dev"` or `"test"`.
        data_dir: str or path of a directory with the published files, or with the
            published directory `squad` or `MLQA_V1`. None takes the dataset of this
            name from TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its datasets.
        strict: bool. As for `read_span_examples`.

    Returns:
        list of `SpanExample`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if `name` is no such dataset, the file is none of SQuAD's or
            MLQA's, or TFDS has no such dataset.
    """
    languages = "|".join(MLQA_LANGUAGES)
    language_pair = rf"mlqa/({languages})(-({languages}))?"
    if not re.fullmatch(rf"squad/(v1\.1|v2\.0)|{language_pair}", name):
        raise ValueError(
            "`name` must be squad/v1.1, squad/v2.0 or mlqa/ and a language or two: "
            f"{', '.join(MLQA_LANGUAGES)}. Received: name={name!r}."
        )
    if data_dir is None:
        return _tfds_examples(name, split, tfds_data_dir, strict)
    path = _find_file(name, split, Path(data_dir).expanduser())
    return read_span_examples(path, strict=strict)


def read_span_examples(path, *, strict=False):
    """Reads a file of SQuAD 1.1, SQuAD 2.0 or MLQA.

    An impossible question has no answers, and an answer that is an empty string is
    skipped. See `num_misplaced` for answers that are not at their `answer_start`.

    Args:
        path: str or path of a JSON file in SQuAD's layout.
        strict: bool. Whether such an answer is an error.

    Returns:
        list of `SpanExample`, in the order of the file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is empty, no JSON, or a question lacks its text, context or
            id, has one of another type, or has an id that another one has; with
            `strict`, if an answer is not in its context at its `answer_start`.
    """
    data = Path(path).read_bytes()
    if not data.strip():
        raise _file_error(path, "it is empty")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _file_error(path, f"it is not JSON: {error}") from error
    examples = [
        _example(record, path, place, strict)
        for record, place in _json_records(content, path)
    ]
    return _checked(examples, path)


def num_misplaced(examples):
    """Counts the answers that are not in the context at their `answer_start`.

    They count in scores, which compare texts alone, and are skipped in training.

    Args:
        examples: iterable of `SpanExample`.

    Returns:
        int.
    """
    return sum(example.answer_starts.count(None) for example in examples)


def _find_file(name, split, data_dir):
    """The file of a dataset below a directory."""
    dataset, _, variant = name.partition("/")
    if dataset == "squad":
        folders, file = ("", "squad"), f"{split}-{variant}.json"
    else:
        context, _, question = variant.partition("-")
        folders = ("", split, f"MLQA_V1/{split}")
        file = f"{split}-context-{context}-question-{question or context}.json"
    names = [str(Path(folder) / file) for folder in folders]
    for candidate in names:
        if (data_dir / candidate).is_file():
            return data_dir / candidate
    raise FileNotFoundError(
        f"`data_dir` must hold the file of name={name!r}, split={split!r}. "
        f"Received: data_dir={str(data_dir)!r}, which has none of {', '.join(names)}."
    )


def _json_records(content, path):
    """Each question of a file as a dict with all that belongs to it, and its place."""
    articles = _field(content, "data", list, path, "the file")
    for i, article in enumerate(articles):
        paragraphs = _field(article, "paragraphs", list, path, f"article {i}")
        for j, paragraph in enumerate(paragraphs):
            place = f"paragraph {j} of article {i}"
            questions = _field(paragraph, "qas", list, path, place)
            for k, question in enumerate(questions):
                where = f"question {k} of {place}"
                identity = _field(question, "id", str, path, where)
                record = {**question, "context": paragraph.get("context")}
                yield record, f"question {identity!r}"


def _example(record, path, place, strict):
    """A `SpanExample` of one question of a file."""
    question = _field(record, "question", str, path, place)
    context = _field(record, "context", str, path, place)
    if not context.strip():
        raise _file_error(path, f"{place} has an empty 'context'")
    try:
        (question + context).encode()
    except UnicodeEncodeError as error:
        raise _file_error(path, f"{place} has half of a surrogate pair") from error
    answers = []
    impossible = {"is_impossible": False, **record}
    if not _field(impossible, "is_impossible", bool, path, place):
        answers = _field({"answers": [], **record}, "answers", list, path, place)
    texts, starts = [], []
    for answer in answers:
        text = _field(answer, "text", str, path, f"an answer to {place}")
        start = _field(answer, "answer_start", int, path, f"an answer to {place}")
        if not text:
            continue
        if start < 0 or not context.startswith(text, start):
            if strict:
                raise ValueError(
                    "`answer_start` must be where the answer is in its context. "
                    f"Received: answer_start={start}, answer={text!r}, {place}, "
                    f"path={str(path)!r}."
                )
            start = None
        texts.append(text)
        starts.append(start)
    return SpanExample(record["id"], question, context, tuple(texts), tuple(starts))


_KINDS = {
    bool: "true or false",
    int: "an integer",
    list: "a list",
    str: "a string",
}


def _field(record, name, kind, path, place):
    """A value of a JSON object; raises if it is not there or of another kind."""
    value = record.get(name) if isinstance(record, dict) else None
    if value is None:
        raise _file_error(path, f"{place} has no {name!r}")
    # Not isinstance(): True is an int.
    if type(value) is not kind:
        raise _file_error(
            path, f"{place} must have {_KINDS[kind]} as {name!r}, not {value!r:.40}"
        )
    return value


def _checked(examples, path):
    """The examples; raises if there is none, or two have one id."""
    if not examples:
        raise _file_error(path, "it has no question")
    seen = set()
    for example in examples:
        if example.id in seen:
            raise _file_error(path, f"it has question {example.id!r} twice")
        seen.add(example.id)
    return examples


def _file_error(path, reason):
    return ValueError(
        "`path` must be a file in the layout of SQuAD. "
        f"Received: path={str(path)!r}; {reason}."
    )


def _tfds_examples(name, split, tfds_data_dir, strict):
    """The examples of a TFDS dataset."""
    # Importing it takes seconds that reading a file need not wait.
    import tensorflow_datasets as tfds

    # A wrong name raises ValueError or AssertionError, a failed download
    # anything from urllib's, requests' or the dataset's own errors.
    try:
        builder = tfds.builder(name, data_dir=tfds_data_dir)
        if not builder.is_prepared():
            builder.download_and_prepare()
        dataset = builder.as_dataset(split={"dev": "validation"}.get(split, split))
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            "`name` and `split` must be of a TFDS dataset that is on this machine or "
            f"can be downloaded. Received: name={name!r}, split={split!r} ({reason})."
        ) from error
    source = f"tfds:{name}@{split}"
    examples = []
    for record in tfds.as_numpy(dataset):
        answers = zip(
            record["answers"]["text"], record["answers"]["answer_start"], strict=True
        )
        record = {
            "id": record["id"].decode(),
            "question": record["question"].decode(),
            "context": record["context"].decode(),
            "is_impossible": bool(record.get("is_impossible", False)),
            "answers": [
                {"text": text.decode(), "answer_start": int(start)}
                for text, start in answers
            ],
        }
        place = f"question {record['id']!r}"
        examples.append(_example(record, source, place, strict))
    return _checked(examples, source)
