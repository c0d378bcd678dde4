"""Small models of answer spans and questions of one word."""

import numpy as np
from small_models import make_model

from keras_minilmv2.downstream.reader import SpanExample
from keras_minilmv2.downstream.span_model import SpanModel

SIZES = {"sequence_length": 32, "doc_stride": 8, "max_question_length": 8}
WORDS = ["quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "runs"]


def make_examples(num_examples=8, seed=0, no_answer_every=None):
    """Questions of one word, the answer to which is that word."""
    generator = np.random.default_rng(seed)
    examples = []
    for number in range(num_examples):
        words = generator.permutation(WORDS).tolist()
        asked = words[number % len(words)]
        start = " ".join(words).index(asked)
        answers = ((asked,), (start,))
        if no_answer_every and number % no_answer_every == 0:
            answers = ((), ())
        examples.append(SpanExample(str(number), asked, " ".join(words), *answers))
    return examples


def fresh(family, dtype=None, **kwargs):
    """A model whose weights no other test trains, without dropout; its tokenizer."""
    backbone, tokenizer = make_model(family, max_sequence_length=64)
    config = {**backbone.get_config(), "dropout": 0.0}
    if dtype is not None:
        config["dtype"] = dtype
    clone = type(backbone).from_config(config)
    for variable, other in zip(clone.weights, backbone.weights, strict=True):
        variable.assign(other)
    model = SpanModel(clone, **kwargs)
    kernel = np.random.default_rng(0).normal(scale=0.02, size=(clone.hidden_dim, 2))
    model.span_head.kernel.assign(kernel)
    return model, tokenizer
