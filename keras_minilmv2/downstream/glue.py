"""GLUE and XNLI, from TFDS or from their published files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_minilmv2.downstream.text_tasks import Examples, TextTask
from keras_minilmv2.utils.files import replacing_file

XNLI_LANGUAGES = (
    *("ar", "bg", "de", "el", "en", "es", "fr", "hi"),
    *("ru", "sw", "th", "tr", "ur", "vi", "zh"),
)


@dataclass(frozen=True)
class Split:
    """One part of a task's data.

    Args:
        file: str. Its path in the published layout.
        tfds_name: str. The TFDS dataset it is in.
        tfds_split: str. Its name there.
        submission: str. Name of a file of predictions for it.
        has_labels: bool. GLUE keeps the labels of its test sets.
        by_language: bool. Whether it is in several languages, out of `task.languages`,
            which files name in a column `language`.
        columns: tuple of str, or None. The columns of a file without a header.
    """

    file: str
    tfds_name: str
    tfds_split: str
    submission: str
    has_labels: bool = True
    by_language: bool = False
    columns: tuple | None = None


@dataclass(frozen=True, kw_only=True)
class GlueTask(TextTask):
    """A task of GLUE, or in its layout.

    Of its metrics, the papers' comes first: Matthews correlation for CoLA, Spearman
    correlation for STS-B (as in the paper's test table; its dev table has Pearson's),
    accuracy for the others.

    Args:
        splits: dict of `Split` by name.
        text_columns: tuple of str. One or two columns of the files.
        label_column: str.
        tfds_features: tuple of str. The same texts in TFDS.
        skips_broken_rows: bool. Whether the published files are known to have rows
            with too few columns.
    """

    splits: Mapping
    text_columns: tuple
    label_column: str = "label"
    tfds_features: tuple
    skips_broken_rows: bool = False

    def load(self, split, data_dir=None, tfds_data_dir=None):
        """Reads one split.

        Files are tab-separated and read as GLUE publishes them: quotes are characters
        like any other, and a line ends at a line feed alone. Columns are found by the
        names in the first line.

        Args:
            split: str. One of `splits`.
            data_dir: str or path of the published files: the directory that has the
                task's own directory (`SST-2`, `XNLI-1.0`), or that directory itself.
                None for TFDS.
            tfds_data_dir: str or path. Where TFDS keeps its data; None for its default.

        Returns:
            `Examples`.

        Raises:
            ValueError: if there is no such split, a file does not have the columns or
                labels of the task or has no example, or TFDS cannot provide the
                dataset.
            FileNotFoundError: if the file of the split is not there.
        """
        self.check_split(split)
        part = self.splits[split]
        if data_dir is None:
            return _read_tfds(self, part, tfds_data_dir)
        return _read_file(self, part, _find_file(part, data_dir))

    def has_split(self, split, data_dir=None):
        """Whether `load` finds a split; TFDS is taken to have them all."""
        self.check_split(split)
        files = _candidates(self.splits[split], data_dir) if data_dir else ()
        return data_dir is None or any(path.is_file() for path in files)

    def write(self, split, examples, predictions, directory):
        """Writes predictions in GLUE's format for submissions.

        A header `index`, `prediction`, then a row for each example with its number and
        its class as files write it, or its score. Of a task in several languages there
        is one file each, `XNLI-de.tsv` for instance, with numbers from 0.

        Args:
            split: str. One of `splits`.
            examples: `Examples` of the split.
            predictions: `(examples,)`, int class or float score.
            directory: str or path. The files are in a directory of the split there.

        Returns:
            list of paths.
        """
        path = Path(directory) / split / self.splits[split].submission
        if examples.languages is None:
            groups = {path: range(len(examples))}
        else:
            groups = {}
            for i, language in enumerate(examples.languages):
                file = path.with_stem(f"{path.stem}-{language}")
                groups.setdefault(file, []).append(i)
        for file, indices in groups.items():
            rows = (
                f"{number}\t{_written(self, predictions[i])}\n"
                for number, i in enumerate(indices)
            )
            with replacing_file(file) as temporary:
                temporary.write_text("index\tprediction\n" + "".join(rows))
        return list(groups)


def _glue_splits(title, tfds_name, columns=None):
    submission = f"{title}.tsv"

    def split(name, tfds_split, **more):
        file = f"{title}/{name}.tsv"
        return Split(file, f"glue/{tfds_name}", tfds_split, submission, **more)

    return {
        "train": split("train", "train", columns=columns),
        "dev": split("dev", "validation", columns=columns),
        "test": split("test", "test", has_labels=False),
    }


def _mnli_splits():
    splits = {"train": Split("MNLI/train.tsv", "glue/mnli", "train", "MNLI-m.tsv")}
    for name, tfds_split in (("dev", "validation"), ("test", "test")):
        for kind, submission in (
            ("matched", "MNLI-m.tsv"),
            ("mismatched", "MNLI-mm.tsv"),
        ):
            splits[f"{name}_{kind}"] = Split(
                f"MNLI/{name}_{kind}.tsv",
                "glue/mnli",
                f"{tfds_split}_{kind}",
                submission,
                has_labels=name != "test",
            )
    return splits


def _xnli_split(name, tfds_split):
    file = f"XNLI-1.0/xnli.{name}.tsv"
    return Split(file, "xnli", tfds_split, "XNLI.tsv", by_language=True)


_ENTAILMENT = ("entailment", "neutral", "contradiction")

GLUE_TASKS = {
    task.name: task
    for task in (
        GlueTask(
            name="cola",
            title="CoLA",
            metrics=("matthews",),
            splits=_glue_splits(
                "CoLA", "cola", columns=("source", "label", "note", "sentence")
            ),
            text_columns=("sentence",),
            tfds_features=("sentence",),
            label_names=("unacceptable", "acceptable"),
            file_labels=("0", "1"),
            num_train=8_551,
            epochs=(25,),
        ),
        GlueTask(
            name="sst2",
            title="SST-2",
            metrics=("accuracy",),
            splits=_glue_splits("SST-2", "sst2"),
            text_columns=("sentence",),
            tfds_features=("sentence",),
            label_names=("negative", "positive"),
            file_labels=("0", "1"),
            num_train=67_349,
        ),
        GlueTask(
            name="mrpc",
            title="MRPC",
            metrics=("accuracy", "f1"),
            splits=_glue_splits("MRPC", "mrpc"),
            text_columns=("#1 String", "#2 String"),
            pairs=True,
            label_column="Quality",
            tfds_features=("sentence1", "sentence2"),
            label_names=("not_equivalent", "equivalent"),
            file_labels=("0", "1"),
            num_train=3_668,
        ),
        GlueTask(
            name="stsb",
            title="STS-B",
            metrics=("spearman", "pearson"),
            splits=_glue_splits("STS-B", "stsb"),
            text_columns=("sentence1", "sentence2"),
            pairs=True,
            label_column="score",
            tfds_features=("sentence1", "sentence2"),
            label_names=None,
            score_range=(0.0, 5.0),
            num_train=5_749,
        ),
        GlueTask(
            name="qqp",
            title="QQP",
            metrics=("accuracy", "f1"),
            splits=_glue_splits("QQP", "qqp"),
            text_columns=("question1", "question2"),
            pairs=True,
            label_column="is_duplicate",
            tfds_features=("question1", "question2"),
            label_names=("not_duplicate", "duplicate"),
            file_labels=("0", "1"),
            # Some questions have a line end in them.
            skips_broken_rows=True,
        ),
        GlueTask(
            name="mnli",
            title="MNLI",
            metrics=("accuracy",),
            splits=_mnli_splits(),
            dev_split="dev_matched",
            text_columns=("sentence1", "sentence2"),
            pairs=True,
            label_column="gold_label",
            tfds_features=("premise", "hypothesis"),
            label_names=_ENTAILMENT,
            file_labels=_ENTAILMENT,
            num_train=392_702,
        ),
        GlueTask(
            name="qnli",
            title="QNLI",
            metrics=("accuracy",),
            splits=_glue_splits("QNLI", "qnli"),
            text_columns=("question", "sentence"),
            pairs=True,
            tfds_features=("question", "sentence"),
            label_names=("entailment", "not_entailment"),
            file_labels=("entailment", "not_entailment"),
            num_train=104_743,
        ),
        GlueTask(
            name="rte",
            title="RTE",
            metrics=("accuracy",),
            splits=_glue_splits("RTE", "rte"),
            text_columns=("sentence1", "sentence2"),
            pairs=True,
            tfds_features=("sentence1", "sentence2"),
            label_names=("entailment", "not_entailment"),
            file_labels=("entailment", "not_entailment"),
            num_train=2_490,
        ),
        GlueTask(
            name="xnli",
            title="XNLI",
            metrics=("accuracy",),
            splits={
                # English alone: the other languages are zero-shot.
                "train": _mnli_splits()["train"],
                "dev": _xnli_split("dev", "validation"),
                "test": _xnli_split("test", "test"),
            },
            text_columns=("sentence1", "sentence2"),
            pairs=True,
            label_column="gold_label",
            tfds_features=("premise", "hypothesis"),
            label_names=_ENTAILMENT,
            file_labels=_ENTAILMENT,
            languages=XNLI_LANGUAGES,
            num_train=392_702,
            sequence_length=256,
            batch_size=64,
            learning_rates=(3e-5, 4e-5, 5e-5, 6e-5),
            epochs=(10,),
        ),
    )
}


def _written(task, prediction):
    if task.label_names is None:
        return f"{np.clip(prediction, *task.score_range):.3f}"
    return task.file_labels[int(prediction)]


def _candidates(part, data_dir):
    """Where a file may lie."""
    data_dir, file = Path(data_dir).expanduser(), Path(part.file)
    if data_dir.resolve().name == file.parts[0]:
        return [data_dir / file.name]
    return [data_dir / file, data_dir / "glue_data" / file]


def _find_file(part, data_dir):
    candidates = _candidates(part, data_dir)
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"`data_dir` must hold {part.file}. Received: data_dir={data_dir}, without "
        f"{' and '.join(str(path) for path in candidates)}."
    )


def _refused(rule, path, line, what):
    """The error of a file: the rule, and the line that breaks it."""
    return ValueError(
        f"`data_dir` must have files {rule}. Received: {path}, line {line}, {what}."
    )


def _lines(path):
    """Numbers, from 1, and texts of the lines that are not blank.

    Only a line feed ends a line: texts have other characters that Python's
    `splitlines` takes for line ends.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = f"with byte 0x{line[error.start]:02x}"
                raise _refused("in UTF-8", path, number, what) from error
            text = text.rstrip("\r\n")
            if text:
                yield number, text.split("\t")


