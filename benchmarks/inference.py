"""Inference: sentences per second of teachers and students.

    python benchmarks/inference.py --json FILE

Through keras-nlp, token ids in; through the exported SavedModel, strings in.
"""

from harness import (
    Competitor,
    Report,
    measure,
    median,
    memory,
    parser,
    times_faster,
)

# A pair and which of it.
MODELS = {
    "12x768": ("BERT-base -> 6x384", "teacher"),
    "6x384": ("6x384 -> 3x192", "teacher"),
    "3x192": ("6x384 -> 3x192", "student"),
}
RATIOS = [("12x768", "6x384"), ("6x384", "3x192")]
BATCHES, LENGTHS = (1, 8, 64), (32, 128, 512)
THROUGH = {"keras": "keras-nlp", "saved_model": "SavedModel"}


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=7).parse_args()
    models, ratios, batches, lengths = MODELS, RATIOS, BATCHES, LENGTHS
    if options.smoke:
        models = {"12x768": ("tiny", "teacher"), "6x384": ("tiny", "student")}
        ratios, batches, lengths = RATIOS[:1], (1, 2), (8,)
    report = Report("inference", options)
    competitors = {
        f"{model}, {through}": Competitor(
            "keras_work.py",
            "forward",
            {
                "pair": pair,
                "role": role,
                "through": through,
                "batches": batches,
                "lengths": lengths,
                "seed": options.seed,
            },
        )
        for through in THROUGH
        for model, (pair, role) in models.items()
    }
    keys = [f"{batch}x{length}" for batch in batches for length in lengths]
    results = report.add(measure(competitors, options.repeats, budget=40, keys=keys))
    for through, title in THROUGH.items():
        of = {model: results[f"{model}, {through}"] for model in models}
        rows = []
        for key in keys:
            batch, length = key.split("x")
            row = [batch, length]
            for result in of.values():
                seconds = median(result, key)
                row.append(
                    f"{int(batch) / seconds:,.1f}" if seconds else result["error"]
                )
            row += [times_faster(of[fast], of[slow], key) for slow, fast in ratios]
            rows.append(row)
        report.table(
            f"Sentences per second through {title}",
            [
                "batch",
                "length",
                *models,
                *(f"{fast}, times faster than {slow}" for slow, fast in ratios),
            ],
            rows,
        )
    report.table(
        "Peak memory of the process, all batches and lengths, MB",
        ["model", *THROUGH.values()],
        [
            [model, *(memory(results[f"{model}, {through}"]) for through in THROUGH)]
            for model in models
        ],
    )


if __name__ == "__main__":
    main()
