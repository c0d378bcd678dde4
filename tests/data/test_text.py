import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tracemalloc

import fsspec
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_minilmv2.data import text as text_module
from keras_minilmv2.data.text import (
    BLOCK_BYTES,
    CHUNK_CHARS,
    Corpus,
    split_chunks,
    split_parts,
)


class NewsForTests(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="en"),
        tfds.core.BuilderConfig(name="de"),
    ]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "title": tfds.features.Text(),
                    "year": tf.int64,
                    "tags": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, num_records):
        language = self.builder_config.name
        for index in range(num_records):
            yield (
                index,
                {
                    "text": f"{language} first line {index}\n\nsecond paragraph",
                    "title": f"{language} title {index}",
                    "year": 2000 + index,
                    "tags": ["a", "b"],
                },
            )


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    for language in ("en", "de"):
        NewsForTests(data_dir=path, config=language).download_and_prepare()
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def documents(corpus):
    """The documents of a corpus, their chunks joined."""
    found = []
    for text, starts_document in corpus:
        if starts_document:
            found.append(text)
        else:
            found[-1] += text
    return found


# How files become documents.

SAMPLE = "\n\n One\ntwo \n \t\n\n\nthree\n\n\u2028 \nfour\vfive\n"


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("blank_line", ["One\ntwo", "three", "four\vfive"]),
        ("line", ["One", "two", "three", "four\vfive"]),
        ("file", [SAMPLE.strip()]),
    ],
)
def test_separator_ends_documents(tmp_path, separator, expected):
    path = write(tmp_path / "a.txt", SAMPLE)
    assert documents(Corpus(path, document_separator=separator)) == expected


def test_a_file_ends_a_document_under_every_separator(tmp_path):
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "b.txt", "two")
    for separator in ("blank_line", "line", "file"):
        corpus = Corpus(tmp_path, document_separator=separator)
        assert documents(corpus) == ["one", "two"]


def test_documents_do_not_depend_on_where_blocks_end():
    text = "a b\nc\n \nd\n\n\ne  f\n" * 7
    for separator in ("blank_line", "line", "file"):
        whole = list(split_chunks([text], separator))
        for size in (1, 2, 3, 5):
            blocks = [text[i : i + size] for i in range(0, len(text), size)]
            assert list(split_chunks(blocks, separator)) == whole


def test_a_corpus_equals_a_reading_line_by_line(data_dir):
    path = data_dir / "corpus" / "multilingual" / "th.txt"
    paragraphs, lines = [], []
    for line in path.read_text().split("\n") + [""]:
        if line.strip():
            lines.append(line)
        elif lines:
            paragraphs.append("\n".join(lines).strip())
            lines = []
    assert len(paragraphs) > 100
    assert documents(Corpus(path)) == paragraphs


def test_a_corpus_can_be_iterated_again(tmp_path):
    corpus = Corpus(write(tmp_path / "a.txt", "one\n\ntwo"))
    assert list(corpus) == list(corpus) == [("one", True), ("two", True)]


def test_a_file_without_text_gives_no_documents(tmp_path):
    assert list(Corpus(write(tmp_path / "a.txt", ""))) == []
    assert list(Corpus(write(tmp_path / "b.txt", "\n \n\n"))) == []


# Pieces.


def test_chunks_of_a_long_document_join_to_the_document(tmp_path):
    words = " ".join(f"word{number}" for number in range(20_000))
    path = write(tmp_path / "a.txt", "short\n\n" + words + "\n\nshort")
    chunks = list(Corpus(path))
    assert documents(chunks) == ["short", words, "short"]
    assert len(chunks) == pytest.approx(len(words) / CHUNK_CHARS + 2, abs=1)
    assert max(len(text) for text, _ in chunks) <= CHUNK_CHARS
    continued = [text for text, starts_document in chunks if not starts_document]
    assert all(re.match(r" word\d", text) for text in continued)
    assert not any(text.endswith(" ") for text, _ in chunks)


