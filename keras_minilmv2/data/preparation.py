"""A corpus becomes shards of packed examples: tokenized once, resumed when killed."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from keras_minilmv2.data.packing import TokenStream, check_packing, num_cores
from keras_minilmv2.data.shards import (
    MANIFEST,
    PARTS,
    Manifest,
    Settings,
    Shard,
    ShardWriter,
    file_sha256,
    parse_manifest,
    row_dtype,
    settings_from_dict,
    tokenizer_identity,
)
from keras_minilmv2.data.storage import Storage
from keras_minilmv2.data.text import split_parts
from keras_minilmv2.utils.checks import check_int
from keras_minilmv2.utils.files import writing

UNIT_BYTES = 64 * 2**20

_SETTINGS = "unfinished-settings.json"
_RECORD = re.compile(r"unfinished-(\d+)\.json")
_OURS = re.compile(
    r"\.?(manifest|unfinished-settings|unfinished-\d+|(train|held_out)-\d+)"
    r"(-\w+)?\.(json|npy)"
)
# What a killed run was writing.
_TEMPORARY = re.compile(r"\.(manifest|unfinished|train|held_out)-.*\.(json|npy)")

_REPORT_SECONDS = 1.0


class OtherSettingsError(ValueError):
    """A directory holds examples of other settings."""


@dataclass(frozen=True)
class Progress:
    """How far a preparation is.

    Args:
        num_bytes: int. Bytes of the corpus that are done, before decompression.
        total_bytes: int. Bytes of the corpus; an estimate for TFDS.
        num_documents: int.
        num_tokens: int. Real tokens of the examples written, both parts together.
        tokens_per_second: float. Of this run, without what it found done.
        seconds_left: float or None. None before anything is done.
    """

    num_bytes: int
    total_bytes: int
    num_documents: int
    num_tokens: int
    tokens_per_second: float
    seconds_left: float | None

    def __str__(self):
        share = self.num_bytes / max(self.total_bytes, 1)
        cells = [
            f"{min(share, 1):4.0%} of {self.total_bytes / 1e6:,.1f} MB",
            f"{self.num_documents:,} documents",
            f"{self.num_tokens:,} tokens",
            f"{self.tokens_per_second:,.0f} tokens/s",
        ]
        if self.seconds_left is not None:
            left = datetime.timedelta(seconds=round(self.seconds_left))
            cells.append(f"ETA {left}")
        return "  ".join(cells)


def prepare(
    corpus,
    tokenizer,
    sequence_length,
    output_dir,
    *,
    tokenizer_name=None,
    unit_bytes=UNIT_BYTES,
    num_workers=None,
    overwrite=False,
    report=None,
):
    """Tokenizes and packs a corpus into examples on disk, once for many runs.

    The corpus is cut into units of about `unit_bytes` (`Corpus.units`); each is
    packed as `packed_examples` packs a corpus and becomes one shard,
    `train-00000.npy` and so on, and what the corpus holds out of it another,
    `held_out-00000.npy`. So the last example of a unit may be padded: one in 30,000
    at the default size and 512 tokens. A corpus of one unit gives the examples of
    `packed_examples`. `manifest.json`, written last, says what was prepared how, with
    a checksum of every shard.

    Memory depends neither on the size of the corpus nor on that of a file. A run that
    was killed resumes at the first unit that is not complete, and the shards are
    those of an undisturbed run, byte for byte. A directory that is complete is
    returned at once.

    Args:
        corpus: `Corpus` of part `"train"`; its held-out part is prepared with it.
        tokenizer: keras-nlp tokenizer of the model's family.
        sequence_length: int. Tokens of an example, the special ones included.
        output_dir: str or path. A local directory, or a URL that fsspec opens. To
            read examples, they have to be in a local directory.
        tokenizer_name: str or None. Noted in the manifest: the tokenizer's preset.
        unit_bytes: int. Bytes of text that are packed together.
        num_workers: int. Threads that tokenize. Defaults to the number of cores.
        overwrite: bool. Whether to start over and replace what the directory holds.
        report: function that is called with a `Progress` about once a second.

    Returns:
        `Manifest`.

    Raises:
        OtherSettingsError: a ValueError, if the directory holds examples of other
            settings, all of which are named.
        ValueError: if it holds shards that are damaged; if the corpus has no text or
            cannot be read; or for what `packed_examples` refuses.
        TypeError: if the tokenizer has no start, end and pad token.
        FileExistsError: if the directory holds other files.
        InUseError: if another process is preparing examples in it.
        OSError: if the directory cannot be written to.
    """
    with writing(output_dir):
        plan = Plan(corpus, tokenizer, sequence_length, output_dir, unit_bytes)
        with plan.storage.held():
            if finished := plan.start(overwrite):
                return finished
            num_workers = num_workers or num_cores()
            reporter = Reporter(plan, report)
            num_before = 0
            for number, unit in enumerate(plan.units):
                if number not in plan.records:
                    plan.records[number] = prepare_unit(
                        plan, number, unit, num_before, tokenizer, num_workers, reporter
                    )
                num_before += plan.records[number]["num_pieces"]
            reporter(last=True)
            return plan.finish(tokenizer_name)


class Plan:
    """What to prepare where, and what of it is done.

    Args:
        corpus: as for `prepare`.
        tokenizer: as for `prepare`.
        sequence_length: as for `prepare`.
        output_dir: as for `prepare`.
        unit_bytes: as for `prepare`.

    Attributes:
        units: list of lists of `Segment`.
        settings: `Settings`.
        storage: `Storage`.
        records: dict by number of unit of what its preparation left in a file:
            a dict of `num_pieces`, `num_documents`, `num_decode_errors`,
            `contents_sha256` and `shards`.
    """

    def __init__(self, corpus, tokenizer, sequence_length, output_dir, unit_bytes):
        check_packing(tokenizer, sequence_length)
        if corpus.part != "train":
            raise ValueError(
                '`corpus` must be of the part "train"; what it holds out is prepared '
                f"with it. Received: part={corpus.part!r}."
            )
        check_int(unit_bytes=unit_bytes)
        self.corpus = corpus
        self.storage = Storage(output_dir)
        self.units = corpus.units(unit_bytes)
        self._fingerprints = corpus.fingerprints()
        self.records = {}
        segments = itertools.chain.from_iterable(self.units)
        inputs = [
            (name, sum(segment.num_bytes for segment in of_input))
            for name, of_input in itertools.groupby(segments, lambda s: s.name)
        ]
        self.settings = Settings(
            tokenizer_class=type(tokenizer).__name__,
            tokenizer_sha256=tokenizer_identity(tokenizer),
            vocabulary_size=int(tokenizer.vocabulary_size()),
            sequence_length=sequence_length,
            sources=corpus.sources,
            inputs_sha256=hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
            document_separator=corpus.document_separator,
            decode_errors=corpus.decode_errors,
            text_feature=corpus.text_feature,
            held_out_every=corpus.held_out_every,
            unit_bytes=unit_bytes,
            contents_sha256=self.contents_sha256(corpus.inputs),
        )

    @property
    def row_dtype(self):
        """The dtype of a row of a shard."""
        return row_dtype(self.settings.sequence_length, self.settings.vocabulary_size)

    def start(self, overwrite):
        """Looks at the directory and readies it.

        Returns:
            The `Manifest` if everything is done, else None.

        Raises:
            ValueError, FileExistsError: as `prepare` does.
        """
        sizes = self.storage.sizes()
        self._remove_temporary(sizes)
        foreign = [
            name for name in sizes if not _OURS.fullmatch(name) and name[0] != "."
        ]
        if foreign and not {MANIFEST, _SETTINGS} & set(sizes):
            raise FileExistsError(
                "`output_dir` must be empty or new, or hold prepared examples. "
                f"Received: output_dir={self.storage.path}, which holds "
                f"{', '.join(sorted(foreign)[:3])}."
            )
        if overwrite:
            for name in filter(_OURS.fullmatch, sizes):
                self.storage.remove(name)
        elif MANIFEST in sizes:
            text = self.storage.read_text(MANIFEST)
            manifest = parse_manifest(text, self.storage.path)
            self._require_equal(manifest.settings)
            self._require_shards(manifest.shards, sizes)
            self._remove_unfinished(sizes)
            return manifest
        elif _SETTINGS in sizes:
            found = self._settings_found()
            contents_sha256 = self.settings.contents_sha256
            # Units whose inputs were edited are prepared again.
            self._require_equal(
                dataclasses.replace(found, contents_sha256=contents_sha256)
            )
            self.read_records(sizes)
            if found == self.settings:
                return None
        text = json.dumps(dataclasses.asdict(self.settings), indent=2)
        self.storage.write_text(_SETTINGS, text + "\n")
        return None

    def read_records(self, sizes=None, verify=True):
        """Reads what finished units left; one with a damaged shard is not finished."""
        sizes = self.storage.sizes() if sizes is None else sizes
        for name in sizes:
            if not (match := _RECORD.fullmatch(name)):
                continue
            number = int(match[1])
            if number in self.records:
                continue
            # A file may be empty after the power failed.
            with contextlib.suppress(ValueError):
                record = json.loads(self.storage.read_text(name))
                if not verify or all(map(self._is_whole, record["shards"])):
                    self.records[number] = record
        for number in sorted(self.records) if verify else ():
            inputs = [segment.name for segment in self.units[number]]
            expected = self.contents_sha256(inputs)
            if self.records[number].get("contents_sha256", expected) != expected:
                # What is held out of later units depends on the ones before them.
                for later in [n for n in self.records if n >= number]:
                    self.storage.remove(_record_name(later))
                    del self.records[later]
                break

    def contents_sha256(self, inputs):
        """SHA-256 of what inputs hold, by their names."""
        found = [self._fingerprints[name] for name in dict.fromkeys(inputs)]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def record(self, number, **record):
        """Notes that a unit is finished."""
        text = json.dumps(record, indent=2)
        self.storage.write_text(_record_name(number), text + "\n")
        return record

    def finish(self, tokenizer_name):
        """Writes the manifest of all records and removes them.

        Returns:
            `Manifest`.

        Raises:
            ValueError: if there is no example to train on.
        """
        records = [self.records[number] for number in range(len(self.units))]
        manifest = Manifest(
            settings=self.settings,
            tokenizer_name=tokenizer_name,
            num_documents=sum(record["num_documents"] for record in records),
            num_decode_errors=sum(record["num_decode_errors"] for record in records),
            shards=tuple(
                Shard(**shard) for record in records for shard in record["shards"]
            ),
        )
        if not manifest.num_examples():
            raise ValueError(
                "`corpus` must have some text to train on. "
                f"Received: sources={self.corpus.sources} with "
                f"{manifest.num_documents} documents, "
                f"held_out_every={self.corpus.held_out_every}."
            )
        self.storage.write_text(MANIFEST, manifest.to_json())
        self._remove_unfinished(self.storage.sizes())
        return manifest

    def _settings_found(self):
        """The settings of a preparation that was not finished."""
        try:
            return settings_from_dict(json.loads(self.storage.read_text(_SETTINGS)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"`output_dir` must hold an {_SETTINGS} that can be read. Received: "
                f"output_dir={self.storage.path} ({error}). Pass --overwrite to start "
                "over."
            ) from error

    def _require_equal(self, settings):
        differences = self.settings.differences(settings)
        if differences:
            raise OtherSettingsError(
                "`output_dir` must hold examples of the same settings, or none. "
                f"Received: output_dir={self.storage.path}, for which these differ: "
                f"{'; '.join(differences)}. Name another directory, or pass "
                "--overwrite to replace its examples."
            )

    def _require_shards(self, shards, sizes):
        for shard in shards:
            if sizes.get(shard.name) != shard.num_bytes:
                raise ValueError(
                    "`output_dir` must hold the shards that its manifest lists. "
                    f"Received: output_dir={self.storage.path}, where {shard.name} has "
                    f"{sizes.get(shard.name, 'no')} bytes and not {shard.num_bytes}. "
                    "Pass --overwrite to prepare the corpus again."
                )

    def _is_whole(self, shard):
        try:
            with self.storage.local_file(shard["name"]) as path:
                return file_sha256(path) == shard["sha256"]
        except FileNotFoundError:
            return False

    def _remove_unfinished(self, sizes):
        for name in sizes:
            if name == _SETTINGS or _RECORD.fullmatch(name):
                self.storage.remove(name)

    def _remove_temporary(self, sizes):
        for name in filter(_TEMPORARY.fullmatch, sizes):
            self.storage.remove(name)


class Reporter:
    """Calls a function with a `Progress` now and then.

    Args:
        plan: `Plan`.
        report: function of a `Progress`, or None.
    """

    def __init__(self, plan, report):
        self._records = plan.records
        self._report = report
        self._sizes = [sum(segment.num_bytes for segment in u) for u in plan.units]
        self._total_bytes = sum(self._sizes)
        self._started = self._reported = time.perf_counter()
        self._found = self._finished()

    def _finished(self):
        """Bytes, tokens and documents of the units that are finished."""
        records = dict(self._records)
        return np.array(
            [
                sum(self._sizes[number] for number in records),
                sum(s["num_tokens"] for r in records.values() for s in r["shards"]),
                sum(record["num_documents"] for record in records.values()),
            ]
        )

    def __call__(self, num_bytes=0, num_tokens=0, num_documents=0, last=False):
        """Reports what is done: all finished units, and this of the one at work."""
        now = time.perf_counter()
        if self._report is None or (
            now - self._reported < _REPORT_SECONDS and not last
        ):
            return
        self._reported = now
        done = self._finished() + [num_bytes, num_tokens, num_documents]
        fresh = done - self._found
        seconds = max(now - self._started, 1e-9)
        left = max(self._total_bytes - int(done[0]), 0)
        self._report(
            Progress(
                num_bytes=min(int(done[0]), self._total_bytes),
                total_bytes=self._total_bytes,
                num_documents=int(done[2]),
                num_tokens=int(done[1]),
                tokens_per_second=float(fresh[1]) / seconds,
                seconds_left=seconds * left / int(fresh[0]) if fresh[0] else None,
            )
        )


def prepare_unit(
    plan, number, unit, num_before, tokenizer, num_workers=1, reporter=None
):
    """Prepares one unit of a corpus and notes that it is finished.

    Args:
        plan: `Plan`.
        number: int. Of the unit.
        unit: list of `Segment`.
        num_before: int. Pieces of the corpus before it.
        tokenizer: keras-nlp tokenizer.
        num_workers: int. Threads that tokenize.
        reporter: `Reporter` or None.

    Returns:
        dict. The record of the unit.
    """
    corpus = plan.corpus
    num_pieces = num_documents = 0
    num_bytes_before = corpus.num_bytes_read
    num_errors_before = corpus.num_decode_errors

    def counted():
        nonlocal num_pieces, num_documents
        for text, starts_document in corpus.unit_chunks(unit):
            num_pieces += 1
            num_documents += starts_document
            yield text, starts_document

    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(num_workers))
        streams = {
            part: _PartWriter(
                f"{part}-{number:05}.npy",
                plan,
                TokenStream(
                    tokenizer,
                    plan.settings.sequence_length,
                    executor.submit,
                    num_workers,
                ),
                stack,
            )
            for part in PARTS
        }
        for part, text, starts_document in split_parts(
            counted(), corpus.held_out_every, num_before
        ):
            streams[part].add(text, starts_document)
            if reporter is not None:
                reporter(
                    num_bytes=corpus.num_bytes_read - num_bytes_before,
                    num_tokens=sum(stream.num_tokens for stream in streams.values()),
                    num_documents=num_documents,
                )
        shards = [
            {"name": stream.name, "part": part, **stream.close()}
            for part, stream in streams.items()
            if stream.has_text
        ]
    return plan.record(
        number,
        num_pieces=num_pieces,
        num_documents=num_documents,
        num_decode_errors=corpus.num_decode_errors - num_errors_before,
        contents_sha256=plan.contents_sha256(segment.name for segment in unit),
        shards=[dataclasses.asdict(Shard(**shard)) for shard in shards],
    )


class _PartWriter:
    """One part of a unit, on its way from text to a shard."""

    def __init__(self, name, plan, stream, stack):
        self.name = name
        self.has_text = False
        self._plan = plan
        self._stream = stream
        self._stack = stack

    @functools.cached_property
    def _path(self):
        return self._stack.enter_context(self._plan.storage.writing(self.name))

    @functools.cached_property
    def _writer(self):
        writer = ShardWriter(self._path, self._plan.row_dtype)
        self._stack.callback(writer.abort)
        return writer

    @property
    def num_tokens(self):
        """Tokens written so far."""
        return self._writer.num_tokens if self.has_text else 0

    def add(self, text, starts_document):
        """Takes one chunk."""
        self.has_text = True
        for block in self._stream.add(text, starts_document):
            self._writer.write(*block)

    def close(self):
        """Packs the rest and completes the shard."""
        for block in self._stream.close():
            self._writer.write(*block)
        self._writer.close()
        return {
            "num_examples": self._writer.num_examples,
            "num_tokens": self._writer.num_tokens,
            "num_bytes": os.path.getsize(self._path),
            "sha256": file_sha256(self._path),
        }


def _record_name(number):
    return f"unfinished-{number:05}.json"
