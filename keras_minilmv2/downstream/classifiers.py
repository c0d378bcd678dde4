"""keras-nlp text classifiers around an encoder of any family.

keras-hub 0.32 has none for ELECTRA: `ElectraTextClassifier` fills the gap. A preset of
one is read by `keras_hub.models.TextClassifier.from_preset` once this module has been
imported.
"""

import keras
import keras_hub

from keras_minilmv2.backbones.families import check_tokenizer, family_of
from keras_minilmv2.backbones.variants import rebuild
from keras_minilmv2.utils.seeds import set_seed


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class ElectraTextClassifierPreprocessor(keras_hub.models.TextClassifierPreprocessor):
    """Tokenizes and packs texts or pairs of texts for ELECTRA, as BERT's does."""

    backbone_cls = keras_hub.models.ElectraBackbone
    tokenizer_cls = keras_hub.models.ElectraTokenizer


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class ElectraTextClassifier(keras_hub.models.TextClassifier):
    """ELECTRA with a classification head on its first token.

    The head is that of the ELECTRA paper's code and of transformers: a dense layer
    with GELU between two dropouts, then the logits. The backbone's pooler is not used.

    Args:
        backbone: `keras_hub.models.ElectraBackbone`.
        num_classes: int.
        preprocessor: `ElectraTextClassifierPreprocessor`, or None.
        activation: str or callable. Activation of the outputs.
        dropout: float.
    """

    backbone_cls = keras_hub.models.ElectraBackbone
    preprocessor_cls = ElectraTextClassifierPreprocessor

    def __init__(
        self,
        backbone,
        num_classes,
        preprocessor=None,
        activation=None,
        dropout=0.1,
        **kwargs,
    ):
        self.backbone = backbone
        self.preprocessor = preprocessor
        dtype = backbone.dtype_policy
        self.input_dropout = keras.layers.Dropout(
            dropout, dtype=dtype, name="input_dropout"
        )
        self.hidden_dense = keras.layers.Dense(
            backbone.hidden_dim,
            activation="gelu",
            kernel_initializer=_initializer(),
            dtype=dtype,
            name="hidden_dense",
        )
        self.output_dropout = keras.layers.Dropout(
            dropout, dtype=dtype, name="output_dropout"
        )
        self.output_dense = keras.layers.Dense(
            num_classes,
            activation=activation,
            kernel_initializer=_initializer(),
            dtype=dtype,
            name="logits",
        )
        inputs = backbone.input
        x = backbone(inputs)["sequence_output"][:, 0, :]
        x = self.hidden_dense(self.input_dropout(x))
        outputs = self.output_dense(self.output_dropout(x))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.num_classes = num_classes
        self.activation = keras.activations.get(activation)
        self.dropout = dropout

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
        }


CLASSIFIERS = {
    classifier.backbone_cls: classifier
    for classifier in (
        keras_hub.models.BertTextClassifier,
        keras_hub.models.RobertaTextClassifier,
        keras_hub.models.XLMRobertaTextClassifier,
        keras_hub.models.AlbertTextClassifier,
        keras_hub.models.DistilBertTextClassifier,
        ElectraTextClassifier,
    )
}


def text_preprocessor(backbone, tokenizer, sequence_length):
    """Builds the preprocessor that tokenizes and packs texts for a classifier.

    Args:
        backbone: a keras-nlp backbone.
        tokenizer: its keras-nlp tokenizer.
        sequence_length: int, tokens. Longer texts are truncated, a pair in turns.

    Returns:
        A `keras_hub.models.TextClassifierPreprocessor` of the backbone's family.

    Raises:
        TypeError: if the tokenizer is not of the backbone's family.
        ValueError: if it has more ids than the backbone has embeddings, or the
            sequence length is below 8 or beyond the backbone's position table.
    """
    family = family_of(backbone)
    backbone_class = family.backbone_class
    # Multilingual MiniLM and E5 are BERT encoders with XLM-R's vocabulary.
    if backbone_class is keras_hub.models.BertBackbone and isinstance(
        tokenizer, keras_hub.models.XLMRobertaTokenizer
    ):
        backbone_class = keras_hub.models.XLMRobertaBackbone
    elif not isinstance(tokenizer, family.tokenizer_class):
        raise TypeError(
            f"`tokenizer` must be a {family.tokenizer_class.__name__} for a "
            f"{family.name} backbone. Received: tokenizer of type "
            f"{type(tokenizer).__name__}."
        )
    check_tokenizer(backbone, tokenizer)
    if not 8 <= sequence_length <= backbone.max_sequence_length:
        raise ValueError(
            "`sequence_length` must be at least 8 and not beyond the position table "
            f"of the model. Received: sequence_length={sequence_length}, "
            f"max_sequence_length={backbone.max_sequence_length}."
        )
    preprocessor_class = CLASSIFIERS[backbone_class].preprocessor_cls
    return preprocessor_class(tokenizer, sequence_length=sequence_length)


def text_classifier(backbone, num_outputs, seed, dtype=None):
    """Puts a new classification head on a copy of an encoder.

    Args:
        backbone: a keras-nlp backbone. It is not changed.
        num_outputs: int. Classes, or 1 for regression.
        seed: int. The head's weights and all dropout depend on it alone.
        dtype: dtype policy. Defaults to the backbone's.

    Returns:
        A `keras_hub.models.TextClassifier` without a preprocessor: its inputs are
        token ids, its outputs logits `(batch, num_outputs)`.
    """
    family = family_of(backbone)
    set_seed(seed)
    copy = rebuild(backbone, dtype, trainable=True)
    copy.set_weights(backbone.get_weights())
    classifier_class = CLASSIFIERS[family.backbone_class]
    return classifier_class(copy, num_classes=num_outputs, preprocessor=None)


def _initializer():
    return keras.initializers.TruncatedNormal(stddev=0.02)
