"""What differs between the supported encoder families, one record each.

Reads the modules `keras_hub.src.utils.transformers.convert_*`, checked on keras-hub
0.32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import keras
import keras_hub
import numpy as np
from keras_hub.src.utils.transformers import (
    convert_albert,
    convert_bert,
    convert_distilbert,
)

from keras_minilmv2.backbones.hugging_face import electra, roberta

# A backbone's sizes by their names in a config.json of transformers.
_SIZE_NAMES = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
}
_SEGMENTS = {"num_segments": "type_vocab_size"}
_NARROW_EMBEDDING = {"embedding_dim": "embedding_size"}
_ROBERTA_HEAD = {
    "classifier.dense": "pooled_dense",
    "classifier.out_proj": "output_dense",
}

_ROBERTA_MASKED_LM = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One encoder family as keras-nlp implements it and transformers names it.

    Args:
        name: str. The name used in messages and reports.
        backbone_class: the keras-nlp backbone class.
        tokenizer_class: the keras-nlp tokenizer class.
        masked_lm_class: the keras-nlp model with a head for masked tokens, or None.
        masked_lm_gelu: str. The GELU of that head, named as `gelu` is.
        masked_lm_names: tuple of str. In transformers, the names of that head's dense
            layer, layer normalization and output bias.
        vocabulary_argument: str. What the backbone class calls its vocabulary size.
        has_segments: bool. Whether the backbone has a segment embedding and reads
            `segment_ids`.
        has_pooler: bool. Whether the backbone has `pooled_dense`.
        has_embedding_dim: bool. Whether the token embedding has a width of its own.
        always_projects_embeddings: bool. Whether a matrix stands between embeddings
            and blocks even where the two are equally wide.
        shares_blocks: bool. Whether layers of a group share one block's weights.
        num_padding_positions: int. Rows of transformers' position table that belong
            to the padding token, which keras-nlp does without.
        num_separators: int. End tokens between the two texts of a pair.
        second_segment: int. Segment id of the second text of a pair.
        large_teacher_layer: int. The layer of a 24-layer teacher that the paper
            distils, or None where the paper has no such teacher.
        gelu: str. The GELU that the backbone class computes, as transformers names
            it: `"gelu"` with erf, `"gelu_pytorch_tanh"` with tanh.
        layer_norm_epsilon: float. Of the backbone class.
        model_type: str. `model_type` in a `config.json` of transformers.
        transformers_gelu: str. The activation of a `config.json` that names none.
        transformers_prefix: str. What the names of transformers' classes start with.
        scope: str. What stands before an encoder's weights in a model with a head.
        convert_weights: function that assigns a loader's weights to a backbone.
        size_names: dict of str. Names in a `config.json` of the backbone's sizes, by
            the names of its arguments.
        config_constants: dict. What further stands in every `config.json`.
        activation_name: str. Name of the activation in a `config.json`.
        epsilon_name: str or None. The same of the epsilon of layer normalizations.
        dropout_name: str. The same of the dropout rate.
        attention_dropout_name: str. The same of the attention's dropout rate.
        classifier_dropout_name: str. The same of a classifier's dropout rate.
        classifier_layers: dict of str. A keras-nlp classifier's dense layers by their
            names in transformers.
        states_end_tokens: bool. Whether a `config.json` names start and end token.
        transformers_has_pooler: bool. Whether transformers' encoder class has one.
    """

    name: str
    backbone_class: type
    tokenizer_class: type
    masked_lm_class: type | None
    masked_lm_gelu: str = "gelu"
    masked_lm_names: tuple[str, str, str] | None = None
    vocabulary_argument: str = "vocabulary_size"
    has_segments: bool = False
    has_pooler: bool = False
    has_embedding_dim: bool = False
    always_projects_embeddings: bool = False
    shares_blocks: bool = False
    num_padding_positions: int = 0
    num_separators: int = 1
    second_segment: int = 1
    large_teacher_layer: int | None = None
    gelu: str = "gelu"
    layer_norm_epsilon: float = 1e-12
    model_type: str
    transformers_gelu: str = "gelu"
    transformers_prefix: str
    scope: str
    convert_weights: Callable
    size_names: Mapping[str, str]
    config_constants: Mapping = field(default_factory=dict)
    activation_name: str = "hidden_act"
    epsilon_name: str | None = "layer_norm_eps"
    dropout_name: str = "hidden_dropout_prob"
    attention_dropout_name: str = "attention_probs_dropout_prob"
    classifier_dropout_name: str = "classifier_dropout"
    classifier_layers: Mapping[str, str]
    states_end_tokens: bool = False
    transformers_has_pooler: bool = True


