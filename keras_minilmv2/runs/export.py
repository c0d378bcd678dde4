"""Exports of a saved model, of whatever kind, in the form that is asked for."""

from pathlib import Path

import keras_hub

from keras_minilmv2.backbones.hugging_face.export import export_to_hugging_face
from keras_minilmv2.backbones.hugging_face.weights import refuse_head
from keras_minilmv2.backbones.preset_files import check_new_directory
from keras_minilmv2.downstream.saved import load_saved
from keras_minilmv2.serving.saved_model import export_saved_model
from keras_minilmv2.utils.checks import check_choice
from keras_minilmv2.utils.files import check_directory, writing

FORMS = ("saved_model", "hugging_face")


def export(model, output_dir, form, *, labels=None, pairs=None, facts=None, **options):
    """Exports a saved model.

    Args:
        model: as for `load_saved`.
        output_dir: str or path of a directory.
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
    output_dir = Path(output_dir)
    if form == "hugging_face":
        overwrite = options.get("overwrite", False)
        check_new_directory("output_dir", output_dir, overwrite)
    else:
        check_directory("output_dir", output_dir)
    saved = load_saved(model)
    if isinstance(saved.model, keras_hub.models.Backbone):
        refuse_head("model", model)
    labels = saved.labels if labels is None else labels
    pairs = bool(saved.pairs if pairs is None else pairs)
    with writing(output_dir):
        if form == "saved_model":
            return export_saved_model(
                saved.model,
                saved.tokenizer,
                output_dir,
                labels=labels,
                pairs=pairs,
                **options,
            )
        export_to_hugging_face(
            saved.model,
            saved.tokenizer,
            output_dir,
            labels=labels and list(labels),
            facts=facts,
            **options,
        )
    return output_dir
