"""A saved model on its way out: whatever kind it is, to the form that is asked for."""

from pathlib import Path
from typing import NamedTuple

from keras_minilmv2.backbones.hugging_face.export import export_to_hugging_face
from keras_minilmv2.backbones.loading import (
    check_no_head,
    load_backbone,
    load_tokenizer,
)
from keras_minilmv2.downstream.span_model import is_span_model, load_span_model
from keras_minilmv2.downstream.tasks import get_task
from keras_minilmv2.runs.fine_tune import is_classifier, load_classifier
from keras_minilmv2.serving.saved_model import export_saved_model


class Saved(NamedTuple):
    """What a directory holds.

    Args:
        model: keras-nlp backbone or text classifier, or `SpanModel`.
        tokenizer: its keras-nlp tokenizer.
        labels: tuple of str, the names of a classifier's classes, or None.
        pairs: bool or None. Whether it takes pairs of texts, where that is known.
    """

    model: object
    tokenizer: object
    labels: tuple | None
    pairs: bool | None


def load_saved(model):
    """Loads an encoder, a fine-tuned classifier or a model of answer spans.

    Args:
        model: str or path. Preset name, handle or directory, as for `load_backbone`;
            or a directory that `fine_tune` or `save_span_model` wrote.

    Returns:
        `Saved`.

    Raises:
        ValueError: if it cannot be loaded.
    """
    if is_span_model(model):
        return Saved(*load_span_model(model), labels=None, pairs=True)
    if is_classifier(model):
        classifier, notes = load_classifier(model)
        pairs = None
        if "task" in notes:
            pairs = len(get_task(notes["task"]).text_columns) == 2
        labels = notes.get("label_names")
        tokenizer = classifier.preprocessor.tokenizer
        return Saved(classifier, tokenizer, labels and tuple(labels), pairs)
    check_no_head(model)
    return Saved(load_backbone(model), load_tokenizer(model), labels=None, pairs=None)


def export(model, directory, form, *, labels=None, pairs=None, facts=None, **options):
    """Exports a saved model.

    Args:
        model: as for `load_saved`.
        directory: str or path.
        form: `"saved_model"`, see `export_saved_model`, or `"hugging_face"`, see
            `export_to_hugging_face`.
        labels: sequence of str. Defaults to those the model was fine-tuned with.
        pairs: bool. Defaults to what the model was fine-tuned with.
        facts: as for `export_to_hugging_face`.
        **options: further arguments of the function of the form.

    Returns:
        Path of what was written.

    Raises:
        ValueError, TypeError, OSError: as that function.
    """
    saved = load_saved(model)
    labels = saved.labels if labels is None else labels
    if form == "saved_model":
        pairs = bool(saved.pairs if pairs is None else pairs)
        return export_saved_model(
            saved.model,
            saved.tokenizer,
            directory,
            labels=labels,
            pairs=pairs,
            **options,
        )
    if form == "hugging_face":
        export_to_hugging_face(
            saved.model,
            saved.tokenizer,
            directory,
            labels=labels and list(labels),
            facts=facts,
            **options,
        )
        return Path(directory)
    raise ValueError(
        f"`form` must be 'saved_model' or 'hugging_face'. Received: form={form!r}."
    )
