"""Tokens/s of `prepare` against the Rust `tokenizers` library, in one run.

    python benchmarks/prepare_speed.py TEXT --vocabularies shared/data/vocab

Both read the same file with `Corpus` and use all cores. `tokenizers` gives ids and
drops them; `prepare` also packs, checksums and writes them.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import keras_hub
import tokenizers

from keras_minilmv2.data.preparation import num_cores, prepare
from keras_minilmv2.data.text import Corpus

PIECES = 1_000  # of a call of `encode_batch_fast`


def main():
    """Prints one line a family, method and pass."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text")
    parser.add_argument("--vocabularies", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=2)
    options = parser.parse_args()
    word_piece = str(options.vocabularies / "bert-base-uncased" / "vocab.txt")
    byte_pair = [
        str(options.vocabularies / "roberta-base" / name)
        for name in ("vocab.json", "merges.txt")
    ]
    families = {
        "BERT": (
            tokenizers.BertWordPieceTokenizer(word_piece, lowercase=True),
            keras_hub.models.BertTokenizer(word_piece, lowercase=True),
        ),
        "RoBERTa": (
            tokenizers.ByteLevelBPETokenizer(*byte_pair),
            keras_hub.models.RobertaTokenizer(*byte_pair),
        ),
    }
    megabytes = os.path.getsize(options.text) / 1e6
    print(f"{options.text}, {megabytes:.0f} MB, {num_cores()} cores")
    for family, (rust, ours) in families.items():
        for _ in range(options.passes):
            for name, function in (
                ("tokenizers", lambda t=rust: encode(options.text, t)),
                ("prepare", lambda t=ours: prepare_once(options.text, t)),
            ):
                started, cpu = time.perf_counter(), time.process_time()
                num_tokens = function()
                seconds = time.perf_counter() - started
                print(
                    f"{family:<8} {name:<11} {num_tokens / seconds:>10,.0f} tokens/s, "
                    f"{seconds:.1f} s, {time.process_time() - cpu:.1f} s of CPU",
                    flush=True,
                )


def encode(text, tokenizer):
    """Number of tokens of a file, by `tokenizers`."""
    num_tokens, pieces = 0, []
    for piece, _ in Corpus(text):
        pieces.append(piece)
        if len(pieces) == PIECES:
            num_tokens += count(pieces, tokenizer)
            pieces = []
    return num_tokens + count(pieces, tokenizer)


def count(pieces, tokenizer):
    """Number of tokens of some pieces, by `tokenizers`."""
    encodings = tokenizer._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    return sum(map(len, encodings))


def prepare_once(text, tokenizer):
    """Number of tokens of a file, by `prepare`."""
    with tempfile.TemporaryDirectory() as directory:
        manifest = prepare(Corpus(text), tokenizer, 128, directory)
    return manifest.num_tokens() - 2 * manifest.num_examples()


if __name__ == "__main__":
    main()
