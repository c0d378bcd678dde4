"""Multi-head attention that gives up its projections, or gates its heads.

Reads private attributes of Keras' `MultiHeadAttention` and of keras-nlp's
`TransformerEncoder`; checked on Keras 3.15 and keras-nlp 0.32.
"""

import keras
from keras import ops

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


class _AdoptingAttention(keras.layers.MultiHeadAttention):
    """`MultiHeadAttention` that can be made over another one's weights."""

    @classmethod
    def adopt(cls, attention, **kwargs):
        """Returns a layer of this class that shares `attention`'s weights.

        Args:
            attention: a built `keras.layers.MultiHeadAttention`.
            **kwargs: further constructor arguments of this class.

        Raises:
            ValueError: if `attention` is not built.
        """
        if not attention.built:
            raise ValueError(
                "`attention` must be built before its weights can be shared. "
                f"Received: attention={attention.name!r}, built=False."
            )
        adopted = cls.from_config({**attention.get_config(), **kwargs})
        for name in _ADOPTED:
            setattr(adopted, name, getattr(attention, name))
        adopted._build_own_weights()
        adopted.built = True
        return adopted

    def _build_own_weights(self):
        """Makes the weights that a plain `MultiHeadAttention` lacks."""


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class QKVAttention(_AdoptingAttention):
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


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class GatedAttention(_AdoptingAttention):
    """Multi-head attention with a gate on every head's output.

    `MHA(x) = W_o [g_1 head_1(x), ..., g_H head_H(x)] + b_o`. With all gates at 1 it
    is `keras.layers.MultiHeadAttention`; a gate of 0 removes its head.

    The gate is the weight `head_gate` of shape `(num_heads,)`, initially ones and not
    trained unless `train_gate` is set.

    Args:
        train_gate: bool. Whether `head_gate` is trained. Defaults to `False`.
        **kwargs: as for `keras.layers.MultiHeadAttention`.

    Reference:
        [Michel et al., 2019](https://arxiv.org/abs/1905.10650).
    """

    def __init__(self, *args, train_gate=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.train_gate = train_gate

    def build(self, query_shape, value_shape, key_shape=None):
        """Makes the weights of the attention and the gate."""
        super().build(query_shape, value_shape, key_shape)
        self._build_own_weights()

    def _build_own_weights(self):
        self.head_gate = self.add_weight(
            name="head_gate",
            shape=(self.num_heads,),
            initializer="ones",
            trainable=self.train_gate,
        )

    def _compute_attention(self, *args, **kwargs):
        # (batch, length, heads, head_dim)
        heads, scores = super()._compute_attention(*args, **kwargs)
        gate = ops.cast(self.head_gate, heads.dtype)
        return heads * gate[None, None, :, None], scores

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "train_gate": self.train_gate}


def attention_of(block):
    """Returns the attention layer of a keras-nlp `TransformerEncoder`."""
    return block._self_attention_layer


def replace_attention(block, attention_class, **kwargs):
    """Puts a subclass of attention into an encoder block, over the same weights.

    Args:
        block: a built keras-nlp `TransformerEncoder`. Changed in place.
        attention_class: `QKVAttention` or `GatedAttention`.
        **kwargs: further constructor arguments of `attention_class`.

    Returns:
        The new attention layer.
    """
    attention = attention_class.adopt(attention_of(block), **kwargs)
    # A built layer refuses new sub-layers; this one takes the place of an old one.
    block._tracker.unlock()
    block._self_attention_layer = attention
    block._layers = [
        layer
        for layer in block._layers
        if layer is attention or not _is_replaced(layer, attention)
    ]
    block._tracker.lock()
    return attention


def _is_replaced(layer, attention):
    """Whether `layer` is the attention whose projections `attention` took over."""
    return getattr(layer, "_query_dense", None) is attention._query_dense
