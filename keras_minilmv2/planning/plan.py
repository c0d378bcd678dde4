"""What a run costs, before it is started: operations, memory, hours.

All of it is arithmetic on shapes: no weights are read and no model is built.
"""

import contextlib
import functools
import os
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import tensorflow as tf

from keras_minilmv2.backbones.families import FAMILIES, family_of
from keras_minilmv2.backbones.hugging_face.weights import hugging_face_family
from keras_minilmv2.backbones.preset_files import check_preset, preset_error, read_json
from keras_minilmv2.backbones.projections import check_layer
from keras_minilmv2.distillation.objectives import objective_for
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import count, markdown_table

# Share of a machine's matrix-multiply rate that a training step reaches, by the dtype
# that products are computed in: measured with BERT base to 6x384, 16 x 128 tokens, on 2
# CPU cores (benchmarks/RESULTS.md). float16 is not measured.
SHARE_REACHED = {"float32": 0.84, "bfloat16": 0.70, "float16": 0.70}
# Share of an accelerator's published peak: an assumption, not measured.
ASSUMED_UTILISATION = 0.3

# Left alone of a memory: what the runtime and the graph of a step took on a CPU, and
# a share.
_RUNTIME_BYTES = 1e9
_FREE_SHARE = 0.1

_WITH_SEGMENTS_AND_POOLER = ("BERT", "ALBERT", "ELECTRA")
_WITH_EMBEDDING_DIM = ("ALBERT", "ELECTRA")


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The sizes of an encoder, which its operations and weights follow from.

    Args:
        family: str. The name of one of `backbones.families.FAMILIES`.
        num_layers: int.
        num_heads: int. Must divide `hidden_dim`.
        hidden_dim: int.
        intermediate_dim: int.
        vocabulary_size: int.
        max_sequence_length: int. Rows of the position table.
        embedding_dim: int. Width of the token embedding of ALBERT and ELECTRA;
            defaults to `hidden_dim`.
        num_segments: int. Rows of the segment embedding of BERT, ALBERT and ELECTRA.
        num_groups: int. Groups of blocks of ALBERT; each repeats its own weights.
        num_inner_repetitions: int. Blocks in a group of ALBERT.

    Raises:
        ValueError: if a size is no positive int or does not fit another.
    """

    family: str
    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int
    vocabulary_size: int
    max_sequence_length: int = 512
    embedding_dim: int | None = None
    num_segments: int = 2
    num_groups: int = 1
    num_inner_repetitions: int = 1

    def __post_init__(self):
        if self.embedding_dim is None:
            object.__setattr__(self, "embedding_dim", self.hidden_dim)
        for spec in fields(self)[1:]:
            size = getattr(self, spec.name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(
                    f"`{spec.name}` must be a positive int. "
                    f"Received: {spec.name}={size!r}."
                )
        for divisor, number in (
            ("num_heads", "hidden_dim"),
            ("num_groups", "num_layers"),
        ):
            if getattr(self, number) % getattr(self, divisor) != 0:
                raise ValueError(
                    f"`{divisor}` must divide `{number}`. Received: "
                    f"{divisor}={getattr(self, divisor)}, "
                    f"{number}={getattr(self, number)}."
                )

    @property
    def blocks(self):
        """For each run of a block, which weights it runs with."""
        if self.family != "ALBERT":
            return list(range(self.num_layers))
        inner = self.num_inner_repetitions
        return [
            group * inner + i
            for group in range(self.num_groups)
            for _ in range(self.num_layers // self.num_groups)
            for i in range(inner)
        ]

    @property
    def projects_embeddings(self):
        """Whether a matrix stands between the embeddings and the first block."""
        return self.family == "ALBERT" or self.embedding_dim != self.hidden_dim

    @property
    def num_embedding_parameters(self):
        """Parameters below the first block."""
        rows = self.vocabulary_size + self.max_sequence_length + 2  # 2 of the norm
        if self.family in _WITH_SEGMENTS_AND_POOLER:
            rows += self.num_segments
        size = rows * self.embedding_dim
        if self.projects_embeddings:
            size += (self.embedding_dim + 1) * self.hidden_dim
        return size

    @property
    def num_parameters(self):
        """Parameters of the whole encoder."""
        size = self.num_embedding_parameters
        size += len(set(self.blocks)) * self._num_block_parameters
        if self.family in _WITH_SEGMENTS_AND_POOLER:
            size += (self.hidden_dim + 1) * self.hidden_dim
        return size

    @property
    def _num_block_parameters(self):
        width, inner = self.hidden_dim, self.intermediate_dim
        return 4 * (width + 1) * width + (2 * width + 1) * inner + 5 * width

    def num_parameters_up_to(self, layer, num_projections=3):
        """Parameters that some projections of a layer depend on.

        Args:
            layer: int, from 1.
            num_projections: int. Queries, keys, values: how many of them are used.
        """
        whole = set(self.blocks[: layer - 1])
        size = self.num_embedding_parameters + len(whole) * self._num_block_parameters
        if self.blocks[layer - 1] not in whole:
            size += num_projections * (self.hidden_dim + 1) * self.hidden_dim
        return size


def _known(family, sizes, embedding_dim=None, **vocabulary_sizes):
    layers, heads, width, inner = sizes
    return {
        name: EncoderShape(
            family=family,
            num_layers=layers,
            num_heads=heads,
            hidden_dim=width,
            intermediate_dim=inner,
            vocabulary_size=vocabulary_size,
            embedding_dim=embedding_dim,
        )
        for name, vocabulary_size in vocabulary_sizes.items()
    }


# Layers, heads, hidden_dim and intermediate_dim.
_BASE = (12, 12, 768, 3_072)
_LARGE = (24, 16, 1_024, 4_096)

# Presets of keras-nlp whose shape is known without a download.
KNOWN_SHAPES = {
    **_known("BERT", (2, 2, 128, 512), bert_tiny_en_uncased=30_522),
    **_known("BERT", (4, 8, 512, 2_048), bert_small_en_uncased=30_522),
    **_known("BERT", (8, 8, 512, 2_048), bert_medium_en_uncased=30_522),
    **_known("BERT", _BASE, bert_base_en_uncased=30_522, bert_base_en=28_996),
    **_known("BERT", _BASE, bert_base_zh=21_128, bert_base_multi=119_547),
    **_known("BERT", _LARGE, bert_large_en_uncased=30_522, bert_large_en=28_996),
    **_known("RoBERTa", _BASE, roberta_base_en=50_265),
    **_known("RoBERTa", _LARGE, roberta_large_en=50_265),
    **_known("XLM-R", _BASE, xlm_roberta_base_multi=250_002),
    **_known("XLM-R", _LARGE, xlm_roberta_large_multi=250_002),
    **_known("ALBERT", _BASE, 128, albert_base_en_uncased=30_000),
    **_known("ALBERT", _LARGE, 128, albert_large_en_uncased=30_000),
    **_known(
        "ALBERT", (24, 16, 2_048, 8_192), 128, albert_extra_large_en_uncased=30_000
    ),
    **_known(
        "ALBERT",
        (12, 64, 4_096, 16_384),
        128,
        albert_extra_extra_large_en_uncased=30_000,
    ),
    **_known(
        "DistilBERT",
        (6, 12, 768, 3_072),
        distil_bert_base_en_uncased=30_522,
        distil_bert_base_en=28_996,
        distil_bert_base_multi=119_547,
    ),
    **_known(
        "ELECTRA",
        (12, 4, 256, 1_024),
        128,
        electra_small_discriminator_uncased_en=30_522,
    ),
    **_known("ELECTRA", _BASE, electra_base_discriminator_uncased_en=30_522),
    **_known("ELECTRA", _LARGE, electra_large_discriminator_uncased_en=30_522),
}

# What transformers calls the sizes in a config.json.
_HUGGING_FACE_NAMES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "vocabulary_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
}
_FURTHER_HUGGING_FACE_NAMES = {
    "BERT": {"num_segments": "type_vocab_size"},
    "ELECTRA": {"num_segments": "type_vocab_size", "embedding_dim": "embedding_size"},
    "ALBERT": {
        "num_segments": "type_vocab_size",
        "embedding_dim": "embedding_size",
        "num_groups": "num_hidden_groups",
        "num_inner_repetitions": "inner_group_num",
    },
    "DistilBERT": {
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "hidden_dim": "dim",
        "intermediate_dim": "hidden_dim",
    },
}


def encoder_shape(encoder):
    """The shape of an encoder, without a look at its weights.

    Args:
        encoder: `EncoderShape`, which is returned; a keras-nlp backbone; or str or
            path, as for `load_backbone`. Of a preset that is not in `KNOWN_SHAPES`,
            config.json is read, and downloaded if need be; a directory needs no other
            file.

    Returns:
        `EncoderShape`.

    Raises:
        TypeError: if a backbone is of no supported family.
        ValueError: if there is no such preset, it is of another family, or its
            config.json lacks a size.
        ConnectionError: if the config.json cannot be downloaded.
    """
    if isinstance(encoder, EncoderShape):
        return encoder
    if hasattr(encoder, "get_config"):
        return _shape_of_arguments(family_of(encoder), encoder.get_config())
    if encoder in KNOWN_SHAPES:
        return KNOWN_SHAPES[encoder]
    preset = check_preset(encoder)
    config = read_json(preset, "config.json")
    if config is None:
        raise preset_error(preset, "hold a config.json")
    if "registered_name" in config:
        class_name = config["registered_name"].rpartition(">")[2]
        for family in FAMILIES:
            if family.backbone_class.__name__ == class_name:
                return _shape_of_arguments(family, config["config"])
    elif "model_type" in config:
        return _shape_of_hugging_face(preset, config)
    known = ", ".join(family.backbone_class.__name__ for family in FAMILIES)
    raise preset_error(preset, f"have a backbone that is one of {known}")


def _shape_of_arguments(family, arguments):
    """The shape of a backbone with these arguments of its constructor."""
    names = {spec.name for spec in fields(EncoderShape)}
    sizes = {name: size for name, size in arguments.items() if name in names}
    if "vocab_size" in arguments:  # ELECTRA's name for it
        sizes["vocabulary_size"] = arguments["vocab_size"]
    return EncoderShape(family=family.name, **sizes)


def _shape_of_hugging_face(preset, config):
    family = hugging_face_family(preset, config).name
    names = {**_HUGGING_FACE_NAMES, **_FURTHER_HUGGING_FACE_NAMES.get(family, {})}
    try:
        sizes = {ours: config[theirs] for ours, theirs in names.items()}
    except KeyError as error:
        raise preset_error(
            preset, f"have {error.args[0]} in its config.json"
        ) from error
    if family in ("RoBERTa", "XLM-R"):
        sizes["max_sequence_length"] -= 2  # rows of the padding token
    return EncoderShape(family=family, **sizes)


def student_shape(teacher, recipe):
    """The shape of a recipe's student.

    Args:
        teacher: `EncoderShape`.
        recipe: `Recipe`.

    Raises:
        ValueError: if a size of the student does not fit.
    """
    embedding_dim = recipe.student_embedding_dim
    if teacher.family in _WITH_EMBEDDING_DIM:
        as_wide = teacher.embedding_dim == teacher.hidden_dim
        embedding_dim = embedding_dim or (None if as_wide else teacher.embedding_dim)
    elif embedding_dim is not None:
        raise ValueError(
            f"`student_embedding_dim` must be left out for {teacher.family}, whose "
            "token embedding has the width of its layers. Received: "
            f"student_embedding_dim={embedding_dim}."
        )
    return replace(
        teacher,
        num_layers=recipe.student_num_layers,
        num_heads=recipe.student_num_heads,
        hidden_dim=recipe.student_hidden_dim,
        intermediate_dim=recipe.student_intermediate_dim,
        embedding_dim=embedding_dim,
    )


def step_operations(
    teacher, student, teacher_layer, num_relation_heads, pairs, batch, length
):
    """Counts the floating-point operations of one update.

    Counted are matrix products, two operations for a multiplication and an addition,
    and what is done to entries of attention and relation matrices, which are many:
    five operations for an entry of a softmax, as TensorFlow's profiler has it, and
    one for a difference. All other work on single entries (activations, norms,
    dropout, embeddings) is left out: with the papers' shapes 1 or 2 in 100. Nothing
    is saved on padding.

    - `teacher`: forward up to the projections of `teacher_layer` that a pair names.
    - `student_forward`: the same of the student's last layer.
    - `student_backward`: two products for each of the forward pass.
    - `relations`: the blocked loss and its gradient. With `d` and `e` the channels
      of a relation head of teacher and student, each entry of a pair's relations
      costs `2 (d + 1) + 2 (e + 1)` for the logits (the mask is a channel more),
      `2 (d + e)` for the divergence, `4 e` for the gradient, and 11 for two softmaxes
      and a difference.
    - `optimizer`: 20 for a trained parameter: 12 of Adam, 3 of weight decay, 5 of two
      norms and clipping. It is memory that limits these, not arithmetic.

    Args:
        teacher: `EncoderShape` or keras-nlp backbone.
        student: `EncoderShape` or keras-nlp backbone.
        teacher_layer: int, from 1.
        num_relation_heads: int. Must divide both `hidden_dim`s.
        pairs: iterable of pairs of letters of q, k, v, those that have a weight.
        batch: int, sequences.
        length: int, tokens of a sequence.

    Returns:
        dict of int by part, and `"total"`.

    Raises:
        ValueError: if there is no such layer, or the relation heads do not divide a
            width.
    """
    teacher, student = encoder_shape(teacher), encoder_shape(student)
    check_layer("teacher_layer", teacher_layer, len(teacher.blocks))
    if num_relation_heads < 1:
        raise ValueError(
            "`num_relation_heads` must be a positive int. "
            f"Received: num_relation_heads={num_relation_heads}."
        )
    for role, shape in (("teacher", teacher), ("student", student)):
        if shape.hidden_dim % num_relation_heads != 0:
            raise ValueError(
                "`num_relation_heads` must divide the `hidden_dim` of teacher and "
                f"student. Received: num_relation_heads={num_relation_heads}, "
                f"{role} hidden_dim={shape.hidden_dim}."
            )
    pairs = list(pairs)
    depth = len(student.blocks)
    projections = len(set("".join(pairs)))

    def forward(shape, layer):
        return _forward_operations(shape, layer, projections, batch, length)

    # Two tokens and a pair of letters.
    relation = 4 * teacher.hidden_dim + 8 * student.hidden_dim + 15 * num_relation_heads
    operations = {
        "teacher": forward(teacher, teacher_layer),
        "student_forward": forward(student, depth),
        "student_backward": 2 * forward(student, depth),
        "relations": len(pairs) * batch * length**2 * relation,
        "optimizer": 20 * student.num_parameters_up_to(depth, projections),
    }
    return {**operations, "total": sum(operations.values())}


def _forward_operations(shape, layer, num_projections, batch, length):
    """Operations up to the projections of a layer."""
    width, inner = shape.hidden_dim, shape.intermediate_dim
    # A token: projections and attention output; feed-forward; scores and their use.
    block = 8 * width**2 + 4 * width * inner + 4 * length * width
    block += 5 * shape.num_heads * length
    token = (layer - 1) * block + 2 * num_projections * width**2
    if shape.projects_embeddings:
        token += 2 * shape.embedding_dim * width
    return batch * length * token


def step_memory(
    teacher,
    student,
    pairs,
    length,
    batch,
    dtype_policy="float32",
    accumulated=False,
):
    """Estimates the bytes of one device during an update.

    Weights, gradients and the optimizer's two moments are float32 under every policy;
    the teacher is held whole. Activations, in bytes for a token, with width `D`,
    feed-forward `F`, heads `h`, length `L` and `s` bytes for a number (4, or 2 in
    mixed precision):

    - kept for the backward pass: `42 D + 20 F + 9 h L` for each block of the student
      below its last, in mixed precision `36 D + 13 F + 5 h L`, and `16 E` of
      embeddings of width `E`. Counted in TensorFlow's graph, with dropout;
    - in use at a time: `s (3 D + max(4 F, 4 h L))` of the larger of teacher and
      student;
    - queries, keys and values: `12` bytes for each channel of the teacher and `20` of
      the student, for the float32 copies that the loss cuts into blocks.

    The blocks of the loss themselves (20 MB on a CPU, some 500 MB elsewhere) and the
    runtime are left out. XLA, which joins operations, should need less. At the end of
    an update there are the gradients a second time, clipped, and a copy of the largest
    weight.

    Against the peak memory of a process on 2 CPU cores, without XLA, for five shapes
    of BERT and RoBERTa at lengths of 64 to 512, the activations of a sequence were
    estimated 0.94 to 1.24 times what they were.

    Args:
        teacher: `EncoderShape` or keras-nlp backbone.
        student: `EncoderShape` or keras-nlp backbone.
        pairs: iterable of pairs of letters of q, k, v.
        length: int, tokens of a sequence.
        batch: int, sequences that the device works on at a time.
        dtype_policy: str, as in a recipe.
        accumulated: bool. Whether an update sums the gradients of several batches.

    Returns:
        dict of int by part, and `"peak"`, what is held at the worst moment.
    """
    teacher, student = encoder_shape(teacher), encoder_shape(student)
    projections = len(set("".join(pairs)))
    depth = len(student.blocks)
    trained = student.num_parameters_up_to(depth, projections)
    mixed = dtype_policy != "float32"
    of_width, of_inner, of_scores = (36, 13, 5) if mixed else (42, 20, 9)
    kept = (depth - 1) * (
        of_width * student.hidden_dim
        + of_inner * student.intermediate_dim
        + of_scores * student.num_heads * length
    ) + 16 * student.embedding_dim
    in_use = (2 if mixed else 4) * max(
        3 * shape.hidden_dim + 4 * max(shape.intermediate_dim, shape.num_heads * length)
        for shape in (teacher, student)
    )
    vectors = projections * (12 * teacher.hidden_dim + 20 * student.hidden_dim)
    memory = {
        "teacher": 4 * teacher.num_parameters,
        "student": 4 * student.num_parameters,
        "optimizer": 8 * trained,
        "gradients": (8 if accumulated else 4) * trained,
        "activations": batch * length * (kept + in_use + vectors),
    }
    largest = 4 * student.vocabulary_size * student.embedding_dim
    held = memory["teacher"] + memory["student"] + memory["optimizer"]
    memory["peak"] = held + max(
        memory["gradients"] + memory["activations"], 8 * trained + largest
    )
    return memory


@dataclass(frozen=True)
class Device:
    """An accelerator as its vendor describes it.

    Args:
        half_teraflops: float. Peak of one device with numbers of 2 bytes, dense, 10^12
            operations a second.
        float32_teraflops: float. The same with float32 numbers as TensorFlow multiplies
            them: with TF32 where there is one; in bfloat16 passes on a TPU.
        memory_gb: float, of one device.
        num_devices: int.
        source: str. Where the figures are published.
        halves: tuple of str. The dtypes of 2 bytes that it has.
    """

    half_teraflops: float
    float32_teraflops: float
    memory_gb: float
    num_devices: int
    source: str
    halves: tuple[str, ...] = ("bfloat16", "float16")


def _tpu(version, teraflops, memory_gb, num_devices):
    source = f"Google Cloud documentation, TPU {version}"
    return Device(
        teraflops, teraflops, memory_gb, num_devices, source, halves=("bfloat16",)
    )


# NVIDIA's figures were compared with copies of the sheets made by others.
DEVICES = {
    "v100": Device(125, 15.7, 16, 1, "NVIDIA V100 data sheet, SXM2", ("float16",)),
    "t4": Device(65, 8.1, 16, 1, "NVIDIA T4 data sheet", ("float16",)),
    "a100": Device(312, 156, 40, 1, "NVIDIA A100 data sheet"),
    "h100": Device(989, 494, 80, 1, "NVIDIA H100 data sheet, SXM, without sparsity"),
    "h200": Device(989, 494, 141, 1, "NVIDIA H200 data sheet, SXM, without sparsity"),
    "l4": Device(121, 60, 24, 1, "NVIDIA L4 data sheet, without sparsity"),
    "rtx4090": Device(165, 82.6, 24, 1, "NVIDIA Ada architecture white paper"),
    # Of v3, each of the two cores of a chip is a device.
    "tpu-v3-8": _tpu("v3", 61.5, 16, 8),
    "tpu-v4-8": _tpu("v4", 275, 32, 4),
    "tpu-v5e-8": _tpu("v5e", 197, 16, 8),
    "tpu-v5p-8": _tpu("v5p", 459, 95, 4),
    "tpu-v6e-8": _tpu("v6e", 918, 32, 8),
}


@dataclass(frozen=True)
class _Machine:
    """What a plan needs to know of a machine."""

    device: str
    num_devices: int
    half_rate: float  # operations a second of a device
    float32_rate: float
    rates_from: str
    memory: float | None  # bytes of a device
    share_reached: float
    share_from: str


def plan(recipe, device=None, memory_gb=None, share_reached=None):
    """Says what a run will cost.

    The text is not read and no model is loaded or built. Time is that of the updates:
    preparation of the corpus and held-out losses are not in it.

    Args:
        recipe: `Recipe`.
        device: str or None. A name in `DEVICES`, or several of them as in `"8xa100"`;
            None for this machine, whose matrix-multiply rate is measured.
        memory_gb: float. Memory of a device, 10^9 bytes. Defaults to what is known.
        share_reached: float. Share of the machine's matrix-multiply rate, or of the
            device's peak, that an update reaches. Defaults to `SHARE_REACHED` for this
            machine and to `ASSUMED_UTILISATION` for a named device.

    Returns:
        dict that JSON can hold: `"run"`, `"operations"` (of an update),
        `"memory"` (bytes of a device), `"batch"` (sequences of a device) and `"time"`.

    Raises:
        ValueError: if the recipe does not fit its teacher, or there is no such device.
        ConnectionError: as `encoder_shape` does.
    """
    objective = objective_for(
        recipe.objective, lambda each: each.relations, "to count its costs"
    )
    teacher = encoder_shape(recipe.teacher)
    student = student_shape(teacher, recipe)
    if not 3 <= recipe.sequence_length <= teacher.max_sequence_length:
        raise ValueError(
            "`sequence_length` must be at least 3 and not beyond the position table "
            f"of the teacher. Received: sequence_length={recipe.sequence_length}, "
            f"max_sequence_length={teacher.max_sequence_length}."
        )
    pairs, num_relation_heads = objective.relations(recipe, teacher.num_heads)
    operations = step_operations(
        teacher,
        student,
        recipe.teacher_layer,
        num_relation_heads,
        pairs,
        recipe.batch_size,
        recipe.sequence_length,
    )
    machine = _machine(device, recipe, memory_gb, share_reached)
    memory_of = functools.partial(
        step_memory,
        teacher,
        student,
        pairs,
        recipe.sequence_length,
        dtype_policy=recipe.dtype_policy,
    )
    batch = _batch_plan(recipe, machine, memory_of)
    steps = recipe.accumulation_steps
    memory = memory_of(batch["of_device"] // steps, accumulated=steps > 1)
    in_float32 = operations["relations"] + operations["optimizer"]
    seconds = (
        in_float32 / machine.float32_rate
        + (operations["total"] - in_float32) / machine.half_rate
    ) / (machine.share_reached * machine.num_devices)
    projections = len(set("".join(pairs)))
    trained = student.num_parameters_up_to(len(student.blocks), projections)
    in_use = teacher.num_parameters_up_to(recipe.teacher_layer, projections)
    return {
        "run": {
            "teacher": _in_words(teacher),
            "teacher_layer": recipe.teacher_layer,
            "student": _in_words(student),
            "trained_parameters": trained,
            "updates": recipe.total_steps,
            "batch_size": recipe.batch_size,
            "sequence_length": recipe.sequence_length,
            "tokens": recipe.total_steps * recipe.batch_size * recipe.sequence_length,
            "dtype_policy": recipe.dtype_policy,
        },
        "operations": operations,
        "memory": {
            **memory,
            "teacher_in_use": 4 * in_use,
            "checkpoint": memory["student"] + memory["optimizer"],
        },
        "batch": batch,
        "time": {
            **asdict(machine),
            "seconds_of_update": seconds,
            "hours": recipe.total_steps * seconds / 3_600,
        },
    }


def _batch_plan(recipe, machine, memory_of):
    """What a device can work on at a time; None where its memory is not known."""
    if recipe.batch_size % machine.num_devices != 0:
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices. Received: "
            f"batch_size={recipe.batch_size}, num_devices={machine.num_devices}."
        )
    batch = recipe.batch_size // machine.num_devices
    if batch % recipe.accumulation_steps != 0:
        raise ValueError(
            "`accumulation_steps` must divide the batch of a device. Received: "
            f"accumulation_steps={recipe.accumulation_steps}, batch={batch}."
        )
    usable = largest = fewest = None
    if machine.memory is not None:
        usable = max(0.0, (1 - _FREE_SHARE) * machine.memory - _RUNTIME_BYTES)
        one = memory_of(1)
        parts = ("teacher", "student", "optimizer", "gradients")
        room = usable - sum(one[part] for part in parts)
        fits_one = one["peak"] <= usable
        largest = int(room // one["activations"]) if fits_one else 0
        fits = (
            steps
            for steps in range(1, batch + 1)
            if batch % steps == 0
            and memory_of(batch // steps, accumulated=steps > 1)["peak"] <= usable
        )
        fewest = next(fits, None)
    # "largest" is without accumulation, "accumulation_steps" are the fewest.
    return {
        "of_device": batch,
        "micro_batch": batch // recipe.accumulation_steps,
        "usable": usable,
        "largest": largest,
        "accumulation_steps": fewest,
    }


def _in_words(shape):
    return (
        f"{shape.family} {len(shape.blocks)}x{shape.hidden_dim}, "
        f"{count(shape.num_parameters)} parameters"
    )


def _machine(device, recipe, memory_gb, share_reached):
    """This machine, or accelerators by name."""
    if memory_gb is not None and not 0 < memory_gb < float("inf"):
        raise ValueError(
            f"`memory_gb` must be above 0 and finite. Received: memory_gb={memory_gb}."
        )
    if share_reached is not None and not 0 < share_reached <= 1:
        raise ValueError(
            "`share_reached` must be above 0 and at most 1. "
            f"Received: share_reached={share_reached}."
        )
    memory = None if memory_gb is None else 1e9 * memory_gb
    half = recipe.dtype_policy.removeprefix("mixed_")
    if device is None:
        float32_rate = matmul_rate("float32")
        gpus = tf.config.list_physical_devices("GPU")
        one = recipe.strategy == "one_device"
        return _Machine(
            device=hardware(),
            num_devices=1 if one else max(1, len(gpus)),
            half_rate=float32_rate if half == "float32" else matmul_rate(half),
            float32_rate=float32_rate,
            rates_from="measured now on matrix products",
            # TensorFlow does not say how much a GPU has.
            memory=memory or (None if gpus else _memory_of_this_machine()),
            share_reached=share_reached or SHARE_REACHED[half],
            share_from="as asked" if share_reached else "measured on 2 CPU cores",
        )
    number = re.match(r"([1-9]\d*)x|", device)
    known = DEVICES.get(device[number.end() :])
    if known is None:
        raise ValueError(
            f"`device` must be one of {', '.join(DEVICES)}, or several such as 8xa100. "
            f"Received: device={device!r}."
        )
    float32_rate = half_rate = 1e12 * known.float32_teraflops
    if half != "float32":
        half_rate = 1e12 * known.half_teraflops
        if half not in known.halves:
            raise ValueError(
                f"`dtype_policy` must be float32 or mixed_{known.halves[0]}: {device} "
                f"has no {half}. Received: dtype_policy={recipe.dtype_policy!r}."
            )
    return _Machine(
        device=device,
        num_devices=int(number[1] or 1) * known.num_devices,
        half_rate=half_rate,
        float32_rate=float32_rate,
        rates_from=f"published peak, {known.source}",
        memory=memory or 1e9 * known.memory_gb,
        share_reached=share_reached or ASSUMED_UTILISATION,
        share_from="as asked" if share_reached else "assumed, not measured",
    )


def matmul_rate(dtype="float32", seconds=0.5):
    """Measures how fast one device of this machine multiplies matrices.

    Args:
        dtype: str.
        seconds: float. How long to measure.

    Returns:
        float, operations a second, two for a multiplication and an addition; the
        best of several products.
    """
    size = 8_192 if tf.config.list_physical_devices("GPU") else 1_024
    matrix = tf.cast(tf.random.stateless_normal((size, size), (0, 0)), dtype)

    @tf.function
    def product(matrix):
        # One number is fetched: it is there when the product is.
        return tf.matmul(matrix, matrix)[0, 0]

    product(matrix).numpy()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        product(matrix).numpy()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def _memory_of_this_machine():
    """Bytes that this process may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # "max", or no control group
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        memory = min(memory, limit)
    return float(memory)


