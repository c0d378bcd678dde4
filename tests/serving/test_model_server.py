"""The real server, where there is one."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from keras_minilmv2.serving.samples import read_samples

SERVER = shutil.which("tensorflow_model_server")
pytestmark = pytest.mark.skipif(
    SERVER is None, reason="no tensorflow_model_server on PATH"
)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module", params=["word_piece", "byte_pair", "sentence_piece"])
def served(request, export_of, tmp_path_factory):
    version = export_of(request.param)
    rest, grpc = free_port(), free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    command = [SERVER, f"--port={grpc}", f"--rest_api_port={rest}", "--model_name=m"]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, f"--model_base_path={version.parent}"],
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{rest}/v1/models/m"
    try:
        for _ in range(120):
            assert process.poll() is None, log.read_text(errors="replace")[-2_000:]
            try:
                with urllib.request.urlopen(url) as answer:
                    state = json.load(answer)["model_version_status"][0]["state"]
                if state == "AVAILABLE":
                    break
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(1)
        yield version, url, grpc
    finally:
        process.kill()
        process.wait()


def test_rest_gives_what_keras_gives(served):
    version, url, _ = served
    for sample in read_samples(version):
        body = {"signature_name": sample.signature, "inputs": sample.inputs}
        request = urllib.request.Request(
            f"{url}:predict", json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            outputs = json.load(answer)["outputs"]
        for name, expected in sample.outputs.items():
            np.testing.assert_allclose(outputs[name], expected, atol=1e-5, rtol=1e-5)


def test_grpc_gives_what_keras_gives(served):
    grpc = pytest.importorskip("grpc")
    apis = pytest.importorskip("tensorflow_serving.apis")
    version, _, port = served
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = apis.prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for sample in read_samples(version):
            request = apis.predict_pb2.PredictRequest()
            request.model_spec.name = "m"
            request.model_spec.signature_name = sample.signature
            for name, values in sample.inputs.items():
                kind = tf.string if isinstance(values[0], str) else tf.int32
                tensor = tf.make_tensor_proto(values, kind)
                request.inputs[name].CopyFrom(tensor)
            answer = stub.Predict(request, timeout=60)
            for name, expected in sample.outputs.items():
                found = tf.make_ndarray(answer.outputs[name])
                np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
