"""The sizes of encoders, read without their weights."""

from dataclasses import dataclass, fields, replace

from keras_minilmv2.backbones.configs import (
    encoder_sizes,
    family_of_config,
    read_config,
)
from keras_minilmv2.backbones.families import family_named, family_of, vocabulary_size
from keras_minilmv2.backbones.preset_files import check_preset
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

    def __post_init__(self):
        family_named(self.family)
        if self.embedding_dim is None:
            object.__setattr__(self, "embedding_dim", self.hidden_dim)
        for spec in fields(self)[1:]:
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

    @property
    def blocks(self):
        """For each run of a block, which weights it runs with."""
        if not family_named(self.family).shares_blocks:
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
        size = self.num_embedding_parameters
        size += len(set(self.blocks)) * self._num_block_parameters
        if family_named(self.family).has_pooler:
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
        return EncoderShape(family=family.name, **sizes)
    if encoder in KNOWN_SHAPES:
        return KNOWN_SHAPES[encoder]
    preset = check_preset(encoder)
    config = read_config(preset)
    family = family_of_config(preset, config)
    return EncoderShape(family=family.name, **encoder_sizes(preset, config, family))


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
    return replace(
        teacher,
        num_layers=recipe.student_num_layers,
        num_heads=recipe.student_num_heads,
        hidden_dim=recipe.student_hidden_dim,
        intermediate_dim=recipe.student_intermediate_dim,
        embedding_dim=embedding_dim,
    )
