"""How time and memory grow: of the loss with batch, length and heads, of the step.

    python benchmarks/growth.py --json FILE

Memory is what a process holds at its peak beyond what it held when its inputs were
there and nothing had run.
"""

from harness import Competitor, Report, measure, milliseconds, parser

WIDTHS = (384, 192)
# What is varied, and what stays.
LOSSES = {
    "batch": ((8, 16, 32, 64), {"length": 128, "num_relation_heads": 48}),
    "length": ((64, 128, 256, 512), {"batch": 8, "num_relation_heads": 48}),
    "num_relation_heads": ((12, 24, 48, 64), {"batch": 32, "length": 128}),
    "share_of_real": (
        (1.0, 0.75, 0.5, 0.25),
        {"batch": 32, "length": 128, "num_relation_heads": 48},
    ),
}
TITLES = {
    "batch": "Loss and batch",
    "length": "Loss and length",
    "num_relation_heads": "Loss and relation heads",
    "share_of_real": "Loss and the share of real tokens",
    "depth": "Step and depth of the teacher, BERT-base -> 6x384",
}
DEPTHS = (3, 6, 9, 12)
OURS = {"plain": False, "blocked": True}


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=5).parse_args()
    report = Report("growth", options)
    report.note("Memory is what was added by running; inputs and models were there.")
    for varied, (values, rest) in LOSSES.items():
        if options.smoke:
            values = values[:1]
            rest = {name: 12 if "heads" in name else 8 for name in rest}
        work = {"widths": WIDTHS, "seed": options.seed, **rest}
        compare(report, options, "loss", varied, values, work)
    depths, work = DEPTHS, {"pair": "BERT-base -> 6x384", "batch": 8}
    if options.smoke:
        depths, work = (1,), {"pair": "tiny"}
    work["seed"] = options.seed
    compare(report, options, "step", "depth", depths, work)


def compare(report, options, kind, varied, values, work):
    """A table of plain against blocked over the values of one option."""
    rows = []
    for value in values:
        results = measure(
            {
                name: Competitor(
                    "keras_work.py", kind, {**work, varied: value, "blocked": blocked}
                )
                for name, blocked in OURS.items()
            },
            options.repeats,
            budget=30,
        )
        report.add(results, work=kind, **{**work, varied: value})
        rows.append(
            [
                str(value),
                *map(milliseconds, results.values()),
                *map(growth, results.values()),
            ]
        )
        print(varied, " | ".join(rows[-1]), flush=True)
    rest = ", ".join(f"{k}={v}" for k, v in work.items() if k != "seed")
    report.table(
        f"{TITLES[varied]} ({rest})",
        [varied, "plain, ms", "blocked, ms", "plain, MB", "blocked, MB"],
        rows,
    )


def growth(result):
    """Memory beyond that of the process when it was set up, in MB."""
    if "error" in result:
        return result["error"]
    return f"{(result['peak_memory'] - result['memory']) / 1e6:,.0f}"


if __name__ == "__main__":
    main()