def plan_text(plan):
    """A plan as people read it.

    Args:
        plan: dict that `plan` returned.

    Returns:
        str of several lines.
    """
    run, memory, batch = plan["run"], plan["memory"], plan["batch"]
    operations = plan["operations"]
    parts = {
        "teacher": f"teacher, forward to layer {run['teacher_layer']}",
        "student_forward": "student, forward",
        "student_backward": "student, backward",
        "relations": "relations and their gradient",
        "optimizer": "optimizer",
        "total": "all",
    }
    work = [
        [
            label,
            _scaled(operations[part]),
            _scaled(operations[part] * run["updates"]),
            f"{operations[part] / operations['total']:.1%}",
        ]
        for part, label in parts.items()
    ]
    held = {
        "teacher, weights": memory["teacher"],
        "those of them in use": memory["teacher_in_use"],
        "student, weights": memory["student"],
        "optimizer, two moments": memory["optimizer"],
        "gradients": memory["gradients"],
        f"activations of {batch['micro_batch']} sequences": memory["activations"],
        "at the worst moment": memory["peak"],
        "a checkpoint, on disk": memory["checkpoint"],
    }
    return "\n\n".join(
        [
            markdown_table(["run", ""], [*_run_facts(run)]),
            markdown_table(["operations", "an update", "in all", "share"], work),
            markdown_table(
                ["memory of a device", ""],
                [[label, _scaled(size) + "B"] for label, size in held.items()],
            ),
            markdown_table(
                ["cost", ""], [*_device_facts(plan["time"]), *_batch_facts(plan)]
            ),
        ]
    )


