"""The relation loss on a GPU: blocked and plain under JAX, and PyTorch.

    python benchmarks/gpu_relation_loss.py --json FILE

Needs Keras, JAX and PyTorch, not TensorFlow, and this package: with PYTHONPATH=. it
need not be installed. `--site` names a directory with packages
that the Python lacks. bfloat16 vectors; competitors one after the other, each in a
process of its own; memory is the device's, at its peak.
"""

import os
import sys

from harness import (
    Competitor,
    Report,
    cell,
    measure,
    milliseconds,
    parser,
    times_faster,
)

SMALL, LARGE = (384, 192), (768, 384)
# Batch, length, relation heads, widths.
CELLS = [
    (32, 128, 48, SMALL),
    (256, 128, 48, LARGE),
    (16, 512, 48, LARGE),
    (64, 512, 48, LARGE),
    (256, 512, 48, LARGE),
]
ON_JAX = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=15)
    options.add_argument("--torch-python", metavar="PYTHON", default=sys.executable)
    options.add_argument("--device", default="cuda", help="of PyTorch")
    options.add_argument("--site", metavar="DIRECTORY", action="append", default=[])
    options = options.parse_args()
    paths = [*options.site, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    report = Report("gpu_relation_loss", options)
    report.note("One competitor after the other; memory is that of the device.")
    rows = []
    for batch, length, heads, widths in (
        [(2, 8, 12, (48, 24))] if options.smoke else CELLS
    ):
        work = {
            "batch": batch,
            "length": length,
            "widths": widths,
            "num_relation_heads": heads,
            "dtype": "bfloat16",
            "seed": options.seed,
        }
        in_torch = {**work, "device": options.device}
        competitors = {
            "plain, JAX": Competitor(
                "keras_work.py", "loss", {**work, "blocked": False}, environment=ON_JAX
            ),
            "blocked, JAX": Competitor(
                "keras_work.py", "loss", work, environment=ON_JAX
            ),
            "PyTorch": Competitor(
                "torch_work.py", "loss", in_torch, options.torch_python
            ),
            "PyTorch, torch.compile": Competitor(
                "torch_work.py",
                "loss",
                {**in_torch, "compiled": True},
                options.torch_python,
            ),
        }
        results = {}
        for name, competitor in competitors.items():
            results |= measure({name: competitor}, options.repeats)
        report.add(results, **work)
        for name, result in results.items():
            size = result.get("peak_device_memory")
            rows.append(
                [
                    f"{batch} x {length}",
                    str(heads),
                    " -> ".join(map(str, widths)),
                    name,
                    milliseconds(result),
                    times_faster(result, results["plain, JAX"]),
                    cell(result, f"{size / 1e6:,.0f}" if size else "not measured"),
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    report.table(
        "Loss and gradient, bfloat16: median and range; peak memory of the device",
        [
            "batch x length",
            "heads",
            "widths",
            "what",
            "ms",
            "times faster than plain",
            "peak, MB",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
