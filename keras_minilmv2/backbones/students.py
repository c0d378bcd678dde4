"""Student encoders: their shape, and three ways to initialize them."""

import random

import keras

from keras_minilmv2.backbones.families import family_of, vocabulary_size
from keras_minilmv2.backbones.inheritance import copy_layers, project_layers
from keras_minilmv2.backbones.layer_counts import block_runs, counts_of_layers
from keras_minilmv2.backbones.projections import block_calls, check_layer
from keras_minilmv2.backbones.pruned import counted, is_pruned, layer_counts, unpruned
from keras_minilmv2.backbones.variants import set_variant, variant_of
from keras_minilmv2.utils.checks import check_choice, check_int
from keras_minilmv2.utils.hardware import memory_bytes

INITIALIZATIONS = ("random", "layers", "projection")


def student_backbone(
    teacher,
    *,
    num_layers,
    num_heads,
    hidden_dim,
    intermediate_dim,
    embedding_dim=None,
    max_sequence_length=None,
    dropout=0.1,
    initialization="random",
    teacher_layers=None,
    examples=None,
    num_relation_heads=None,
    seed=None,
    dtype=None,
):
    """Builds a student of the teacher's family and vocabulary.

    Three ways to initialize it:

    - `"random"`: freshly drawn weights, as in the paper.
    - `"layers"`: the teacher's embeddings and the layers named in `teacher_layers`;
      needs the teacher's own widths and head count. Layers of a pruned teacher keep
      the heads and neurons that they have.
    - `"projection"`: for a narrower student. Embeddings and the matrices of
      `teacher_layers` are carried over through the principal directions of the
      teacher's embeddings and of its hidden states on `examples`. The teacher must
      not be pruned.

    Args:
        teacher: a keras-nlp backbone of a supported family.
        num_layers: int.
        num_heads: int. Must divide `hidden_dim`.
        hidden_dim: int. Width of the residual stream.
        intermediate_dim: int. Width of the feed-forward layer; the papers' students
            have four times `hidden_dim`.
        embedding_dim: int. Width of the token embedding of ALBERT and ELECTRA;
            defaults to the teacher's, or to `hidden_dim` where the teacher's
            embedding is as wide as its residual stream. Other families have none.
        max_sequence_length: int. Rows of the position table. Defaults to the
            teacher's.
        dropout: float. Rate in training. Defaults to 0.1, the paper's.
        initialization: `"random"`, `"layers"` or `"projection"`.
        teacher_layers: sequence of int, one per student layer, counted from 1, for
            `"layers"` and `"projection"`. Defaults to evenly spaced layers that end
            with the last.
        examples: dict of the teacher's inputs, each `(batch, length)`, for
            `"projection"`: real text, some thousand tokens.
        num_relation_heads: int. For `"projection"`: the relation heads of the
            distillation to come, so that directions are kept for each of them.
        seed: int. Makes the drawn weights and the dropout repeatable.
        dtype: dtype or policy of the student. Defaults to the global policy.

    Returns:
        A plain keras-nlp backbone of the teacher's class, with the teacher's form of
        GELU and epsilon.

    Raises:
        TypeError: if a size is no int, or the teacher is of no supported family.
        ValueError: if a size does not fit, or an argument does not belong to
            `initialization`.

    References:
        - [Wang et al., 2021](https://arxiv.org/abs/2012.15828), section 4.1.
        - Principal directions are those of an uncentred principal component
          analysis (second moments) of embeddings and hidden states.
    """
    family = family_of(teacher)
    check_int(
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=intermediate_dim,
    )
    if hidden_dim % num_heads != 0:
        raise ValueError(
            "`num_heads` must divide `hidden_dim`. "
            f"Received: num_heads={num_heads}, hidden_dim={hidden_dim}."
        )
    check_choice(INITIALIZATIONS, initialization=initialization)
    teacher_layers = _resolve_teacher_layers(
        teacher, num_layers, initialization, teacher_layers
    )

    config = {
        **unpruned(teacher.get_config()),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": intermediate_dim,
        "max_sequence_length": max_sequence_length or teacher.max_sequence_length,
        "dropout": dropout,
        "dtype": dtype or keras.config.dtype_policy(),
        "trainable": True,
    }
    del config["name"]
    if "embedding_dim" in config:
        config["embedding_dim"] = embedding_dim or (
            hidden_dim
            if teacher.embedding_dim == teacher.hidden_dim
            else teacher.embedding_dim
        )
    elif embedding_dim is not None:
        raise ValueError(
            f"`embedding_dim` must not be given for {family.name}, whose token "
            "embedding has the width of its layers. Received: "
            f"embedding_dim={embedding_dim}."
        )
    _check_initialization(teacher, config, initialization, examples)
    _check_memory(family, config)

    backbone_class = family.backbone_class
    if initialization == "layers" and is_pruned(teacher):
        runs = block_runs(family, config)
        counts = (
            counts_of_layers(theirs, teacher_layers, runs)
            for theirs in layer_counts(teacher)
        )
        backbone_class, config = counted(family, config, *counts)
    student = _build_with_seed(backbone_class, config, seed)
    set_variant(student, variant_of(teacher))
    if initialization == "layers":
        copy_layers(teacher, student, teacher_layers)
    elif initialization == "projection":
        project_layers(teacher, student, teacher_layers, examples, num_relation_heads)
    return student


def check_same_family(teacher, student):
    """Raises unless the student reads the teacher's token ids.

    Raises:
        ValueError: if the two are of different families or vocabulary sizes.
    """
    families = family_of(teacher), family_of(student)
    if families[0] is not families[1]:
        raise ValueError(
            "`teacher` and `student` must be of the same family. Received: "
            f"teacher of family {families[0].name}, "
            f"student of family {families[1].name}."
        )
    sizes = vocabulary_size(teacher), vocabulary_size(student)
    if sizes[0] != sizes[1]:
        raise ValueError(
            "`teacher` and `student` must have the same vocabulary. Received: "
            f"teacher with {sizes[0]} token ids, student with {sizes[1]}."
        )


