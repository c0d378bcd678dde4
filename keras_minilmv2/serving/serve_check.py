"""Replays sample requests in a fresh process and compares the answers with Keras."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from keras_minilmv2.utils.tables import markdown_table

_REPEATS = 20


class ServeCheck(NamedTuple):
    """What a check found.

    Args:
        version: path of the export.
        differences: dict by `"signature/output"` of float, the largest difference to
            Keras' answers, relative where a value is above 1.
        latencies: dict by batch size of float, the median of milliseconds of a
            request to `serving_default`.
        tolerance: float, the difference that is allowed.
    """

    version: Path
    differences: dict
    latencies: dict
    tolerance: float


def serve_check(directory, log=print):
    """Loads an export in a fresh process and replays its sample requests.

    The process has TensorFlow and TF Text, but no Keras model.

    Args:
        directory: str or path. An export, or the directory of its versions, of which
            the latest is taken.
        log: function of a line of output.

    Returns:
        `ServeCheck`.

    Raises:
        FileNotFoundError: if there is no export.
        ValueError: if its files are not those that were written.
        RuntimeError: if it does not load or an answer differs from Keras' by more
            than the manifest's tolerance, 1e-5 for float32.
    """
    # Not above: the fresh process imports this module, and no Keras.
    from keras_minilmv2.serving.manifest import read_manifest
    from keras_minilmv2.serving.versions import latest_version

    version = latest_version(directory)
    tolerance = read_manifest(version)["tolerance"]
    process = subprocess.run(
        [sys.executable, "-m", __name__, str(version)], capture_output=True, text=True
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(
            f"`directory` must load. Received: directory={version}: {reason}"
        )
    found = json.loads(process.stdout.splitlines()[-1])
    check = ServeCheck(version, found["differences"], found["latencies"], tolerance)
    rows = [[name, f"{value:.1e}"] for name, value in check.differences.items()]
    log(markdown_table(["output", "largest difference"], rows))
    for batch_size, milliseconds in check.latencies.items():
        log(f"{batch_size} rows a request: {milliseconds:.1f} ms (median)")
    worst = max(check.differences, key=check.differences.get)
    if not check.differences[worst] <= tolerance:
        raise RuntimeError(
            f"`directory` must answer as Keras did, within {tolerance:.1e}. Received: "
            f"directory={version}, {worst} differs by {check.differences[worst]:.1e}."
        )
    log(f"All answers are Keras', within {tolerance:.1e}: {version}")
    return check


def _check(version):
    """Runs in the fresh process; prints one line of JSON."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 (registers its ops)

    from keras_minilmv2.serving.samples import (
        as_array,
        largest_difference,
        read_samples,
    )

    loaded = tf.saved_model.load(version)
    samples = read_samples(version)
    differences = {}

    def request(signature, inputs):
        function = loaded.signatures[signature]
        _, specs = function.structured_input_signature
        return function(
            **{
                name: tf.constant(inputs[name], spec.dtype)
                for name, spec in specs.items()
            }
        )

    for sample in samples:
        outputs = request(sample.signature, sample.inputs)
        for name, expected in sample.outputs.items():
            key = f"{sample.signature}/{name}"
            difference = largest_difference(expected, as_array(outputs[name]))
            differences[key] = max(difference, differences.get(key, 0.0))
    first = next(s for s in samples if s.signature == "serving_default")
    latencies = {}
    for batch_size in (1, 8):
        inputs = {
            name: values[:1] * batch_size for name, values in first.inputs.items()
        }
        milliseconds = []
        for _ in range(_REPEATS + 1):
            started = time.perf_counter()
            for output in request("serving_default", inputs).values():
                output.numpy()
            milliseconds.append(1e3 * (time.perf_counter() - started))
        latencies[batch_size] = statistics.median(milliseconds[1:])
    print(json.dumps({"differences": differences, "latencies": latencies}))


if __name__ == "__main__":
    _check(sys.argv[1])
