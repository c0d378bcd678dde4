import errno
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from small_tokenizers import FAMILIES, WORDS, make_tokenizer

from keras_minilmv2.data import packing, preparation
from keras_minilmv2.data.packing import packed_examples
from keras_minilmv2.data.preparation import prepare
from keras_minilmv2.data.shards import PreparedExamples, read_manifest
from keras_minilmv2.data.text import Corpus, split_parts
from keras_minilmv2.utils.locks import InUseError

UNIT_BYTES = 1_000


@pytest.fixture
def path(tmp_path):
    """Five files with 100 documents of a few words, and one of many."""
    rng = np.random.default_rng(0)
    for number in range(5):
        lengths = rng.integers(1, 30, size=20)
        documents = [" ".join(rng.choice(WORDS, size=length)) for length in lengths]
        (tmp_path / "texts").mkdir(exist_ok=True)
        file = tmp_path / "texts" / f"{number}.txt"
        file.write_text("\n\n".join(documents))
    with file.open("a") as last:
        last.write("\n\n" + " ".join(rng.choice(WORDS, size=4_000)))
    return tmp_path / "texts"


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("Bert")


def prepare_small(
    path,
    tokenizer,
    output_dir,
    sequence_length=32,
    *,
    held_out_every=5,
    document_separator="blank_line",
    decode_errors="strict",
    unit_bytes=UNIT_BYTES,
    **kwargs,
):
    corpus = Corpus(
        path,
        held_out_every=held_out_every,
        document_separator=document_separator,
        decode_errors=decode_errors,
    )
    kwargs["unit_bytes"] = unit_bytes
    return prepare(corpus, tokenizer, sequence_length, output_dir, **kwargs)


def packed(corpus, tokenizer, sequence_length=32):
    """The examples of a corpus or of chunks, by tf.data."""
    examples = packed_examples(corpus, tokenizer, sequence_length)
    rows = list(examples.as_numpy_iterator())
    return {
        key: np.array([row[key] for row in rows]).reshape(-1, sequence_length)
        for key in ("token_ids", "padding_mask")
    }


def assert_equal(examples, expected):
    for key, values in expected.items():
        np.testing.assert_array_equal(examples[key], values)


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


# Examples.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_corpus_of_one_unit_gives_the_examples_of_packing(family, path, output_dir):
    tokenizer = make_tokenizer(family)
    prepare_small(path, tokenizer, output_dir, unit_bytes=10**6)
    for part in ("train", "held_out"):
        corpus = Corpus(path, held_out_every=5, part=part)
        found = PreparedExamples(output_dir, part)
        assert len(found) > 10
        assert_equal(found[:], packed(corpus, tokenizer))


