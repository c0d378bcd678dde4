"""One setting for how a student is initialized, and the three it replaces."""

import pytest

from keras_minilmv2.distillation.initialization import Initialization

FORMS = [
    ("random", ("random", None, None), "random"),
    ("layers", ("layers", None, None), "layers"),
    ("layers:1,3,6", ("layers", (1, 3, 6), None), "layers 1, 3, 6"),
    ("projection", ("projection", None, None), "projection"),
    ("projection:2,4", ("projection", (2, 4), None), "projection of layers 2, 4"),
    ("preset:out/student", ("preset", None, "out/student"), "out/student"),
    ("preset:hf://me/model", ("preset", None, "hf://me/model"), "hf://me/model"),
]


@pytest.mark.parametrize(("text", "fields", "description"), FORMS)
def test_text_and_fields_are_the_same(text, fields, description):
    initialization = Initialization.parse(text)
    assert initialization == Initialization(*fields)
    assert str(initialization) == text
    assert initialization.description() == description


@pytest.mark.parametrize(
    "text",
    [
        *("", "zeros", "random:1", "layers:", "layers:0", "layers:1,x", "layers:-1"),
        *("projection:1.5", "preset", "preset:", "layers:1,,3"),
    ],
)
def test_other_texts_are_refused_by_the_known_forms(text):
    with pytest.raises(
        ValueError, match="`student_initialization` must be random, layers, layers:1,3"
    ):
        Initialization.parse(text)


@pytest.mark.parametrize(
    ("old", "text"),
    [
        (("random", None, None), "random"),
        # It had no effect.
        (("random", (1, 3), None), "random"),
        (("layers", (1, 3, 6), None), "layers:1,3,6"),
        (("layers", [1, 3, 6], None), "layers:1,3,6"),
        (("projection", None, None), "projection"),
        (("preset", None, "out/student"), "preset:out/student"),
        (("preset:out/student", None, None), "preset:out/student"),
        (("layers:1,2", (3, 6), None), "layers:3,6"),
    ],
)
def test_the_fields_of_older_recipes_are_joined(old, text):
    assert str(Initialization.from_fields(*old)) == text


@pytest.mark.parametrize(
    "old", [("preset", None, None), ("random", None, "out"), ("layers", (0,), None)]
)
def test_older_fields_that_contradict_are_refused(old):
    with pytest.raises(ValueError, match="`student_initialization` must be random"):
        Initialization.from_fields(*old)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("random", ("random", None, None, None)),
        ("layers:1,3", ("layers", (1, 3), None, None)),
        ("projection:1,3", ("projection", (1, 3), "batch", 12)),
        ("preset:out", ("random", None, None, None)),
    ],
)
def test_arguments_are_those_of_a_student(text, expected):
    arguments = Initialization.parse(text).arguments("batch", 12)
    assert tuple(arguments.values()) == expected
    assert list(arguments)[:2] == ["initialization", "teacher_layers"]
