import bz2
import gzip
import os
import re

import pytest
from small_tokenizers import make_tokenizer

from keras_minilmv2.data.preparation import prepare
from keras_minilmv2.data.sources import log_skipped
from keras_minilmv2.data.text import Corpus

TEXT = b"the quick brown fox jumps over the lazy dog\n\n" * 20


@pytest.mark.parametrize("decode_errors", ["strict", "replace"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(TEXT, mtime=0), "compressed by gzip, and is not named .gz"),
        (bz2.compress(TEXT), "compressed by bzip2"),
        (TEXT.decode().encode("utf-16"), "text in UTF-16"),
        (TEXT.decode().encode("utf-16-le"), "text in UTF-16"),
        (TEXT.decode().encode("utf-16-be"), "text in UTF-16"),
        (TEXT.decode().encode("utf-32"), "text in UTF-32"),
        (b"PAR1\x15\x04\x15\x10" + bytes(20), "Parquet"),
        (bytes(range(10)) * 10 + bytes(10), "binary"),
        (b'{"text": "the fox"}\n{"text": "the dog"}\n', "JSON, whose braces"),
        (b'[\n {"id": 1, "text": "the fox"}\n]\n', "JSON, whose braces"),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, what, decode_errors):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    corpus = Corpus(path, decode_errors=decode_errors)
    rule = "`sources` must be files of UTF-8 text. Received: "
    message = re.escape(f"{rule}{path}, which is {what}")
    with pytest.raises(ValueError, match=message):
        list(corpus)
    with pytest.raises(ValueError, match=message):
        corpus.fingerprints()


def test_what_a_gzip_file_holds_is_looked_at_too(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b'{"text": "the fox"}\n'))
    with pytest.raises(ValueError, match=r"a\.txt\.gz, which is JSON"):
        list(Corpus(path))


def test_the_fingerprint_of_a_gzip_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "a.txt.gz"
    found = []
    for text in (b"the quick brown fox\n", b"the quick brown dog\n"):
        path.write_bytes(gzip.compress(text, mtime=0))
        found.append(Corpus(path).fingerprints())
    assert found[0] != found[1]


def test_text_with_a_few_nuls_and_braces_is_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"{the} fox\n\n" + b"a document with one\0 NUL\n\n" * 50)
    assert len(list(Corpus(path))) == 51


def test_no_token_is_lost_after_nul(tmp_path):
    tokenizer = make_tokenizer("Bert")
    documents = ["the quick brown fox " * 10] * 50
    for name, nul in (("plain", ""), ("nul", "\0")):
        path = tmp_path / f"{name}.txt"
        text = "\n\n".join(f"the {nul}quick {document}" for document in documents)
        path.write_text(text)
    manifests = [
        prepare(Corpus(tmp_path / f"{name}.txt"), tokenizer, 32, tmp_path / name)
        for name in ("plain", "nul")
    ]
    assert manifests[0].num_tokens() == manifests[1].num_tokens() > 2_000


def test_what_a_directory_skips_is_counted(tmp_path):
    linked, folder = tmp_path / "linked", tmp_path / "folder"
    for path in (linked, folder, folder / ".git"):
        path.mkdir()
    (linked / "inside.txt").write_text("linked")
    (folder / "A.TXT").write_text("upper")
    (folder / "b.txt").write_text("lower")
    for name in ("._b.txt", ".git/c.txt", "README.md", "more.jsonl"):
        (folder / name).write_text("skipped")
    (folder / "link").symlink_to(linked)
    (folder / "loop").symlink_to(folder)
    corpus = Corpus(folder)
    assert [text for text, _ in corpus] == ["upper", "lower", "linked"]
    names = {os.path.relpath(path, folder) for path in corpus.skipped}
    assert names == {".git", "._b.txt", "README.md", "loop", "more.jsonl"}
    lines = []
    log_skipped(corpus.skipped, lines.append)
    (summary,) = lines
    assert summary.startswith("Skipped in the directories of the corpus: ")
    for part in ("1 linked twice", "2 hidden", "2 not named .txt or .txt.gz"):
        assert part in summary
    log_skipped({}, lines.append)
    assert lines == [summary]


@pytest.mark.parametrize(
    "names",
    [
        ("a.txt", "a.txt"),
        (".", "."),
        (".", "a.txt"),
        ("a.txt", "*.txt"),
        ("a.txt", "link.txt"),
        ("tfds:wikipedia", "tfds:wikipedia@train"),
        ("-", "-"),
    ],
)
def test_an_input_that_two_sources_hold_is_refused(tmp_path, names):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the fox")
    if "link.txt" in names:
        (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    sources = [
        name if name[:1] in "t-" else os.path.join(tmp_path, name) for name in names
    ]
    with pytest.raises(ValueError, match="`sources` must name every input once"):
        Corpus(sources)


def test_a_corpus_edited_to_the_same_size_is_noticed(tmp_path):
    path, output_dir = tmp_path / "a.txt", tmp_path / "out"
    path.write_text("the quick brown fox\n" * 20)
    tokenizer = make_tokenizer("Bert")
    first = prepare(Corpus(path), tokenizer, 16, output_dir)
    assert prepare(Corpus(path), tokenizer, 16, output_dir) == first
    path.write_text("the quick brown dog\n" * 20)
    with pytest.raises(ValueError, match="these differ: contents_sha256="):
        prepare(Corpus(path), tokenizer, 16, output_dir)


def test_a_remote_corpus_edited_to_the_same_size_is_noticed():
    import fsspec

    filesystem = fsspec.filesystem("memory")
    found = []
    for word in ("fox", "dog"):
        filesystem.pipe("/edited/a.txt", f"the {word}".encode())
        found.append(Corpus("memory://edited/a.txt").fingerprints())
    assert found[0] != found[1]


def test_what_an_older_version_prepared_is_still_returned(tmp_path):
    path, output_dir = tmp_path / "a.txt", tmp_path / "out"
    path.write_text("the quick brown fox\n" * 20)
    tokenizer = make_tokenizer("Bert")
    first = prepare(Corpus(path), tokenizer, 16, output_dir)
    manifest = output_dir / "manifest.json"
    older = re.sub(r',\n\s*"contents_sha256": "\w+"', "", manifest.read_text())
    assert older != manifest.read_text()
    manifest.write_text(older)
    assert prepare(Corpus(path), tokenizer, 16, output_dir).shards == first.shards
