import keras_hub
import numpy as np
import pytest
from families import CLASSES, SIZES, VOCABULARY, make_backbone, make_inputs, others_slow

from keras_minilmv2.backbones.families import vocabulary_size
from keras_minilmv2.backbones.projections import block_calls, qkv_model
from keras_minilmv2.backbones.students import evenly_spaced_layers, student_backbone
from keras_minilmv2.distillation.losses import RelationLoss

SMALL = {"num_layers": 2, "num_heads": 4, "hidden_dim": 12, "intermediate_dim": 20}
EQUAL = {name: SIZES[name] for name in SMALL if name != "num_layers"}


def weights_of(backbone):
    return [np.asarray(weight) for weight in backbone.weights]


def first_output(backbone, inputs):
    output = backbone(inputs)
    return np.asarray(output["sequence_output"] if isinstance(output, dict) else output)


@pytest.mark.parametrize("name", CLASSES)
def test_random_student_has_the_sizes_asked_for(name, tmp_path):
    teacher = make_backbone(name)
    student = student_backbone(teacher, **SMALL, seed=1)
    assert type(student) is type(teacher)
    assert len(block_calls(student)) == 2
    assert vocabulary_size(student) == VOCABULARY
    assert student.max_sequence_length == SIZES["max_sequence_length"]
    assert student.dropout == 0.1
    kernel = block_calls(student)[0][0]._feedforward_intermediate_dense.kernel
    assert tuple(kernel.shape) == (12, 20)
    inputs = make_inputs(student)
    assert first_output(student, inputs).shape == (8, 12, 12)
    student.save_to_preset(str(tmp_path))
    again = keras_hub.models.Backbone.from_preset(str(tmp_path))
    np.testing.assert_array_equal(
        first_output(again, inputs), first_output(student, inputs)
    )


def test_seed_decides_the_drawn_weights():
    teacher = make_backbone("bert")
    first, same, other, free = (
        weights_of(student_backbone(teacher, **SMALL, seed=seed))
        for seed in (1, 1, 2, None)
    )
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], free[0])


@pytest.mark.parametrize("name", CLASSES)
def test_all_layers_of_the_teacher_make_the_teacher(name):
    teacher = make_backbone(name)
    student = student_backbone(
        teacher, num_layers=4, **EQUAL, initialization="layers", dropout=0.0
    )
    inputs = make_inputs(teacher)
    np.testing.assert_allclose(
        first_output(student, inputs), first_output(teacher, inputs), atol=1e-5
    )


