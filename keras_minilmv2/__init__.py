"""MiniLMv2 self-attention relation distillation for Keras 3."""

import importlib
import importlib.abc
import sys
from typing import TYPE_CHECKING

from keras_minilmv2.version import __version__

if TYPE_CHECKING:
    from keras_minilmv2.backbones.attention import QKVAttention
    from keras_minilmv2.backbones.hugging_face.export import export_to_hugging_face
    from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
    from keras_minilmv2.backbones.projections import qkv_model
    from keras_minilmv2.backbones.saving import save_student
    from keras_minilmv2.backbones.students import student_backbone
    from keras_minilmv2.backbones.vocabulary import shrink_vocabulary
    from keras_minilmv2.data.packing import batches, packed_examples
    from keras_minilmv2.data.text import Corpus
    from keras_minilmv2.distillation.distiller import RelationDistiller
    from keras_minilmv2.distillation.head_weights import relation_head_weights
    from keras_minilmv2.distillation.losses import AttentionValueLoss, RelationLoss
    from keras_minilmv2.downstream.saved import load_saved
    from keras_minilmv2.downstream.tasks import Task
    from keras_minilmv2.heads.gates import gated_encoder, gated_model
    from keras_minilmv2.heads.importance import (
        HeadImportance,
        attention_entropy,
        head_importance,
    )
    from keras_minilmv2.heads.l0_gates import L0Gates
    from keras_minilmv2.heads.pruning import prune_heads
    from keras_minilmv2.heads.subset import HeadSubset, TemperatureSchedule
    from keras_minilmv2.heads.subset_training import SubsetTraining
    from keras_minilmv2.runs.evaluate import evaluate_model
    from keras_minilmv2.runs.fine_tune import FineTuningSettings, fine_tune
    from keras_minilmv2.runs.recipes import Recipe, load_recipe
    from keras_minilmv2.serving.saved_model import export_saved_model
    from keras_minilmv2.training.schedule import WarmupLinearDecay, adamw

# Imported when first used: TensorFlow takes seconds, and `--help` needs none of it.
_MODULE_OF_NAME = {
    "AttentionValueLoss": "distillation.losses",
    "Corpus": "data.text",
    "FineTuningSettings": "runs.fine_tune",
    "HeadImportance": "heads.importance",
    "HeadSubset": "heads.subset",
    "L0Gates": "heads.l0_gates",
    "QKVAttention": "backbones.attention",
    "Recipe": "runs.recipes",
    "RelationDistiller": "distillation.distiller",
    "RelationLoss": "distillation.losses",
    "SubsetTraining": "heads.subset_training",
    "Task": "downstream.tasks",
    "TemperatureSchedule": "heads.subset",
    "WarmupLinearDecay": "training.schedule",
    "adamw": "training.schedule",
    "attention_entropy": "heads.importance",
    "batches": "data.packing",
    "evaluate_model": "runs.evaluate",
    "export_saved_model": "serving.saved_model",
    "export_to_hugging_face": "backbones.hugging_face.export",
    "fine_tune": "runs.fine_tune",
    "gated_encoder": "heads.gates",
    "gated_model": "heads.gates",
    "head_importance": "heads.importance",
    "load_backbone": "backbones.loading",
    "load_recipe": "runs.recipes",
    "load_saved": "downstream.saved",
    "load_tokenizer": "backbones.loading",
    "packed_examples": "data.packing",
    "prune_heads": "heads.pruning",
    "qkv_model": "backbones.projections",
    "relation_head_weights": "distillation.head_weights",
    "save_student": "backbones.saving",
    "shrink_vocabulary": "backbones.vocabulary",
    "student_backbone": "backbones.students",
}

__all__ = [
    "AttentionValueLoss",
    "Corpus",
    "FineTuningSettings",
    "HeadImportance",
    "HeadSubset",
    "L0Gates",
    "QKVAttention",
    "Recipe",
    "RelationDistiller",
    "RelationLoss",
    "SubsetTraining",
    "Task",
    "TemperatureSchedule",
    "WarmupLinearDecay",
    "__version__",
    "adamw",
    "attention_entropy",
    "batches",
    "evaluate_model",
    "export_saved_model",
    "export_to_hugging_face",
    "fine_tune",
    "gated_encoder",
    "gated_model",
    "head_importance",
    "load_backbone",
    "load_recipe",
    "load_saved",
    "load_tokenizer",
    "packed_examples",
    "prune_heads",
    "qkv_model",
    "relation_head_weights",
    "save_student",
    "shrink_vocabulary",
    "student_backbone",
]


def __getattr__(name):
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULE_OF_NAME[name]}")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in ("tensorflow", "tensorflow_text"):
            raise
        raise ImportError(_without_tensorflow(name), name=library) from None
    return getattr(module, name)


def _without_tensorflow(name):
    """The sentence for a name that cannot be had where TensorFlow is not installed."""
    if "keras" not in sys.modules:
        # Keras itself could not be imported.
        return (
            f"`{name}` needs Keras on TensorFlow or JAX, and TensorFlow is not "
            "installed. Set KERAS_BACKEND=jax before Keras is imported, or install "
            "TensorFlow."
        )
    way_out = "; on JAX, only distillation runs"
    if _MODULE_OF_NAME[name].startswith("data."):
        way_out = ", or prepare the corpus where they are"
    return (
        f"`{name}` needs TensorFlow and tensorflow-text. Install tensorflow-text, "
        f"which brings both{way_out}."
    )


def __dir__():
    return sorted(__all__)


class _WithKerasHub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `backbones` as soon as keras-hub is imported, and not before.

    keras-hub's `from_preset` then reads pruned encoders, and other forms of GELU.
    """

    def find_spec(self, name, path, target=None):
        if name != "keras_hub":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, found), None)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        sys.meta_path.remove(self)
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module(f"{__name__}.backbones")


if sys.modules.get("keras_hub"):
    importlib.import_module(f"{__name__}.backbones")
else:
    sys.meta_path.insert(0, _WithKerasHub())
