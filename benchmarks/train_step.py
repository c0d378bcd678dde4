"""The whole step: tokens per second, the floor, and what fits into memory.

    python benchmarks/train_step.py --torch-python PYTHON --json FILE
    python benchmarks/train_step.py --paper-batch --json FILE
    python benchmarks/train_step.py --largest-batch --torch-python PYTHON --json FILE

The floor is the time of the step's floating-point operations, counted from the shapes,
at the rate of a product of two large matrices in the same run: in the dtype of the
policy for the models, in float32 for relations and optimizer. `plain` is the plain
formula of the loss, with the encoders' blocks as keras-nlp runs them.
"""

from harness import (
    NOT_MEASURED,
    OUT_OF_MEMORY,
    Competitor,
    Report,
    add_torch,
    measure,
    median,
    memory,
    milliseconds,
    parser,
    times_faster,
)
from shapes import PAIRS

DTYPES = {"float32": "float32", "mixed_bfloat16": "bfloat16"}
OURS = {"plain": False, "blocked": True}
IN_FLOAT32 = ("relations", "optimizer")
IN_DTYPE = ("teacher", "student_forward", "student_backward")
LIMITS = {"8 GB": 8 * 10**9, "16 GB": 16 * 10**9}


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=7)
    add_torch(options)
    options.add_argument("--pairs", nargs="+", choices=PAIRS, metavar="PAIR")
    options.add_argument("--policies", nargs="+", choices=DTYPES)
    only = options.add_mutually_exclusive_group()
    only.add_argument("--largest-batch", action="store_true", help="slow")
    only.add_argument("--paper-batch", action="store_true", help="slow")
    options = options.parse_args()
    if options.policies is None:
        options.policies = ["float32"] if options.largest_batch else list(DTYPES)
    if options.largest_batch:
        largest_batches(options)
    elif options.paper_batch:
        paper_batch(options)
    else:
        speed(options)


def speed(options):
    """Time of a step of each pair and policy, and the share of the floor."""
    report = Report("train_step", options)
    pairs = [pair for pair in PAIRS if pair != "tiny"]
    rows, rates = [], []
    for pair in ["tiny"] if options.smoke else options.pairs or pairs:
        batch, length = PAIRS[pair].batch, PAIRS[pair].length
        for policy in options.policies:
            work = {"pair": pair, "policy": policy, "seed": options.seed}
            products = {
                dtype: Competitor("keras_work.py", "matmul", {"dtype": dtype})
                for dtype in {"float32": 0, DTYPES[policy]: 0}
            }
            competitors = {**steps(work, options), **products}
            results = measure(competitors, options.repeats, budget=120)
            report.add(results, pair=pair, policy=policy, batch=batch, length=length)
            rate = {
                dtype: results[dtype]["operations"] / median(results[dtype])
                for dtype in products
            }
            rates.append(
                [pair, policy]
                + [
                    f"{rate[d] / 1e9:,.0f}" if d in rate else ""
                    for d in DTYPES.values()
                ]
            )
            operations = results["blocked"].get("operations")
            floor = operations and floor_seconds(operations, rate, DTYPES[policy])
            for name in steps(work, options):
                result = results[name]
                rows.append(
                    [
                        pair,
                        f"{batch} x {length}",
                        policy,
                        name,
                        milliseconds(result),
                        *rate_and_share(result, batch * length, floor),
                        times_faster(result, results["plain"]),
                        memory(result),
                    ]
                )
                print(" | ".join(rows[-1]), flush=True)
    report.table(
        "One step: median and range; peak memory of the process",
        [
            "teacher -> student",
            "batch x length",
            "policy",
            "what",
            "ms",
            "tokens/s",
            "share of the floor, %",
            "times faster than plain",
            "peak, MB",
        ],
        rows,
    )
    report.table(
        "Products of two matrices of 2,048 x 2,048 in the same runs, GFLOP/s",
        ["teacher -> student", "policy", *DTYPES.values()],
        rates,
    )


def steps(work, options, **limits):
    """The competitors of a step."""
    return {
        **{
            name: Competitor(
                "keras_work.py", "step", {**work, "blocked": blocked}, **limits
            )
            for name, blocked in OURS.items()
        },
        "PyTorch": Competitor(
            "torch_work.py", "step", work, options.torch_python, **limits
        ),
    }


def rate_and_share(result, num_tokens, floor):
    """Tokens per second, and the share of the floor, in hundredths."""
    seconds = median(result)
    if not seconds or not floor:
        return NOT_MEASURED, NOT_MEASURED
    return f"{num_tokens / seconds:,.0f}", f"{100 * floor / seconds:.0f}"


