"""Files of a preset, from a hub, a built-in preset or a directory.

Reads `keras_hub.src.utils.preset_utils.get_file`, checked on keras-hub 0.32.
"""

import fnmatch
import json
import os
from pathlib import Path

import keras_hub
from keras_hub.src.utils.preset_utils import get_file

from keras_minilmv2.utils.files import check_directory

# How the model card of an export ends.
CARD_SIGNATURE = "Written by keras-minilmv2 "
# What keras-nlp and the exports write.
_MODEL_FILES = (
    *("config.json", "metadata.json", "task.json", "preprocessor.json", "assets"),
    *("*.weights.h5", "*.weights.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model", "modules.json"),
    *("1_Pooling", "sentence_bert_config.json"),
)
HUB_PREFIXES = ("hf://", "kaggle://", "gs://")


def preset_error(preset, rule, **related):
    """A ValueError in one sentence that names the preset."""
    received = "".join(f", {name}={value!r}" for name, value in related.items())
    return ValueError(
        f"`preset` must {rule}. Received: preset={str(preset)!r}{received}."
    )


def first_line(error):
    """First line of another library's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__


def check_preset(preset):
    """Returns the preset as a string that `get_file` understands.

    Raises:
        TypeError: if `preset` is neither a string nor a path.
        ValueError: if it is no built-in name, no hub handle and no directory.
    """
    if not isinstance(preset, str | os.PathLike):
        raise TypeError(
            "`preset` must be a string or a path. "
            f"Received: preset={preset!r} of type {type(preset).__name__}."
        )
    preset = os.fspath(preset)
    if is_remote(preset):
        return preset
    directory = os.path.expanduser(preset)
    if not os.path.isdir(directory):
        raise preset_error(
            preset,
            "be the name of a keras-nlp preset, a hf:// or kaggle:// handle, or a "
            "directory",
        )
    return directory


def is_remote(preset):
    """Whether the files of a preset have to be downloaded."""
    return (
        preset.startswith(HUB_PREFIXES) or preset in keras_hub.models.Backbone.presets
    )


def find_file(preset, name):
    """Local path of a file of the preset, or None where there is no such file.

    Raises:
        ValueError: if the handle of a hub is malformed.
        ConnectionError: if the hub cannot be reached or refuses.
    """
    if not is_remote(preset):
        path = os.path.join(preset, name)
        return path if os.path.isfile(path) else None
    try:
        return get_file(preset, name)
    except FileNotFoundError as error:
        # keras-hub reports a Hugging Face hub that does not answer as a file that
        # does not exist; only the cause tells the two apart.
        cause = error.__cause__
        if type(cause).__name__ != "LocalEntryNotFoundError":
            return None
        reason = "the hub does not answer and the file is not in the local cache"
        raise _download_error(preset, name, reason) from error
    except ImportError:
        raise  # Names the library of a hub to install.
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Unexpected"):
            raise preset_error(
                preset,
                "be a handle of the form hf://owner/model or "
                "kaggle://owner/model/keras/variation",
            ) from error
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise _download_error(preset, name, reason) from error


def _download_error(preset, name, reason):
    """The one sentence for a preset that exists and cannot be fetched."""
    return ConnectionError(
        f"`preset` could not be downloaded: {name} of preset={preset!r} ({reason}); "
        "check the connection, or pass a local directory that holds the model."
    )


def read_json(preset, name):
    """Content of a JSON file of the preset, or None where there is no such file.

    Raises:
        ValueError: if the file is not one JSON object.
    """
    path = find_file(preset, name)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError, MemoryError) as error:
        raise preset_error(
            preset, f"hold a {name} that is valid JSON", error=first_line(error)
        ) from error
    if not isinstance(content, dict):
        raise preset_error(preset, f"hold a {name} that is one JSON object")
    return content


def is_masked_lm(preset):
    """Whether a preset holds a `keras_hub.models.MaskedLM`.

    Raises:
        TypeError, ValueError: as `check_preset` and `read_json`.
    """
    task = read_json(check_preset(preset), "task.json") or {}
    return str(task.get("registered_name")).endswith("MaskedLM")


def check_file_names(preset, index, names):
    """Refuses an index of weight files that names files elsewhere.

    Args:
        preset: str, for the error message.
        index: str, name of the index.
        names: iterable of what it names.

    Raises:
        ValueError: if one is no plain file name.
    """
    for name in names:
        if not isinstance(name, str) or name != os.path.basename(name):
            raise preset_error(
                preset, f"hold a {index} that names files beside it", name=name
            )


def weight_bytes(path):
    """Bytes of the weight files in a preset or Hugging Face directory, or 0."""
    return sum(
        file.stat().st_size
        for pattern in ("*.weights.h5", "*.safetensors")
        for file in Path(path).glob(pattern)
    )


def check_new_directory(argument, path, overwrite):
    """Refuses to write a model to what is no directory, or holds something else.

    Args:
        argument: str, the name of `path`.
        path: path of the directory that is to be written.
        overwrite: bool. Whether the files of another model may be replaced.

    Raises:
        NotADirectoryError, OSError: as `check_directory`.
        FileExistsError: if it is not empty and `overwrite` is not set, or holds a file
            that is no model's.
    """
    check_directory(argument, path, replaced=True)
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"`{argument}` must be a new or empty directory unless `overwrite` is set. "
            f"Received: {argument}={path}."
        )
    for file in sorted(filter(_is_foreign, path.iterdir())):
        raise FileExistsError(
            f"`{argument}` must hold nothing but a model, which is then replaced. "
            f"Received: {argument}={path} with {file.name}."
        )


def _is_foreign(file):
    """Whether a file is none that a model's directory has."""
    if file.name == "README.md":
        text = file.read_text(encoding="utf-8", errors="replace")
        return CARD_SIGNATURE not in text
    return not any(fnmatch.fnmatch(file.name, known) for known in _MODEL_FILES)
