"""`config.json` of keras-nlp or of transformers: the family, and sizes that can be."""

import math
from pathlib import Path

import keras

from keras_minilmv2.backbones.families import FAMILIES
from keras_minilmv2.backbones.layer_counts import (
    COUNTED,
    block_runs,
    check_counts,
    check_format_version,
)
from keras_minilmv2.backbones.preset_files import (
    first_line,
    preset_error,
    read_json,
    weight_bytes,
)

# No published encoder has a tenth of them; a damaged file may ask for millions.
_MAX_LAYERS = 1_000
_NUMBERS_OF_LAYERS = ("num_layers", "num_inner_repetitions")


def read_config(preset):
    """Content of a `config.json`, which keras-nlp and transformers presets both have.

    Raises:
        ValueError: if there is none, or it is of neither library.
    """
    config = read_json(preset, "config.json")
    if config is None:
        raise preset_error(preset, "hold a config.json")
    if "registered_name" not in config and "model_type" not in config:
        raise preset_error(
            preset,
            "hold a config.json of keras-nlp, with registered_name, or of "
            "transformers, with model_type",
        )
    return config


def is_hugging_face(config):
    """Whether a config.json is one of transformers."""
    return "registered_name" not in config


def family_of_config(preset, config):
    """The `Family` that a config.json names.

    Raises:
        ValueError: if it names none of the six.
    """
    if is_hugging_face(config):
        return hugging_face_family(preset, config)
    classes = tuple(family.backbone_class for family in FAMILIES)
    registered = registered_class(preset, config, classes, "backbone")
    return next(f for f in FAMILIES if issubclass(registered, f.backbone_class))


def hugging_face_family(preset, config):
    """The `Family` that a transformers config names.

    Raises:
        ValueError: if `model_type` is none of the six families.
    """
    model_type = config["model_type"]
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise preset_error(
        preset,
        f"have a model_type in its config.json that is one of {known}",
        model_type=model_type,
    )


def registered_class(preset, config, classes, what):
    """The class that a config of keras-nlp names.

    Raises:
        ValueError: if it is none of `classes` and no subclass of one.
    """
    name = config["registered_name"]
    found = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, classes):
        known = ", ".join(known_class.__name__ for known_class in classes)
        raise preset_error(
            preset, f"have a {what} that is one of {known}", registered_name=name
        )
    return found


def encoder_sizes(preset, config, family):
    """Sizes of an encoder, out of a config.json of either library.

    Args:
        preset: str, for the error message.
        config: dict. The content of the config.json.
        family: its `Family`.

    Returns:
        dict of int by argument of the keras-nlp class, `"vocabulary_size"` for every
        family; of a pruned encoder also lists of int, `"head_counts"` and
        `"neuron_counts"`.

    Raises:
        ValueError: if one is missing, no int of at least 1, or does not fit another;
            or the encoder was pruned by a version of another format.
    """
    names = dict(family.size_names)
    padding_rows = family.num_padding_positions
    if not is_hugging_face(config):
        names = {ours: ours for ours in names}
        names["vocabulary_size"] = family.vocabulary_argument
        padding_rows = 0
        config = config.get("config")
        if not isinstance(config, dict):
            raise preset_error(preset, "hold arguments under config in its config.json")
    sizes = {}
    for ours, theirs in names.items():
        size = sizes[ours] = config_value(preset, config, theirs)
        least = 1 + padding_rows * (ours == "max_sequence_length")
        most = _MAX_LAYERS if ours in _NUMBERS_OF_LAYERS else math.inf
        if type(size) is not int or not least <= size <= most:
            limit = f" and at most {most:,}" if most < math.inf else ""
            raise preset_error(
                preset,
                f"have an int of at least {least}{limit} as {theirs} in its "
                "config.json",
                **{theirs: size},
            )
    for divisor, number in (("num_heads", "hidden_dim"), ("num_groups", "num_layers")):
        if divisor in sizes and sizes[number] % sizes[divisor]:
            raise preset_error(
                preset,
                f"have a {names[divisor]} in its config.json that divides "
                f"{names[number]}",
                **{names[name]: sizes[name] for name in (divisor, number)},
            )
    sizes["max_sequence_length"] -= padding_rows
    if not COUNTED.keys().isdisjoint(config) or "format_version" in config:
        sizes |= _saved_counts(preset, config, family, sizes)
    return sizes


def _saved_counts(preset, config, family, sizes):
    """Heads and neurons of each layer of a pruned encoder, by its arguments' names."""
    try:
        # First: a newer format may have other arguments.
        check_format_version(config.get("format_version"))
        counts = {name: config_value(preset, config, name) for name in COUNTED}
        check_counts(family, sizes, **counts)
    except (TypeError, ValueError) as error:
        if str(error).startswith("`preset`"):
            raise
        raise preset_error(
            preset,
            "say in its config.json what is left of each layer, in a format that this "
            "version of keras-minilmv2 knows",
            error=first_line(error),
        ) from error
    return counts


def config_value(preset, config, name):
    """A value of a `config.json`, which must be there."""
    if name not in config:
        raise preset_error(preset, f"have {name} in its config.json")
    return config[name]


def check_weights_fill(preset, sizes, family, file, num_parameters):
    """Refuses sizes that need more weights than there are, before any is made.

    Args:
        preset: str, for the error message.
        sizes: dict, as from `encoder_sizes`.
        family: `Family`.
        file: str. The name of the weights file, for the error message.
        num_parameters: int. The most parameters that the files can hold.

    Raises:
        ValueError: if the matrices alone have more.
    """
    width, inner = sizes["hidden_dim"], sizes["intermediate_dim"]
    rows = sizes["vocabulary_size"] + sizes["max_sequence_length"]
    rows += sizes.get("num_segments", 0)
    runs = block_runs(family, sizes)
    heads = sizes.get("head_counts", [sizes["num_heads"]] * len(runs))
    neurons = sizes.get("neuron_counts", [inner] * len(runs))
    needed = rows * sizes.get("embedding_dim", width)
    # Blocks that run several times have their weights once.
    first_runs = {block: run for run, block in reversed(list(enumerate(runs)))}
    for run in first_runs.values():
        attended = heads[run] * (width // sizes["num_heads"])
        needed += width * (4 * attended + 2 * neurons[run])
    if needed > num_parameters:
        raise preset_error(
            preset,
            f"hold a {file} that can be read and fits its config.json",
            parameters_in_config=needed,
            parameters_in_file=num_parameters,
        )


def check_local_weights_fill(preset, sizes, family, file):
    """The same for the weight files of a keras-nlp preset that lies in a directory."""
    if Path(preset).is_dir():
        # Half a byte is the least that a quantized parameter takes.
        check_weights_fill(preset, sizes, family, file, 2 * weight_bytes(preset))