def test_chunks_are_cut_before_all_of_the_white_space():
    text = "x" * (CHUNK_CHARS - 3) + " \n\t y"
    for separator in ("line", "file"):
        assert documents(split_chunks([text], separator)) == (
            [text] if separator == "file" else ["x" * (CHUNK_CHARS - 3), "y"]
        )
    assert [t for t, _ in split_chunks([text], "file")] == [text[:-5], text[-5:]]


def test_text_without_white_space_is_cut_between_characters():
    text = "語" * (2 * CHUNK_CHARS + 5)
    chunks = [chunk for chunk, _ in split_chunks([text], "blank_line")]
    assert [len(chunk) for chunk in chunks] == [CHUNK_CHARS, CHUNK_CHARS, 5]
    assert "".join(chunks) == text


def test_very_long_white_space_is_shortened():
    spaces = " " * (5 * CHUNK_CHARS)
    for separator in ("blank_line", "line", "file"):
        text = ["a", spaces, spaces, "b", spaces]
        (joined,) = documents(split_chunks(text, separator))
        assert joined.split() == ["a", "b"]
        assert len(joined) <= CHUNK_CHARS + 2
    text = ["a", spaces, "\n", spaces, spaces, "\nb"]
    assert documents(split_chunks(text, "blank_line")) == ["a", "b"]


