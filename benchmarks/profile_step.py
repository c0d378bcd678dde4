"""Where the time of a whole step goes, by TensorFlow's profiler.

    python benchmarks/profile_step.py --json FILE

6x384 -> 3x192, blocked, dropout on. At every moment of a step the time is shared out
among the operations that run, so that the shares add up to the whole step; of an
operation that runs inside another, only the inner one counts.
"""

import collections
import operator
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

from harness import ENVIRONMENT, WARM_UPS, Report, parser

# A scope of the graph and the part of the step, the first that fits.
PARTS = {
    "part_relations": "relation loss and its gradient",
    "part_teacher": "teacher",
    "part_metrics": "metrics",
    "part_student": "student forward",
    "part_gradients": "student backward",
}
# XLA's passes do not say which part they are of.
COMPILED = "compiled passes: optimizer, clipping, gradient norm, GELU"
REST = "data and the rest of the graph"
IDLE = "no operation runs"
NUM_TYPES = 15


def main():
    """Profiles and prints."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--pair", default="6x384 -> 3x192")
    options.add_argument("--policy", default="float32")
    options = options.parse_args()
    if options.smoke:
        options.pair = "tiny"
    report = Report("profile_step", options)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as directory:
        shape, median = profile(options, directory)
        (file,) = Path(directory).rglob("*.xplane.pb")
        steps, operations = read(file)
    seconds = sum(end - begin for begin, end in steps) / 1e12 / len(steps)
    report.note(
        f"{options.pair}, {shape}, {options.policy}: {1e3 * seconds:,.0f} ms a step "
        f"under the profiler, {1e3 * median:,.0f} without; {len(steps)} steps of each."
    )
    shares = wall_shares(steps, operations)
    report.add({"shares": {"/".join(key): share for key, share in shares.items()}})
    by_part, by_type = collections.Counter(), collections.Counter()
    for (part, kind), share in shares.items():
        by_part[part] += share
        by_type[kind] += share
    parts = [*dict.fromkeys(PARTS.values()), COMPILED, REST, IDLE]
    report.table(
        "Parts of the step",
        ["part", "share, %", "ms a step"],
        rows_of({part: by_part[part] for part in parts}, seconds),
    )
    largest = dict(by_type.most_common(NUM_TYPES))
    largest["others"] = 1 - sum(largest.values())
    report.table(
        "Kinds of operation",
        ["operation", "share, %", "ms a step"],
        rows_of(largest, seconds),
    )


def rows_of(shares, seconds):
    """Rows of a table of shares, rounded so that they add up to 100.0."""
    thousandths = {name: int(1_000 * share) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: thousandths[name] - 1_000 * shares[name])
    for name in by_rest[: 1_000 - sum(thousandths.values())]:
        thousandths[name] += 1
    thousandths["together"] = sum(thousandths.values())
    return [
        [name, f"{number / 10:.1f}", f"{seconds * number:,.0f}"]
        for name, number in thousandths.items()
    ]


def profile(options, directory):
    """Profiles steps into a directory.

    Returns:
        tuple of batch x length as text and of the median seconds without the profiler.
    """
    import keras
    import numpy as np
    import tensorflow as tf
    from keras_work import make_distiller
    from shapes import PAIRS

    keras.config.set_dtype_policy(options.policy)
    pair = PAIRS[options.pair]
    _, _, distiller = make_distiller(pair, True, 1, options.seed)

    def in_scope(owner, method, scope):
        function = getattr(owner, method)

        def scoped(*arguments, **keywords):
            with tf.name_scope(scope):
                return function(*arguments, **keywords)

        object.__setattr__(owner, method, scoped)

    in_scope(distiller, "_micro_gradients", "part_gradients")
    in_scope(distiller, "_targets", "part_teacher")
    in_scope(distiller, "_sequence_losses", "part_student")
    in_scope(distiller.relation_loss, "sequence_losses", "part_relations")
    in_scope(distiller, "_update_metrics", "part_metrics")
    token_ids = np.random.default_rng(options.seed).integers(
        0, pair.vocabulary_size, (pair.batch, pair.length), dtype="int32"
    )
    inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    batches = iter(tf.data.Dataset.from_tensors(inputs).repeat())
    distiller.make_train_function()

    def step():
        for value in distiller.train_function(batches).values():
            float(value)

    for _ in range(WARM_UPS):
        step()
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    tf.profiler.experimental.start(directory)
    for number in range(options.repeats):
        with tf.profiler.experimental.Trace("step", step_num=number):
            step()
    tf.profiler.experimental.stop()
    return f"{pair.batch} x {pair.length}", statistics.median(seconds)


def read(file):
    """Steps and operations of a profile.

    Returns:
        tuple of a list of `(begin, end)` and of a list by thread of lists of
        `(begin, end, (part, kind))`, in picoseconds.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(Path(file).read_bytes())
    (host,) = (plane for plane in space.planes if plane.name == "/host:CPU")
    steps, threads = [], []
    for line in host.lines:
        operations = []
        for event in line.events:
            name = host.event_metadata[event.metadata_id].name
            begin = line.timestamp_ns * 1_000 + event.offset_ps
            interval = begin, begin + event.duration_ps
            if name == "step":
                steps.append(interval)
            # Not `Iterator::Next`, nor a sentence.
            elif match := re.fullmatch(r"([^\s:]+):(\w+)", name):
                operations.append((*interval, (part_of(match[1]), kind_of(match[2]))))
            elif re.match(r"CpuExecutable::|ThunkExecutor::|\w*fusion", name):
                operations.append((*interval, (COMPILED, "compiled pass")))
        threads.append(operations)
    return steps, threads


