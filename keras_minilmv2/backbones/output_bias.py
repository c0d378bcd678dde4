"""What is left of attention without heads, and of a feed-forward without neurons."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class OutputBias(keras.layers.Layer):
    """The output bias of attention without heads or of a layer without inputs.

    Takes the place of a `keras.layers.MultiHeadAttention` or of a
    `keras.layers.Dense`: a kernel without rows has a zero-sized dimension, which not
    every runtime takes.

    Args:
        **kwargs: as for `keras.layers.Layer`.

    Call arguments:
        query: float, `(..., hidden_dim)`. Only its shape counts.
        value, key, attention_mask: ignored.
        return_attention_scores: bool. Whether scores without heads, shape
            `(batch, 0, length, length)`, are returned too.

    Returns:
        Tensor shaped as `query`, in every row the bias.
    """

    def build(self, query_shape, value_shape=None, key_shape=None):
        """Makes the bias."""
        self.bias = self.add_weight(
            name="bias", shape=(query_shape[-1],), initializer="zeros"
        )

    def call(
        self,
        query,
        value=None,
        key=None,
        attention_mask=None,
        return_attention_scores=False,
    ):
        """Gives the bias."""
        output = ops.broadcast_to(
            ops.cast(self.bias, self.compute_dtype), ops.shape(query)
        )
        if not return_attention_scores:
            return output
        batch, length = ops.shape(query)[:2]
        return output, ops.zeros((batch, 0, length, length), self.compute_dtype)

    def compute_output_spec(
        self,
        query,
        value=None,
        key=None,
        attention_mask=None,
        return_attention_scores=False,
    ):
        """Shapes and dtype of what `call` returns."""
        output = keras.KerasTensor(query.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        batch, length = query.shape[:2]
        scores = (batch, 0, length, length)
        return output, keras.KerasTensor(scores, dtype=self.compute_dtype)
