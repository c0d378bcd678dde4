"""Encoders saved as keras-nlp preset directories."""

from pathlib import Path

from keras_minilmv2.utils.files import replacing_directory


def save_student(student, tokenizer, path, overwrite=True):
    """Saves a student as a keras-nlp preset directory, its tokenizer beside it.

    `keras_hub.models.Backbone.from_preset(path)` reads it back with equal outputs.
    Written to a temporary directory and renamed.

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


def weight_bytes(path):
    """Bytes of the weight files in a preset or Hugging Face directory, or 0."""
    return sum(
        file.stat().st_size
        for pattern in ("*.weights.h5", "*.safetensors")
        for file in Path(path).glob(pattern)
    )
