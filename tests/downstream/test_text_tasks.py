"""Classes, scores and losses of text tasks."""

import numpy as np
import pytest

from keras_minilmv2.downstream.registry import TASKS


def test_outputs_become_classes_or_scores():
    outputs = np.array([[0.1, 0.7, 0.2], [3.0, 1.0, 2.0]])
    assert TASKS["mnli"].decide(None, None, outputs).tolist() == [1, 0]
    assert TASKS["stsb"].decide(None, None, outputs[:, :1]).tolist() == [0.1, 3.0]


def test_the_loss_of_classes_is_their_cross_entropy():
    logits = np.float32([[1.0, 2.0], [0.5, -0.5]])
    loss = TASKS["sst2"].loss(np.array([1, 1]), logits)
    expected = -np.mean(
        [
            np.log(np.exp(2) / (np.exp(1) + np.exp(2))),
            np.log(np.exp(-0.5) / (np.exp(0.5) + np.exp(-0.5))),
        ]
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)
