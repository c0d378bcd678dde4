"""The sizes of encoders, read without their weights."""

from dataclasses import dataclass, fields, replace

from keras_minilmv2.backbones.configs import (
    encoder_sizes,
    family_of_config,
    read_config,
)
from keras_minilmv2.backbones.families import family_named, family_of, vocabulary_size
from keras_minilmv2.backbones.layer_counts import (
    COUNTED,
    block_runs,
    check_counts,
    counts_of_layers,
)
from keras_minilmv2.backbones.preset_files import check_preset
from keras_minilmv2.backbones.pruned import is_pruned, layer_counts
from keras_minilmv2.backbones.students import evenly_spaced_layers
from keras_minilmv2.utils.checks import check_int


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
        head_counts: tuple of int, heads of each layer of a pruned encoder. Defaults to
            `num_heads` in each.
        neuron_counts: tuple of int, feed-forward neurons of each layer. Defaults to
            `intermediate_dim` in each.

    Raises:
        TypeError: if a size is no int.
        ValueError: if a size is below 1 or does not fit another, or there is no such
            family.
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
    head_counts: tuple[int, ...] | None = None
    neuron_counts: tuple[int, ...] | None = None

    def __post_init__(self):
        family_named(self.family)
        if self.embedding_dim is None:
            object.__setattr__(self, "embedding_dim", self.hidden_dim)
        for spec in fields(self)[1:]:
            if spec.name not in COUNTED:
                check_int(**{spec.name: getattr(self, spec.name)})
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
        counts = {name: getattr(self, name) for name in COUNTED}
        given = {name: values for name, values in counts.items() if values is not None}
        check_counts(family_named(self.family), vars(self), **given)

    @property
    def blocks(self):
        """For each run of a block, which weights it runs with."""
        return block_runs(family_named(self.family), vars(self))

    @property
    def layer_heads(self):
        """Heads of each layer, tuple of int."""
        return self.head_counts or (self.num_heads,) * len(self.blocks)

    @property
    def layer_neurons(self):
        """Feed-forward neurons of each layer, tuple of int."""
        return self.neuron_counts or (self.intermediate_dim,) * len(self.blocks)

    @property
    def layer_widths(self):
        """Channels of the heads of each layer, tuple of int."""
        head_dim = self.hidden_dim // self.num_heads
        return tuple(heads * head_dim for heads in self.layer_heads)

    @property
    def layers(self):
        """Heads, their channels and neurons of each layer, a list of tuples of int."""
        counts = self.layer_heads, self.layer_widths, self.layer_neurons
        return list(zip(*counts, strict=True))

    @property
    def projects_embeddings(self):
        """Whether a matrix stands between the embeddings and the first block."""
        always = family_named(self.family).always_projects_embeddings
        return always or self.embedding_dim != self.hidden_dim

    @property
    def num_embedding_parameters(self):
        """Parameters below the first block."""
        rows = self.vocabulary_size + self.max_sequence_length + 2  # 2 of the norm
        if family_named(self.family).has_segments:
            rows += self.num_segments
        size = rows * self.embedding_dim
        if self.projects_embeddings:
            size += (self.embedding_dim + 1) * self.hidden_dim
        return size

    @property
    def num_parameters(self):
        """Parameters of the whole encoder."""
        size = self.num_embedding_parameters + self._num_block_parameters(self.blocks)
        if family_named(self.family).has_pooler:
            size += (self.hidden_dim + 1) * self.hidden_dim
        return size

    def _num_block_parameters(self, runs):
        """Parameters of the blocks that run first, which `runs` lists."""
        width, size = self.hidden_dim, 0
        for run in map(runs.index, set(runs)):
            _, attended, neurons = self.layers[run]
            # Queries, keys and values; attention output; feed-forward; the biases of
            # the two outputs and two norms.
            size += 3 * (width + 1) * attended + width * attended
            size += (2 * width + 1) * neurons + 6 * width
        return size

    def num_parameters_up_to(self, layer, num_projections=3):
        """Parameters that some projections of a layer depend on.

        Args:
            layer: int, from 1.
            num_projections: int. Queries, keys, values: how many of them are used.
        """
        whole = self.blocks[: layer - 1]
        size = self.num_embedding_parameters + self._num_block_parameters(whole)
        if self.blocks[layer - 1] not in whole:
            attended = self.layer_widths[layer - 1]
            size += num_projections * (self.hidden_dim + 1) * attended
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
        family = family_of(encoder)
        sizes = {
            name: getattr(encoder, name)
            for name in family.size_names
            if name != "vocabulary_size"
        }
        sizes["vocabulary_size"] = vocabulary_size(encoder)
        if is_pruned(encoder):
            sizes |= zip(COUNTED, layer_counts(encoder), strict=True)
        return EncoderShape(family=family.name, **sizes)
    if encoder in KNOWN_SHAPES:
        return KNOWN_SHAPES[encoder]
    preset = check_preset(encoder)
    config = read_config(preset)
    family = family_of_config(preset, config)
    sizes = encoder_sizes(preset, config, family)
    sizes |= {name: tuple(sizes[name]) for name in COUNTED if name in sizes}
    return EncoderShape(family=family.name, **sizes)


def student_shape(teacher, recipe):
    """The shape of a recipe's student.

    Args:
        teacher: `EncoderShape`.
        recipe: `Recipe`.

    Raises:
        ValueError: if a size of the student does not fit.
    """
    embedding_dim = recipe.student_embedding_dim
    if family_named(teacher.family).has_embedding_dim:
        as_wide = teacher.embedding_dim == teacher.hidden_dim
        embedding_dim = embedding_dim or (None if as_wide else teacher.embedding_dim)
    elif embedding_dim is not None:
        raise ValueError(
            f"`student_embedding_dim` must not be given for {teacher.family}, whose "
            "token embedding has the width of its layers. Received: "
            f"student_embedding_dim={embedding_dim}."
        )
    shape = replace(
        teacher,
        num_layers=recipe.student_num_layers,
        num_heads=recipe.student_num_heads,
        hidden_dim=recipe.student_hidden_dim,
        intermediate_dim=recipe.student_intermediate_dim,
        embedding_dim=embedding_dim,
        **dict.fromkeys(COUNTED),
    )
    initialization = recipe.initialization
    if initialization.preset is not None:
        source = encoder_shape(initialization.preset)
        counts = {name: getattr(source, name) for name in COUNTED}
    elif initialization.is_copy and teacher.head_counts:
        layers = initialization.teacher_layers or evenly_spaced_layers(
            len(teacher.blocks), shape.num_layers
        )
        counts = {
            name: counts_of_layers(getattr(teacher, name), layers, shape.blocks)
            for name in COUNTED
        }
    else:
        return shape
    return replace(shape, **counts)
