"""Small models of every kind, exported."""

import json

import keras_hub
import numpy as np
from families import make_backbone
from small_tokenizers import make_tokenizer

from keras_minilmv2.serving.saved_model import export_saved_model

# A backbone and a tokenizer for each kind of tokenizer.
KINDS = {
    "word_piece": ("bert", "Bert"),
    "byte_pair": ("roberta", "Roberta"),
    "sentence_piece": ("xlm_roberta", "XLMRoberta"),
}
LENGTH = 16


def small_backbone(name, vocabulary_size=400, **sizes):
    size = "vocab_size" if name.startswith("electra") else "vocabulary_size"
    return make_backbone(name, **{size: vocabulary_size, "num_layers": 1, **sizes})


def small_classifier(num_classes, **kwargs):
    classifier = keras_hub.models.BertTextClassifier(
        small_backbone("bert"), num_classes, **kwargs
    )
    generator = np.random.default_rng(1)
    for variable in classifier.output_dense.variables:
        variable.assign(generator.normal(size=variable.shape))
    return classifier


def small_export(directory, kind, **kwargs):
    backbone, family = KINDS[kind]
    return export_saved_model(
        small_backbone(backbone),
        make_tokenizer(family, **({"lowercase": True} if family == "Bert" else {})),
        directory,
        **{"sequence_length": LENGTH, **kwargs},
    )


def manifest_of(version):
    return json.loads((version / "manifest.json").read_text(encoding="utf-8"))