def test_every_unit_is_packed_alone(path, tokenizer, output_dir):
    prepare_small(path, tokenizer, output_dir, unit_bytes=3_000)
    corpus = Corpus(path, held_out_every=5)
    expected = {"train": [], "held_out": []}
    num_before = 0
    units = corpus.units(3_000)
    assert len(units) > 3
    for unit in units:
        chunks = list(corpus.unit_chunks(unit))
        for part, rows in expected.items():
            chosen = [
                (text, starts_document)
                for other, text, starts_document in split_parts(chunks, 5, num_before)
                if other == part
            ]
            rows.append(packed(chosen, tokenizer))
        num_before += len(chunks)
    for part, rows in expected.items():
        joined = {
            key: np.concatenate([row[key] for row in rows])
            for key in ("token_ids", "padding_mask")
        }
        found = PreparedExamples(output_dir, part)
        assert_equal(found[:], joined)
        assert found.manifest.num_tokens(part) == joined["padding_mask"].sum()
        padded = (joined["padding_mask"][:, -1] == 0).sum()
        assert 0 < padded <= len(units)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_text_may_end_anywhere(family, path, tmp_path, monkeypatch):
    tokenizer = make_tokenizer(family)
    prepare_small(path, tokenizer, tmp_path / "a", unit_bytes=10**6)
    monkeypatch.setattr(packing, "BATCH_CHARS", 100)
    prepare_small(path, tokenizer, tmp_path / "b", unit_bytes=10**6, num_workers=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_corpus_without_a_held_out_part_has_no_shard_of_it(
    path, tokenizer, output_dir
):
    manifest = prepare_small(path, tokenizer, output_dir, held_out_every=None)
    assert len(PreparedExamples(output_dir, "held_out")) == 0
    assert {shard.part for shard in manifest.shards} == {"train"}


def test_standard_input_is_prepared(tokenizer, output_dir, monkeypatch):
    text = io.TextIOWrapper(io.BytesIO(b"the quick fox\n\njumps over the dog"))
    monkeypatch.setattr(sys, "stdin", text)
    manifest = prepare(Corpus("-"), tokenizer, 16, output_dir)
    assert manifest.num_documents == 2
    chunks = [("the quick fox", True), ("jumps over the dog", True)]
    expected = packed(chunks, tokenizer, 16)
    assert_equal(PreparedExamples(output_dir)[:], expected)


def test_manifest_says_what_was_prepared(path, tokenizer, output_dir):
    manifest = prepare_small(
        path, tokenizer, output_dir, tokenizer_name="bert_tiny_en_uncased"
    )
    assert manifest == read_manifest(output_dir)
    assert manifest.tokenizer_name == "bert_tiny_en_uncased"
    assert manifest.num_documents == 101
    settings = manifest.settings
    assert settings.tokenizer_class == "BertTokenizer"
    assert settings.vocabulary_size == tokenizer.vocabulary_size()
    assert (settings.sequence_length, settings.held_out_every) == (32, 5)
    assert settings.sources == (str(path),)
    names = {shard.name for shard in manifest.shards}
    assert {"train-00000.npy", "held_out-00000.npy", "train-00001.npy"} <= names
    assert set(contents(output_dir)) == names | {"manifest.json"}
    PreparedExamples(output_dir).verify()


def test_replaced_bytes_are_counted(path, tokenizer, output_dir):
    (path / "0.txt").write_bytes(b"the \xff fox\n\n" * 500)
    manifest = prepare_small(path, tokenizer, output_dir, decode_errors="replace")
    assert manifest.num_decode_errors == 500


def test_a_url_is_written_to(path, tokenizer, output_dir):
    prepare_small(path, tokenizer, output_dir)
    url = "memory://prepared/english"
    manifest = prepare_small(path, tokenizer, url)
    filesystem = fsspec.filesystem("memory")
    found = {
        os.path.basename(name): filesystem.cat(name)
        for name in filesystem.ls("/prepared/english", detail=False)
    }
    assert found == contents(output_dir)
    assert prepare_small(path, tokenizer, url) == manifest
    prepare_small(path, tokenizer, url, sequence_length=16, overwrite=True)
    with pytest.raises(ValueError, match=r"differ: sequence_length=32 \(not 16\)"):
        prepare_small(path, tokenizer, url)
    filesystem.rm("/prepared", recursive=True)


# Progress.


def test_progress_is_reported(path, tokenizer, output_dir, monkeypatch):
    monkeypatch.setattr(preparation, "_REPORT_SECONDS", 0)
    found = []
    manifest = prepare_small(path, tokenizer, output_dir, report=found.append)
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    num_tokens = manifest.num_tokens("train") + manifest.num_tokens("held_out")
    last = found[-1]
    assert len(found) > 100
    assert (last.num_bytes, last.total_bytes) == (num_bytes, num_bytes)
    assert (last.num_documents, last.num_tokens) == (101, num_tokens)
    assert last.seconds_left == 0
    assert last.tokens_per_second > 0
    for name in ("num_bytes", "num_documents", "num_tokens"):
        values = [getattr(progress, name) for progress in found]
        assert values == sorted(values)
    assert re.fullmatch(
        r"100% of 0\.0 MB  101 documents  [\d,]+ tokens  [\d,]+ tokens/s  ETA 0:00:00",
        str(last),
    )


def test_progress_of_a_resumed_run_does_not_count_what_it_found(
    path, tokenizer, output_dir, monkeypatch
):
    with interruption(monkeypatch, after=60), pytest.raises(KeyboardInterrupt):
        prepare_small(path, tokenizer, output_dir)
    monkeypatch.setattr(preparation, "_REPORT_SECONDS", 0)
    found = []
    prepare_small(path, tokenizer, output_dir, report=found.append)
    assert found[0].num_bytes > 1_000
    assert found[0].tokens_per_second == 0
    assert found[-1].num_documents == 101


# Resuming.


def interruption(monkeypatch, after):
    """A context in which a corpus stops after a number of chunks."""
    chunks = Corpus.unit_chunks
    count = 0

    def interrupted(self, unit):
        nonlocal count
        for chunk in chunks(self, unit):
            count += 1
            if count > after:
                raise KeyboardInterrupt
            yield chunk

    context = monkeypatch.context()
    patch = context.__enter__()
    patch.setattr(Corpus, "unit_chunks", interrupted)

    class _Context:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            context.__exit__(None, None, None)

    return _Context()


@pytest.mark.parametrize("after", [0, 30, 60, 100])
def test_an_interrupted_run_is_resumed_to_the_same_bytes(
    path, tokenizer, tmp_path, monkeypatch, after
):
    prepare_small(path, tokenizer, tmp_path / "undisturbed")
    output_dir = tmp_path / "interrupted"
    with interruption(monkeypatch, after), pytest.raises(KeyboardInterrupt):
        prepare_small(path, tokenizer, output_dir)
    before = contents(output_dir)
    assert "manifest.json" not in before
    assert not any(name.startswith(".") for name in before)
    num_prepared = []
    prepare_unit = preparation.prepare_unit

    def counted(plan, number, *args, **kwargs):
        num_prepared.append(number)
        return prepare_unit(plan, number, *args, **kwargs)

    monkeypatch.setattr(preparation, "prepare_unit", counted)
    prepare_small(path, tokenizer, output_dir)
    num_found = sum(name.startswith("train") for name in before)
    num_units = len(Corpus(path).units(UNIT_BYTES))
    assert num_prepared == list(range(num_found, num_units))
    assert contents(output_dir) == contents(tmp_path / "undisturbed")


def test_a_damaged_shard_is_made_anew_when_resuming(
    path, tokenizer, tmp_path, monkeypatch
):
    prepare_small(path, tokenizer, tmp_path / "undisturbed")
    output_dir = tmp_path / "interrupted"
    with interruption(monkeypatch, 60), pytest.raises(KeyboardInterrupt):
        prepare_small(path, tokenizer, output_dir)
    shard = output_dir / "train-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")
    (output_dir / "held_out-00000.npy").unlink()
    (output_dir / "unfinished-00002.json").write_text("")
    (output_dir / ".train-00003-abc123.npy").write_bytes(b"of a killed run")
    prepare_small(path, tokenizer, output_dir)
    assert contents(output_dir) == contents(tmp_path / "undisturbed")


