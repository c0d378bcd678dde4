"""The preparation of a large corpus as an Apache Beam pipeline.

Needs the extra `beam`: `pip install "keras-minilmv2[beam]"`. Checked on Beam 2.77.
"""

import builtins
import contextlib
import copy
import re
import threading

from keras_minilmv2.data.packing import num_cores
from keras_minilmv2.data.preparation import (
    UNIT_BYTES,
    Plan,
    Reporter,
    prepare_unit,
)
from keras_minilmv2.data.shards import tokenizer_identity
from keras_minilmv2.data.sources import is_url
from keras_minilmv2.utils.checks import check_choice
from keras_minilmv2.utils.files import writing

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise ImportError(
        "Preparation with Apache Beam needs it to be installed. "
        'Run: pip install "keras-minilmv2[beam]".'
    ) from error

_REPORT_SECONDS = 2.0

# The sentence within what a runner makes of a worker's exception.
_SENTENCE = re.compile(
    r"(?:(\w*Error): )?(`\w+` must .*?)(?: \[while running|\\n|\n|$)"
)

_RUNNERS = {
    "direct": (
        "--runner=FnApiRunner",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers={num_workers}",
        "--default_sdk_harness_log_level=WARNING",
    ),
    "flink": ("--runner=FlinkRunner", "--parallelism={num_workers}"),
    "dataflow": ("--runner=DataflowRunner", "--num_workers={num_workers}"),
}


def prepare_with_beam(
    corpus,
    tokenizer,
    sequence_length,
    output_dir,
    *,
    tokenizer_name=None,
    unit_bytes=UNIT_BYTES,
    runner="direct",
    num_workers=None,
    pipeline_options=(),
    overwrite=False,
    report=None,
):
    """Does what `prepare` does, unit by unit on the workers of a Beam runner.

    The shards are those of `prepare`, byte for byte, and a run of the one can be
    resumed by the other. Each unit is read, tokenized and written by one worker; no
    text passes between workers. A corpus with a held-out part is read twice: the
    chunks before a unit have to be counted.

    Args:
        corpus: as for `prepare`, without standard input.
        tokenizer: as for `prepare`.
        sequence_length: as for `prepare`.
        output_dir: as for `prepare`, where every worker reaches it: a URL, for
            instance `gs://bucket/name`, or a file system that all of them mount.
        tokenizer_name: as for `prepare`.
        unit_bytes: as for `prepare`.
        runner: str. `"direct"`, processes on this machine; `"flink"`; or
            `"dataflow"`.
        num_workers: int. Defaults to the number of cores here with `"direct"`, and to
            8 otherwise.
        pipeline_options: sequence of str. More options of Beam and of the runner:
            `--flink_master=host:8081`, or `--project=...`, `--region=...`,
            `--temp_location=gs://...` and the container image that has this package.
        overwrite: as for `prepare`.
        report: as for `prepare`.

    Returns:
        `Manifest`.

    Raises:
        ValueError, TypeError, OSError: as `prepare` does; or if the runner is unknown,
            the corpus is standard input, or `output_dir` is local and the workers are
            not.
        RuntimeError: if the pipeline fails for another reason.
    """
    check_choice(_RUNNERS, runner=runner)
    if "-" in corpus.inputs:
        raise ValueError(
            "`sources` must be files or TFDS datasets, which every worker can read. "
            "Received: standard input."
        )
    local = [name for name in (*corpus.inputs, str(output_dir)) if not is_url(name)]
    if runner == "dataflow" and (local := [n for n in local if n[:5] != "tfds:"]):
        raise ValueError(
            "`sources` and `output_dir` must be URLs, which every worker reaches. "
            f"Received: {local[0]}."
        )
    if num_workers is None:
        num_workers = num_cores() if runner == "direct" else 8
    options = [option.format(num_workers=num_workers) for option in _RUNNERS[runner]]
    with writing(output_dir):
        plan = Plan(corpus, tokenizer, sequence_length, output_dir, unit_bytes)
        with plan.storage.held():
            if finished := plan.start(overwrite):
                return finished
            options = PipelineOptions([*options, *pipeline_options])
            reporter = Reporter(plan, report)
            with _reporting(plan, reporter):
                try:
                    _run(plan, tokenizer, options)
                except Exception as error:
                    raise _as_sentence(error) from error
            plan.read_records(verify=False)
            reporter(last=True)
            return plan.finish(tokenizer_name)


