"""Tasks on small files in the published layouts, and on the real ones."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_minilmv2.downstream.glue import GLUE_TASKS
from keras_minilmv2.downstream.registry import get_task
from keras_minilmv2.downstream.text_tasks import Examples

SPLITS = [(name, split) for name, task in GLUE_TASKS.items() for split in task.splits]


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def write_sst2(directory, *lines, name="train"):
    return write(directory / "SST-2" / f"{name}.tsv", "sentence\tlabel", *lines)


def refused(directory, message, name="sst2", split="train", error=ValueError):
    with pytest.raises(error, match=message):
        GLUE_TASKS[name].load(split, directory)


def test_texts_are_read_as_they_are(tmp_path):
    # Unbalanced quotes, and what else Python takes for the end of a line.
    texts = ['an "open quote', "a\u2028b\x85c\x0bd\x1ee", 'closes" it', "a\rb", "  "]
    write_sst2(tmp_path, *(f"{text}\t{i % 2}" for i, text in enumerate(texts)))
    examples = GLUE_TASKS["sst2"].load("train", tmp_path)
    assert examples.texts == (texts,)
    assert examples.labels.tolist() == [0, 1, 0, 1, 0]
    assert examples.labels.dtype == "int32"
    assert examples.languages is None


def test_line_ends_of_windows_and_a_byte_order_mark_are_not_text(tmp_path):
    path = write_sst2(tmp_path)
    path.write_bytes("\ufeffsentence\tlabel\r\ngood\t1\r\n\r\n".encode())
    examples = GLUE_TASKS["sst2"].load("train", tmp_path)
    assert examples.texts == (["good"],)
    assert examples.labels.tolist() == [1]


@pytest.mark.parametrize("inside", ["", "glue_data", "SST-2"])
def test_the_directory_of_the_task_or_one_above_it_will_do(tmp_path, inside):
    parent = tmp_path if inside == "SST-2" else tmp_path / inside
    write_sst2(parent, "good\t1")
    data_dir = tmp_path / "SST-2" if inside == "SST-2" else tmp_path
    assert len(GLUE_TASKS["sst2"].load("train", data_dir)) == 1
    assert GLUE_TASKS["sst2"].has_split("train", data_dir)
    assert not GLUE_TASKS["sst2"].has_split("dev", data_dir)


def test_cola_has_no_header_but_in_its_test_set(tmp_path):
    write(tmp_path / "CoLA/dev.tsv", "gj04\t0\t*\tHim runs.", "gj04\t1\t\tHe runs.")
    write(tmp_path / "CoLA/test.tsv", "index\tsentence", "0\tShe runs.")
    dev = GLUE_TASKS["cola"].load("dev", tmp_path)
    assert dev.texts == (["Him runs.", "He runs."],)
    assert dev.labels.tolist() == [0, 1]
    test = GLUE_TASKS["cola"].load("test", tmp_path)
    assert test.texts == (["She runs."],)
    assert test.labels is None


def test_more_columns_than_a_task_needs_are_left_alone(tmp_path):
    # As in the published MNLI: label1 to label5 in dev, label1 alone in train.
    header = "sentence2\tsentence1\tlabel1\tlabel2\tgold_label"
    line = "hypothesis\tpremise\tneutral\tneutral\tcontradiction"
    write(tmp_path / "MNLI/dev_mismatched.tsv", header, line)
    examples = GLUE_TASKS["mnli"].load("dev_mismatched", tmp_path)
    assert examples.texts == (["premise"], ["hypothesis"])
    assert examples.labels.tolist() == [2]


def test_scores_are_numbers(tmp_path):
    lines = ["sentence1\tsentence2\tscore", "a\tb\t0", "c\td\t3.80", "e\tf\t5.000"]
    write(tmp_path / "STS-B/dev.tsv", *lines)
    examples = GLUE_TASKS["stsb"].load("dev", tmp_path)
    np.testing.assert_array_equal(examples.labels, np.float32([0, 3.8, 5]))
    assert examples.labels.dtype == "float32"


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path):
    write(
        tmp_path / "QQP/train.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "1\t2\t3\tWhy?\tHow",
        "come?\t0",
        "4\t5\t6\tWho?\tWho is it?\t1",
    )
    examples = GLUE_TASKS["qqp"].load("train", tmp_path)
    assert examples.texts == (["Who?"], ["Who is it?"])
    assert examples.num_broken == 2
    # Predictions for a test split are numbered by row.
    write(
        tmp_path / "QQP/test.tsv", "id\tquestion1\tquestion2", "0\tWhy?", "1\tWho?\tHe?"
    )
    with pytest.raises(ValueError, match="with 3 columns in each line.*test.tsv"):
        GLUE_TASKS["qqp"].load("test", tmp_path)


def test_blank_lines_do_not_shift_the_rows_of_a_submission(tmp_path):
    path = tmp_path / "SST-2/test.tsv"
    write(path, "index\tsentence", "0\tfine", "1\tgood", "")
    assert GLUE_TASKS["sst2"].load("test", tmp_path).texts == (["fine", "good"],)
    write(path, "index\tsentence", "0\tfine", "", "2\tgood")
    with pytest.raises(ValueError, match="without blank lines.*test.tsv, line 3,"):
        GLUE_TASKS["sst2"].load("test", tmp_path)


def test_xnli_is_in_several_languages(tmp_path):
    write(
        tmp_path / "XNLI-1.0/xnli.dev.tsv",
        "language\tgold_label\tsentence1\tsentence2",
        "de\tneutral\tEins\tZwei",
        "en\tcontradiction\tOne\tTwo",
    )
    examples = GLUE_TASKS["xnli"].load("dev", tmp_path)
    assert examples.languages == ["de", "en"]
    assert examples.take([1]).languages == ["en"]
    assert examples.take([1]).texts == (["One"], ["Two"])
    assert examples.labels.tolist() == [1, 2]


def test_a_file_that_is_not_there_is_named(tmp_path):
    message = (
        r"`data_dir` must hold SST-2/train.tsv. Received: data_dir=.*, without "
        r".*/SST-2/train.tsv and .*/glue_data/SST-2/train.tsv"
    )
    refused(tmp_path, message, error=FileNotFoundError)


def test_an_unknown_task_or_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`task` must be one of cola, .*'glue'"):
        get_task("glue")
    message = (
        "`split` must be one of train, dev_matched, dev_mismatched, test_matched, "
        "test_mismatched for mnli. Received: split='dev'."
    )
    refused(tmp_path, message, name="mnli", split="dev")


@pytest.mark.parametrize("lines", [(), ("sentence\tlabel",), ("", "")])
def test_a_file_without_an_example_is_refused(tmp_path, lines):
    write(tmp_path / "SST-2/train.tsv", *lines)
    refused(tmp_path, "at least one example. Received: .*train.tsv, which has none")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bad", "with 2 columns in each line. Received: .*, line 3, with 1"),
        ("bad\t1\t0", "with 2 columns in each line. Received: .*, line 3, with 3"),
        ("bad\t2", "whose label is one of 0, 1. .*train.tsv, line 3, with label='2'"),
        ("bad\t", "whose label is one of 0, 1. Received: .*, line 3, with label=''"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    write_sst2(tmp_path, "good\t1", line)
    refused(tmp_path, message)


def test_bytes_that_are_not_text_are_named(tmp_path):
    write_sst2(tmp_path).write_bytes(b"sentence\tlabel\ngood\t1\nb\xe4d\t0\n")
    refused(tmp_path, "in UTF-8. Received: .*train.tsv, line 3, with byte 0xe4")


def test_missing_columns_are_named(tmp_path):
    write(tmp_path / "SST-2/train.tsv", "text\tlabel", "good\t1")
    refused(
        tmp_path, "the columns sentence, label. Received: .*, line 1, without sentence"
    )
    write(tmp_path / "XNLI-1.0/xnli.dev.tsv", "gold_label\tsentence1\tsentence2")
    refused(tmp_path, "line 1, without language", name="xnli", split="dev")


@pytest.mark.parametrize("score", ["high", "nan", "-1", "5.1", "1_0", "1e1", ""])
def test_scores_that_are_no_numbers_are_named(tmp_path, score):
    write(tmp_path / "STS-B/dev.tsv", "sentence1\tsentence2\tscore", f"a\tb\t{score}")
    message = f"score is a number from 0 to 5. .*, line 2, with score='{score}'"
    refused(tmp_path, message, name="stsb", split="dev")


def test_an_unknown_language_is_named(tmp_path):
    header = "language\tgold_label\tsentence1\tsentence2"
    write(tmp_path / "XNLI-1.0/xnli.dev.tsv", header, "nl\tneutral\tEen\tTwee")
    message = "whose language is one of ar, .*, line 2, with language='nl'"
    refused(tmp_path, message, name="xnli", split="dev")


def test_predictions_are_written_as_glue_wants_them(tmp_path):
    def lines(name, split, predictions, languages=None):
        texts = (["text"] * len(predictions),)
        examples = Examples(texts, languages=languages)
        paths = GLUE_TASKS[name].write(split, examples, np.array(predictions), tmp_path)
        assert {path.parent.name for path in paths} == {split}
        return {path.name: path.read_text().split("\n") for path in paths}

    assert lines("sst2", "test", [1, 0]) == {
        "SST-2.tsv": ["index\tprediction", "0\t1", "1\t0", ""]
    }
    assert lines("mnli", "test_mismatched", [2]) == {
        "MNLI-mm.tsv": ["index\tprediction", "0\tcontradiction", ""]
    }
    assert lines("rte", "test", [1])["RTE.tsv"][1] == "0\tnot_entailment"
    # Scores beyond those of the task would be refused.
    assert lines("stsb", "test", [2.5, 5.4, -0.1])["STS-B.tsv"][1:-1] == [
        "0\t2.500",
        "1\t5.000",
        "2\t0.000",
    ]
    assert lines("xnli", "dev", [0, 1, 2], ["en", "de", "en"]) == {
        "XNLI-en.tsv": [
            "index\tprediction",
            "0\tentailment",
            "1\tcontradiction",
            "",
        ],
        "XNLI-de.tsv": ["index\tprediction", "0\tneutral", ""],
    }


# Small data in the published layouts, as TFDS finds it in a downloaded archive.
GLUE = {
    "cola": ("CoLA", None, "x\t{label}\t\ttext {i}", ["0", "1"]),
    "sst2": ("SST-2", "sentence\tlabel", "text {i}\t{label}", ["0", "1"]),
    "stsb": (
        "STS-B",
        "index\tsentence1\tsentence2\tscore",
        "{i}\ttext {i}\tpair {i}\t{label}",
        ["0.25", "5.000"],
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "{i}\t7\t8\ttext {i}\tpair {i}\t{label}",
        ["0", "1"],
    ),
    "mnli": (
        "MNLI",
        "index\tsentence1\tsentence2\tgold_label",
        "{i}\ttext {i}\tpair {i}\t{label}",
        ["entailment", "neutral", "contradiction"],
    ),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel",
        "{i}\ttext {i}\tpair {i}\t{label}",
        ["entailment", "not_entailment"],
    ),
}


def write_archive(name, directory):
    if name == "xnli":
        rows = [
            f"{language}\t{label}\t{language} text {i}\t{language} pair {i}\t{i}"
            for i, label in enumerate(["neutral", "entailment", "contradiction"])
            for language in GLUE_TASKS["xnli"].languages
        ]
        header = "language\tgold_label\tsentence1\tsentence2\tpairID"
        for split in ("dev", "test"):
            write(directory / f"XNLI-1.0/xnli.{split}.tsv", header, *rows)
        return
    folder, header, row, labels = GLUE[name]
    for file in {split.file for split in GLUE_TASKS[name].splits.values()}:
        rows = [row.format(i=i, label=labels[i % len(labels)]) for i in range(7)]
        lines = [header, *rows] if header else rows
        if folder == "CoLA" and file.endswith("test.tsv"):
            lines = ["index\tsentence", *(f"{i}\ttext {i}" for i in range(7))]
        write(directory / file, *lines)


@pytest.mark.parametrize("name", [*GLUE, "xnli"])
def test_tfds_gives_what_the_files_give(tmp_path, monkeypatch, name):
    task = GLUE_TASKS[name]
    archive = tmp_path / "archive"
    write_archive(name, archive)
    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, url: archive)
    for split, part in task.splits.items():
        if name == "xnli" and split == "train":
            continue
        ours = task.load(split, archive)
        theirs = task.load(split, tfds_data_dir=tmp_path / "tfds")
        if task.languages:
            assert len(theirs) == 3 * 15
            assert sorted(zip(*theirs.texts, theirs.labels, strict=True)) == sorted(
                zip(*ours.texts, ours.labels, strict=True)
            )
            for text, language in zip(*theirs.texts[:1], theirs.languages, strict=True):
                assert text.startswith(f"{language} ")
            continue
        assert theirs.texts == ours.texts
        assert part.has_labels == (ours.labels is not None)
        if part.has_labels:
            np.testing.assert_array_equal(theirs.labels, ours.labels)
            assert theirs.labels.dtype == ours.labels.dtype
        else:
            assert theirs.labels is None


def test_a_dataset_that_tfds_cannot_provide_is_refused(tmp_path, monkeypatch):
    def fails(self, url):
        raise ConnectionError("no network.\nsecond line")

    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", fails)
    message = r"cannot download it. Received: data_dir=None, glue/rte \(no network\)"
    with pytest.raises(ValueError, match=message):
        GLUE_TASKS["rte"].load("train", tfds_data_dir=tmp_path)


def test_labels_in_another_order_than_tfds_has_them_are_refused(tmp_path, monkeypatch):
    import dataclasses

    write_archive("sst2", tmp_path)
    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, url: tmp_path)
    task = dataclasses.replace(GLUE_TASKS["sst2"], label_names=("positive", "negative"))
    with pytest.raises(ValueError, match="the labels of TFDS: negative, positive"):
        task.load("train", tfds_data_dir=tmp_path / "tfds")


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_the_real_files_are_read_whole(data_dir, name, split):
    task = GLUE_TASKS[name]
    if not task.has_split(split, data_dir):
        pytest.skip(f"no {task.splits[split].file}")
    examples = task.load(split, data_dir)
    sizes = {
        ("mnli", "train"): 12_988,
        ("xnli", "train"): 12_988,
        ("cola", "dev"): 1_043,
        ("sst2", "dev"): 872,
        ("mrpc", "dev"): 408,
        ("stsb", "dev"): 1_500,
        ("qnli", "dev"): 5_463,
        ("rte", "dev"): 277,
        ("mnli", "dev_matched"): 9_815,
        ("xnli", "dev"): 15 * 2_490,
        ("xnli", "test"): 6 * 5_010,
    }
    assert len(examples) == sizes.get((name, split), task.num_train)
    assert len(np.unique(examples.labels)) >= task.num_outputs
    assert all(all(column) for column in examples.texts)
