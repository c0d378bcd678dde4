"""Sample requests, with what Keras answered when the model was exported."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

REQUESTS, RESPONSES = "samples.json", "samples.npz"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Nothing.",
    "Él pagó 1,234.50 € — «caro», dijo; 价格太高了。 🙂",
)


class Sample(NamedTuple):
    """A request and its response.

    Args:
        signature: str.
        inputs: dict by name of list of str, or of nested list of int.
        outputs: dict by name of array.
    """

    signature: str
    inputs: dict
    outputs: dict


def write_samples(path, samples):
    """Writes the requests as JSON and the responses as arrays beside them."""
    requests = [{"signature": s.signature, "inputs": s.inputs} for s in samples]
    text = json.dumps(requests, ensure_ascii=False, indent=1) + "\n"
    (path / REQUESTS).write_text(text, encoding="utf-8")
    arrays = {
        f"{place}/{name}": array
        for place, sample in enumerate(samples)
        for name, array in sample.outputs.items()
    }
    np.savez(path / RESPONSES, **arrays)


def read_samples(path):
    """Reads what `write_samples` wrote.

    Returns:
        list of `Sample`.
    """
    requests = json.loads((Path(path) / REQUESTS).read_text(encoding="utf-8"))
    outputs = [{} for _ in requests]
    with np.load(Path(path) / RESPONSES) as arrays:
        for key in arrays:
            place, _, name = key.partition("/")
            outputs[int(place)][name] = arrays[key]
    return [
        Sample(request["signature"], request["inputs"], found)
        for request, found in zip(requests, outputs, strict=True)
    ]


def as_array(tensor):
    """A tensor as an array; strings as bytes."""
    array = tensor.numpy()
    return array.astype("S") if array.dtype == object else array


def largest_difference(expected, found):
    """The largest difference of two arrays, relative where a value is above 1.

    Args:
        expected: array of numbers or of bytes.
        found: array.

    Returns:
        float; inf where shapes or strings differ or a number is not finite.
    """
    if expected.shape != found.shape:
        return float("inf")
    if expected.dtype.kind == "S":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    if not expected.size:
        return 0.0
    difference = np.abs(expected.astype("float64") - found)
    difference = np.max(difference / np.maximum(1.0, np.abs(expected)))
    return float(difference) if np.isfinite(difference) else float("inf")
