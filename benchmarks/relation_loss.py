"""The relation loss alone: plain formula, blocked, and PyTorch; time and peak memory.

    python benchmarks/relation_loss.py --torch-python PYTHON --json FILE

Loss and gradient of random queries, keys and values. Peak memory is of the whole
process, frameworks and inputs included.
"""

import itertools

from harness import (
    Competitor,
    Report,
    add_torch,
    measure,
    memory,
    milliseconds,
    parser,
    times_faster,
)

SMALL, LARGE = (384, 192), (768, 384)
# Batch, length, relation heads, widths, dtype.
CELLS = [
    (64, 64, 48, SMALL, "float32"),
    (32, 128, 12, SMALL, "float32"),
    (32, 128, 48, SMALL, "float32"),
    (32, 128, 64, SMALL, "float32"),
    (16, 256, 48, LARGE, "float32"),
    (16, 512, 12, LARGE, "float32"),
    (16, 512, 48, LARGE, "float32"),
    (32, 128, 48, SMALL, "bfloat16"),
    (16, 256, 48, LARGE, "bfloat16"),
    (16, 512, 48, LARGE, "bfloat16"),
]
# At 512 tokens the plain formula and PyTorch hold 8 GB each with 48 heads.
BATCHES = {64: 64, 128: 32, 256: 16, 512: 8}
GRID = [
    (BATCHES[length], length, heads, LARGE if length > 128 else SMALL, dtype)
    for dtype, length, heads in itertools.product(
        ("float32", "bfloat16"), BATCHES, (12, 24, 48, 64)
    )
]
TINY = [(2, 8, 12, (48, 24), dtype) for dtype in ("float32", "bfloat16")]


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=9)
    add_torch(options)
    options.add_argument("--grid", action="store_true", help="all lengths and heads")
    options = options.parse_args()
    cells = TINY if options.smoke else GRID if options.grid else CELLS
    report = Report("relation_loss", options)
    rows = []
    for batch, length, heads, widths, dtype in cells:
        work = {
            "batch": batch,
            "length": length,
            "widths": widths,
            "num_relation_heads": heads,
            "dtype": dtype,
            "seed": options.seed,
        }
        results = measure(
            {
                "plain": Competitor(
                    "keras_work.py", "loss", {**work, "blocked": False}
                ),
                "blocked": Competitor("keras_work.py", "loss", work),
                "PyTorch": Competitor(
                    "torch_work.py", "loss", work, options.torch_python
                ),
            },
            options.repeats,
            budget=40,
        )
        report.add(results, **work)
        for name, result in results.items():
            rows.append(
                [
                    f"{batch} x {length}",
                    str(heads),
                    " -> ".join(map(str, widths)),
                    dtype,
                    name,
                    milliseconds(result),
                    times_faster(result, results["plain"]),
                    memory(result),
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    report.table(
        "Loss and gradient: median and range; peak memory of the process",
        [
            "batch x length",
            "heads",
            "widths",
            "dtype",
            "what",
            "ms",
            "times faster than plain",
            "peak, MB",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
