"""Text files, standard input and TFDS datasets as one stream of text."""

import atexit
import codecs
import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import os
import re
import shutil
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from keras_minilmv2.data.sources import check_is_text, find_inputs, is_url
from keras_minilmv2.utils.checks import check_choice, check_int

BLOCK_BYTES = 256 * 1024
CHUNK_CHARS = 16_384

# A document is trimmed, so that two blank lines in a row end only one.
DOCUMENT_SEPARATORS = {
    "blank_line": re.compile(r"\n[^\S\n]*\n"),
    "line": re.compile(r"\n"),
    "file": re.compile(r"(?!)"),  # matches nowhere
}

# Bytes after which a document has ended for certain, whatever line ends are in use.
_CUTS = {
    "blank_line": re.compile(rb"\n\r?\n"),
    "line": re.compile(rb"\n"),
    "file": re.compile(rb"(?!)"),
}


@dataclass(frozen=True)
class Segment:
    """A stretch of one input that starts and ends where documents do.

    Args:
        name: str. The input: a file, `-` or a TFDS source.
        begin: int. First byte of a file, first part of a TFDS split.
        end: int. The byte or part after the last one.
        size: int. Bytes of the file, or parts that the TFDS split is cut into.
        num_bytes: int. What there is to read; of a TFDS split an estimate.
    """

    name: str
    begin: int
    end: int
    size: int
    num_bytes: int


