"""Serving under load: requests per second and their latency, by number of clients.

    python benchmarks/serving_load.py --json FILE

Exported SavedModels in one process each. Every client is a thread that sends one
sentence, waits for its answer and sends the next, as a server's threads do without
batching.
"""

import numpy as np
from harness import Competitor, Report, measure, memory, parser

# A pair, which of it, the policy it computes with, and how its matrices are stored.
MODELS = {
    "12x768": ("BERT-base -> 6x384", "teacher", "float32", "float32"),
    "6x384": ("BERT-base -> 6x384", "student", "float32", "float32"),
    "6x384, mixed bfloat16": (
        "BERT-base -> 6x384",
        "student",
        "mixed_bfloat16",
        "float32",
    ),
    "6x384, int8 weights": ("BERT-base -> 6x384", "student", "float32", "int8"),
}
CLIENTS = (1, 2, 4, 8)
REQUESTS = 64
# Tokens of the sentences, and the lengths that the export pads them to.
TOKENS, LENGTHS = (8, 48), (16, 32, 64)


def main():
    """Measures and prints."""
    options = parser(__doc__, repeats=7).parse_args()
    models, clients, requests = MODELS, CLIENTS, REQUESTS
    tokens, lengths = TOKENS, LENGTHS
    if options.smoke:
        models = {name: ("tiny", *kind[1:]) for name, kind in MODELS.items()}
        clients, requests, tokens, lengths = (1, 2), 4, (3, 8), (8,)
    report = Report("serving_load", options)
    report.note(
        f"Sentences of {tokens[0]} to {tokens[1]} tokens, padded to "
        f"{', '.join(map(str, lengths))}; {requests} requests a run; milliseconds of "
        "all requests of all runs together."
    )
    competitors = {
        name: Competitor(
            "keras_work.py",
            "load",
            {
                "pair": pair,
                "role": role,
                "policy": policy,
                "weights": weights,
                "requests": requests,
                "tokens": tokens,
                "lengths": lengths,
                "seed": options.seed,
            },
        )
        for name, (pair, role, policy, weights) in models.items()
    }
    keys = [str(number) for number in clients]
    results = report.add(measure(competitors, options.repeats, budget=90, keys=keys))
    rows = []
    for key in keys:
        for name, result in results.items():
            if "error" in result:
                rows.append([key, name, result["error"], "", ""])
                continue
            seconds = result["seconds"][key]
            # Warm-ups come first.
            counted = result["latencies"][key][-len(seconds) * requests :]
            p50, p99 = 1e3 * np.percentile(counted, (50, 99))
            rate = requests / np.median(seconds)
            rows.append([key, name, f"{rate:,.1f}", f"{p50:,.1f}", f"{p99:,.1f}"])
    report.table(
        "Requests of one sentence",
        ["clients", "model", "requests/s", "p50, ms", "p99, ms"],
        rows,
    )
    report.table(
        "Size of the export and peak memory of the process, MB",
        ["model", "export", "memory"],
        [
            [
                name,
                "" if "error" in result else f"{result['export_bytes'] / 1e6:,.0f}",
                memory(result),
            ]
            for name, result in results.items()
        ],
    )


if __name__ == "__main__":
    main()
