"""Encoders saved as keras-nlp preset directories."""

import math
import os
import tempfile
from pathlib import Path

from keras_minilmv2.backbones.preset_files import check_new_directory
from keras_minilmv2.utils.files import replacing_directory

# HDF5 writes about this much around the values of each variable.
_HEADER_BYTES = 1_000


def save_student(student, tokenizer, path, overwrite=True):
    """Saves a student as a keras-nlp preset directory, its tokenizer beside it.

    `load_backbone(path)` reads it back with equal outputs. keras-hub's own
    `Backbone.from_preset(path)` reads it too, and gives equal outputs once
    `keras_minilmv2` has been imported; without, it computes the form of GELU and the
    epsilon of its class, which differ where the teacher was a Hugging Face model with
    others, see `backbones.variants`, and refuses a pruned student. Written to a
    temporary directory and renamed.

    Args:
        student: a keras-nlp backbone, or a model of one, such as
            `keras_hub.models.MaskedLM`, which `load_backbone` reads the encoder of.
        tokenizer: a keras-nlp tokenizer, or None to save the backbone alone.
        path: str or path of the directory.
        overwrite: bool. Whether an existing directory is replaced.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is not set, or it holds a
            file that is no model's.
        OSError: if it cannot be written, for a full disk for instance.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"`path` must not exist unless `overwrite` is set. Received: path={path}."
        )
    check_new_directory("path", path, overwrite)
    with replacing_directory(path) as fresh:
        check_space(fresh, student)
        student.save_to_preset(str(fresh))
        if tokenizer is not None:
            tokenizer.save_to_preset(str(fresh))


def check_space(directory, model):
    """Raises if a file system has no room for the weights of a model.

    HDF5, TensorFlow and safetensors report a disk that is full with errors of their
    own; those of HDF5 may come when Python ends, or end the process.

    Args:
        directory: path of an existing directory.
        model: a Keras model.

    Raises:
        OSError: if there is no room.
    """
    size = _HEADER_BYTES * len(model.variables)
    for variable in model.variables:
        size += math.prod(variable.shape) * (4 if variable.dtype == "float32" else 1)
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, size)
