"""MiniLMv2 self-attention relation distillation for Keras 3."""

from keras_minilmv2.backbones.attention import GatedAttention, QKVAttention
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.projections import qkv_model
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.distillation.distiller import RelationDistiller
from keras_minilmv2.distillation.losses import AttentionValueLoss, RelationLoss
from keras_minilmv2.files import save_student
from keras_minilmv2.training.schedule import WarmupLinearDecay, adamw
from keras_minilmv2.version import __version__

__all__ = [
    "AttentionValueLoss",
    "GatedAttention",
    "QKVAttention",
    "RelationDistiller",
    "RelationLoss",
    "WarmupLinearDecay",
    "__version__",
    "adamw",
    "load_backbone",
    "load_tokenizer",
    "qkv_model",
    "save_student",
    "student_backbone",
]