def _run_facts(run):
    yield "teacher", run["teacher"]
    trained = count(run["trained_parameters"])
    yield "student", f"{run['student']}, {trained} of them trained"
    yield (
        "updates",
        f"{run['updates']:,} of {run['batch_size']} x {run['sequence_length']} tokens",
    )
    yield "tokens in all", _scaled(run["tokens"])
    yield "precision", run["dtype_policy"]


def _device_facts(cost):
    number = cost["num_devices"]
    yield "device", f"{cost['device']}, {number} device{'s' if number > 1 else ''}"
    rate = _scaled(cost["half_rate"])
    if cost["half_rate"] != cost["float32_rate"]:
        rate += f", {_scaled(cost['float32_rate'])} in float32"
    yield "operations/s of a device", f"{rate} ({cost['rates_from']})"
    yield "share of them reached", f"{cost['share_reached']:.0%} ({cost['share_from']})"
    yield "time of an update", f"{_rounded(cost['seconds_of_update'])} s"
    hours = cost["hours"]
    days = f", {_rounded(hours / 24)} days" if hours >= 48 else ""
    yield "time in all", f"{_rounded(hours)} hours{days}"


def _batch_facts(plan):
    batch, memory = plan["batch"], plan["time"]["memory"]
    if memory is None:
        yield "memory of a device", "not known: pass --memory"
        return
    yield (
        "memory of a device",
        f"{_scaled(memory)}B, {_scaled(batch['usable'])}B of it to use",
    )
    yield (
        "largest batch that fits",
        f"{batch['largest']:,} sequences; the recipe has {batch['of_device']:,}",
    )
    steps = batch["accumulation_steps"]
    yield "accumulation_steps", "does not fit" if steps is None else f"at least {steps}"


def _rounded(number):
    """A number with three figures, without an exponent above 1,000."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _scaled(number):
    """A number with three figures and a unit of 10^3 to 10^21."""
    for unit, size in zip("ZEPTGMK", range(21, 0, -3), strict=True):
        if number >= 10**size:
            return f"{number / 10**size:.3g} {unit}"
    return f"{number:.3g}"
