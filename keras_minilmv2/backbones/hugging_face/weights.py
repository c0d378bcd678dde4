"""Weights of a Hugging Face model in a keras-nlp backbone, and the other way round.

The converters of keras-hub know which weight belongs to which variable. `WeightLoader`
answers them with the weights of a directory; `encoder_weights` walks through the same
converters to collect a backbone's weights under their names in transformers.

Reads `SafetensorLoader` of keras-hub, checked on keras-hub 0.32.
"""

import math
import warnings

import numpy as np
import safetensors
from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader

from keras_minilmv2.backbones.configs import (
    check_weights_fill,
    config_value,
    hugging_face_family,
    is_hugging_face,
    read_config,
)
from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.preset_files import (
    check_file_names,
    check_preset,
    find_file,
    first_line,
    preset_error,
    read_json,
)
from keras_minilmv2.backbones.variants import Variant, set_variant
from keras_minilmv2.utils.checks import check_number

# What transformers calls the two forms of GELU.
_ERF, _TANH = "gelu", "gelu_pytorch_tanh"
_GELUS = {
    "gelu": _ERF,
    "gelu_python": _ERF,
    "gelu_accurate": _TANH,
    "gelu_fast": _TANH,
    "gelu_new": _TANH,
    "gelu_python_tanh": _TANH,
    "gelu_pytorch_tanh": _TANH,
}
# What transformers computes where a config.json has no epsilon.
_DEFAULT_EPSILON = 1e-12

_WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_OTHER_WEIGHTS_FILES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)

# Heads of fine-tuned models: of classes, also of tokens and choices, and of answers.
_HEADS = ("classifier.", "pre_classifier.", "qa_outputs.")

# In every family the first weight of the encoder.
_TOKEN_EMBEDDING = "embeddings.word_embeddings.weight"
_SEGMENT_EMBEDDING = "embeddings.token_type_embeddings.weight"


def load_hugging_face_backbone(preset, config, family, sizes, dtype=None):
    """Builds the backbone of a transformers config and fills in its weights.

    Args:
        preset: str. A hub handle or a directory.
        config: dict. The content of its `config.json`.
        family: the `Family` that it names.
        sizes: dict, as from `encoder_sizes`.
        dtype: str or `keras.DTypePolicy`.

    Returns:
        A `keras_hub.models.Backbone`.

    Raises:
        ValueError: as `load_backbone` does.
    """
    _check_config(preset, config, family)
    variant = _variant(preset, config, family)
    dropout = config_value(preset, config, family.dropout_name)
    try:
        check_number(least=0, below=1, dropout=dropout)
    except (TypeError, ValueError) as error:
        raise preset_error(
            preset,
            f"have a number from 0 to 1 as {family.dropout_name} in its config.json",
            **{family.dropout_name: dropout},
        ) from error
    _check_weights_file(preset)
    with WeightLoader(preset, family.scope) as loader:
        num_parameters = loader.num_parameters()
        check_weights_fill(preset, sizes, family, _WEIGHTS_FILE, num_parameters)
        sizes = dict(sizes)
        sizes[family.vocabulary_argument] = sizes.pop("vocabulary_size")
        backbone = family.backbone_class(**sizes, dropout=dropout, dtype=dtype)
        set_variant(backbone, variant)
        family.convert_weights(backbone, loader, config)
    if loader.pooler_is_missing:
        warnings.warn(
            f"The weights of preset={preset!r} have no pooler: `pooled_dense` of the "
            "backbone stays as initialized.",
            stacklevel=3,
        )
    return backbone


def has_masked_lm_head(preset):
    """Whether a Hugging Face model has a head for masked tokens beside its encoder.

    Raises:
        TypeError, ValueError: as `check_preset` and `read_config`.
    """
    preset = check_preset(preset)
    config = read_config(preset)
    if not is_hugging_face(config):
        return False
    family = hugging_face_family(preset, config)
    if family.masked_lm_names is None:
        return False
    _check_weights_file(preset)
    with WeightLoader(preset, family.scope) as loader:
        return family.masked_lm_names[-1] in loader.names


def load_masked_lm_head(preset, family, head):
    """Fills in a head for masked tokens.

    Args:
        preset: str. A hub handle or a directory.
        family: `Family`.
        head: a built `keras_hub.layers.MaskedLMHead`.

    Raises:
        ValueError: if a weight is missing, damaged or of another shape.
    """
    dense, norm, bias = family.masked_lm_names
    with WeightLoader(preset, family.scope) as loader:
        for variable, name in (
            (head._intermediate_dense.kernel, f"{dense}.weight"),
            (head._intermediate_dense.bias, f"{dense}.bias"),
            (head._intermediate_layer_norm.gamma, f"{norm}.weight"),
            (head._intermediate_layer_norm.beta, f"{norm}.bias"),
            (head._bias, bias),
        ):
            weight = loader.read(name)
            if variable is head._intermediate_dense.kernel:
                weight = weight.T
            if weight.shape != tuple(variable.shape):
                raise preset_error(
                    preset,
                    f"hold a weight {name} that fits its config.json",
                    saved_shape=weight.shape,
                    expected_shape=tuple(variable.shape),
                )
            variable.assign(weight)


