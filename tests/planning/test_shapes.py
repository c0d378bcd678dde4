"""Shapes of encoders, against backbones that are built."""

import json
import math

import pytest
from pruned import make_pruned
from small_plans import BACKBONES, example_recipe, make_backbone

from keras_minilmv2.backbones.projections import block_calls, qkv_model
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.planning.shapes import (
    KNOWN_SHAPES,
    EncoderShape,
    encoder_shape,
    student_shape,
)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_shape_has_the_parameters_of_its_backbone(family):
    backbone = make_backbone(family, layers=3, width=16, inner=24)
    shape = encoder_shape(backbone)
    assert shape.num_parameters == backbone.count_params()
    assert len(shape.blocks) == len(block_calls(backbone))
    for layer, projections in ((1, ["query"]), (3, ["query", "key", "value"])):
        model = qkv_model(backbone, layer, projections)
        assert shape.num_parameters_up_to(layer, len(projections)) == sum(
            math.prod(variable.shape) for variable in model.trainable_variables
        )


def test_groups_of_albert_have_their_own_weights():
    backbone = make_backbone(
        *("ALBERT", 4, 2, 16, 24), num_groups=2, num_inner_repetitions=3
    )
    shape = encoder_shape(backbone)
    assert shape.blocks == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert shape.num_parameters == backbone.count_params()
    for layer in (2, 7, 12):
        model = qkv_model(backbone, layer)
        assert shape.num_parameters_up_to(layer) == sum(
            math.prod(variable.shape) for variable in model.trainable_variables
        )


def test_known_shapes_have_the_parameters_that_keras_nlp_publishes():
    published = {
        name: content["metadata"]["params"]
        for backbone_class, _ in BACKBONES.values()
        for name, content in backbone_class.presets.items()
    }
    for name, shape in KNOWN_SHAPES.items():
        assert shape.num_parameters == published[name], name


@pytest.mark.parametrize("family", BACKBONES)
def test_a_directory_needs_no_more_than_a_config(family, tmp_path):
    backbone = make_backbone(family, width=16, inner=24)
    backbone.save_to_preset(str(tmp_path))
    for file in tmp_path.glob("*.h5"):
        file.unlink()
    assert encoder_shape(tmp_path) == encoder_shape(backbone)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_pruned_encoder_has_the_parameters_that_are_left(family, tmp_path):
    backbone = make_pruned(make_backbone(family, layers=4, width=16, inner=24))
    shape = encoder_shape(backbone)
    assert shape.num_parameters == backbone.count_params()
    for layer in (2, 4):
        model = qkv_model(backbone, layer)
        assert shape.num_parameters_up_to(layer) == sum(
            math.prod(variable.shape) for variable in model.trainable_variables
        )
    backbone.save_to_preset(str(tmp_path))
    for file in tmp_path.glob("*.h5"):
        file.unlink()
    assert encoder_shape(tmp_path) == shape


def test_a_student_has_what_is_left_of_the_layers_it_is_made_of(tmp_path):
    teacher = make_pruned(make_backbone("BERT", layers=4, width=16, inner=24))
    teacher.save_to_preset(str(tmp_path))
    sizes = {
        "student_num_heads": 4,
        "student_hidden_dim": 16,
        "student_intermediate_dim": 24,
    }
    for start, depth, heads, neurons in (
        ("random", 2, None, None),
        ("layers:2,4", 2, (1, 3), (0, 16)),
        ("layers", 2, (1, 3), (0, 16)),
        (f"preset:{tmp_path}", 4, (0, 1, 4, 3), (24, 0, 24, 16)),
    ):
        recipe = example_recipe(
            **sizes, student_num_layers=depth, student_initialization=start
        )
        shape = student_shape(encoder_shape(teacher), recipe)
        assert (shape.head_counts, shape.neuron_counts) == (heads, neurons)


