"""`manifest.json`: the inputs, outputs and needs of an export, and its checksums."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_minilmv2.serving.signatures import DESCRIPTIONS
from keras_minilmv2.version import __version__

MANIFEST = "manifest.json"
# The first release of TensorFlow Serving known to have the op. 2.12.2 to 2.19.1 have
# TF Text 2.12.1: exports ran on its libraries with those of TensorFlow 2.12.1.
_SERVING_RELEASES = {
    "CaseFoldUTF8": "2.12.2",
    "FastWordpieceTokenizeWithOffsets": "2.12.2",
    "NormalizeUTF8": "2.12.2",
    "RegexSplitWithOffsets": "2.12.2",
    "SentencepieceOp": "2.12.2",
    "SentencepieceTokenizeOp": "2.12.2",
}
_LIBRARIES = ("tensorflow", "tensorflow-text", "keras", "keras-hub", "numpy")


def write_manifest(path, content):
    """Writes the manifest of a complete export.

    Args:
        path: path of the export. All other files are there.
        content: dict, JSON-like, that is told beside what is read from the export:
            signatures, ops that are not TensorFlow's own, checksums, versions.
    """
    graph = _meta_graph(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    manifest = {
        "format": 1,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **content,
        "signatures": signatures(graph),
        "custom_ops": custom_ops(graph),
        "versions": {
            "keras_minilmv2": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        "files": {
            str(file.relative_to(path)): _sha256(file)
            for file in files
            if file.name != MANIFEST
        },
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (path / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def read_manifest(path):
    """Reads the manifest of an export and checks its files against it.

    Args:
        path: path of the export.

    Returns:
        dict.

    Raises:
        ValueError: if there is no manifest, or a file is missing or not the one that
            was written.
    """
    try:
        text = (Path(path) / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        files = dict(manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`directory` must hold a readable {MANIFEST}. Received: directory={path}."
        ) from error
    for name, checksum in files.items():
        file = Path(path) / name
        # A name that leads out of the export is no file of it.
        inside = file.resolve().is_relative_to(Path(path).resolve())
        if not inside or not file.is_file() or _sha256(file) != checksum:
            raise ValueError(
                "`directory` must hold the files of its export as they were written. "
                f"Received: directory={path} with another or no {name}."
            )
    return manifest


def signatures(graph):
    """Inputs and outputs by signature.

    Args:
        graph: `MetaGraphDef`.

    Returns:
        dict by signature, `"inputs"` or `"outputs"`, and name, of dict of dtype, shape
        (None where any size goes), the tensor's name in the graph, and a description.
    """
    return {
        name: {
            "inputs": {key: _tensor(key, info) for key, info in _sorted(found.inputs)},
            "outputs": {
                key: _tensor(key, info) for key, info in _sorted(found.outputs)
            },
        }
        for name, found in _sorted(graph.signature_def)
        if not name.startswith("__")
    }


def custom_ops(graph):
    """Ops that a runtime must have beside TensorFlow's own.

    Args:
        graph: `MetaGraphDef`.

    Returns:
        list of dict of `"op"` and `"tensorflow_serving"`, the first release of
        TensorFlow Serving known to have it, or None.
    """
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(n for f in functions for n in f.node_def)]
    ops = {node.op for node in nodes} - {f.signature.name for f in functions}
    return [
        {"op": op, "tensorflow_serving": _SERVING_RELEASES.get(op)}
        for op in sorted(ops)
        if not hasattr(tf.raw_ops, op)
    ]


def _meta_graph(path):
    saved_model = saved_model_pb2.SavedModel.FromString(
        (path / "saved_model.pb").read_bytes()
    )
    return saved_model.meta_graphs[0]


def _sorted(mapping):
    return sorted(mapping.items())


def _tensor(name, info):
    return {
        "dtype": tf.as_dtype(info.dtype).name,
        "shape": [None if d.size < 0 else d.size for d in info.tensor_shape.dim],
        "tensor": info.name,
        "description": DESCRIPTIONS[name],
    }


def _sha256(file):
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
