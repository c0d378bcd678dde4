"""Runs an export with TensorFlow's C API alone: what a server in C++ would do.

    python c_api.py SITE_PACKAGES EXPORT REQUESTS.json OUTPUTS.npz

Loads the libraries of the packages tensorflow and tensorflow_text, none of their
Python. Strings in REQUESTS.json are base64.
"""

import base64
import ctypes
import json
import sys
from pathlib import Path

import numpy as np

STRING = 7  # TF_STRING
NUMBERS = {1: np.float32, 3: np.int32, 9: np.int64}  # by TF_DataType
STRING_BYTES = 24  # sizeof(TF_TString)


class Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class Runtime:
    """TensorFlow's C library and the op libraries of TF Text."""

    def __init__(self, site_packages):
        tensorflow = Path(site_packages) / "tensorflow"
        ctypes.CDLL(
            str(tensorflow / "libtensorflow_framework.so.2"), mode=ctypes.RTLD_GLOBAL
        )
        self.c = ctypes.CDLL(
            str(tensorflow / "libtensorflow_cc.so.2"), mode=ctypes.RTLD_GLOBAL
        )
        for name in (
            "TF_AllocateTensor",
            "TF_GraphOperationByName",
            "TF_LoadLibrary",
            "TF_LoadSessionFromSavedModel",
            "TF_Message",
            "TF_NewGraph",
            "TF_NewSessionOptions",
            "TF_NewStatus",
            "TF_StringGetDataPointer",
            "TF_TensorData",
        ):
            getattr(self.c, name).restype = ctypes.c_void_p
        self.c.TF_Dim.restype = ctypes.c_int64
        self.c.TF_StringGetSize.restype = ctypes.c_size_t
        self.status = ctypes.c_void_p(self.c.TF_NewStatus())
        text = Path(site_packages) / "tensorflow_text"
        for library in sorted(text.glob("python/ops/*.so")):
            self.c.TF_LoadLibrary(str(library).encode(), self.status)
            self.check()

    def check(self):
        if self.c.TF_GetCode(self.status):
            message = ctypes.string_at(self.c.TF_Message(self.status))
            raise RuntimeError(message.decode(errors="replace"))

    def load(self, export):
        self.graph = ctypes.c_void_p(self.c.TF_NewGraph())
        tags = (ctypes.c_char_p * 1)(b"serve")
        options = ctypes.c_void_p(self.c.TF_NewSessionOptions())
        self.session = ctypes.c_void_p(
            self.c.TF_LoadSessionFromSavedModel(
                options,
                None,
                str(export).encode(),
                tags,
                1,
                self.graph,
                None,
                self.status,
            )
        )
        self.check()

    def output(self, tensor_name):
        name, _, index = tensor_name.partition(":")
        operation = self.c.TF_GraphOperationByName(self.graph, name.encode())
        if not operation:
            raise RuntimeError(f"no operation {name}")
        return Output(operation, int(index))

    def tensor(self, array):
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        if array.dtype == object:
            kind, num_bytes = STRING, array.size * STRING_BYTES
        else:
            kind = {np.dtype(v): k for k, v in NUMBERS.items()}[array.dtype]
            num_bytes = array.nbytes
        tensor = ctypes.c_void_p(
            self.c.TF_AllocateTensor(kind, dims, array.ndim, ctypes.c_size_t(num_bytes))
        )
        data = self.c.TF_TensorData(tensor)
        if kind != STRING:
            array = np.ascontiguousarray(array)
            ctypes.memmove(data, array.ctypes.data, array.nbytes)
            return tensor
        for place, value in enumerate(array.ravel()):
            string = ctypes.c_void_p(data + place * STRING_BYTES)
            self.c.TF_StringInit(string)
            self.c.TF_StringCopy(string, value, ctypes.c_size_t(len(value)))
        return tensor

    def array(self, tensor):
        kind = self.c.TF_TensorType(tensor)
        shape = [
            self.c.TF_Dim(tensor, axis) for axis in range(self.c.TF_NumDims(tensor))
        ]
        size = int(np.prod(shape))
        data = self.c.TF_TensorData(tensor)
        if kind != STRING:
            numbers = np.empty(size, NUMBERS[kind])
            if size:
                ctypes.memmove(numbers.ctypes.data, data, numbers.nbytes)
            return numbers.reshape(shape)
        strings = []
        for place in range(size):
            string = ctypes.c_void_p(data + place * STRING_BYTES)
            strings.append(
                ctypes.string_at(
                    self.c.TF_StringGetDataPointer(string),
                    self.c.TF_StringGetSize(string),
                )
            )
        return np.array(strings, "S").reshape(shape)

    def run(self, inputs, outputs):
        """Arrays by tensor name to the arrays of the named tensors."""
        tensors = [self.tensor(array) for array in inputs.values()]
        results = (ctypes.c_void_p * len(outputs))()
        self.c.TF_SessionRun(
            self.session,
            None,
            (Output * len(inputs))(*map(self.output, inputs)),
            (ctypes.c_void_p * len(inputs))(*(t.value for t in tensors)),
            len(inputs),
            (Output * len(outputs))(*map(self.output, outputs)),
            results,
            len(outputs),
            None,
            0,
            None,
            self.status,
        )
        self.check()
        return [self.array(ctypes.c_void_p(result)) for result in results]


def as_array(values):
    if isinstance(values[0], str):
        return np.array([base64.b64decode(value) for value in values], object)
    return np.array(values, np.int32)


def main(site_packages, export, requests, outputs):
    runtime = Runtime(site_packages)
    runtime.load(export)
    signatures = json.loads((Path(export) / "manifest.json").read_text())["signatures"]
    results = {}
    for place, request in enumerate(json.loads(Path(requests).read_text())):
        signature = signatures[request["signature"]]
        inputs = {
            signature["inputs"][name]["tensor"]: as_array(values)
            for name, values in request["inputs"].items()
        }
        names = list(signature["outputs"])
        tensors = [signature["outputs"][name]["tensor"] for name in names]
        arrays = runtime.run(inputs, tensors)
        for name, array in zip(names, arrays, strict=True):
            results[f"{place}/{name}"] = array
    imported = {name.partition(".")[0] for name in sys.modules}
    assert not imported & {"tensorflow", "tensorflow_text", "keras"}, imported
    np.savez(outputs, **results)
    print("ran without Python's tensorflow")


if __name__ == "__main__":
    main(*sys.argv[1:])
