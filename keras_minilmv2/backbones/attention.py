"""Multi-head attention that gives up its projections.

Reads private attributes of Keras' `MultiHeadAttention` and of keras-nlp's
`TransformerEncoder`; checked on Keras 3.15 and keras-nlp 0.32.
"""

import keras

# The sub-layers and settings that hold all the state of a `MultiHeadAttention`.
_ADOPTED = (
    "_query_dense",
    "_key_dense",
    "_value_dense",
    "_output_dense",
    "_softmax",
    "_dropout_layer",
    "_attention_axes",
    "_dot_product_equation",
    "_combine_equation",
)


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class QKVAttention(keras.layers.MultiHeadAttention):
    """Multi-head attention whose query, key and value vectors can be read.

    Computes what `keras.layers.MultiHeadAttention` computes, with the same weights
    and arguments. `project` gives the projections alone, without attention.

    Example:

    ```python
    attention = QKVAttention(num_heads=12, key_dim=32)
    output, vectors = attention(x, x, return_projections=True)
    vectors["query"].shape  # (batch, length, 12, 32)
    ```

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828).
    """

    @classmethod
    def adopt(cls, attention):
        """Returns a layer of this class that shares `attention`'s weights.

        Args:
            attention: a built `keras.layers.MultiHeadAttention`.

        Raises:
            ValueError: if `attention` is not built.
        """
        if not attention.built:
            raise ValueError(
                "`attention` must be built before its weights can be shared. "
                f"Received: attention={attention.name!r}, built=False."
            )
        adopted = cls.from_config(attention.get_config())
        for name in _ADOPTED:
            setattr(adopted, name, getattr(attention, name))
        adopted.built = True
        return adopted

    def project(self, query, value=None, key=None):
        """Projects inputs to queries, keys and values.

        Args:
            query: `(batch, length, hidden_dim)`; symbolic or not.
            value: same layout; defaults to `query` (self-attention).
            key: same layout; defaults to `value`.

        Returns:
            dict of `"query"`, `"key"` and `"value"`, each
            `(batch, length, num_heads, head_dim)`.
        """
        value = query if value is None else value
        key = value if key is None else key
        return {
            "query": self.query_dense(query),
            "key": self.key_dense(key),
            "value": self.value_dense(value),
        }

    def call(
        self,
        query,
        value,
        key=None,
        attention_mask=None,
        return_projections=False,
        training=None,
        **kwargs,
    ):
        """Attends, and returns the projections too when asked.

        Args:
            query: `(batch, length, hidden_dim)`.
            value: same layout.
            key: same layout; defaults to `value`.
            attention_mask: bool, `(batch, length, length)`; false keeps a row from
                seeing a column.
            return_projections: bool. Also return the dict of `project`. Cannot be
                combined with the keyword arguments below.
            training: bool. Whether attention dropout acts.
            **kwargs: as for `keras.layers.MultiHeadAttention`.

        Returns:
            What `keras.layers.MultiHeadAttention` returns, or the pair of it and the
            dict of projections.
        """
        if not return_projections:
            return super().call(
                query,
                value,
                key=key,
                attention_mask=attention_mask,
                training=training,
                **kwargs,
            )
        if kwargs:
            raise ValueError(
                "`return_projections` cannot be combined with other keyword "
                f"arguments. Received: {sorted(kwargs)}."
            )
        vectors = self.project(query, value, key)
        heads, _ = self._compute_attention(
            vectors["query"],
            vectors["key"],
            vectors["value"],
            attention_mask=attention_mask,
            training=training,
        )
        return self.output_dense(heads), vectors

    def compute_output_spec(
        self, query, value, key=None, return_projections=False, **kwargs
    ):
        """Shapes and dtypes of what `call` returns."""
        outputs = super().compute_output_spec(query, value, key=key, **kwargs)
        if not return_projections:
            return outputs
        key = value if key is None else key

        def spec(x, dim):
            shape = (*x.shape[:-1], self.num_heads, dim)
            return keras.KerasTensor(shape, dtype=self.compute_dtype)

        return outputs, {
            "query": spec(query, self.key_dim),
            "key": spec(key, self.key_dim),
            "value": spec(value, self.value_dim),
        }


def attention_of(block):
    """Returns the attention layer of a keras-nlp `TransformerEncoder`."""
    return block._self_attention_layer