def test_a_run_killed_at_its_very_end_is_finished(path, tokenizer, output_dir):
    manifest = prepare_small(path, tokenizer, output_dir)
    expected = contents(output_dir)
    for name in ("unfinished-settings.json", "unfinished-00000.json"):
        (output_dir / name).write_text("{}")
    assert prepare_small(path, tokenizer, output_dir) == manifest
    assert contents(output_dir) == expected


def test_a_finished_directory_is_returned_at_once(
    path, tokenizer, output_dir, monkeypatch
):
    manifest = prepare_small(path, tokenizer, output_dir, num_workers=1)
    monkeypatch.delattr(preparation, "prepare_unit")
    assert prepare_small(path, tokenizer, output_dir, num_workers=2) == manifest


_KILLED = """
import sys
sys.path.insert(0, sys.argv[3])
from small_tokenizers import make_tokenizer
from keras_minilmv2.data.preparation import prepare
from keras_minilmv2.data.text import Corpus
corpus = Corpus(sys.argv[1], held_out_every=5)
print("start", flush=True)
prepare(corpus, make_tokenizer("Bert"), 32, sys.argv[2], unit_bytes=20_000)
"""


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_bytes(path, tokenizer, tmp_path):
    for number in range(20):
        (path / f"more{number}.txt").write_text((path / "4.txt").read_text() * 30)
    prepare_small(path, tokenizer, tmp_path / "undisturbed", unit_bytes=20_000)
    output_dir = tmp_path / "killed"
    here = str(Path(__file__).parents[1] / "helpers")
    num_shards = [0]
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(path), str(output_dir), here],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with process:
            process.stdout.readline()
            while len(list(output_dir.glob("unfinished-0*"))) < num_shards[-1] + 20:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        num_shards.append(len(list(output_dir.glob("unfinished-0*"))))
    assert num_shards == sorted(set(num_shards))
    assert not (output_dir / "manifest.json").exists()
    prepare_small(path, tokenizer, output_dir, unit_bytes=20_000)
    assert contents(output_dir) == contents(tmp_path / "undisturbed")


