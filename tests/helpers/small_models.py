"""A small backbone and tokenizer of every family."""

import functools

from families import make_backbone
from small_tokenizers import make_tokenizer

TOKENIZERS = {
    "bert": "Bert",
    "distil_bert": "DistilBert",
    "electra": "Electra",
    "roberta": "Roberta",
    "xlm_roberta": "XLMRoberta",
    "albert": "Albert",
}


@functools.cache
def make_model(family, **sizes):
    """A backbone of one layer, drawn with large weights, and its tokenizer."""
    tokenizer = make_tokenizer(TOKENIZERS[family])
    argument = "vocab_size" if family == "electra" else "vocabulary_size"
    sizes = {argument: tokenizer.vocabulary_size(), "num_layers": 1, **sizes}
    return make_backbone(family, **sizes), tokenizer