def test_memory_does_not_grow_with_a_line(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        for _ in range(30):
            file.write(b"seven words stand in this one line " * 30_000)
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    num_chars = sum(len(text) for text, _ in Corpus(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_chars == path.stat().st_size - 1
    assert peak < 12 * BLOCK_BYTES


# Sources.


def test_directory_is_read_recursively_in_sorted_order(tmp_path):
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a" / "z.txt.gz", "z")
    write(tmp_path / "a" / "y.txt", "y")
    write(tmp_path / "a" / "notes.md", "no")
    assert documents(Corpus(str(tmp_path))) == ["y", "z", "b"]


def test_glob_is_sorted_and_recursive(tmp_path):
    for name in ("b.text", "a.text", "sub/c.text"):
        write(tmp_path / name, name)
    assert documents(Corpus(f"{tmp_path}/*.text")) == ["a.text", "b.text"]
    assert documents(Corpus(f"{tmp_path}/**/c.text")) == ["sub/c.text"]


def test_glob_may_match_directories(tmp_path):
    write(tmp_path / "en" / "a.txt", "a")
    write(tmp_path / "de" / "b.txt", "b")
    assert documents(Corpus(f"{tmp_path}/*")) == ["b", "a"]


def test_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    path = write(tmp_path / "[1].txt", "one")
    assert documents(Corpus(path)) == ["one"]


def test_sources_are_read_in_their_order(tmp_path):
    first = write(tmp_path / "b.txt", "b")
    second = write(tmp_path / "a.txt.gz", "a")
    corpus = Corpus([first, str(second)])
    assert documents(corpus) == ["b", "a"]
    assert corpus.inputs == (str(first), str(second))


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "a")
    assert documents(Corpus("~/a.txt")) == ["a"]


def test_gzip_of_several_members_is_read_whole(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\n\n") + gzip.compress(b"two"))
    assert documents(Corpus(path)) == ["one", "two"]


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def test_standard_input_can_be_iterated_again(monkeypatch):
    stdin = Stdin(b"one\n\ntwo")
    monkeypatch.setattr(sys, "stdin", stdin)
    corpus = Corpus("-")
    assert stdin.buffer.tell() == 0  # not read before it is asked for
    assert list(corpus) == list(corpus) == [("one", True), ("two", True)]


def test_standard_input_is_spooled_once_and_removed_at_exit(tmp_path):
    program = (
        "from keras_minilmv2.data.text import Corpus\n"
        "train = Corpus('-', document_separator='line', held_out_every=3)\n"
        "held_out = Corpus('-', document_separator='line', held_out_every=3,\n"
        "                  part='held_out')\n"
        "for corpus in (train, train, held_out):\n"
        "    print(*[text for text, _ in corpus])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="a\nb\nc\nd\n",
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert done.stdout.splitlines() == ["a b d", "a b d", "c"]
    assert list(tmp_path.iterdir()) == []


def test_standard_input_is_named_in_errors(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"a\xff"))
    message = "Received: standard input, with byte 0xff at offset 1."
    with pytest.raises(ValueError, match=re.escape(message)):
        list(Corpus("-"))


# Bytes.


def test_byte_order_mark_and_carriage_returns_are_dropped(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\r\n\r\nfour")
    assert documents(Corpus(path)) == ["one\ntwo\nthree", "four"]


def test_carriage_return_at_the_end_of_a_block_is_no_line_of_its_own(tmp_path):
    start = b"x" * (BLOCK_BYTES - 1)
    path = write(tmp_path / "a.txt", start + b"\r\ny")
    chunks = list(Corpus(path, document_separator="blank_line"))
    assert documents(chunks) == [start.decode() + "\ny"]


def test_character_across_two_blocks_is_read(tmp_path):
    path = write(tmp_path / "a.txt", "x" * (BLOCK_BYTES - 1) + "語")
    (document,) = documents(Corpus(path))
    assert document.endswith("x語")


def test_nul_is_text(tmp_path):
    path = write(tmp_path / "a.txt", b"a\0b\n\nc")
    assert documents(Corpus(path)) == ["a\0b", "c"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_malformed_bytes_are_named_with_their_offset(tmp_path, suffix):
    text = "\ufeff" + "ä" * BLOCK_BYTES
    offset = len(text.encode())
    path = write(tmp_path / f"a.txt{suffix}", text.encode() + b"\xff!")
    corpus = Corpus(path)
    message = (
        f"`sources` must be UTF-8 text. Received: {path}, with byte 0xff at offset "
        f'{offset}. Set `decode_errors="replace"` to read it all the same.'
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$") as caught:
        list(corpus)
    assert corpus.error is caught.value
    write(path, "ascii")
    assert documents(corpus) == ["ascii"]
    assert corpus.error is None


def test_character_cut_off_at_the_end_is_malformed(tmp_path):
    path = write(tmp_path / "a.txt", b"abc\xe8\xaa")
    with pytest.raises(ValueError, match="with byte 0xe8 at offset 3"):
        list(Corpus(path))


def test_malformed_bytes_are_replaced_and_counted(tmp_path):
    data = b"a\xffb\xfe\n\n" + "\ufffd".encode() + b"c\xe8\xaa"
    path = write(tmp_path / "a.txt", data)
    corpus = Corpus(path, decode_errors="replace")
    for _ in range(2):
        assert documents(corpus) == ["a\ufffdb\ufffd", "\ufffdc\ufffd"]
        assert corpus.num_decode_errors == 3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-20], "Compressed file ended before the end-of-stream"),
        (lambda data: b"plain text", "Not a gzipped file"),
        (lambda data: data[:50] + bytes(200) + data[250:], "Error -3 while decomp"),
    ],
    ids=["truncated", "not gzip", "corrupt"],
)
def test_unreadable_gzip_is_named(tmp_path, damage, reason):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(5_000).hex().encode())))
    message = f"must be files that can be read to the end. Received: {path} ({reason}"
    corpus = Corpus(path, decode_errors="replace")
    with pytest.raises(ValueError, match=re.escape(message)):
        list(corpus)


def test_file_that_has_gone_is_named(tmp_path):
    path = write(tmp_path / "a.txt", "a")
    corpus = Corpus(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"read to the end\. Received: .*No such file"):
        list(corpus)


# The held-out part.


