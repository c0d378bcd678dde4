import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf
from small_exports import manifest_of

from keras_minilmv2.serving.warmup import write_warmup


def test_a_server_is_warmed_up_with_the_samples(export_of):
    prediction_log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2"
    )
    version = export_of("word_piece")
    samples = json.loads((version / "samples.json").read_text())
    assert manifest_of(version)["warmup"] == {
        "file": "assets.extra/tf_serving_warmup_requests",
        "requests": len(samples),
    }
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    signatures = manifest_of(version)["signatures"]
    for record, sample in zip(records, samples, strict=True):
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        assert request.model_spec.signature_name == sample["signature"]
        assert request.model_spec.name == version.parent.name
        expected = signatures[sample["signature"]]["inputs"]
        assert request.inputs.keys() == expected.keys()
        for name, tensor in request.inputs.items():
            assert tf.as_dtype(tensor.dtype).name == expected[name]["dtype"]
            values = tf.make_ndarray(tensor)
            if values.dtype == object:
                values = np.array([value.decode() for value in values])
            assert values.tolist() == sample["inputs"][name]


def test_without_the_api_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = {"skipped": "tensorflow-serving-api is not installed"}
    assert write_warmup(tmp_path, "model", []) == reason
    assert list(tmp_path.iterdir()) == []
