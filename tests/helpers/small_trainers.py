"""A small teacher, students of it and text, for all models that train a student."""

import keras_hub
import numpy as np

import keras_minilmv2 as km

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY += [f"w{i}" for i in range(20)] + [f"##p{i}" for i in range(15)]
NUM_SPECIAL = 5


def make_tokenizer():
    return keras_hub.models.BertTokenizer(VOCABULARY)


def spread(backbone, seed=0, scale=0.5):
    """Large weights: hidden states of freshly drawn ones hardly differ."""
    generator = np.random.default_rng(seed)
    for variable in backbone.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(generator.normal(scale=scale, size=variable.shape))
    return backbone


def make_teacher(**kwargs):
    sizes = {"num_layers": 4, "num_heads": 4, "hidden_dim": 16}
    return spread(
        keras_hub.models.BertBackbone(
            vocabulary_size=len(VOCABULARY),
            intermediate_dim=24,
            max_sequence_length=24,
            **{**sizes, **kwargs},
        )
    )


def make_student(teacher, dropout=0.0, **kwargs):
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    return spread(
        km.student_backbone(teacher, **{**sizes, **kwargs}, dropout=dropout, seed=1), 1
    )


def make_batch(size=6, length=20, seed=0):
    """Ragged sequences between [CLS] and [SEP], the first of full length."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, length + 1, size)
    lengths[0] = length
    ids = generator.integers(NUM_SPECIAL, len(VOCABULARY), (size, length))
    mask = np.arange(length) < lengths[:, None]
    ids[:, 0] = 2
    ids[np.arange(size), lengths - 1] = 3
    return {
        "token_ids": (ids * mask).astype("int32"),
        "padding_mask": mask.astype("int32"),
        "segment_ids": np.zeros_like(ids, "int32"),
    }