def _run(plan, tokenizer, options):
    """Builds the pipeline and waits for its end."""
    todo = [
        (number, unit)
        for number, unit in enumerate(plan.units)
        if number not in plan.records
    ]
    # Neither the plan nor the corpus need carry every unit to every worker.
    light = copy.copy(plan)
    light.units, light.records = [], {}
    light.corpus = copy.copy(plan.corpus)
    light.corpus.inputs = ()
    with beam.Pipeline(options=options) as pipeline:
        known = {n: record["num_pieces"] for n, record in plan.records.items()}
        counts = pipeline | "Known counts" >> beam.Create(list(known.items()))
        if plan.settings.held_out_every is not None:
            counted = (
                pipeline
                | "Units to count" >> beam.Create(todo[:-1])
                | "Spread units to count" >> beam.Reshuffle()
                | "Count chunks" >> beam.ParDo(_CountChunks(light))
            )
            counts = (counts, counted) | "All counts" >> beam.Flatten()
        _ = (
            pipeline
            | "Units" >> beam.Create(todo)
            | "Spread units" >> beam.Reshuffle()
            | "Prepare"
            >> beam.ParDo(
                _PrepareUnit(light, tokenizer_parts(tokenizer)),
                beam.pvalue.AsDict(counts),
            )
        )


class _CountChunks(beam.DoFn):
    """Counts the chunks of a unit."""

    def __init__(self, plan):
        self._plan = plan

    def process(self, element):
        number, unit = element
        yield number, sum(1 for _ in self._plan.corpus.unit_chunks(unit))


class _PrepareUnit(beam.DoFn):
    """Writes the shards of a unit and its record."""

    def __init__(self, plan, parts):
        self._plan = plan
        self._parts = parts

    def setup(self):
        tokenizer = tokenizer_from_parts(self._parts)
        if tokenizer_identity(tokenizer) != self._plan.settings.tokenizer_sha256:
            raise ValueError(
                "`tokenizer` must be the same on every worker. Received: another one "
                "there than here; are the versions of keras-hub the same?"
            )
        self._tokenizer = tokenizer

    def process(self, element, counts):
        number, unit = element
        num_before = sum(count for other, count in counts.items() if other < number)
        with writing(self._plan.storage.path):
            prepare_unit(self._plan, number, unit, num_before, self._tokenizer)
        yield number


def tokenizer_parts(tokenizer):
    """A tokenizer as what can be pickled: its class and its arguments."""
    config = tokenizer.get_config()
    if hasattr(tokenizer, "proto"):
        config["proto"] = tokenizer.proto
    elif hasattr(tokenizer, "merges"):
        config["vocabulary"] = dict(tokenizer.vocabulary)
        config["merges"] = list(tokenizer.merges)
    else:
        config["vocabulary"] = list(tokenizer.get_vocabulary())
        # get_config of keras-hub 0.32 lacks it.
        config["split_on_cjk"] = tokenizer.split_on_cjk
    return type(tokenizer), config


def tokenizer_from_parts(parts):
    """The tokenizer of `tokenizer_parts`."""
    tokenizer_class, config = parts
    return tokenizer_class.from_config(config)


@contextlib.contextmanager
def _reporting(plan, reporter):
    """Reports now and then, from the records that workers leave."""
    done = threading.Event()

    def watch():
        while not done.wait(_REPORT_SECONDS):
            plan.read_records(verify=False)
            reporter()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _as_sentence(error):
    """The sentence of a worker's exception, or the exception as it is."""
    found = _SENTENCE.search(str(error))
    if found is None:
        return RuntimeError(f"The Beam pipeline failed: {error}")
    name, sentence = found.groups()
    # A runner of processes hands on the text alone.
    error_class = type(error) if name is None else getattr(builtins, name, ValueError)
    return error_class(sentence)