def floor_seconds(operations, rate, dtype):
    """Seconds of a step's operations at the rates of products.

    Args:
        operations: dict of number by part, as from `step_operations`.
        rate: dict of operations per second by dtype.
        dtype: str. That of the models' products.
    """
    return sum(
        operations[part] / rate[of]
        for of, parts in (("float32", IN_FLOAT32), (dtype, IN_DTYPE))
        for part in parts
    )


def paper_batch(options):
    """One step of the paper's batch through accumulation."""
    options.repeats = 1
    report = Report("paper_batch", options)
    pair, batch, length, accumulation = "BERT-base -> 6x384", 256, 512, 32
    if options.smoke:
        pair, batch, length, accumulation = "tiny", 8, 8, 4
    rows = []
    for policy in options.policies:
        work = {
            "pair": pair,
            "batch": batch,
            "length": length,
            "policy": policy,
            "accumulation_steps": accumulation,
            "seed": options.seed,
        }
        competitor = Competitor("keras_work.py", "step", work)
        results = measure({"blocked": competitor}, 1, warm_ups=0)
        report.add(results, **work)
        seconds = median(results["blocked"])
        rows.append(
            [
                pair,
                f"{batch} x {length}",
                f"{accumulation} of {batch // accumulation}",
                policy,
                f"{seconds:,.1f}" if seconds else results["blocked"]["error"],
                f"{batch * length / seconds:,.0f}" if seconds else NOT_MEASURED,
                memory(results["blocked"]),
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    report.note("The first step, which compiles: one run.")
    report.table(
        "The paper's batch, blocked",
        [
            "teacher -> student",
            "batch x length",
            "micro-batches",
            "policy",
            "seconds",
            "tokens/s",
            "peak, MB",
        ],
        rows,
    )


def largest_batches(options):
    """The largest batches whose step stays below a memory limit."""
    options.repeats = 1
    report = Report("largest_batch", options)
    pairs = [pair for pair in PAIRS if pair != "tiny"]
    names, length, limits = [*OURS, "PyTorch"], 512, LIMITS
    if options.smoke:
        # The process itself holds 0.9 GB.
        pairs, names, limits = ("tiny",), ["blocked", "PyTorch"], {"1 GB": 10**9}
    rows = []
    for pair in options.pairs or pairs:
        for policy in options.policies:
            for name in names:

                def peak(batch, pair=pair, policy=policy, name=name):
                    work = {"pair": pair, "policy": policy, "seed": options.seed}
                    work |= {"batch": batch, "length": length}
                    largest = max(limits.values())
                    competitor = steps(work, options, memory_limit=largest)[name]
                    result = measure({name: competitor}, 1, warm_ups=1)
                    report.add(result, **work)
                    print(name, pair, policy, batch, memory(result[name]), flush=True)
                    error = result[name].get("error")
                    if error not in (None, *OUT_OF_MEMORY):
                        raise SystemExit(error)
                    return result[name].get("peak_memory")

                row = [pair, str(length), policy, name]
                if name == "PyTorch" and options.torch_python is None:
                    rows.append(row + [NOT_MEASURED] * len(limits))
                    continue
                peaks = {}
                row += [
                    largest_that_fits(peak, limit, peaks) for limit in limits.values()
                ]
                rows.append([str(cell) for cell in row])
    report.table(
        "Largest batch whose second step keeps the process below the limit",
        ["teacher -> student", "length", "policy", "what", *limits],
        rows,
    )


def largest_that_fits(peak, limit, peaks):
    """The largest batch whose peak is below a limit, within a sixteenth.

    Peaks grow about linearly, so that a line through two of them tells where to look.

    Args:
        peak: function of a batch: bytes, or None where it does not run.
        limit: int, bytes.
        peaks: dict of known peaks by batch, which grows.

    Returns:
        int; 0 if not even one sequence fits.
    """
    guess = 2
    while True:
        if guess not in peaks:
            peaks[guess] = peak(guess)
        fits = [b for b, p in sorted(peaks.items()) if p is not None and p < limit]
        low = fits[-1] if fits else 0
        high = min((b for b in peaks if b > low), default=None)
        if high is not None and high - low <= max(1, low // 16):
            return low
        nearest = low + max(1, low // 16)
        guess = 4 * low or 1
        if len(fits) > 1:
            slope = max(peaks[low] - peaks[fits[0]], 1) / (low - fits[0])
            guess = min(guess, low + int((limit - peaks[low]) / slope))
        if high is not None and guess >= high:
            guess = (low + high) // 2
        # Near the end, a little above what fits, to be done.
        guess = max(guess, nearest)


if __name__ == "__main__":
    main()
