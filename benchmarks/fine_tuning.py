"""Fine-tuning: a step of `keras-minilmv2 finetune`, of its parts and of keras-nlp.

    python benchmarks/fine_tuning.py --json FILE

Students with two classes, batch 32, float32, at the lengths of short tasks. The floor
is the time of the products of the encoder at the rate of this machine.
"""

from harness import (
    NOT_MEASURED,
    Competitor,
    Report,
    measure,
    median,
    milliseconds,
    parser,
    times_faster,
)

STUDENTS = {"3x192": "6x384 -> 3x192", "6x384": "BERT-base -> 6x384"}
THROUGH = ("train_on_batch", "keras-nlp's blocks", "flat blocks")
BATCH, LENGTHS = 32, (16, 32, 64, 128)


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=9).parse_args()
    students, batch, lengths = STUDENTS, BATCH, LENGTHS
    if options.smoke:
        students, batch, lengths = {"tiny": "tiny"}, 4, (8,)
    report = Report("fine_tuning", options)
    product = Competitor("keras_work.py", "matmul", {})
    results = report.add(measure({"product": product}, options.repeats))["product"]
    rate = results["operations"] / median(results)
    rows = []
    for name, pair in students.items():
        work = {"pair": pair, "batch": batch, "lengths": lengths, "seed": options.seed}
        competitors = {
            through: Competitor(
                "keras_work.py", "fine_tune", {**work, "through": through}
            )
            for through in THROUGH
        }
        keys = [str(length) for length in lengths]
        results = measure(competitors, options.repeats, budget=40, keys=keys)
        report.add(results, student=name)
        theirs, flat = results["train_on_batch"], results["flat blocks"]
        for key in keys:
            seconds = median(flat, key)
            share = NOT_MEASURED
            if seconds:
                share = f"{100 * flat['operations'][key] / rate / seconds:.0f}"
            times = [milliseconds(result, key) for result in results.values()]
            faster = times_faster(flat, theirs, key)
            rows.append([name, f"{batch} x {key}", *times, faster, share])
    report.table(
        "A step of fine-tuning: median and range, ms; flat blocks are what is used",
        [
            "student",
            "batch x length",
            *THROUGH,
            "flat: times faster than train_on_batch",
            "flat: share of the floor, %",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
