import math
import re

import numpy as np
import pytest

from keras_minilmv2.utils.checks import check_choice, check_int, check_number


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "`n` must be an int of at least 1 and below 9. Received: n=0."),
        (9, ValueError, "`n` must be an int of at least 1 and below 9. Received: n=9."),
        (2.0, TypeError, "Received: n=2.0."),
        (True, TypeError, "Received: n=True."),
        ("3", TypeError, "Received: n='3'."),
    ],
)
def test_ints_out_of_their_range_are_refused(value, error, message):
    check_int(below=9, n=np.int64(8))
    with pytest.raises(error, match=re.escape(message)):
        check_int(below=9, n=value)


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan, math.inf])
def test_numbers_out_of_their_range_are_refused(value):
    check_number(least=0, below=1, rate=0)
    rule = "`rate` must be a finite number at least 0 and below 1."
    with pytest.raises(ValueError, match=f"{rule} Received: rate={value}"):
        check_number(least=0, below=1, rate=value)


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="must be a finite number above 0. Received"):
        check_number(above=0, rate="0.1")


def test_a_value_that_is_not_known_is_refused():
    check_choice(("a", "b"), kind="a")
    with pytest.raises(ValueError, match="`kind` must be one of a, b. Received: kind="):
        check_choice(("a", "b"), kind="c")
