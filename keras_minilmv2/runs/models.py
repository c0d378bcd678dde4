"""From a recipe to its models: teacher, student, and what trains the student."""

from pathlib import Path

from keras_minilmv2.backbones.families import check_tokenizer, family_of
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.projections import block_calls, check_layer
from keras_minilmv2.backbones.pruned import (
    counted,
    is_pruned,
    layer_counts,
    unpruned,
)
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.backbones.variants import set_variant, variant_of
from keras_minilmv2.distillation.initialization import Initialization
from keras_minilmv2.distillation.objectives import OBJECTIVES
from keras_minilmv2.runs.directory import check_new
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.utils.files import writing
from keras_minilmv2.utils.seeds import set_seed


def load_teacher(recipe):
    """Loads the teacher and tokenizer of a recipe and checks the recipe with them."""
    teacher = load_backbone(recipe.teacher, dtype=recipe.dtype_policy)
    tokenizer = load_tokenizer(recipe.teacher)
    check_tokenizer(teacher, tokenizer)
    preset = recipe.initialization.preset
    if preset is not None:
        theirs = load_tokenizer(preset)
        if list(theirs.get_vocabulary()) != list(tokenizer.get_vocabulary()):
            raise ValueError(
                "`student_initialization` must name a preset with the teacher's "
                f"vocabulary. Received: student_initialization=preset:{preset}."
            )
    check_layer("teacher_layer", recipe.teacher_layer, len(block_calls(teacher)))
    if not 3 <= recipe.sequence_length <= teacher.max_sequence_length:
        raise ValueError(
            "`sequence_length` must be at least 3 and not beyond the position table "
            f"of the teacher. Received: sequence_length={recipe.sequence_length}, "
            f"max_sequence_length={teacher.max_sequence_length}."
        )
    return teacher, tokenizer


def make_student(teacher, recipe, examples=None, initialization=None):
    """Builds the student of a recipe.

    Args:
        teacher: the teacher of the recipe.
        recipe: `Recipe`.
        examples: batch of token ids for `"projection"`.
        initialization: str, another initialization than the recipe's.
    """
    chosen = recipe.initialization
    if initialization is not None:
        chosen = Initialization.parse(initialization)
    student = student_backbone(
        teacher,
        num_layers=recipe.student_num_layers,
        num_heads=recipe.student_num_heads,
        hidden_dim=recipe.student_hidden_dim,
        intermediate_dim=recipe.student_intermediate_dim,
        embedding_dim=recipe.student_embedding_dim,
        dropout=recipe.student_dropout,
        seed=recipe.seed,
        dtype=recipe.dtype_policy,
        **chosen.arguments(examples, recipe.num_relation_heads),
    )
    if chosen.preset is not None:
        return _with_preset_weights(chosen.preset, student)
    return student


def _with_preset_weights(preset, student):
    """A student with the weights of a preset of its shape, and pruned as that is."""
    # What the preset has no weights for is drawn: the same each time.
    set_seed(0)
    begun = load_backbone(preset)
    theirs, ours = (_shape(backbone) for backbone in (begun, student))
    different = [name for name in ours if theirs.get(name) != ours[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"`student_initialization` must name a preset with the student's {name}, "
            f"{ours[name]}. Received: student_initialization=preset:{preset}, "
            f"{name}={theirs.get(name)}."
        )
    if is_pruned(begun):
        family, config = family_of(student), student.get_config()
        pruned_class, config = counted(family, config, *layer_counts(begun))
        pruned = pruned_class.from_config(config)
        set_variant(pruned, variant_of(student))
        student = pruned
    student.set_weights(begun.get_weights())
    return student


def _shape(backbone):
    """What must be equal for weights to be carried over."""
    config = unpruned(backbone.get_config())
    for name in ("name", "dtype", "trainable", "dropout"):
        config.pop(name, None)
    return {"class": family_of(backbone).backbone_class.__name__, **config}


def make_distiller(teacher, student, recipe, tokenizer):
    """Builds and compiles what trains the student of a recipe."""
    objective = OBJECTIVES[recipe.objective]
    distiller = objective.make_trainer(teacher, student, tokenizer, recipe)
    distiller.compile(
        optimizer=recipe_optimizer(recipe),
        steps_per_execution=recipe.steps_per_execution,
        accumulation_steps=recipe.accumulation_steps,
    )
    return distiller


def recipe_optimizer(recipe):
    """The optimizer of a recipe, with its schedule."""
    return adamw(
        recipe.peak_learning_rate,
        recipe.warmup_steps,
        recipe.total_steps,
        weight_decay=recipe.weight_decay,
        beta_1=recipe.beta_1,
        beta_2=recipe.beta_2,
        epsilon=recipe.epsilon,
        gradient_clip_norm=recipe.gradient_clip_norm,
    )


def write_student(recipe, output_dir, truncated_teacher=False):
    """Writes a recipe's student before any training, as a keras-nlp preset.

    Args:
        recipe: `Recipe` whose student is not initialized by `"projection"`.
        output_dir: str or path. Empty or new.
        truncated_teacher: bool. The teacher's own first layers instead, as many as
            the student has.

    Returns:
        The student.

    Raises:
        ValueError: if the student is initialized by `"projection"`, which needs a
            corpus.
        FileExistsError: if the directory holds anything.
    """
    path = Path(output_dir)
    check_new(path)
    if recipe.initialization.needs_examples and not truncated_teacher:
        raise ValueError(
            "`student_initialization` must be random, layers or preset for a student "
            "that is not trained. "
            f"Received: student_initialization={recipe.student_initialization!r}."
        )
    teacher, tokenizer = load_teacher(recipe)
    if truncated_teacher:
        student = truncated(teacher, recipe.student_num_layers)
    else:
        student = make_student(teacher, recipe)
    with writing(path):
        save_student(student, tokenizer, path, overwrite=True)
    return student


def truncated(teacher, num_layers):
    """The teacher's own first layers, as an encoder of their own."""
    return student_backbone(
        teacher,
        num_layers=num_layers,
        num_heads=teacher.num_heads,
        hidden_dim=teacher.hidden_dim,
        intermediate_dim=teacher.intermediate_dim,
        initialization="layers",
        teacher_layers=range(1, num_layers + 1),
    )
