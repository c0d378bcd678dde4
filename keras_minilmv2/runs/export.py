"""Exports of a saved model, of whatever kind, in the form that is asked for."""

from pathlib import Path

import keras_hub

from keras_minilmv2.backbones.hugging_face.export import export_to_hugging_face
from keras_minilmv2.backbones.hugging_face.weights import refuse_head
from keras_minilmv2.downstream.saved import load_saved
from keras_minilmv2.serving.saved_model import export_saved_model
from keras_minilmv2.utils.checks import check_choice

FORMS = ("saved_model", "hugging_face")


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
    check_choice(FORMS, form=form)
    saved = load_saved(model)
    if isinstance(saved.model, keras_hub.models.Backbone):
        refuse_head("model", model)
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
    export_to_hugging_face(
        saved.model,
        saved.tokenizer,
        directory,
        labels=labels and list(labels),
        facts=facts,
        **options,
    )
    return Path(directory)
