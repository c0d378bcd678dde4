"""The input alone: examples per second, resuming, and `prepare`.

    python benchmarks/inputs.py --text FILE --vocabularies DIRECTORY --json FILE

`DIRECTORY` holds `bert-base-uncased/vocab.txt` and `roberta-base/vocab.json` and
`merges.txt`. Without `--text`, `prepare` is not measured. Rust's `tokenizers` give ids
and drop them; `prepare` also packs, checksums and writes them.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from harness import Competitor, Report, cell, measure, median, memory, parser

from keras_minilmv2.backbones.loading import load_tokenizer
from keras_minilmv2.data.shards import (
    MANIFEST,
    Manifest,
    Settings,
    Shard,
    ShardWriter,
    file_sha256,
    row_dtype,
    tokenizer_identity,
)
from keras_minilmv2.runs.demo import packaged_teacher

LENGTH, VOCABULARY = 128, 30_522
NUM_SHARDS = 10
STEPS = ("10", "100000")


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=7)
    options.add_argument("--text", type=Path)
    options.add_argument("--vocabularies", type=Path)
    options.add_argument("--num-examples", type=int, default=1_000_000)
    options.add_argument("--batch", type=int, default=256)
    options.add_argument(
        "--megabytes", type=int, nargs="+", default=[10, 100, 1_000], metavar="MB"
    )
    options = options.parse_args()
    if (options.text is None) != (options.vocabularies is None):
        raise SystemExit("`--text` must be given with `--vocabularies`.")
    if options.smoke:
        options.num_examples, options.batch, options.megabytes = 1_000, 4, [1]
    report = Report("inputs", options)
    with tempfile.TemporaryDirectory() as directory:
        write_examples(directory, options.num_examples, options.seed)
        reading(report, options, directory)
        resuming(report, options, directory)
    if options.text is not None:
        with tempfile.TemporaryDirectory() as directory:
            preparing(report, options, Path(directory, "text.txt"))


def write_examples(directory, num_examples, seed):
    """A directory of random examples, as `prepare` writes them."""
    tokenizer = load_tokenizer(packaged_teacher())
    generator = np.random.default_rng(seed)
    shards, size = [], num_examples // NUM_SHARDS
    parts = [("train", size)] * NUM_SHARDS + [("held_out", 96)]
    for number, (part, size) in enumerate(parts):
        path = Path(directory, f"{part}-{number:05}.npy")
        writer = ShardWriter(path, row_dtype(LENGTH, VOCABULARY))
        token_ids = generator.integers(0, VOCABULARY, (size, LENGTH), dtype="uint16")
        writer.write(token_ids, np.full(size, LENGTH))
        writer.close()
        shards.append(
            Shard(
                name=path.name,
                part=part,
                num_examples=writer.num_examples,
                num_tokens=writer.num_tokens,
                num_bytes=path.stat().st_size,
                sha256=file_sha256(path),
            )
        )
    settings = Settings(
        tokenizer_class=type(tokenizer).__name__,
        tokenizer_sha256=tokenizer_identity(tokenizer),
        vocabulary_size=VOCABULARY,
        sequence_length=LENGTH,
        sources=(),
        inputs_sha256="",
        document_separator="",
        decode_errors="",
        text_feature="",
        held_out_every=None,
        unit_bytes=1,
    )
    manifest = Manifest(settings, None, 0, 0, tuple(shards))
    Path(directory, MANIFEST).write_text(manifest.to_json())


def reading(report, options, directory):
    """Examples per second, and how long the first batch takes."""
    work = {"directory": directory, "batch": options.batch, "seed": options.seed}
    num_batches = 4 if options.smoke else 200
    results = measure(
        {
            "batches": Competitor(
                "data_work.py", "batches", {**work, "num_batches": num_batches}
            )
        },
        options.repeats,
    )
    results = report.add(results, num_examples=options.num_examples)
    seconds = median(results["batches"])
    rate = seconds and f"{num_batches * options.batch / seconds:,.0f}"
    report.table(
        f"Reading {options.num_examples:,} examples of {LENGTH} tokens, shuffled",
        ["batch", "examples/s", "peak, MB"],
        [
            [
                str(options.batch),
                cell(results["batches"], rate),
                memory(results["batches"]),
            ]
        ],
    )
    results = report.add(
        measure(
            {"first batch": Competitor("data_work.py", "first_batch", work)},
            options.repeats,
            keys=STEPS,
        )
    )
    result = results["first batch"]
    report.table(
        "From an open directory to the first batch",
        ["step", "ms"],
        [
            [step, cell(result, f"{1e3 * (median(result, step) or 0):.1f}")]
            for step in STEPS
        ],
    )


def resuming(report, options, directory):
    """How long `distill` takes to its first update, from nothing and going on."""
    work = {"directory": directory, "steps": [int(step) for step in STEPS]}
    keys = ("0", *STEPS)
    results = report.add(
        measure(
            {"distill": Competitor("data_work.py", "first_update", work)},
            min(3, options.repeats),
            keys=keys,
            warm_ups=1,
        )
    )
    result = results["distill"]
    report.table(
        "From the call of distill to the end of its first update, 6x384 to 3x192",
        ["begins after step", "seconds"],
        [[key, cell(result, f"{median(result, key) or 0:.2f}")] for key in keys],
    )


def preparing(report, options, text):
    """Memory of `prepare` against the size of the text; its speed against Rust's."""
    work = {"text": str(text), "vocabularies": str(options.vocabularies)}
    rows = []
    for megabytes in options.megabytes:
        repeat(options.text, text, megabytes * 10**6)
        prepare = Competitor("data_work.py", "prepare", {**work, "family": "BERT"})
        results = measure({"prepare": prepare}, 1, warm_ups=0)
        report.add(results, megabytes=megabytes)
        result = results["prepare"]
        rows.append([str(megabytes), memory(result, "memory"), memory(result)])
        rows[-1].append(rate(result))
        print(" | ".join(rows[-1]), flush=True)
    report.table(
        "prepare, word pieces of BERT: one run each",
        ["text, MB", "memory before, MB", "peak, MB", "tokens/s"],
        rows,
    )
    shutil.copyfile(options.text, text)
    rows = []
    for family in ("BERT", "RoBERTa"):
        results = measure(
            {
                name: Competitor("data_work.py", name, {**work, "family": family})
                for name in ("rust", "prepare")
            },
            min(3, options.repeats),
            warm_ups=1,
        )
        report.add(results, family=family)
        for name, result in results.items():
            library = {"rust": "tokenizers", "prepare": "keras-minilmv2 prepare"}[name]
            seconds = f"{result.get('processor_seconds', 0):.1f}"
            rows.append([family, library, rate(result), cell(result, seconds)])
    report.table(
        f"Tokens per second, {text_size(options.text)}, all cores",
        ["family", "what", "tokens/s", "seconds of CPU"],
        rows,
    )


def rate(result):
    """Tokens per second."""
    seconds = median(result)
    return cell(result, seconds and f"{result['num_tokens'] / seconds:,.0f}")


def text_size(path):
    """The size of a text."""
    return f"{path.stat().st_size / 1e6:.1f} MB of text"


def repeat(source, target, num_bytes):
    """Writes a text of a size by repeating another."""
    content = source.read_bytes()
    with open(target, "wb") as file:
        while file.tell() < num_bytes:
            file.write(content[: num_bytes - file.tell()])


if __name__ == "__main__":
    main()
