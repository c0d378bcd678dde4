"""Encoders saved as keras-nlp preset directories."""

from pathlib import Path

from keras_minilmv2.utils.files import replacing_directory


def save_student(student, tokenizer, path, overwrite=True):
    """Saves a student as a keras-nlp preset directory, its tokenizer beside it.

    `load_backbone(path)` reads it back with equal outputs. keras-hub's own
    `Backbone.from_preset(path)` reads it too, and gives equal outputs once
    `keras_minilmv2.backbones` has been imported; without, it computes the form of GELU
    and the epsilon of its class, which differ where the teacher was a Hugging Face
    model with others: see `backbones.variants`. Written to a temporary directory and
    renamed.

    Args:
        student: a keras-nlp backbone.
        tokenizer: a keras-nlp tokenizer, or None to save the backbone alone.
        path: str or path of the directory.
        overwrite: bool. Whether an existing directory is replaced.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"`path` must not exist unless `overwrite` is set. Received: path={path}."
        )
    with replacing_directory(path) as fresh:
        student.save_to_preset(str(fresh))
        if tokenizer is not None:
            tokenizer.save_to_preset(str(fresh))
