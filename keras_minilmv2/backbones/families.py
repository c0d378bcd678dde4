"""What differs between the supported encoder families, one record each."""

from dataclasses import dataclass

import keras
import keras_hub


@dataclass(frozen=True)
class Family:
    """One encoder family as keras-nlp implements it.

    Args:
        name: str. The name used in messages and reports.
        model_type: str. `model_type` in a Hugging Face `config.json`.
        backbone_class: the keras-nlp backbone class.
        tokenizer_class: the keras-nlp tokenizer class.
        large_teacher_layer: int. The layer of a 24-layer teacher that the paper
            distils, or None where the paper has no such teacher.
    """

    name: str
    model_type: str
    backbone_class: type
    tokenizer_class: type
    large_teacher_layer: int | None = None


# The subclass XLM-R stands before its base class RoBERTa: the first match wins.
FAMILIES = (
    Family(
        name="BERT",
        model_type="bert",
        backbone_class=keras_hub.models.BertBackbone,
        tokenizer_class=keras_hub.models.BertTokenizer,
        large_teacher_layer=21,
    ),
    Family(
        name="XLM-R",
        model_type="xlm-roberta",
        backbone_class=keras_hub.models.XLMRobertaBackbone,
        tokenizer_class=keras_hub.models.XLMRobertaTokenizer,
        large_teacher_layer=19,
    ),
    Family(
        name="RoBERTa",
        model_type="roberta",
        backbone_class=keras_hub.models.RobertaBackbone,
        tokenizer_class=keras_hub.models.RobertaTokenizer,
        large_teacher_layer=19,
    ),
    Family(
        name="ALBERT",
        model_type="albert",
        backbone_class=keras_hub.models.AlbertBackbone,
        tokenizer_class=keras_hub.models.AlbertTokenizer,
    ),
    Family(
        name="DistilBERT",
        model_type="distilbert",
        backbone_class=keras_hub.models.DistilBertBackbone,
        tokenizer_class=keras_hub.models.DistilBertTokenizer,
    ),
    Family(
        name="ELECTRA",
        model_type="electra",
        backbone_class=keras_hub.models.ElectraBackbone,
        tokenizer_class=keras_hub.models.ElectraTokenizer,
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


def vocabulary_size(backbone):
    """Number of rows of the token embedding."""
    # ELECTRA alone calls the argument `vocab_size`.
    return getattr(backbone, "vocabulary_size", None) or backbone.vocab_size


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
        zeros = keras.ops.zeros_like(inputs["token_ids"])
        return {**inputs, "segment_ids": zeros}
    return inputs