def both_parts(path, held_out_every, **kwargs):
    train = Corpus(path, held_out_every=held_out_every, **kwargs)
    held_out = Corpus(path, held_out_every=held_out_every, part="held_out", **kwargs)
    return list(train), list(held_out)


def test_every_nth_document_is_held_out(tmp_path):
    path = write(tmp_path / "a.txt", "\n".join("abcdefgh"))
    train, held_out = both_parts(path, 3, document_separator="line")
    assert [text for text, _ in held_out] == ["c", "f"]
    assert [text for text, _ in train] == ["a", "b", "d", "e", "g", "h"]
    assert all(starts_document for _, starts_document in train + held_out)


def test_a_book_has_text_in_both_parts(tmp_path):
    words = [f"word{number}" for number in range(20_000)]
    path = write(tmp_path / "a.txt", " ".join(words))
    train, held_out = both_parts(path, 4)
    numbers = [
        [word for text, _ in part for word in text.split()]
        for part in (train, held_out)
    ]
    assert set(numbers[0]).isdisjoint(numbers[1])
    assert sorted(numbers[0] + numbers[1]) == sorted(words)
    assert 0.1 < len(numbers[1]) / len(words) < 0.4
    # A chunk after a gap starts a document, without white space before it.
    assert [starts_document for _, starts_document in train][:5] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert all(starts_document for _, starts_document in held_out)
    assert all(
        text[0] != " " for text, starts_document in train + held_out if starts_document
    )


def test_parts_are_counted_across_files(tmp_path):
    for name in "abcd":
        write(tmp_path / f"{name}.txt", name)
    train, held_out = both_parts(tmp_path, 2)
    assert [text for text, _ in train] == ["a", "c"]
    assert [text for text, _ in held_out] == ["b", "d"]


# TFDS.


def test_tfds_records_are_documents(tfds_dir):
    corpus = Corpus("tfds:news_for_tests/de:1.0.0@test", tfds_data_dir=tfds_dir)
    expected = [f"de first line {index}\n\nsecond paragraph" for index in range(2)]
    assert sorted(documents(corpus)) == expected
    assert list(corpus) == list(corpus)


def test_tfds_split_defaults_to_train(tfds_dir):
    corpus = Corpus("tfds:news_for_tests/en", tfds_data_dir=tfds_dir)
    assert len(documents(corpus)) == 6


def test_tfds_split_can_be_a_slice(tfds_dir):
    source = "tfds:news_for_tests/en@train[:50%]+test"
    assert len(documents(Corpus(source, tfds_data_dir=tfds_dir))) == 5


def test_tfds_text_feature_is_chosen(tfds_dir):
    corpus = Corpus(
        "tfds:news_for_tests/en@test", tfds_data_dir=tfds_dir, text_feature="title"
    )
    assert sorted(documents(corpus)) == ["en title 0", "en title 1"]