class Corpus:
    r"""Documents from files, directories, standard input and TFDS datasets.

    Iterating gives pairs `(text, starts_document)`: a document comes whole, or, if it
    is longer than `CHUNK_CHARS` (16,384) characters, in chunks of at most that many,
    each cut before white space where there is any. The chunks of a document,
    concatenated, are the document, trimmed of surrounding white space; documents
    without text are skipped. Line ends become `"\n"` and stay in the text:
    WordPiece and SentencePiece treat them as white space, byte-level BPE has a token
    for them. Within a document, white space of more than `CHUNK_CHARS` characters
    may become one character.

    Only a block of one file is held at a time, so memory grows neither with the
    corpus nor with a document. A corpus can be iterated any number of times.

    The held-out part is every `held_out_every`-th chunk, counted over the whole
    corpus: a document no longer than `CHUNK_CHARS` goes there whole, a longer one, a
    book for instance, leaves chunks on both sides, and the chunk after a gap starts
    a document. Two corpora that differ in `part` alone share no text, and nothing is
    in neither.

    Args:
        sources: str, path, or sequence of them, read in this order. Each is
            - a file; one that ends in `.gz` is decompressed;
            - a directory: all `*.txt` and `*.txt.gz` below it, in any case, sorted by
              path. Linked directories are read too; files and directories whose name
              starts with a dot are not;
            - a glob, `**` included, whose matches are sorted;
            - a URL that fsspec opens, `gs://bucket/name` for instance: a file,
              directory or glob as above;
            - `-`, standard input. It can be read only once, so the first iteration
              copies all of it to a temporary file, which is removed at exit;
            - `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`, a TFDS dataset, downloaded
              if it has to be: `tfds:wikipedia/20230601.en:1.0.0@train[:10%]`. The
              split defaults to `train`.
        document_separator: str. What ends a document within a file:
            `"blank_line"`, one or more of them; `"line"`, every line is a document;
            or `"file"`, nothing does. A file always ends one. A record of a TFDS
            dataset is one document under each of them.
        decode_errors: str. What becomes of bytes that are not UTF-8: `"strict"`
            raises, `"replace"` puts U+FFFD in their place and counts them in
            `num_decode_errors`.
        text_feature: str. The feature of TFDS records to read.
        tfds_data_dir: str or path. Where TFDS keeps its data; None for the default of
            TFDS.
        held_out_every: int or None. Every how many chunks one is held out; None holds
            none out.
        part: str. `"train"` or `"held_out"`.

    Attributes:
        inputs: tuple of str. The sources with directories and globs replaced by the
            files found when the corpus was made.
        skipped: dict of str. Why each file below a directory is not read, by path.
        num_decode_errors: int. Malformed byte sequences replaced so far; however
            often the corpus is iterated, each counts once.
        num_bytes_read: int. Bytes read so far, before decompression.
        error: the ValueError that ended an iteration, or None; an iteration to the
            end clears it. tf.data reports it with an error of its own: see
            `corpus_errors`.

    Raises:
        ValueError: if a path or glob matches nothing, a directory has no text file, a
            file is named by two sources, or an argument is not one of the values
            above. During iteration: if a file cannot be read or decompressed, holds
            something else than text (UTF-16, gzip, bzip2, Parquet, JSON and so on:
            the message names it), is not UTF-8 (`decode_errors="strict"`), or a TFDS
            dataset, its split or its feature does not exist.
    """

    def __init__(
        self,
        sources,
        *,
        document_separator="blank_line",
        decode_errors="strict",
        text_feature="text",
        tfds_data_dir=None,
        held_out_every=None,
        part="train",
    ):
        if isinstance(sources, (str, os.PathLike)):
            sources = (sources,)
        sources = tuple(os.fspath(source) for source in sources)
        if not sources:
            raise ValueError(
                "`sources` must name at least one source. Received: sources=()."
            )
        check_choice(DOCUMENT_SEPARATORS, document_separator=document_separator)
        check_choice(("strict", "replace"), decode_errors=decode_errors)
        check_choice(("train", "held_out"), part=part)
        if held_out_every is not None:
            check_int(least=2, held_out_every=held_out_every)
        if part == "held_out" and held_out_every is None:
            raise ValueError(
                '`held_out_every` must be set when `part` is "held_out". '
                "Received: held_out_every=None."
            )
        self.sources = sources
        self.document_separator = document_separator
        self.decode_errors = decode_errors
        self.text_feature = text_feature
        self.tfds_data_dir = tfds_data_dir
        self.held_out_every = held_out_every
        self.part = part
        self.inputs, self.skipped = find_inputs(sources)
        self.error = None
        self.num_bytes_read = 0
        self._num_replaced = {}  # by name of the file or record, and its first byte

    @property
    def num_decode_errors(self):
        """Malformed byte sequences replaced so far."""
        return sum(self._num_replaced.values())

    def __iter__(self):
        # Not cleared here: tf.data, reading ahead, starts the next epoch before its
        # consumer has seen the error of this one.
        try:
            yield from self._chunks_of_part()
        except ValueError as error:
            self.error = error
            raise
        self.error = None

    def _chunks_of_part(self):
        """The chunks of the part asked for."""
        chunks = itertools.chain.from_iterable(map(self._chunks, self.inputs))
        for part, text, starts_document in split_parts(chunks, self.held_out_every):
            if part == self.part:
                yield text, starts_document

    def units(self, unit_bytes):
        """Cuts the corpus into units that can be read alone, in any order.

        A unit is a list of consecutive segments: small files together, or a stretch
        of a large file or TFDS split that starts and ends between documents. A
        compressed file, and one without a document's end, is never cut. Which
        documents a unit has depends on the sizes of the inputs and on `unit_bytes`.

        Args:
            unit_bytes: int. About how many bytes a unit has.

        Returns:
            list of lists of `Segment`. All together are the corpus, in order.
        """
        units, room = [], 0
        for name in self.inputs:
            for segment in self._segments(name, unit_bytes):
                if not units or segment.num_bytes > room:
                    units.append([])
                    room = unit_bytes
                units[-1].append(segment)
                room -= segment.num_bytes
        return units

    def unit_chunks(self, unit):
        """The chunks of one unit, both parts of the corpus, as iteration gives them.

        Args:
            unit: list of `Segment`, as from `units`.
        """
        for segment in unit:
            yield from self._chunks(segment.name, segment)

    def _segments(self, name, unit_bytes):
        """Cuts one input."""
        if name.startswith("tfds:"):
            num_parts, num_bytes = self._tfds_parts(name, unit_bytes)
            for part in range(num_parts):
                yield Segment(name, part, part + 1, num_parts, num_bytes // num_parts)
            return
        path = _path(name)
        size = _size(path)
        begin = 0
        cuts = (
            [] if path.lower().endswith(".gz") else self._cuts(path, size, unit_bytes)
        )
        for end in itertools.chain(cuts, [size]):
            yield Segment(name, begin, end, size, end - begin)
            begin = end

    def _cuts(self, path, size, unit_bytes):
        """Offsets of a file, about `unit_bytes` apart, between two documents."""
        ends_document = _CUTS[self.document_separator].search
        cut = unit_bytes
        while cut < size:
            data, offset = b"", cut
            with _reading(path), _open(path) as file:
                file.seek(cut)
                while not (match := ends_document(data)):
                    # The end of a document may lie across two blocks.
                    data, offset = data[-2:], offset + max(len(data) - 2, 0)
                    block = file.read(BLOCK_BYTES)
                    if not block:
                        return
                    data += block
            cut = offset + match.end()
            if cut < size:
                yield cut
            cut += unit_bytes

    def _chunks(self, name, segment=None):
        """The chunks of one input, or of a segment of it."""
        if name.startswith("tfds:"):
            for index, record in enumerate(self._tfds_records(name, segment)):
                self.num_bytes_read += len(record)
                text = self._decoded([record], f"record {index} of {name}")
                yield from split_chunks(text, "file")
            return
        begin, end = (0, None) if segment is None else (segment.begin, segment.end)
        shown = "standard input" if name == "-" else name
        text = self._decoded(self._blocks(_path(name), begin, end), shown, begin)
        yield from split_chunks(text, self.document_separator)

    def _blocks(self, path, begin, end):
        """The bytes of a file, decompressed if it is a `.gz` file, block by block."""
        with _reading(path), _open(path) as file:
            source = file
            if path.lower().endswith(".gz"):
                source, end = gzip.GzipFile(fileobj=file), None
            else:
                file.seek(begin)
            position = begin
            while block := source.read(
                BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - position)
            ):
                if position == 0:
                    check_is_text(block, path)
                self.num_bytes_read += file.tell() - position
                position = file.tell()
                yield block

    def fingerprints(self):
        """What changes when the content of an input does, by name of the input.

        That is the SHA-256 of a local file, which is read whole, and the version that
        fsspec knows of a URL.

        Returns:
            dict of str.

        Raises:
            ValueError: if an input cannot be read or is no text.
        """
        return {name: _fingerprint(name) for name in self.inputs}

    def _decoded(self, blocks, name, begin=0):
        """Text of UTF-8 blocks, without a byte order mark and carriage returns."""
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        offset, rest, num_replaced = begin, b"", 0
        for block in itertools.chain(blocks, [None]):
            is_end = block is None
            data = rest if is_end else rest + block
            try:
                text, num_used = codecs.utf_8_decode(data, "strict", is_end)
            except UnicodeDecodeError as error:
                if self.decode_errors == "strict":
                    at = error.start
                    raise ValueError(
                        f"`sources` must be UTF-8 text. Received: {name}, with byte "
                        f"0x{data[at]:02x} at offset {offset + at}. "
                        'Set `decode_errors="replace"` to read it all the same.'
                    ) from error
                text, num_used = codecs.utf_8_decode(data, "replace", is_end)
                # Less the U+FFFD that were in the text before.
                num_replaced += text.count("\ufffd")
                num_replaced -= data[:num_used].count(b"\xef\xbf\xbd")
                before = self._num_replaced.get((name, begin), 0)
                self._num_replaced[name, begin] = max(before, num_replaced)
            if offset == 0:
                text = text.removeprefix("\ufeff")
            rest = data[num_used:]
            offset += num_used
            yield newlines.decode(text, final=is_end)

    def _tfds_builder(self, source):
        """The builder and the split of a TFDS source."""
        # Importing it takes seconds that reading a file need not wait.
        import tensorflow_datasets as tfds

        name, _, split = source.removeprefix("tfds:").partition("@")
        # A wrong name raises ValueError or AssertionError, a failed download
        # anything from urllib's, requests' or the dataset's own errors.
        try:
            builder = tfds.builder(name, data_dir=self.tfds_data_dir)
            if not builder.is_prepared():
                builder.download_and_prepare()
        except Exception as error:
            raise ValueError(
                "`sources` must name TFDS datasets that are on this machine or can "
                f"be downloaded. Received: {source} ({_first_line(error)})."
            ) from error
        return builder, split or "train"

    def _tfds_parts(self, source, unit_bytes):
        """Into how many parts to cut a TFDS source, and about how many bytes it has."""
        builder, split = self._tfds_builder(source)
        with _reading_split(builder, source):
            num_records = builder.info.splits[split].num_examples
        splits = builder.info.splits.values()
        # TFDS knows the size of whole splits only.
        num_bytes = sum(split.num_bytes for split in splits) * num_records
        num_bytes //= max(1, sum(split.num_examples for split in splits))
        return max(1, min(-(-num_bytes // unit_bytes), num_records)), num_bytes

    def _tfds_records(self, source, segment):
        """The text of each record of a TFDS dataset, as bytes, in its own order."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        builder, split = self._tfds_builder(source)
        features = builder.info.features
        names = [
            key
            for key in features
            if features[key].tf_dtype == tf.string and features[key].shape == ()
        ]
        if self.text_feature not in names:
            raise ValueError(
                f"`text_feature` must be a text feature of {source}: one of "
                f"{', '.join(names)}. Received: text_feature={self.text_feature!r}."
            )
        if segment is not None and segment.size > 1:
            split = tfds.even_splits(split, segment.size)[segment.begin]
        with _reading_split(builder, source):
            # Without interleaving, so that the parts of a split, one after the
            # other, are the split.
            dataset = builder.as_dataset(
                split=split,
                shuffle_files=False,
                read_config=tfds.ReadConfig(interleave_cycle_length=1),
            )
        try:
            texts = dataset.map(lambda record: record[self.text_feature])
            yield from texts.as_numpy_iterator()
        except tf.errors.OpError as error:
            raise ValueError(
                "`sources` must be files that can be read to the end. "
                f"Received: {source} ({_first_line(error)})."
            ) from error


def split_parts(chunks, held_out_every, num_before=0):
    """Says of each chunk which part of the corpus it belongs to.

    Args:
        chunks: iterable of `(text, starts_document)`.
        held_out_every: int or None. As for `Corpus`.
        num_before: int. Pieces of the corpus that come before these.

    Yields:
        `(part, text, starts_document)`; the chunk after a gap starts a document.
    """
    follows_gap = {"train": False, "held_out": False}
    for number, (text, starts_document) in enumerate(chunks, start=num_before + 1):
        part, other = "train", "held_out"
        if held_out_every is not None and number % held_out_every == 0:
            part, other = other, part
        if starts_document or follows_gap[part]:
            text, starts_document = text.lstrip(), True
        follows_gap[part], follows_gap[other] = False, True
        yield part, text, starts_document


def split_chunks(blocks, document_separator):
    """Splits one text into documents, long documents into chunks.

    Args:
        blocks: iterable of str. The text, cut anywhere.
        document_separator: str. As for `Corpus`.

    Yields:
        `(text, starts_document)`, as `Corpus` does.
    """
    split = DOCUMENT_SEPARATORS[document_separator].split
    rest, starts_document = "", True
    for block in itertools.chain(blocks, [None]):
        if block is None:
            documents, rest = [rest], ""
        else:
            *documents, rest = split(rest + block)
        for document in documents:
            document, starts_document = yield from _cut(document, starts_document)
            if document := document.rstrip():
                yield document, starts_document
            starts_document = True
        rest, starts_document = yield from _cut(rest, starts_document)


def _cut(text, starts_document):
    """Yields chunks until few characters are left; returns those and the flag."""
    if starts_document:
        text = text.lstrip()
    begin = 0
    while len(text) - begin > CHUNK_CHARS:
        window = text[begin : begin + CHUNK_CHARS + 1]
        if window.isspace():
            # One character for all of it; a newline may be half of a blank line.
            blank = "\n" if "\n" in window else " "
            text, begin = blank + text[begin + len(window) :], 0
            continue
        space = max(window.rfind(" "), window.rfind("\n"), window.rfind("\t"))
        # All the white space goes to the next chunk: byte-level BPE joins a space
        # to the word after it.
        length = len(window[: max(space, 0)].rstrip()) or CHUNK_CHARS
        yield window[:length], starts_document
        starts_document = False
        begin += length
    return text[begin:], starts_document


def _open(path):
    """Opens a file for reading bytes."""
    import fsspec

    return fsspec.open(path, "rb").open()


def _size(path):
    """Bytes of a file."""
    with _reading(path):
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(path)
        return filesystem.size(path)


def _path(name):
    """The file that an input is read from."""
    return _spooled(sys.stdin) if name == "-" else name


@contextlib.contextmanager
def _reading(path):
    """Turns what reading a file raises into a sentence about it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            "`sources` must be files that can be read to the end. "
            f"Received: {path} ({_first_line(error)})."
        ) from error


@contextlib.contextmanager
def _reading_split(builder, source):
    """Turns an error about an unknown TFDS split into a sentence."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise ValueError(
            "`sources` must name a split of the TFDS dataset: one of "
            f"{', '.join(builder.info.splits)}, or a slice of one. "
            f"Received: {source}."
        ) from error


def _fingerprint(name):
    """What changes when the content of an input does."""
    if name.startswith("tfds:"):
        return name  # It has a version, and its size is in the segments.
    path = _path(name)
    with _reading(path):
        if is_url(path):
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(path)
            return filesystem.ukey(path)
        with _open(path) as file:
            if not path.lower().endswith(".gz"):  # checked when it is decompressed
                check_is_text(file.read(BLOCK_BYTES), path)
                file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _spooled(stream):
    """Copies a stream to a temporary file, once, and returns its path."""
    handle, path = tempfile.mkstemp(prefix="keras-minilmv2-stdin-", suffix=".txt")
    atexit.register(Path(path).unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(stream.buffer, file)
    return path


def _first_line(error):
    """The first line of an error's message, without a full stop and TF's marks."""
    line = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", str(error).partition("\n")[0])
    return line.rstrip(".") or type(error).__name__