def test_chosen_layers_are_copied():
    teacher = make_backbone("roberta")
    student = student_backbone(
        teacher,
        num_layers=2,
        **EQUAL,
        initialization="layers",
        teacher_layers=[4, 2],
        max_sequence_length=10,
    )
    blocks = [block for block, _ in block_calls(teacher)]
    for (block, _), layer in zip(block_calls(student), (4, 2), strict=True):
        theirs = blocks[layer - 1].weights
        for a, b in zip(block.weights, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    positions = student.embeddings.position_embedding.position_embeddings
    theirs = teacher.embeddings.position_embedding.position_embeddings
    np.testing.assert_array_equal(np.asarray(positions), np.asarray(theirs)[:10])


def test_layers_are_evenly_spaced_and_end_with_the_last():
    assert evenly_spaced_layers(12, 6) == (2, 4, 6, 8, 10, 12)
    assert evenly_spaced_layers(6, 3) == (2, 4, 6)
    assert evenly_spaced_layers(24, 6) == (4, 8, 12, 16, 20, 24)
    assert evenly_spaced_layers(12, 12) == tuple(range(1, 13))
    assert evenly_spaced_layers(12, 5)[-1] == 12


def relation_loss_of(teacher, student, inputs):
    y_true = {**qkv_model(teacher, 4)(inputs), "padding_mask": inputs["padding_mask"]}
    y_pred = qkv_model(student, len(block_calls(student)))(inputs)
    return float(RelationLoss(4)(y_true, y_pred))


def narrow_teacher(name):
    """A teacher whose states and head vectors need half their width only."""
    teacher = make_backbone(name)
    generator = np.random.default_rng(7)
    # Ten directions without a mean, for everything that writes into the states.
    directions = generator.normal(size=(24, 10))
    directions, _ = np.linalg.qr(directions - directions.mean(axis=0))
    states = directions @ directions.T
    # Three directions of six in each head.
    head, _ = np.linalg.qr(generator.normal(size=(6, 3)))
    head = head @ head.T
    for variable in teacher.trainable_variables:
        value = np.asarray(variable)
        if variable.name in ("bias", "beta"):
            value = 0 * value
        elif variable.name == "gamma":
            value = 0 * value + 1
        elif variable.shape[-1] == 6:
            value = 2 * value @ head
        elif variable.shape[-1] == 24:
            value = 2 * value @ states
        variable.assign(value)
    return teacher


@pytest.mark.parametrize("name", others_slow(CLASSES))
def test_projection_carries_over_what_fits_into_the_student(name):
    teacher = narrow_teacher(name)
    sizes = {**EQUAL, "num_layers": 4, "hidden_dim": 12}
    projected = student_backbone(
        teacher,
        **sizes,
        initialization="projection",
        examples=make_inputs(teacher, batch=64),
        num_relation_heads=4,
        dropout=0.0,
    )
    random = student_backbone(teacher, **sizes, seed=1, dropout=0.0)
    held_out = make_inputs(teacher, batch=16, seed=9)
    assert relation_loss_of(teacher, projected, held_out) < 0.05 * relation_loss_of(
        teacher, random, held_out
    )


def test_embedding_dim_defaults_to_the_teachers_or_to_the_width():
    for name, expected in (("albert", 8), ("electra_small", 8), ("electra", 12)):
        assert student_backbone(make_backbone(name), **SMALL).embedding_dim == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_layers": 0},
            "`num_layers` must be an int of at least 1. Received: num_layers=0",
        ),
        ({"num_heads": 5}, "`num_heads` must divide `hidden_dim`. .* hidden_dim=12"),
        (
            {"hidden_dim": 40_000_000},
            "must give a student that fits into memory. .* GB",
        ),
        ({"initialization": "copy"}, "must be one of random, layers, projection"),
        ({"teacher_layers": [1, 2]}, "`teacher_layers` must not be given"),
        ({"embedding_dim": 4}, "`embedding_dim` must not be given for BERT"),
        ({"examples": {}}, "`examples` must not be given"),
        (
            {"initialization": "layers"},
            "needs a student as wide as its teacher; .* hidden_dim=12 against the "
            "teacher's 24, intermediate_dim=20 against the teacher's 32",
        ),
        ({"initialization": "layers", "num_layers": 5, **EQUAL}, "must not be above"),
        (
            {"initialization": "layers", **EQUAL, "teacher_layers": [1]},
            "one layer of the teacher for each student layer",
        ),
        (
            {"initialization": "layers", **EQUAL, "teacher_layers": [0, 1]},
            "`teacher_layers` must be between 1 and",
        ),
        (
            {"initialization": "layers", **EQUAL, "max_sequence_length": 17},
            "`max_sequence_length` must not be above the teacher's 16",
        ),
        (
            {"initialization": "projection"},
            "Missing: padding_mask, segment_ids, token_ids",
        ),
        (
            {"initialization": "projection", "hidden_dim": 28},
            "`hidden_dim` must not be above the teacher's",
        ),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        student_backbone(make_backbone("bert"), **{**SMALL, **changes})


def test_sizes_of_another_type_are_refused():
    with pytest.raises(TypeError, match="`hidden_dim` must be an int of at least 1"):
        student_backbone(make_backbone("bert"), **{**SMALL, "hidden_dim": 12.0})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("albert", {"embedding_dim": 4}),
        ("electra_small", {"embedding_dim": 12}),
        # As wide as the teacher's embedding: ELECTRA then has no layer in between.
        ("electra_small", {"hidden_dim": 8}),
        ("electra", {"embedding_dim": 8}),
    ],
)
def test_projection_refuses_other_embeddings(name, sizes):
    teacher = make_backbone(name)
    with pytest.raises(ValueError, match="`embedding_dim` must be the teacher's"):
        student_backbone(
            teacher,
            **{**SMALL, **sizes},
            initialization="projection",
            examples=make_inputs(teacher),
        )


def test_projection_refuses_examples_of_padding():
    teacher = make_backbone("bert")
    examples = make_inputs(teacher)
    examples["padding_mask"][:] = 0
    with pytest.raises(ValueError, match="must hold at least one real token"):
        student_backbone(
            teacher, **SMALL, initialization="projection", examples=examples
        )