def evenly_spaced_layers(num_teacher_layers, num_layers):
    """Layers of the teacher at equal distances, counted from 1, the last included."""
    step = num_teacher_layers / num_layers
    return tuple(round(step * (i + 1)) for i in range(num_layers))


def _resolve_teacher_layers(teacher, num_layers, initialization, teacher_layers):
    depth = len(block_calls(teacher))
    if initialization == "random":
        if teacher_layers is not None:
            raise ValueError(
                '`teacher_layers` must not be given with initialization="random". '
                f"Received: teacher_layers={teacher_layers}."
            )
        return None
    if teacher_layers is None:
        if num_layers > depth:
            raise ValueError(
                "`num_layers` must not be above the teacher's depth with "
                f'initialization="{initialization}". '
                f"Received: num_layers={num_layers}, teacher's depth {depth}."
            )
        return evenly_spaced_layers(depth, num_layers)
    teacher_layers = tuple(teacher_layers)
    if len(teacher_layers) != num_layers:
        raise ValueError(
            "`teacher_layers` must name one layer of the teacher for each student "
            f"layer. Received: teacher_layers={teacher_layers}, "
            f"num_layers={num_layers}."
        )
    for layer in teacher_layers:
        check_layer("teacher_layers", layer, depth)
    return teacher_layers


def _check_memory(family, config):
    """Raises if the matrices alone are larger than the machine's memory."""
    width, inner = config["hidden_dim"], config["intermediate_dim"]
    blocks = 1 if family.shares_blocks else config["num_layers"]
    rows = config[family.vocabulary_argument] + config["max_sequence_length"]
    number = blocks * (4 * width + 2 * inner) * width
    number += rows * config.get("embedding_dim", width)
    if 4 * number > memory_bytes():
        raise ValueError(
            "`num_layers`, `hidden_dim` and `intermediate_dim` must give a student "
            f"that fits into memory. Received: num_layers={config['num_layers']}, "
            f"hidden_dim={width}, intermediate_dim={inner}, {4 * number / 1e9:,.0f} GB."
        )


def _check_initialization(teacher, config, initialization, examples):
    """Raises where the student's shape rules out the initialization."""
    if initialization != "projection" and examples is not None:
        raise ValueError(
            '`examples` must not be given unless initialization="projection". '
            f'Received: initialization="{initialization}".'
        )
    sizes = ("hidden_dim", "num_heads", "intermediate_dim", "embedding_dim")
    theirs = {name: getattr(teacher, name) for name in sizes if name in config}
    ours = {name: config[name] for name in theirs}
    if config["max_sequence_length"] > teacher.max_sequence_length and (
        initialization != "random"
    ):
        raise ValueError(
            "`max_sequence_length` must not be above the teacher's "
            f"{teacher.max_sequence_length} with initialization="
            f'"{initialization}". Received: '
            f"max_sequence_length={config['max_sequence_length']}."
        )
    if initialization == "layers" and ours != theirs:
        wrong = ", ".join(
            f"{name}={ours[name]} against the teacher's {theirs[name]}"
            for name in theirs
            if ours[name] != theirs[name]
        )
        raise ValueError(
            'initialization="layers" needs a student as wide as its teacher; '
            f'use "projection" for a narrower one. Received: {wrong}.'
        )
    if initialization == "projection":
        if is_pruned(teacher):
            raise ValueError(
                'initialization="projection" needs a teacher with all heads and '
                'neurons; use "layers" or "random" for a pruned one. Received: teacher '
                f"with {layer_counts(teacher)[0]} heads in its layers."
            )
        for name in ("hidden_dim", "intermediate_dim"):
            if ours[name] > theirs[name]:
                raise ValueError(
                    f"`{name}` must not be above the teacher's with "
                    f'initialization="projection". Received: {name}={ours[name]}, '
                    f"teacher's {name}={theirs[name]}."
                )
        _check_projected_embedding(theirs, ours)
        missing = set(teacher.input) - set(examples or ())
        if missing:
            raise ValueError(
                "`examples` must hold the teacher's inputs with initialization=\""
                'projection". Missing: ' + ", ".join(sorted(missing)) + "."
            )


def _check_projected_embedding(theirs, ours):
    """Raises unless both or neither have an embedding narrower than the layers."""
    if "embedding_dim" not in ours:
        return
    if theirs["embedding_dim"] == theirs["hidden_dim"]:
        fits = ours["embedding_dim"] == ours["hidden_dim"]
    else:
        fits = ours["embedding_dim"] == theirs["embedding_dim"] != ours["hidden_dim"]
    if not fits:
        raise ValueError(
            "`embedding_dim` must be the teacher's and other than `hidden_dim`, or "
            "equal `hidden_dim` if the teacher's does, with "
            'initialization="projection". Received: '
            f"embedding_dim={ours['embedding_dim']}, "
            f"hidden_dim={ours['hidden_dim']}, teacher's "
            f"embedding_dim={theirs['embedding_dim']}, "
            f"hidden_dim={theirs['hidden_dim']}."
        )


def _build_with_seed(backbone_class, config, seed):
    """Builds a backbone whose drawn weights depend on `seed` alone."""
    if seed is None:
        return backbone_class.from_config(config)
    # Keras draws the seed of every initializer and dropout from Python's generator.
    state = random.getstate()
    random.seed(seed)
    try:
        return backbone_class.from_config(config)
    finally:
        random.setstate(state)
