"""Keras gives what ONNX Runtime and OpenVINO gave for exports of the same weights."""

import json

import numpy as np
import pytest
import tensorflow as tf
from other_runtimes import ANSWERS, LENGTH, models, requests

from keras_minilmv2.serving.saved_model import export_saved_model

COMMITTED = json.loads(ANSWERS.read_text())["answers"]


@pytest.mark.parametrize("name", COMMITTED)
def test_other_runtimes_gave_the_same(name, tmp_path):
    model, tokenizer = models((name,))[name]
    version = export_saved_model(
        model, tokenizer, tmp_path, LENGTH, pairs=name == "spans"
    )
    signature = tf.saved_model.load(str(version)).signatures["token_ids"]
    _, specs = signature.structured_input_signature
    outputs = signature(**requests(specs))
    numbers = {n for n, value in outputs.items() if value.dtype == tf.float32}
    for runtime, answers in COMMITTED[name].items():
        assert answers.keys() == numbers
        for output, expected in answers.items():
            found = outputs[output].numpy()
            assert np.abs(expected).max() > 0.1
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=runtime)


def test_every_kind_of_tokenizer_and_of_model_ran():
    assert COMMITTED.keys() == {
        "bert_teacher",
        "roberta_teacher",
        "xlm_roberta",
        "classifier",
        "regressor",
        "spans",
    }
    for answers in COMMITTED.values():
        assert answers.keys() == {"ONNX Runtime", "OpenVINO"}
