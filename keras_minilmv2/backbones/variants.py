"""What a model computes otherwise than its keras-nlp class: GELU and epsilon.

keras-nlp fixes the form of GELU and the epsilon of the layer normalizations for each
class; transformers has both in `config.json`. A `Variant` says what one model
computes. It lives in the layers of the backbone, and in an entry of its own in a
preset's `config.json`: keras-hub, which does not know the entry, reads such a preset
and computes the class's own form. Once this module is imported, as everything here
that loads or saves a model does, keras-hub's `from_preset` and `save_to_preset` keep
the variant too.

Reads private attributes of keras-nlp's `TransformerEncoder`, `gelu_approximate`,
`KerasPresetLoader` and `KerasPresetSaver`, checked on keras-hub 0.32.
"""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import keras
from keras_hub.src.utils.keras_utils import gelu_approximate
from keras_hub.src.utils.preset_utils import KerasPresetLoader, KerasPresetSaver

from keras_minilmv2.backbones.families import FAMILIES, family_of
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.utils.checks import check_choice, check_number
from keras_minilmv2.utils.files import write_json

# The two forms by transformers' names for them.
GELUS = {"gelu": keras.activations.gelu, "gelu_pytorch_tanh": gelu_approximate}
# The entry in a preset's config.json.
ENTRY = "keras_minilmv2"


@dataclass(frozen=True)
class Variant:
    """The form of GELU and the epsilon of a model.

    Args:
        gelu: str. `"gelu"`, the form with erf, or `"gelu_pytorch_tanh"`.
        layer_norm_epsilon: float.

    Raises:
        TypeError: if the epsilon is no number.
        ValueError: if there is no such form, or the epsilon is not above 0.
    """

    gelu: str
    layer_norm_epsilon: float

    def __post_init__(self):
        check_choice(GELUS, gelu=self.gelu)
        check_number(above=0, below=1, layer_norm_epsilon=self.layer_norm_epsilon)


def variant_of(backbone):
    """Returns the `Variant` that a backbone computes."""
    # Not of the dense layer: a pruned block may have none.
    is_erf = block_calls(backbone)[0][0].activation is keras.activations.gelu
    epsilon = backbone.embeddings_layer_norm.epsilon
    return Variant("gelu" if is_erf else "gelu_pytorch_tanh", epsilon)


def set_variant(backbone, variant):
    """Makes a backbone compute a `Variant`.

    Args:
        backbone: a keras-nlp backbone of a supported family. Changed in place, before
            any compiled function of it is traced.
        variant: `Variant`.
    """
    backbone.embeddings_layer_norm.epsilon = variant.layer_norm_epsilon
    for block, _ in block_calls(backbone):
        activation = GELUS[variant.gelu]
        block.activation = block._feedforward_intermediate_dense.activation = activation
        block.layer_norm_epsilon = variant.layer_norm_epsilon
        for norm in (block._self_attention_layer_norm, block._feedforward_layer_norm):
            norm.epsilon = variant.layer_norm_epsilon


def rebuild(backbone, dtype=None, **arguments):
    """Builds a backbone of the same class, arguments and variant, with new weights.

    Args:
        backbone: a keras-nlp backbone of a supported family.
        dtype: dtype policy. Defaults to the backbone's.
        **arguments: further arguments of its class that are replaced.

    Returns:
        A backbone of the same class.
    """
    if dtype is not None:
        arguments["dtype"] = dtype
    copy = type(backbone).from_config({**backbone.get_config(), **arguments})
    set_variant(copy, variant_of(backbone))
    return copy


def class_variant(family):
    """Returns the `Variant` that the keras-nlp class of a family computes."""
    return Variant(family.gelu, family.layer_norm_epsilon)


def saved_variant(config):
    """Returns the `Variant` in a preset's config, or None where it is the class's own.

    Args:
        config: dict. The content of a `config.json` of keras-nlp.

    Raises:
        TypeError, ValueError: if the entry is damaged.
    """
    return Variant(**config[ENTRY]) if ENTRY in config else None


def _write(preset_dir, backbone):
    """Adds the entry to the config.json that keras-hub wrote, where one is needed."""
    if not isinstance(backbone, tuple(family.backbone_class for family in FAMILIES)):
        return
    variant = variant_of(backbone)
    if variant != class_variant(family_of(backbone)):
        path = Path(preset_dir) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**config, ENTRY: dataclasses.asdict(variant)})


def _saving(save_backbone):
    @functools.wraps(save_backbone)
    def save(saver, backbone, *args, **kwargs):
        save_backbone(saver, backbone, *args, **kwargs)
        _write(saver.preset_dir, backbone)

    return save


def _loading(load):
    @functools.wraps(load)
    def load_variant(loader, *args, **kwargs):
        model = load(loader, *args, **kwargs)
        if variant := saved_variant(loader.config):
            set_variant(getattr(model, "backbone", model), variant)
        return model

    return load_variant


KerasPresetSaver.save_backbone = _saving(KerasPresetSaver.save_backbone)
KerasPresetLoader.load_backbone = _loading(KerasPresetLoader.load_backbone)
KerasPresetLoader.load_task = _loading(KerasPresetLoader.load_task)