def refuse_head(argument, preset):
    """Raises if a Hugging Face model was fine-tuned: its head would be lost.

    The heads of pretraining are let through: an encoder has no use for them.

    Args:
        argument: str, the name of what is checked.
        preset: str or path of a model of any kind.

    Raises:
        ValueError: if its weights have a head of classification or of answer spans.
    """
    preset = check_preset(preset)
    config = read_config(preset)
    if not is_hugging_face(config):
        return
    _check_weights_file(preset)
    with WeightLoader(preset, hugging_face_family(preset, config).scope) as loader:
        head = [name for name in loader.names if name.startswith(_HEADS)]
    if head:
        raise ValueError(
            f"`{argument}` must be an encoder, or a model that this package "
            f"fine-tuned. Received: {argument}={preset!r} with a head of "
            f"transformers, {', '.join(sorted(head))}, which would be lost; to export "
            "the encoder alone, save what load_backbone and load_tokenizer return "
            "with save_student, and export that."
        )


class WeightLoader(SafetensorLoader):
    """Reads encoder weights, whatever head the model was saved with.

    A model saved with a head has the encoder under the family's name, as in
    `roberta.embeddings.word_embeddings.weight`; a bare model has it without. The
    converters of keras-hub ask now for one and now for the other.

    Args:
        preset: str. A hub handle or a directory.
        scope: str. The family's, as in `"roberta."`.
    """

    def __init__(self, preset, scope):
        super().__init__(preset)
        self.pooler_is_missing = False
        self._scope = scope
        self._names = self._read_names()
        self.prefix = self._find_prefix()

    def _open(self, name):
        """Opens one file of weights, once."""
        if name not in self.safetensor_files:
            path = find_file(self.preset, name)
            if path is None:
                raise preset_error(self.preset, f"hold {name}, which its index names")
            try:
                file = safetensors.safe_open(path, framework="np")
                self.safetensor_files[name] = self.enter_context(file)
            except Exception as error:
                raise preset_error(
                    self.preset, f"hold an intact {name}", error=first_line(error)
                ) from error
        return self.safetensor_files[name]

    def _read_names(self):
        """The file of every weight, by name."""
        if self.safetensor_config is not None:
            return self.safetensor_config["weight_map"]
        return dict.fromkeys(self._open(_WEIGHTS_FILE).keys(), _WEIGHTS_FILE)

    @property
    def names(self):
        """Names of all weights as saved."""
        return list(self._names)

    def num_parameters(self):
        """Number of parameters in all files, out of their headers."""
        return sum(
            math.prod(file.get_slice(name).get_shape())
            for file in map(self._open, dict.fromkeys(self._names.values()))
            for name in file.keys()  # noqa: SIM118 - no dict
        )

    def _find_prefix(self):
        """What stands before the names of the encoder's weights."""
        prefixes = [
            name.removesuffix(_TOKEN_EMBEDDING)
            for name in self._names
            if name.endswith(_TOKEN_EMBEDDING)
        ]
        if len(prefixes) > 1:
            prefixes = [prefix for prefix in prefixes if prefix in ("", self._scope)]
        if len(prefixes) != 1:
            raise preset_error(
                self.preset, f"hold the weights of one encoder, with {_TOKEN_EMBEDDING}"
            )
        return prefixes[0]

    def _find_name(self, hf_weight_key):
        """The name of a weight as saved, or None."""
        return self._saved_name(self.prefix + hf_weight_key.removeprefix(self._scope))

    def _saved_name(self, name):
        # Names of checkpoints converted from TensorFlow 1.
        old_name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old_name = old_name.replace("LayerNorm.bias", "LayerNorm.beta")
        return next((n for n in (name, old_name) if n in self._names), None)

    def get_tensor(self, hf_weight_key):
        """A weight of the encoder as a float32 array."""
        return self.read(self.prefix + hf_weight_key)

    def read(self, full_name):
        """A weight, in or beside the encoder, as a float32 array."""
        name = self._saved_name(full_name)
        if name is None:
            raise preset_error(self.preset, f"hold the weight {full_name}")
        file = self._names[name]
        try:
            tensor = self._open(file).get_tensor(name)
            return np.asarray(tensor, dtype="float32")
        except (safetensors.SafetensorError, TypeError) as error:
            raise preset_error(
                self.preset,
                f"hold an intact {file} with weights of float16, bfloat16 or float32",
                weight=name,
                error=first_line(error),
            ) from error

    def port_weight(self, keras_variable, hf_weight_key, hook_fn=None):
        """Assigns a weight to a variable of the backbone."""
        key = hf_weight_key.removeprefix(self._scope)
        if key.startswith("pooler.") and self._find_name(key) is None:
            self.pooler_is_missing = True
            return
        tensor = self.get_tensor(key)
        saved_shape = tensor.shape
        expected_shape = tuple(keras_variable.shape)
        try:
            tensor = hook_fn(tensor, list(expected_shape)) if hook_fn else tensor
        except ValueError:  # NumPy cannot give it the shape.
            tensor = None
        if tensor is None or tensor.shape != expected_shape:
            raise preset_error(
                self.preset,
                f"hold a weight {self._find_name(key)} that fits its config.json",
                saved_shape=saved_shape,
                expected_shape=expected_shape,
            )
        keras_variable.assign(tensor)


