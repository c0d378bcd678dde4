"""Data sets whose iterators close at once."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from small_examples import write_examples
from small_trainers import VOCABULARY, make_batch, make_student, make_teacher

import keras_minilmv2 as km
from keras_minilmv2.data.pipeline import as_dataset
from keras_minilmv2.utils.datasets import without_autotune


def test_the_data_sets_of_the_package_are_not_tuned(tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2 w3")
    tokenizer = keras_hub.models.BertTokenizer(VOCABULARY)
    packed = km.packed_examples(km.Corpus([str(tmp_path / "text.txt")]), tokenizer, 4)
    prepared = write_examples(tmp_path / "prepared", 10)
    for dataset in (km.batches(packed, 2), as_dataset(prepared, 2, seed=0)):
        assert dataset.options().autotune.enabled is False


def test_other_data_are_returned_as_they_are():
    for data in (None, [1], np.zeros(3), iter([2])):
        assert without_autotune(data) is data


@pytest.mark.parametrize("method", ["fit", "evaluate", "validation"])
def test_a_user_s_data_set_is_not_tuned(monkeypatch, method):
    teacher = make_teacher()
    distiller = km.RelationDistiller(teacher, make_student(teacher), 4, 8)
    distiller.compile("sgd")
    seen = []

    def record(self, x=None, validation_data=None, **kwargs):
        seen.extend([x, validation_data])

    monkeypatch.setattr(keras.Model, "fit", record)
    monkeypatch.setattr(keras.Model, "evaluate", record)
    dataset = tf.data.Dataset.from_tensors(make_batch())
    if method == "evaluate":
        distiller.evaluate(dataset)
    else:
        distiller.fit(dataset, validation_data=dataset)
    given = seen[1] if method == "validation" else seen[0]
    assert given.options().autotune.enabled is False