def test_tfds_and_files_mix(tfds_dir, tmp_path):
    first, last = (write(tmp_path / name, "a") for name in ("a.txt", "b.txt"))
    sources = [first, "tfds:news_for_tests/en@test", last]
    found = documents(Corpus(sources, tfds_data_dir=tfds_dir))
    assert len(found) == 4
    assert found[0] == found[-1] == "a"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("tfds:no_such_news", "(Dataset no_such_news not found)."),
        ("tfds:news_for_tests/fr", "BuilderConfig fr not found"),
        ("tfds:news_for_tests/en:7.0.0", "cannot be loaded at version 7.0.0"),
        ("tfds:", "Parsing builder name string"),
    ],
)
def test_unknown_tfds_dataset_is_named(tfds_dir, source, reason):
    corpus = Corpus(source, tfds_data_dir=tfds_dir)
    message = (
        "`sources` must name TFDS datasets that are on this machine or can be "
        f"downloaded. Received: {source} ("
    )
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        list(corpus)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_tfds_split_is_named(tfds_dir):
    corpus = Corpus("tfds:news_for_tests/en@dev", tfds_data_dir=tfds_dir)
    message = (
        "`sources` must name a split of the TFDS dataset: one of train, test, or a "
        "slice of one. Received: tfds:news_for_tests/en@dev."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        list(corpus)


def test_damaged_tfds_file_is_named(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*test.tfrecord*"):
        path.write_bytes(path.read_bytes()[:-3])
    source = "tfds:news_for_tests/de@test"
    corpus = Corpus(source, tfds_data_dir=tmp_path)
    message = f"that can be read to the end. Received: {source} (truncated record"
    with pytest.raises(ValueError, match=re.escape(message)):
        list(corpus)


@pytest.mark.parametrize("feature", ["body", "year", "tags"])
def test_unknown_text_feature_is_named(tfds_dir, feature):
    corpus = Corpus(
        "tfds:news_for_tests/en", tfds_data_dir=tfds_dir, text_feature=feature
    )
    message = (
        "`text_feature` must be a text feature of tfds:news_for_tests/en: one of "
        f"text, title. Received: text_feature='{feature}'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        list(corpus)


# Units.


def unit_chunks(corpus, unit_bytes):
    return [list(corpus.unit_chunks(unit)) for unit in corpus.units(unit_bytes)]


@pytest.mark.parametrize("separator", ["blank_line", "line", "file"])
def test_units_one_after_the_other_are_the_corpus(tmp_path, monkeypatch, separator):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 7)
    rng = np.random.default_rng(0)
    for number in range(20):
        signs = rng.choice(["a", "é", " ", "\n", "\n", "\r\n", "\r", "\t"], size=200)
        write(tmp_path / f"{number}.txt", "\ufeff" + "".join(signs))
    corpus = Corpus(tmp_path, document_separator=separator)
    for unit_bytes in (1, 5, 40, 1_000, 10_000):
        chunks = unit_chunks(corpus, unit_bytes)
        assert [chunk for unit in chunks for chunk in unit] == list(corpus)
        segments = [segment for unit in corpus.units(unit_bytes) for segment in unit]
        assert all(s.end == s.size or s.end - s.begin >= unit_bytes for s in segments)
        if separator != "file":
            assert (len(segments) > 20) == (unit_bytes < 200)


def test_a_large_file_is_cut_at_the_next_end_of_a_document(tmp_path):
    path = write(tmp_path / "a.txt", "two words\n" * 10_000)
    units = Corpus(path, document_separator="line").units(9_995)
    assert [unit[0].begin for unit in units] == list(range(0, 100_000, 10_000))
    assert all(len(unit) == 1 and unit[0].size == 100_000 for unit in units)


def test_small_files_share_a_unit(tmp_path):
    for number in range(10):
        write(tmp_path / f"{number}.txt", "x" * 30)
    units = Corpus(tmp_path).units(100)
    assert [len(unit) for unit in units] == [3, 3, 3, 1]


def test_a_compressed_file_is_not_cut(tmp_path):
    path = write(tmp_path / "a.txt.gz", "\n\n".join(map(str, range(5_000))))
    corpus = Corpus(path)
    (unit,) = corpus.units(1_000)
    assert len(list(corpus.unit_chunks(unit))) == 5_000
    assert corpus.num_bytes_read == path.stat().st_size == unit[0].num_bytes


def test_a_unit_of_standard_input_is_read_from_its_copy(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"one\n\ntwo\n\nthree"))
    monkeypatch.setattr(sys, "stdin", stdin)
    chunks = unit_chunks(Corpus("-"), 5)
    assert chunks == [[("one", True), ("two", True)], [("three", True)]]


def test_parts_of_a_tfds_split_are_the_split(tfds_dir):
    source = "tfds:news_for_tests/de@train[1:]"
    corpus = Corpus(source, tfds_data_dir=tfds_dir)
    chunks = unit_chunks(corpus, 100)
    assert len(chunks) > 1
    assert [chunk for unit in chunks for chunk in unit] == list(corpus)


def test_bytes_read_are_counted(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\ntwo\n\n" * 50_000)
    corpus = Corpus(path)
    assert len(corpus.units(100_000)) == 5
    unit_chunks(corpus, 100_000)
    assert corpus.num_bytes_read == path.stat().st_size


def test_offset_of_malformed_bytes_counts_from_the_start_of_the_file(tmp_path):
    path = write(tmp_path / "a.txt", b"one\n\n" * 1_000 + b"\xff")
    corpus = Corpus(path)
    assert len(corpus.units(1_000)) == 5
    with pytest.raises(ValueError, match="byte 0xff at offset 5000"):
        unit_chunks(corpus, 1_000)
    corpus = Corpus(path, decode_errors="replace")
    unit_chunks(corpus, 1_000)
    list(corpus)
    assert corpus.num_decode_errors == 2  # once in a unit, once in the file


def test_parts_can_be_split_from_any_unit_on(tmp_path):
    path = write(tmp_path / "a.txt", "\n\n".join(f"document {n}" for n in range(100)))
    corpus = Corpus(path, held_out_every=7)
    found, num_before = [], 0
    for chunks in unit_chunks(corpus, 50):
        found += split_parts(chunks, 7, num_before)
        num_before += len(chunks)
    for part in ("train", "held_out"):
        expected = list(Corpus(path, held_out_every=7, part=part))
        assert [(text, start) for p, text, start in found if p == part] == expected


# URLs.


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe(
        {
            "/texts/b.txt": b"two\n\nthree",
            "/texts/more/a.txt.gz": gzip.compress(b"four"),
            "/texts/a.md": b"no",
        }
    )
    yield filesystem
    filesystem.rm("/texts", recursive=True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("memory://texts/b.txt", ["two", "three"]),
        ("memory://texts", ["two", "three", "four"]),
        ("memory://texts/**/*.gz", ["four"]),
    ],
)
@pytest.mark.usefixtures("memory")
def test_a_url_is_a_source(source, expected):
    corpus = Corpus(source)
    assert documents(corpus) == expected
    chunks = [chunk for unit in unit_chunks(corpus, 5) for chunk in unit]
    assert chunks == list(corpus)


@pytest.mark.usefixtures("memory")
def test_url_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"'memory://none.txt', which matches nothing"):
        Corpus("memory://none.txt")


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": []}, "`sources` must name at least one source."),
        (
            {"document_separator": "paragraph"},
            "`document_separator` must be one of blank_line, line, file. "
            "Received: document_separator='paragraph'.",
        ),
        (
            {"decode_errors": "ignore"},
            "`decode_errors` must be one of strict, replace. "
            "Received: decode_errors='ignore'.",
        ),
        (
            {"held_out_every": 1},
            "`held_out_every` must be an int of at least 2. "
            "Received: held_out_every=1.",
        ),
        (
            {"part": "test"},
            "`part` must be one of train, held_out. Received: part='test'.",
        ),
        (
            {"part": "held_out"},
            '`held_out_every` must be set when `part` is "held_out". '
            "Received: held_out_every=None.",
        ),
    ],
)
def test_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Corpus(**{"sources": "-", **arguments})


@pytest.mark.parametrize("name", ["none.txt", "*.none", "no_directory/"])
def test_source_that_matches_nothing_is_named(tmp_path, name):
    source = f"{tmp_path}/{name}"
    message = (
        "`sources` must name files that exist. "
        f"Received: {source!r}, which matches nothing."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Corpus(source)


def test_directory_without_text_files_is_named(tmp_path):
    write(tmp_path / "a.md", "a")
    message = (
        "`sources` must name directories with `.txt` or `.txt.gz` files. "
        f"Received: {str(tmp_path)!r}, which has none."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Corpus(tmp_path)