_MEASURED = """
import pathlib, re, sys
sys.path.insert(0, sys.argv[3])
from small_tokenizers import make_tokenizer
from keras_minilmv2.data.preparation import prepare
from keras_minilmv2.data.text import Corpus
corpus = Corpus(sys.argv[1])
prepare(corpus, make_tokenizer("Bert"), 128, sys.argv[2], unit_bytes=int(sys.argv[4]))
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1e3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("unit_bytes", [4_000_000, 10**9])
def test_memory_does_not_grow_with_the_corpus(path, tmp_path, unit_bytes):
    text = (path / "4.txt").read_text()
    megabytes = {}
    for size in (10, 200):
        file = tmp_path / f"{size}.txt"
        file.write_text(text * (size * 10**6 // len(text)))
        found = subprocess.run(
            [
                sys.executable,
                "-c",
                _MEASURED,
                str(file),
                str(tmp_path / str(size)),
                str(Path(__file__).parents[1] / "helpers"),
                str(unit_bytes),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        megabytes[size] = float(found.stdout)
    assert megabytes[200] < megabytes[10] + 60, megabytes


# Mixing.


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"sequence_length": 64}, ["sequence_length=64 (not 32)"]),
        ({"held_out_every": 7}, ["held_out_every=7 (not 5)"]),
        ({"unit_bytes": 999}, ["unit_bytes=999 (not 1000)"]),
        ({"document_separator": "line"}, ["document_separator='line' (not 'blank"]),
        ({"tokenizer": "Electra"}, ["tokenizer_class='Electra", "tokenizer_sha256='"]),
        ({"tokenizer": "lowercase"}, ["tokenizer_sha256='"]),
        ({"path": "0.txt"}, ["sources=('", "inputs_sha256='", "contents_sha256='"]),
        ({"text": "more"}, ["inputs_sha256='", "contents_sha256='"]),
    ],
)
def test_other_settings_are_refused_and_named(
    path, tokenizer, output_dir, monkeypatch, change, names, finished
):
    if finished:
        prepare_small(path, tokenizer, output_dir)
    else:
        with interruption(monkeypatch, 60), pytest.raises(KeyboardInterrupt):
            prepare_small(path, tokenizer, output_dir)
        # Units of edited files would be prepared again.
        names = [name for name in names if name[:8] != "contents"]
    before = contents(output_dir)
    change = dict(change)
    if "text" in change:
        with (path / "2.txt").open("a") as file:
            file.write(change.pop("text"))
    path = path / change.pop("path", "")
    if (other := change.pop("tokenizer", None)) == "lowercase":
        tokenizer = make_tokenizer("Bert", lowercase=True)
    elif other:
        tokenizer = make_tokenizer(other)
    message = (
        "`output_dir` must hold examples of the same settings, or none. "
        f"Received: output_dir={output_dir}, for which these differ: "
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)) as raised:
        prepare_small(path, tokenizer, output_dir, **change)
    differences = str(raised.value).removeprefix(message).partition(". Name another")[0]
    found = differences.split("; ")
    assert len(found) == len(names)
    assert all(a.startswith(b) for a, b in zip(found, names, strict=True)), found
    assert contents(output_dir) == before


def test_overwriting_begins_anew(path, tokenizer, tmp_path, monkeypatch):
    prepare_small(path, tokenizer, tmp_path / "expected", sequence_length=64)
    output_dir = tmp_path / "prepared"
    prepare_small(path, tokenizer, output_dir)
    prepare_small(path, tokenizer, output_dir, sequence_length=64, overwrite=True)
    assert contents(output_dir) == contents(tmp_path / "expected")


def test_other_files_are_left_alone(path, tokenizer, tmp_path):
    (tmp_path / "train-notes.npy").write_text("mine")
    message = (
        "`output_dir` must be empty or new, or hold prepared examples. "
        f"Received: output_dir={tmp_path}, which holds texts, train-notes.npy."
    )
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="^" + re.escape(message) + "$"):
            prepare_small(path, tokenizer, tmp_path, overwrite=overwrite)


def test_examples_of_another_tokenizer_are_refused(path, tokenizer, output_dir):
    prepare_small(path, tokenizer, output_dir, tokenizer_name="my_bert")
    examples = PreparedExamples(output_dir)
    examples.check_tokenizer(make_tokenizer("Bert"))
    size = tokenizer.vocabulary_size()
    message = (
        "`tokenizer` must be the one that the examples were prepared with. "
        f"Received: ElectraTokenizer of {size} ids, for {output_dir}, prepared with a "
        f"BertTokenizer of {size} ids (my_bert)."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        examples.check_tokenizer(make_tokenizer("Electra"))


def test_finished_directory_without_a_shard_is_named(path, tokenizer, output_dir):
    prepare_small(path, tokenizer, output_dir)
    shard = output_dir / "train-00002.npy"
    size = shard.stat().st_size
    shard.unlink()
    message = (
        "`output_dir` must hold the shards that its manifest lists. "
        f"Received: output_dir={output_dir}, where train-00002.npy has no bytes and "
        f"not {size}. Pass --overwrite to prepare the corpus again."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare_small(path, tokenizer, output_dir)


def test_unreadable_settings_of_an_unfinished_run_are_named(
    path, tokenizer, output_dir
):
    output_dir.mkdir()
    (output_dir / "unfinished-settings.json").write_text("")
    message = "`output_dir` must hold an unfinished-settings.json that can be read."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        prepare_small(path, tokenizer, output_dir)


# Input and output that fail.


def test_full_disk_is_named_and_resumed_from(path, tokenizer, tmp_path):
    prepare_small(path, tokenizer, tmp_path / "undisturbed")
    output_dir = tmp_path / "prepared"
    reason = os.strerror(errno.EFBIG)
    message = (
        "`output_dir` must be writable and have room. "
        f"Received: output_dir={output_dir} ({reason})."
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The shard of the long document has 9,000 bytes, the others 3,000 at most.
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, limits[1]))
    try:
        with pytest.raises(OSError, match="^" + re.escape(message) + "$"):
            prepare_small(path, tokenizer, output_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    names = set(contents(output_dir))
    assert "train-00000.npy" in names
    assert not any(name.startswith(".") for name in names)
    prepare_small(path, tokenizer, output_dir)
    assert contents(output_dir) == contents(tmp_path / "undisturbed")


def test_what_can_be_no_directory_is_refused_before_the_corpus_is_read(tokenizer):
    corpus = Corpus(__file__)
    corpus.units = None
    with pytest.raises(NotADirectoryError, match="`output_dir` must be a directory"):
        prepare(corpus, tokenizer, 32, __file__)


def test_malformed_text_is_named_and_the_run_resumed(path, tokenizer, output_dir):
    good = (path / "3.txt").read_bytes()
    (path / "3.txt").write_bytes(b"\xff" + good[1:])
    with pytest.raises(ValueError, match=r"must be UTF-8 text.*3\.txt, with byte 0xff"):
        prepare_small(path, tokenizer, output_dir)
    (path / "3.txt").write_bytes(good)
    prepare_small(path, tokenizer, output_dir)


def test_units_of_a_file_edited_to_the_same_size_are_prepared_again(
    path, tokenizer, tmp_path, monkeypatch
):
    with interruption(monkeypatch, 60), pytest.raises(KeyboardInterrupt):
        prepare_small(path, tokenizer, tmp_path / "resumed")
    edited = path / "1.txt"
    edited.write_text(edited.read_text().replace("fox", "dog"))
    prepare_small(path, tokenizer, tmp_path / "resumed")
    prepare_small(path, tokenizer, tmp_path / "fresh")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("text", ["", "\n\n \n"])
def test_corpus_without_text_is_named(tmp_path, tokenizer, output_dir, text):
    (tmp_path / "a.txt").write_text(text)
    message = (
        "`corpus` must have some text to train on. Received: "
        f"sources=('{tmp_path / 'a.txt'}',) with 0 documents, held_out_every=5."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare_small(tmp_path / "a.txt", tokenizer, output_dir)


def test_held_out_part_alone_is_refused(path, tokenizer, output_dir):
    corpus = Corpus(path, held_out_every=5, part="held_out")
    message = (
        '`corpus` must be of the part "train"; what it holds out is prepared with it. '
        "Received: part='held_out'."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare(corpus, tokenizer, 32, output_dir)


def test_unit_without_bytes_is_refused(path, tokenizer, output_dir):
    message = "`unit_bytes` must be an int of at least 1. Received: unit_bytes=0."
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare_small(path, tokenizer, output_dir, unit_bytes=0)


def test_tokenizer_that_packs_itself_is_refused(path, output_dir):
    tokenizer = make_tokenizer("Bert", sequence_length=8)
    with pytest.raises(ValueError, match="^`tokenizer` must not set `sequence_length`"):
        prepare_small(path, tokenizer, output_dir)
    assert not output_dir.exists()


HOLD = """
import sys, time
from keras_minilmv2.data.storage import Storage

with Storage(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_prepares_in_a_directory(path, tokenizer, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=f"which process {process.pid} on"):
        prepare_small(path, tokenizer, tmp_path / "out")
    process.kill()
    process.communicate()
    prepare_small(path, tokenizer, tmp_path / "out")
    assert not [entry for entry in (tmp_path / "out").iterdir() if entry.name[0] == "."]
