"""Backbones of every family and a recipe, for tests of plans."""

import keras_hub

from keras_minilmv2.runs.recipes import Recipe

MODELS = keras_hub.models
BACKBONES = {
    "BERT": (MODELS.BertBackbone, {}),
    "RoBERTa": (MODELS.RobertaBackbone, {}),
    "XLM-R": (MODELS.XLMRobertaBackbone, {}),
    "ALBERT": (MODELS.AlbertBackbone, {"embedding_dim": 32}),
    "DistilBERT": (MODELS.DistilBertBackbone, {}),
    "ELECTRA": (MODELS.ElectraBackbone, {"embedding_dim": 32}),
}


def make_backbone(family, layers=2, heads=4, width=192, inner=768, **sizes):
    backbone_class, arguments = BACKBONES[family]
    name = "vocab_size" if family == "ELECTRA" else "vocabulary_size"
    return backbone_class(
        **{name: 60},
        **{"max_sequence_length": 128, "dropout": 0.1, **arguments, **sizes},
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=inner,
    )


def example_recipe(**changes):
    """The papers' English student; fields may be replaced."""
    fields = {
        "teacher": "bert_base_en_uncased",
        "teacher_layer": 12,
        "student_num_layers": 6,
        "student_num_heads": 12,
        "student_hidden_dim": 384,
        "student_intermediate_dim": 1_536,
        "num_relation_heads": 48,
        "corpus": ("text.txt",),
        "sequence_length": 512,
        "batch_size": 256,
        "peak_learning_rate": 6e-4,
        "warmup_steps": 4_000,
        "total_steps": 400_000,
    }
    return Recipe(**{**fields, **changes})
