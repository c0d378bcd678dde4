"""Small backbones of every family, with weights far from freshly drawn ones."""

import keras_hub
import numpy as np
import pytest

SIZES = {
    "num_layers": 4,
    "num_heads": 4,
    "hidden_dim": 24,
    "intermediate_dim": 32,
    "max_sequence_length": 16,
}
VOCABULARY = 50
CLASSES = {
    "bert": (keras_hub.models.BertBackbone, {}),
    "roberta": (keras_hub.models.RobertaBackbone, {}),
    "xlm_roberta": (keras_hub.models.XLMRobertaBackbone, {}),
    "distil_bert": (keras_hub.models.DistilBertBackbone, {}),
    "albert": (keras_hub.models.AlbertBackbone, {"embedding_dim": 8}),
    "albert_groups": (
        keras_hub.models.AlbertBackbone,
        {"embedding_dim": 8, "num_groups": 2},
    ),
    "electra": (keras_hub.models.ElectraBackbone, {"embedding_dim": 24}),
    "electra_small": (keras_hub.models.ElectraBackbone, {"embedding_dim": 8}),
}
ONE_OF_EACH_FORM = ("bert", "roberta", "distil_bert", "albert")


def others_slow(names, fast=ONE_OF_EACH_FORM):
    """Names as parameters of a test; only the `fast` ones are in the default run."""
    return [
        pytest.param(name, marks=[] if name in fast else pytest.mark.slow)
        for name in names
    ]


def make_backbone(name, seed=0, **sizes):
    backbone_class, more = CLASSES[name]
    vocabulary = "vocab_size" if name.startswith("electra") else "vocabulary_size"
    backbone = backbone_class(**{vocabulary: VOCABULARY, **SIZES, **more, **sizes})
    generator = np.random.default_rng(seed)
    for variable in backbone.trainable_variables:
        noise = generator.normal(scale=0.3, size=variable.shape)
        is_matrix = len(variable.shape) > 1
        variable.assign(noise if is_matrix else np.asarray(variable) + 0.3 * noise)
    return backbone


def make_inputs(backbone, batch=8, length=12, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(length // 2, length + 1, batch)
    inputs = {
        "token_ids": generator.integers(0, VOCABULARY, (batch, length)),
        "padding_mask": np.arange(length) < lengths[:, None],
        "segment_ids": np.zeros((batch, length)),
    }
    return {name: inputs[name].astype("int32") for name in backbone.input}
