"""Prepared examples without a corpus: every example says its own number."""

import numpy as np

from keras_minilmv2.data.shards import (
    MANIFEST,
    Manifest,
    PreparedExamples,
    Settings,
    Shard,
    ShardWriter,
    file_sha256,
    row_dtype,
)


def write_examples(
    path, num_examples, *, sequence_length=4, shard_size=40, vocabulary_size=60_000
):
    """Token 1 of example i is i modulo the vocabulary, token 2 the rest."""
    path.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, begin in enumerate(range(0, num_examples, shard_size)):
        indices = np.arange(begin, min(begin + shard_size, num_examples))
        token_ids = np.full((len(indices), sequence_length), 3)
        token_ids[:, 1] = indices % vocabulary_size
        token_ids[:, 2] = indices // vocabulary_size
        num_tokens = np.full(len(indices), sequence_length)
        num_tokens[-1] -= 1
        token_ids[-1, -1] = 0
        name = f"train-{number:05}.npy"
        writer = ShardWriter(path / name, row_dtype(sequence_length, vocabulary_size))
        writer.write(token_ids[:7], num_tokens[:7])
        writer.write(token_ids[7:], num_tokens[7:])
        writer.close()
        shards.append(
            Shard(
                name=name,
                part="train",
                num_examples=writer.num_examples,
                num_tokens=writer.num_tokens,
                num_bytes=(path / name).stat().st_size,
                sha256=file_sha256(path / name),
            )
        )
    settings = Settings(
        tokenizer_class="BertTokenizer",
        tokenizer_sha256="0" * 64,
        vocabulary_size=vocabulary_size,
        sequence_length=sequence_length,
        sources=("a.txt",),
        inputs_sha256="0" * 64,
        document_separator="blank_line",
        decode_errors="strict",
        text_feature="text",
        held_out_every=None,
        unit_bytes=1_000,
    )
    manifest = Manifest(
        settings=settings,
        tokenizer_name=None,
        num_documents=1,
        num_decode_errors=0,
        shards=tuple(shards),
    )
    (path / MANIFEST).write_text(manifest.to_json())
    return PreparedExamples(path)


def numbers(batch, vocabulary_size=60_000):
    """The numbers of the examples of a batch."""
    token_ids = np.asarray(batch["token_ids"])
    return token_ids[..., 1] + vocabulary_size * token_ids[..., 2]