def part_of(name):
    """The part of the step that an operation belongs to."""
    scope = next((scope for scope in PARTS if scope in name), None)
    if scope == "part_student" and "gradient_tape" in name:
        scope = "part_gradients"
    return PARTS.get(scope, REST)


def kind_of(kind):
    """The type of an operation, oneDNN's under the name of TensorFlow's."""
    return re.sub(r"^_(Mkl)?(Native)?(Fused)?", "", kind)


def wall_shares(steps, threads):
    """Shares of the steps' time by part and kind; they add up to 1.

    Args:
        steps: list of `(begin, end)`.
        threads: list of lists of `(begin, end, label)`.

    Returns:
        `collections.Counter` by label; `(IDLE, IDLE)` while nothing runs.
    """
    changes = []  # (moment, label, thread)
    for thread, operations in enumerate(threads):
        changes += [(*change, thread) for change in innermost(operations)]
    changes += [(moment, None, None) for step in steps for moment in step]
    changes.sort(key=operator.itemgetter(0))
    shares, running = collections.Counter(), {}
    starts = {begin for begin, _ in steps}
    inside, last = False, 0
    for moment, label, thread in changes:
        if inside and moment > last:
            labels = list(running.values()) or [(IDLE, IDLE)]
            for one in labels:
                shares[one] += (moment - last) / len(labels)
        last = moment
        if thread is None:
            inside = moment in starts
        elif label is None:
            running.pop(thread, None)
        else:
            running[thread] = label
    whole = sum(end - begin for begin, end in steps)
    return collections.Counter({key: value / whole for key, value in shares.items()})


def innermost(operations):
    """Times at which another operation is the innermost of a thread, and its label."""
    operations = [one for one in operations if one[0] < one[1]]
    # Ends before begins, inner ones before outer ones; begins the other way round.
    edges = [(end, 0, -begin, None) for begin, end, _ in operations]
    edges += [(begin, 1, -end, label) for begin, end, label in operations]
    stack = []
    for moment, begins, _, label in sorted(edges, key=lambda edge: edge[:3]):
        if begins:
            stack.append(label)
        else:
            stack.pop()
        yield moment, stack[-1] if stack else None


if __name__ == "__main__":
    main()
