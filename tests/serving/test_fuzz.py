import random

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 (registers its ops)
from small_exports import KINDS, small_export

GOOD = b"the quick brown fox"
ALPHABETS = [
    [chr(code).encode() for code in range(0x20, 0x250)],
    [chr(code).encode() for code in [*range(0x590, 0x700), 0x200F, 0x202E]],
    [chr(code).encode() for code in [*range(0x1F300, 0x1F700), 0x200D, 0xFE0F]],
    [chr(code).encode() for code in [*range(0x4E00, 0x4F00), 0x3000, 0xA0]],
    [bytes([code]) for code in range(256)],
    [b" ", b"\t", b"\n", b"\r", b"\x0b", b"\xc2\xa0", b"\xe2\x80\xa8"],
    [b"[CLS]", b"[SEP]", b"[PAD]", b"[MASK]", b"<s>", b"</s>", b"<pad>", b"<mask>"],
    [b"\x00", b"a", b"\x01", b"\x02", b"\x03", b"\x04", b" "],
]


def strings(number, size):
    generator = random.Random(0)
    chosen = [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbffox",
        *(
            pattern * (size // len(pattern))
            for pattern in (b"a", b"ab ", b" ", b"\xff", "你".encode(), b"e\xcc\x81")
        ),
    ]
    lengths = generator.choices([1, 2, 5, 20, 100, 1_000], k=number - len(chosen))
    chosen += [
        b"".join(generator.choices(generator.choice(ALPHABETS), k=length))
        for length in lengths
    ]
    generator.shuffle(chosen)
    return chosen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("number", "size", "pairs"),
    [
        (200, 20_000, False),
        pytest.param(10_000, 1_000_000, False, marks=pytest.mark.slow),
        pytest.param(10_000, 1_000_000, True, marks=pytest.mark.slow),
    ],
)
def test_any_bytes_give_numbers_and_leave_other_rows_alone(
    number, size, pairs, kind, export_of, tmp_path
):
    version = small_export(tmp_path, kind, pairs=True) if pairs else export_of(kind)
    loaded = tf.saved_model.load(str(version))
    names = ("text_a", "text_b") if pairs else ("text",)
    rows = strings(number, size)
    for signature in ("serving_default", "embeddings"):
        function = loaded.signatures[signature]

        def ask(batch, function=function):
            inputs = {name: tf.constant(batch) for name in names}
            return {key: value.numpy() for key, value in function(**inputs).items()}

        alone = ask([GOOD])
        for begin in range(0, number, 50):
            batch = [GOOD, *rows[begin : begin + 50], GOOD]
            for key, values in ask(batch).items():
                assert np.isfinite(values).all(), key
                assert len(values) == len(batch), key
                for row in (0, -1):
                    np.testing.assert_allclose(
                        values[row], alone[key][0], atol=1e-5, err_msg=key
                    )
