"""Keras gives what ONNX Runtime and OpenVINO gave for exports of the same weights."""

import json

import numpy as np
import pytest
import tensorflow as tf
from other_runtimes import ANSWERS, models, requests

from keras_minilmv2.serving.signatures import make_signatures

COMMITTED = json.loads(ANSWERS.read_text())["answers"]


@pytest.mark.parametrize("name", COMMITTED)
def test_other_runtimes_gave_the_same(name):
    model, _ = models((name,))[name]
    labels = ["a", "b", "c"] if name == "classifier" else None
    signatures = make_signatures(
        model, None, (), lambda part, x: part(x, training=False), labels, False
    )
    function, specs = signatures["token_ids"]
    outputs = function(*requests([spec.name for spec in specs]).values())
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
