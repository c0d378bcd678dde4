"""The pairs of teacher and student that are measured, with random weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoder:
    """Sizes of an encoder."""

    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int


@dataclass(frozen=True)
class Pair:
    """A teacher and its student, and the batch that a step is measured with."""

    family: str
    vocabulary_size: int
    teacher: Encoder
    student: Encoder
    teacher_layer: int
    num_relation_heads: int
    batch: int = 32
    length: int = 128
    max_sequence_length: int = 512


BERT, XLM_R = (("bert", 30_522), ("xlm_roberta", 250_002))
BASE = Encoder(12, 12, 768, 3_072)
SMALL = Encoder(6, 12, 384, 1_536)

PAIRS = {
    "6x384 -> 3x192": Pair(*BERT, SMALL, Encoder(3, 12, 192, 768), 6, 48),
    "BERT-base -> 6x384": Pair(*BERT, BASE, SMALL, 12, 48, batch=16),
    "BERT-large -> 6x384": Pair(
        *BERT, Encoder(24, 16, 1_024, 4_096), SMALL, 21, 64, batch=8
    ),
    "XLM-R-base -> 12x384": Pair(
        *XLM_R, BASE, Encoder(12, 12, 384, 1_536), 12, 48, batch=16
    ),
    # For trials.
    "tiny": Pair(
        "bert", 50, Encoder(2, 2, 16, 24), Encoder(1, 2, 8, 12), 2, 4, batch=4, length=8
    ),
}