def _read_file(task, part, path):
    lines = _lines(path)
    last, header = (0, part.columns) if part.columns else next(lines, (1, []))
    header = list(header)
    wanted = list(task.text_columns)
    wanted += [task.label_column] if part.has_labels else []
    wanted += ["language"] if part.by_language else []
    missing = [name for name in wanted if name not in header]
    if missing and header:
        rule = f"with the columns {', '.join(wanted)}"
        raise _refused(rule, path, 1, f"without {', '.join(missing)}")
    texts, labels, languages, num_broken = [], [], [], 0
    for number, cells in lines:
        # Predictions for a test split are numbered: none of its rows may be skipped.
        if not part.has_labels and number != last + 1:
            raise _refused("without blank lines", path, last + 1, "which is one")
        last = number
        skips = task.skips_broken_rows and part.has_labels
        if skips and len(cells) < len(header):
            num_broken += 1
            continue
        if len(cells) != len(header):
            rule = f"with {len(header)} columns in each line"
            raise _refused(rule, path, number, f"with {len(cells)}")
        row = dict(zip(header, cells, strict=True))
        texts.append([row[name] for name in task.text_columns])
        if part.has_labels:
            labels.append(_label(task, row[task.label_column], path, number))
        if part.by_language:
            languages.append(row["language"])
            if languages[-1] not in task.languages:
                rule = f"whose language is one of {', '.join(task.languages)}"
                what = f"with language={languages[-1]!r}"
                raise _refused(rule, path, number, what)
    if not texts:
        raise ValueError(
            "`data_dir` must have files with at least one example. "
            f"Received: {path}, which has none."
        )
    return _examples(task, zip(*texts, strict=True), labels, languages, num_broken)