def encoder_weights(backbone):
    """Weights of a backbone by their names in transformers, without a scope.

    `load_hugging_face_backbone` reads them back bit for bit.

    Args:
        backbone: a keras-nlp backbone of a supported family, not pruned.

    Returns:
        dict of float32 arrays.

    Raises:
        TypeError: if the backbone is of no supported family.
    """
    family = family_of(backbone)
    collector = _WeightCollector(family, backbone.hidden_dim)
    family.convert_weights(backbone, collector, {})
    return collector.weights


class _WeightCollector:
    """Takes the place of a loader in a converter and collects what it asks for."""

    def __init__(self, family, hidden_dim):
        self._scope = family.scope
        self._hidden_dim = hidden_dim
        self._num_padding_rows = family.num_padding_positions
        self.weights = {}
        if self._num_padding_rows:
            self.weights[_SEGMENT_EMBEDDING] = np.zeros((1, hidden_dim), "float32")

    def get_tensor(self, hf_weight_key):
        """The converters of BERT and RoBERTa read some weights as arrays."""
        if hf_weight_key != _SEGMENT_EMBEDDING:
            raise KeyError(hf_weight_key)  # LayerNorm.gamma, an old name.
        # XLM-R's adds it to the positions; adding -0.0 changes no bit.
        return -self.weights[_SEGMENT_EMBEDDING]

    def port_weight(self, keras_variable, hf_weight_key, hook_fn=None):
        """Undoes what a converter does: it transposes and splits heads."""
        tensor = np.asarray(keras_variable, dtype="float32")
        key = hf_weight_key.removeprefix(self._scope)
        if key == "embeddings.position_embeddings.weight":
            tensor = np.pad(tensor, ((self._num_padding_rows, 0), (0, 0)))
        elif hook_fn is not None and key.endswith(".bias"):
            tensor = tensor.reshape(-1)
        elif hook_fn is not None:
            if tensor.ndim == 3:
                # (width, heads, channels), or the other way round
                tensor = tensor.reshape(self._hidden_dim, self._hidden_dim)
            tensor = tensor.T
        self.weights[key] = np.ascontiguousarray(tensor)


def _check_weights_file(preset):
    """Refuses a model without safetensors weights."""
    index = read_json(preset, _INDEX_FILE)
    if index is not None and not isinstance(index.get("weight_map"), dict):
        raise preset_error(preset, f"hold a weight_map in its {_INDEX_FILE}")
    if index is not None:
        check_file_names(preset, _INDEX_FILE, index["weight_map"].values())
    if index is not None or find_file(preset, _WEIGHTS_FILE):
        return
    for name in _OTHER_WEIGHTS_FILES:
        if find_file(preset, name):
            raise preset_error(
                preset,
                f"hold its weights in {_WEIGHTS_FILE}; load the model with "
                "transformers and save it again with save_pretrained",
                weights=name,
            )
    raise preset_error(preset, f"hold {_WEIGHTS_FILE}")


def _check_config(preset, config, family):
    """Refuses what the keras-nlp class would compute otherwise."""
    position_type = config.get("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise preset_error(
            preset,
            "have absolute positions in its config.json, as the keras-nlp class has",
            position_embedding_type=position_type,
        )
    if config.get("is_decoder", False):
        raise preset_error(preset, "be an encoder", is_decoder=True)
    # There the first position is the row after the one of the padding token.
    if family.num_padding_positions and config.get("pad_token_id", 1) != 1:
        raise preset_error(
            preset,
            "have pad_token_id 1 in its config.json, as the keras-nlp class has",
            pad_token_id=config["pad_token_id"],
        )


def _variant(preset, config, family):
    """The form of GELU and the epsilon that a transformers config names."""
    name = family.activation_name
    activation = config.get(name, family.transformers_gelu)
    if not isinstance(activation, str) or activation not in _GELUS:
        raise preset_error(
            preset,
            f"have a GELU as {name} in its config.json",
            **{name: activation},
        )
    # transformers' DistilBERT has no setting for it.
    epsilon = config.get(family.epsilon_name, _DEFAULT_EPSILON)
    try:
        return Variant(_GELUS[activation], epsilon)
    except (TypeError, ValueError) as error:
        raise preset_error(
            preset,
            f"have a number above 0 and below 1 as {family.epsilon_name} in its "
            "config.json",
            **{family.epsilon_name: epsilon},
        ) from error
