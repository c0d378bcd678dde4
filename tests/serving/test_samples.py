import numpy as np
import pytest

from keras_minilmv2.serving.samples import (
    Sample,
    largest_difference,
    read_samples,
    write_samples,
)


def test_samples_are_read_as_they_were_written(tmp_path):
    samples = [
        Sample(
            "serving_default", {"text": ["a", "é\n"]}, {"x": np.float32([[1], [2]])}
        ),
        Sample("token_ids", {"token_ids": [[1, 2]]}, {"label": np.array([b"yes"])}),
    ]
    write_samples(tmp_path, samples)
    for sample, read in zip(samples, read_samples(tmp_path), strict=True):
        assert read[:2] == sample[:2]
        assert read.outputs.keys() == sample.outputs.keys()
        for name, array in sample.outputs.items():
            assert read.outputs[name].dtype == array.dtype
            np.testing.assert_array_equal(read.outputs[name], array)


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([0.5, 0.25], [0.5, 0.5], 0.25),
        ([100.0], [101.0], 0.01),
        ([], [], 0),
        ([1.0], [np.nan], np.inf),
        ([1.0], [np.inf], np.inf),
        ([1.0], [[1.0]], np.inf),
        ([b"a", b"bc"], [b"a", b"bc"], 0),
        ([b"a"], [b"b"], np.inf),
    ],
)
def test_the_largest_difference(expected, found, difference):
    assert largest_difference(np.array(expected), np.array(found)) == difference