# The subclass XLM-R stands before its base class RoBERTa: the first match wins.
FAMILIES = (
    Family(
        name="BERT",
        backbone_class=keras_hub.models.BertBackbone,
        tokenizer_class=keras_hub.models.BertTokenizer,
        masked_lm_class=keras_hub.models.BertMaskedLM,
        masked_lm_names=(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
        ),
        has_segments=True,
        has_pooler=True,
        large_teacher_layer=21,
        gelu="gelu_pytorch_tanh",
        model_type="bert",
        transformers_prefix="Bert",
        scope="bert.",
        convert_weights=convert_bert.convert_weights,
        size_names={**_SIZE_NAMES, **_SEGMENTS},
        classifier_layers={"classifier": "output_dense"},
    ),
    Family(
        name="XLM-R",
        backbone_class=keras_hub.models.XLMRobertaBackbone,
        tokenizer_class=keras_hub.models.XLMRobertaTokenizer,
        masked_lm_class=keras_hub.models.XLMRobertaMaskedLM,
        masked_lm_names=_ROBERTA_MASKED_LM,
        num_padding_positions=2,
        num_separators=2,
        second_segment=0,
        large_teacher_layer=19,
        layer_norm_epsilon=1e-5,
        model_type="xlm-roberta",
        transformers_prefix="XLMRoberta",
        scope="roberta.",
        convert_weights=roberta.convert_xlm_roberta_weights,
        size_names=_SIZE_NAMES,
        config_constants={"type_vocab_size": 1},
        classifier_layers=_ROBERTA_HEAD,
        states_end_tokens=True,
    ),
    Family(
        name="RoBERTa",
        backbone_class=keras_hub.models.RobertaBackbone,
        tokenizer_class=keras_hub.models.RobertaTokenizer,
        masked_lm_class=keras_hub.models.RobertaMaskedLM,
        masked_lm_names=_ROBERTA_MASKED_LM,
        num_padding_positions=2,
        num_separators=2,
        second_segment=0,
        large_teacher_layer=19,
        layer_norm_epsilon=1e-5,
        model_type="roberta",
        transformers_prefix="Roberta",
        scope="roberta.",
        convert_weights=roberta.convert_roberta_weights,
        size_names=_SIZE_NAMES,
        config_constants={"type_vocab_size": 1},
        classifier_layers=_ROBERTA_HEAD,
        states_end_tokens=True,
    ),
    Family(
        name="ALBERT",
        backbone_class=keras_hub.models.AlbertBackbone,
        tokenizer_class=keras_hub.models.AlbertTokenizer,
        masked_lm_class=keras_hub.models.AlbertMaskedLM,
        masked_lm_gelu="gelu_pytorch_tanh",
        masked_lm_names=(
            "predictions.dense",
            "predictions.LayerNorm",
            "predictions.bias",
        ),
        has_segments=True,
        has_pooler=True,
        has_embedding_dim=True,
        always_projects_embeddings=True,
        shares_blocks=True,
        gelu="gelu_pytorch_tanh",
        model_type="albert",
        transformers_gelu="gelu_new",
        transformers_prefix="Albert",
        scope="albert.",
        convert_weights=convert_albert.convert_weights,
        size_names={
            **_SIZE_NAMES,
            **_SEGMENTS,
            **_NARROW_EMBEDDING,
            "num_groups": "num_hidden_groups",
            "num_inner_repetitions": "inner_group_num",
        },
        classifier_dropout_name="classifier_dropout_prob",
        classifier_layers={"classifier": "output_dense"},
        states_end_tokens=True,
    ),
    Family(
        name="DistilBERT",
        backbone_class=keras_hub.models.DistilBertBackbone,
        tokenizer_class=keras_hub.models.DistilBertTokenizer,
        masked_lm_class=keras_hub.models.DistilBertMaskedLM,
        masked_lm_names=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        model_type="distilbert",
        transformers_prefix="DistilBert",
        scope="distilbert.",
        convert_weights=convert_distilbert.convert_weights,
        size_names={
            "vocabulary_size": "vocab_size",
            "num_layers": "n_layers",
            "num_heads": "n_heads",
            "hidden_dim": "dim",
            "intermediate_dim": "hidden_dim",
            "max_sequence_length": "max_position_embeddings",
        },
        config_constants={"sinusoidal_pos_embds": False},
        activation_name="activation",
        epsilon_name=None,
        dropout_name="dropout",
        attention_dropout_name="attention_dropout",
        classifier_dropout_name="seq_classif_dropout",
        classifier_layers={
            "pre_classifier": "pooled_dense",
            "classifier": "output_dense",
        },
        transformers_has_pooler=False,
    ),
    Family(
        name="ELECTRA",
        backbone_class=keras_hub.models.ElectraBackbone,
        tokenizer_class=keras_hub.models.ElectraTokenizer,
        masked_lm_class=None,
        vocabulary_argument="vocab_size",
        has_segments=True,
        has_pooler=True,
        has_embedding_dim=True,
        gelu="gelu_pytorch_tanh",
        model_type="electra",
        transformers_prefix="Electra",
        scope="electra.",
        convert_weights=electra.convert_weights,
        size_names={**_SIZE_NAMES, **_SEGMENTS, **_NARROW_EMBEDDING},
        classifier_layers={
            "classifier.dense": "hidden_dense",
            "classifier.out_proj": "output_dense",
        },
        transformers_has_pooler=False,
    ),
)