def _label(task, cell, path, number):
    """The class or score in a cell of a file."""
    if task.label_names is None:
        least, greatest = task.score_range
        # Not float() alone: it takes "nan" and "1_0".
        if re.fullmatch(r"\d+(\.\d*)?", cell) and least <= float(cell) <= greatest:
            return float(cell)
        rule = f"whose {task.label_column} is a number from {least:g} to {greatest:g}"
    elif cell in task.file_labels:
        return task.file_labels.index(cell)
    else:
        rule = f"whose {task.label_column} is one of {', '.join(task.file_labels)}"
    raise _refused(rule, path, number, f"with {task.label_column}={cell!r}")


def _examples(task, columns, labels, languages, num_broken=0):
    dtype = "int32" if task.label_names else "float32"
    return Examples(
        tuple(list(column) for column in columns),
        np.array(labels, dtype) if labels else None,
        languages or None,
        num_broken,
    )


def _read_tfds(task, part, tfds_data_dir):
    # Importing it takes seconds that reading a file need not wait.
    import tensorflow_datasets as tfds

    # A failed download raises anything from urllib's, requests' or the dataset's own
    # errors.
    try:
        dataset, info = tfds.load(
            part.tfds_name,
            split=part.tfds_split,
            data_dir=tfds_data_dir,
            with_info=True,
        )
        records = list(tfds.as_numpy(dataset))
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            "`data_dir` must be given where TFDS has no dataset on this machine and "
            f"cannot download it. Received: data_dir=None, {part.tfds_name} "
            f"({lines[0].rstrip(' .:')})."
        ) from error
    names = getattr(info.features["label"], "names", None)
    if names is not None and tuple(names) != task.label_names:
        raise ValueError(
            f"`task` must have the labels of TFDS: {', '.join(names)}. Received: "
            f"task={task.name!r} with {', '.join(task.label_names)}."
        )
    # TFDS shuffles; a submission goes by the order of the file.
    records.sort(key=lambda record: record.get("idx", 0))
    texts, labels, languages = [], [], []
    for record in records:
        for language, *row in _tfds_rows(task, record):
            texts.append([text.decode() for text in row])
            labels += [record["label"]] if part.has_labels else []
            languages += [language] if language else []
    return _examples(task, zip(*texts, strict=True), labels, languages)


def _tfds_rows(task, record):
    """The texts of a TFDS record, after their language; of XNLI, in all languages."""
    first, *rest = (record[name] for name in task.tfds_features)
    if not isinstance(first, dict):
        return [(None, first, *rest)]
    (translations,) = rest
    languages = [language.decode() for language in translations["language"]]
    hypotheses = dict(zip(languages, translations["translation"], strict=True))
    return [(name, first[name], hypotheses[name]) for name in sorted(first)]
