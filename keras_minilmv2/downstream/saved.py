"""Models on disk: what fine-tuning saved, and encoders."""

from dataclasses import dataclass, field
from pathlib import Path

import keras_hub

from keras_minilmv2.backbones.loading import (
    check_no_head,
    load_backbone,
    load_tokenizer,
)
from keras_minilmv2.backbones.preset_files import is_masked_lm
from keras_minilmv2.downstream import span_model
from keras_minilmv2.downstream.classifiers import text_preprocessor
from keras_minilmv2.downstream.registry import TASKS
from keras_minilmv2.utils.files import read_json

# Beside a model: its task, the names of its classes, the run that it is from.
NOTES_FILE = "fine_tuning.json"


@dataclass(frozen=True)
class Saved:
    """A model with its tokenizer.

    Args:
        model: keras-nlp backbone or text classifier, or `SpanModel`.
        tokenizer: its keras-nlp tokenizer.
        notes: dict, what fine-tuning wrote beside it; {} for a model from elsewhere.
    """

    model: object
    tokenizer: object
    notes: dict = field(default_factory=dict)

    @property
    def backbone(self):
        """The encoder."""
        return getattr(self.model, "backbone", self.model)

    @property
    def task(self):
        """Name of the task that it was fine-tuned on, or None."""
        return self.notes.get("task")

    @property
    def labels(self):
        """Names of a classifier's classes, a tuple of str, or None."""
        return tuple(self.notes.get("label_names") or ()) or None

    @property
    def pairs(self):
        """Whether it takes pairs of texts; None where that is not known."""
        if isinstance(self.model, span_model.SpanModel):
            return True
        # Earlier versions did not write it down.
        known = getattr(TASKS.get(self.task), "pairs", None)
        return self.notes.get("pairs", known)

    @property
    def sizes(self):
        """Sizes of its features, dict of int by name of the task's options."""
        preprocessor = getattr(self.model, "preprocessor", None)
        if "sizes" in self.notes or preprocessor is None:
            return self.notes.get("sizes", {})
        return {"sequence_length": preprocessor.sequence_length}


def load_saved(path):
    """Loads a fine-tuned model or an encoder.

    Args:
        path: str or path. What `fine_tune` wrote or the `model` in it, what
            `save_span_model` wrote, or as for `load_backbone`: preset name, handle or
            directory.

    Returns:
        `Saved`.

    Raises:
        ValueError, OSError: if it cannot be loaded.
    """
    directory, load = _find(path)
    if directory is None:
        check_no_head(path)
        return Saved(load_backbone(path), load_tokenizer(path))
    return Saved(*load(directory), read_notes(directory))


def load_fine_tuned(path):
    """As `load_saved`, of fine-tuned models alone.

    Raises:
        FileNotFoundError: if there is no such model.
    """
    if _find(path)[0] is None:
        raise FileNotFoundError(
            "`model` must be a directory that `keras-minilmv2 finetune` wrote. "
            f"Received: model={path}, without a {' or a '.join(_LOADERS)}."
        )
    return load_saved(path)


def read_notes(directory):
    """What a run wrote beside its model, a dict; {} for a model from elsewhere.

    Raises:
        ValueError: if it cannot be read.
    """
    file = Path(directory) / NOTES_FILE
    return read_json(file) if file.is_file() else {}


def _find(path):
    """The directory of a fine-tuned model and the function that loads it, or None."""
    path = Path(path).expanduser()
    for directory in (path, path / "model"):
        for marker, load in _LOADERS.items():
            # An encoder under a head for masked tokens is an encoder.
            if (directory / marker).is_file() and not is_masked_lm(directory):
                return directory, load
    return None, None


def _load_classifier(path):
    try:
        classifier = keras_hub.models.TextClassifier.from_preset(str(path))
    except Exception as error:
        # keras and h5py raise OSError, KeyError, ValueError and TypeError here.
        raise ValueError(
            "`model` must hold a text classifier that can be read. "
            f"Received: model={path} ({str(error).splitlines()[0]})."
        ) from error
    # keras-hub's own splits words of RoBERTa in another way outside of tf.data.
    tokenizer = load_tokenizer(path)
    classifier.preprocessor = text_preprocessor(
        classifier.backbone, tokenizer, classifier.preprocessor.sequence_length
    )
    return classifier, tokenizer


# By the file that tells what a directory holds.
_LOADERS = {
    span_model.CONFIG_FILE: span_model.load_span_model,
    "task.json": _load_classifier,
}
