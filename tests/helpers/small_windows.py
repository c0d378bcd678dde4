"""Questions about short contexts, and their windows."""

import functools

import numpy as np
from small_tokenizers import make_tokenizer

from keras_minilmv2.downstream.reader import SpanExample
from keras_minilmv2.downstream.windows import span_features
from keras_minilmv2.tokenization.fast import fast_tokenizer

CONTEXT = "the quick brown fox jumps over the lazy dog"


SIZES = {"sequence_length": 24, "doc_stride": 5, "max_question_length": 9}


def long_examples(seed=0, num_examples=12):
    """Contexts of other lengths, each with an answer somewhere, some without one."""
    generator = np.random.default_rng(seed)
    words = CONTEXT.split()
    examples = []
    for number in range(num_examples):
        size = int(generator.integers(1, 60))
        context = " ".join(generator.choice(words, size))
        begin = int(generator.integers(0, len(context)))
        text = context[begin : begin + int(generator.integers(1, 12))]
        answers = ((text,), (begin,))
        if number % 4 == 3:
            answers = ((), ())
        asked = " ".join(generator.choice(words, int(generator.integers(1, 9))))
        examples.append(SpanExample(str(number), asked, context, *answers))
    return examples


@functools.cache
def family_features(family):
    return span_features(make_tokenizer(family), long_examples(), **SIZES)


@functools.cache
def encode(family):
    return fast_tokenizer(make_tokenizer(family)).offsets
