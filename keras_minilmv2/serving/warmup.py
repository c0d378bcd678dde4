"""Requests that a server sends itself when it has loaded a version."""

import importlib.util

import numpy as np
import tensorflow as tf

FILE = "assets.extra/tf_serving_warmup_requests"


def write_warmup(path, model_name, samples):
    """Writes the sample requests in the form in which TensorFlow Serving reads them.

    Needs the package tensorflow-serving-api.

    Args:
        path: path of the export.
        model_name: str.
        samples: sequence of `Sample`.

    Returns:
        dict with the `"file"` and its number of `"requests"`, or, where the package is
        not installed, with the reason under `"skipped"`.
    """
    if importlib.util.find_spec("tensorflow_serving") is None:
        return {"skipped": "tensorflow-serving-api is not installed"}
    from tensorflow_serving.apis import prediction_log_pb2

    (path / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / FILE)) as writer:
        for sample in samples:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = sample.signature
            for name, values in sample.inputs.items():
                array = np.array(values)
                array = array.astype("int32") if array.dtype.kind == "i" else array
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            writer.write(log.SerializeToString())
    return {"file": FILE, "requests": len(samples)}
