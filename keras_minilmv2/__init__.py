"""MiniLMv2 self-attention relation distillation for Keras 3."""

import importlib
from typing import TYPE_CHECKING

from keras_minilmv2.version import __version__

if TYPE_CHECKING:
    from keras_minilmv2.backbones.attention import GatedAttention, QKVAttention
    from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
    from keras_minilmv2.backbones.projections import qkv_model
    from keras_minilmv2.backbones.students import student_backbone
    from keras_minilmv2.data.packing import batches, packed_examples
    from keras_minilmv2.data.text import Corpus
    from keras_minilmv2.distillation.distiller import RelationDistiller
    from keras_minilmv2.distillation.losses import AttentionValueLoss, RelationLoss
    from keras_minilmv2.files import save_student
    from keras_minilmv2.recipes import Recipe, load_recipe
    from keras_minilmv2.training.schedule import WarmupLinearDecay, adamw

# Imported when first used: TensorFlow takes seconds, and `--help` needs none of it.
_MODULE_OF_NAME = {
    "AttentionValueLoss": "distillation.losses",
    "Corpus": "data.text",
    "GatedAttention": "backbones.attention",
    "QKVAttention": "backbones.attention",
    "Recipe": "recipes",
    "RelationDistiller": "distillation.distiller",
    "RelationLoss": "distillation.losses",
    "WarmupLinearDecay": "training.schedule",
    "adamw": "training.schedule",
    "batches": "data.packing",
    "load_backbone": "backbones.loading",
    "load_recipe": "recipes",
    "load_tokenizer": "backbones.loading",
    "packed_examples": "data.packing",
    "qkv_model": "backbones.projections",
    "save_student": "files",
    "student_backbone": "backbones.students",
}

__all__ = [
    "AttentionValueLoss",
    "Corpus",
    "GatedAttention",
    "QKVAttention",
    "Recipe",
    "RelationDistiller",
    "RelationLoss",
    "WarmupLinearDecay",
    "__version__",
    "adamw",
    "batches",
    "load_backbone",
    "load_recipe",
    "load_tokenizer",
    "packed_examples",
    "qkv_model",
    "save_student",
    "student_backbone",
]


def __getattr__(name):
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF_NAME[name]}")
    return getattr(module, name)


def __dir__():
    return sorted(__all__)
