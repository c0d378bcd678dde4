import gzip
import re

import numpy as np
import pytest
from small_tokenizers import FAMILIES, WORDS, make_tokenizer

pytest.importorskip("apache_beam")

from keras_minilmv2.data import preparation
from keras_minilmv2.data.beam import (
    prepare_with_beam,
    tokenizer_from_parts,
    tokenizer_parts,
)
from keras_minilmv2.data.preparation import prepare
from keras_minilmv2.data.shards import tokenizer_identity
from keras_minilmv2.data.text import Corpus

UNIT_BYTES = 2_000
# Threads of this process: workers of their own import TensorFlow for seconds.
IN_MEMORY = ("--direct_running_mode=in_memory",)


@pytest.fixture
def path(tmp_path):
    """Three files, one of them compressed, with 150 documents of a few words."""
    rng = np.random.default_rng(0)
    (tmp_path / "texts").mkdir()
    for number in range(3):
        lengths = rng.integers(1, 40, size=50)
        documents = [" ".join(rng.choice(WORDS, size=length)) for length in lengths]
        text = "\n\n".join(documents).encode()
        name = f"{number}.txt" + ".gz" * (number == 1)
        data = gzip.compress(text) if number == 1 else text
        (tmp_path / "texts" / name).write_bytes(data)
    return tmp_path / "texts"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("Bert", lowercase=True, split_on_cjk=False)


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize(
    ("num_workers", "options"), [(1, IN_MEMORY), (2, IN_MEMORY), (3, ())]
)
def test_beam_writes_the_shards_of_the_plain_preparation(
    path, tokenizer, tmp_path, num_workers, options
):
    plain, found = tmp_path / "plain", tmp_path / "beam"
    prepare(Corpus(path, held_out_every=5), tokenizer, 32, plain, unit_bytes=UNIT_BYTES)
    reported = []
    manifest = prepare_with_beam(
        Corpus(path, held_out_every=5),
        tokenizer,
        32,
        found,
        unit_bytes=UNIT_BYTES,
        num_workers=num_workers,
        pipeline_options=options,
        report=reported.append,
    )
    assert len(manifest.shards) > 10
    assert contents(found) == contents(plain)
    assert reported[-1].num_documents == 150
    assert reported[-1].num_bytes == reported[-1].total_bytes


def test_beam_prepares_a_corpus_without_a_held_out_part(path, tokenizer, tmp_path):
    plain, found = tmp_path / "plain", tmp_path / "beam"
    for function, directory, more in (
        (prepare, plain, {}),
        (prepare_with_beam, found, {"pipeline_options": IN_MEMORY}),
    ):
        function(Corpus(path), tokenizer, 32, directory, unit_bytes=UNIT_BYTES, **more)
    assert contents(found) == contents(plain)


def test_beam_resumes_what_the_plain_preparation_began(
    path, tokenizer, tmp_path, monkeypatch
):
    plain, found = tmp_path / "plain", tmp_path / "beam"
    options = {"unit_bytes": UNIT_BYTES}
    prepare(Corpus(path, held_out_every=5), tokenizer, 32, plain, **options)
    prepare_unit = preparation.prepare_unit

    def interrupted(plan, number, *args):
        if number == 3:
            raise KeyboardInterrupt
        return prepare_unit(plan, number, *args)

    monkeypatch.setattr(preparation, "prepare_unit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(Corpus(path, held_out_every=5), tokenizer, 32, found, **options)
    monkeypatch.undo()
    first = found / "train-00000.npy"
    written = first.stat().st_mtime_ns
    options["pipeline_options"] = IN_MEMORY
    corpus = Corpus(path, held_out_every=5)
    manifest = prepare_with_beam(corpus, tokenizer, 32, found, **options)
    assert contents(found) == contents(plain)
    assert first.stat().st_mtime_ns == written
    assert prepare_with_beam(corpus, tokenizer, 32, found, **options) == manifest


@pytest.mark.parametrize(
    "options", [IN_MEMORY, pytest.param((), marks=pytest.mark.slow)]
)
def test_malformed_text_is_named_in_one_sentence(path, tokenizer, tmp_path, options):
    (path / "2.txt").write_bytes(b"the fox\n\n" * 100 + b"\xff")
    message = (
        f"`sources` must be UTF-8 text. Received: {path / '2.txt'}, with byte 0xff at "
        'offset 900. Set `decode_errors="replace"` to read it all the same.'
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare_with_beam(
            Corpus(path),
            tokenizer,
            32,
            tmp_path / "beam",
            unit_bytes=UNIT_BYTES,
            num_workers=2,
            pipeline_options=options,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_is_the_same_on_a_worker(family):
    tokenizer = make_tokenizer(family)
    again = tokenizer_from_parts(tokenizer_parts(tokenizer))
    assert tokenizer_identity(again) == tokenizer_identity(tokenizer)


# Arguments.


def test_unknown_runner_is_named(path, tokenizer, tmp_path):
    message = (
        "`runner` must be one of direct, flink, dataflow. Received: runner='spark'."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare_with_beam(Corpus(path), tokenizer, 32, tmp_path, runner="spark")


def test_standard_input_is_refused(tokenizer, tmp_path):
    message = (
        "`sources` must be files or TFDS datasets, which every worker can read. "
        "Received: standard input."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare_with_beam(Corpus("-"), tokenizer, 32, tmp_path)


def test_local_files_are_refused_for_workers_elsewhere(path, tokenizer):
    message = (
        "`sources` and `output_dir` must be URLs, which every worker reaches. "
        f"Received: {path / '0.txt'}."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        prepare_with_beam(
            Corpus(path), tokenizer, 32, "gs://bucket/prepared", runner="dataflow"
        )
