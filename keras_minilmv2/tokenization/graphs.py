"""The tokenizer of a served graph: the ids of `fast_tokenizer` as TensorFlow ops."""

import keras_hub

from keras_minilmv2.tokenization.byte_pair_graph import BytePairGraph
from keras_minilmv2.tokenization.packable import check_packable
from keras_minilmv2.tokenization.sentence_piece_graph import SentencePieceGraph
from keras_minilmv2.tokenization.word_piece_graph import (
    WordPieceGraph,
    word_piece_options,
)


def graph_tokenizer(tokenizer, max_tokens):
    """Builds what tokenizes texts in a graph.

    Args:
        tokenizer: keras-nlp tokenizer, as for `fast_tokenizer`.
        max_tokens: int. How many tokens of a text are needed; the rest may be missing.

    Returns:
        `tf.Module`, a function of valid UTF-8 strings `(batch,)` to an int32
        `tf.RaggedTensor` `(batch, None)`.

    Raises:
        TypeError, ValueError: as `fast_tokenizer` does.
    """
    check_packable(tokenizer)
    if isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
        return BytePairGraph(tokenizer, max_tokens)
    if isinstance(tokenizer, keras_hub.tokenizers.WordPieceTokenizer):
        return WordPieceGraph(**word_piece_options(tokenizer))
    return SentencePieceGraph(tokenizer)