def family_of(backbone):
    """Returns the `Family` of a keras-nlp backbone.

    Raises:
        TypeError: if the backbone is of no supported family.
    """
    for family in FAMILIES:
        if isinstance(backbone, family.backbone_class):
            return family
    known = ", ".join(family.backbone_class.__name__ for family in FAMILIES)
    raise TypeError(
        f"`backbone` must be one of {known}. "
        f"Received: backbone of type {type(backbone).__name__}."
    )


def family_named(name):
    """Returns the `Family` of a name.

    Raises:
        ValueError: if no family has it.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"`family` must be one of {known}. Received: family={name!r}.")


def tokenizer_family(tokenizer):
    """Returns the `Family` whose form a keras-nlp tokenizer's pairs of texts have.

    It need not be the backbone's: the multilingual MiniLMs are BERT encoders with
    XLM-R's vocabulary.

    Raises:
        TypeError: if the tokenizer is of no supported family.
    """
    for family in FAMILIES:
        if isinstance(tokenizer, family.tokenizer_class):
            return family
    *most, last = (family.name for family in FAMILIES)
    raise TypeError(
        f"`tokenizer` must be a tokenizer of {', '.join(most)} or {last}. "
        f"Received: tokenizer of type {type(tokenizer).__name__}."
    )


def vocabulary_size(backbone):
    """Number of rows of the token embedding."""
    return getattr(backbone, family_of(backbone).vocabulary_argument)


def uses_segment_ids(backbone):
    """Whether the backbone has a `segment_ids` input."""
    return "segment_ids" in backbone.input


def check_tokenizer(backbone, tokenizer):
    """Raises unless every id of the tokenizer has a row in the token embedding.

    Raises:
        ValueError: if the tokenizer has more ids than the embedding has rows.
    """
    rows = vocabulary_size(backbone)
    # More rows than ids is common: tables are padded, XLM-R's has spare rows.
    if tokenizer.vocabulary_size() > rows:
        raise ValueError(
            "`tokenizer` must not have more token ids than the backbone has "
            f"embeddings. Received: tokenizer with {tokenizer.vocabulary_size()} ids, "
            f"backbone with {rows} embeddings."
        )


def zero_segment_ids(backbone, inputs):
    """Adds the `segment_ids` of one-segment text where the backbone reads them."""
    if uses_segment_ids(backbone) and "segment_ids" not in inputs:
        token_ids = inputs["token_ids"]
        # Keras refuses arrays and tensors beside each other.
        zeros = np if isinstance(token_ids, np.ndarray) else keras.ops
        return {**inputs, "segment_ids": zeros.zeros_like(token_ids)}
    return inputs