@pytest.mark.parametrize("family", ["BERT", "ALBERT"])
@pytest.mark.parametrize(
    ("counts", "error"),
    [((1, 2, 3), ValueError), ((1, 13), ValueError), ((1, -1), ValueError)]
    + [((1, 2.0), TypeError), (3, TypeError)],
)
def test_counts_must_fit_the_layers(family, counts, error):
    sizes = {"num_layers": 2, "num_heads": 12, "hidden_dim": 24}
    with pytest.raises(error, match="`head_counts` must "):
        EncoderShape(
            family=family,
            **sizes,
            intermediate_dim=32,
            vocabulary_size=50,
            head_counts=counts,
        )


HUGGING_FACE_SIZES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "embedding_size": 8,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
}


@pytest.mark.parametrize(
    ("model_type", "family", "positions", "embedding_dim"),
    [
        ("bert", "BERT", 40, 16),
        ("roberta", "RoBERTa", 38, 16),
        ("xlm-roberta", "XLM-R", 38, 16),
        ("albert", "ALBERT", 40, 8),
        ("electra", "ELECTRA", 40, 8),
    ],
)
def test_configs_of_transformers_are_read(
    tmp_path, model_type, family, positions, embedding_dim
):
    config = {"model_type": model_type, **HUGGING_FACE_SIZES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert encoder_shape(tmp_path) == EncoderShape(
        family=family,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        vocabulary_size=60,
        max_sequence_length=positions,
        embedding_dim=embedding_dim,
    )


def test_a_config_of_transformers_distilbert_is_read(tmp_path):
    config = {
        **{"model_type": "distilbert", "n_layers": 3, "n_heads": 2, "dim": 16},
        **{"hidden_dim": 24, "vocab_size": 60, "max_position_embeddings": 40},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = encoder_shape(tmp_path)
    assert (shape.num_layers, shape.hidden_dim, shape.intermediate_dim) == (3, 16, 24)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "hold a config.json"),
        ({}, "hold a config.json of keras-nlp, with registered_name, or of tran"),
        ({"registered_name": "keras_hub>GemmaBackbone"}, "backbone that is one of Ber"),
        ({"model_type": "t5"}, "have a model_type in its config.json that is one of"),
        ({"model_type": "bert"}, "have vocab_size in its config.json"),
    ],
)
def test_other_directories_are_refused(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"`preset` must .*{message}"):
        encoder_shape(tmp_path)


def test_sizes_that_do_not_fit_are_refused():
    sizes = {
        **{"family": "BERT", "num_layers": 2, "num_heads": 2, "hidden_dim": 8},
        **{"intermediate_dim": 16, "vocabulary_size": 10},
    }
    with pytest.raises(ValueError, match="`num_layers` must be an int of at least 1. "):
        EncoderShape(**{**sizes, "num_layers": 0})
    with pytest.raises(ValueError, match="`family` must be one of BERT, .*family='X'"):
        EncoderShape(**{**sizes, "family": "X"})
    with pytest.raises(ValueError, match="`num_heads` must divide `hidden_dim`. Rec"):
        EncoderShape(**{**sizes, "num_heads": 3})
    with pytest.raises(ValueError, match="`num_groups` must divide `num_layers`."):
        EncoderShape(**{**sizes, "family": "ALBERT", "num_groups": 3})


@pytest.mark.parametrize(
    ("family", "teacher_width", "student_width", "embedding_dim"),
    [
        *(("BERT", 16, 8, None), ("RoBERTa", 16, 8, None), ("ALBERT", 16, 8, 4)),
        *(("ELECTRA", 16, 8, None), ("ELECTRA", 32, 8, None)),
    ],
)
def test_a_students_shape_is_that_of_the_student_that_is_built(
    family, teacher_width, student_width, embedding_dim
):
    teacher = make_backbone(family, width=teacher_width, inner=24)
    sizes = {"num_layers": 1, "num_heads": 2, "intermediate_dim": 12}
    sizes.update(hidden_dim=student_width, embedding_dim=embedding_dim)
    student = student_backbone(teacher, **sizes)
    recipe = example_recipe(**{f"student_{name}": sizes[name] for name in sizes})
    assert student_shape(encoder_shape(teacher), recipe) == encoder_shape(student)
