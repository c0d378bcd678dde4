"""SentencePiece tokenization as a graph of TensorFlow ops."""

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

SPACE = "\u2581".encode()

# White space that SentencePiece leaves alone, and at which transformers splits.
_NEXT_LINE = "\x85"


class SentencePieceGraph(tf.Module):
    """Tokens of texts as a SentencePiece model cuts them.

    Args:
        tokenizer: a keras-nlp SentencePiece tokenizer.

    Call arguments:
        texts: string `(batch,)`, valid UTF-8.

    Returns:
        int32 `tf.RaggedTensor` `(batch, None)`.
    """

    def __init__(self, tokenizer):
        super().__init__()
        self.model = tf_text.SentencepieceTokenizer(
            model=tokenizer.proto, out_type=tf.int32
        )
        self.pieces = self.model.id_to_string(tf.range(self.model.vocab_size())).numpy()
        # XLM-R's ids are not those of its model.
        self.token_ids = np.array(
            [tokenizer.token_to_id(piece) for piece in self.pieces], "int32"
        )

    def __call__(self, texts):
        """The tokens of a batch of texts."""
        tokens = self.model.tokenize(self.cleaned(texts))
        return tokens.with_flat_values(tf.gather(self.token_ids, tokens.flat_values))

    def cleaned(self, texts):
        """The texts as the model reads them, each character in its place."""
        return tf.strings.regex_replace(texts, _NEXT_LINE, " ")
