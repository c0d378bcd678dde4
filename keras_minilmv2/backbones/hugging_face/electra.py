"""ELECTRA from transformers, which keras-hub has no converter for.

`convert_weights` has the form of those in `keras_hub.src.utils.transformers`. The
attention and dense layers of `TransformerEncoder` are private: checked on keras-hub
0.32.
"""

import numpy as np


def convert_weights(backbone, loader, config):
    """Assigns the weights that the loader finds to the backbone."""

    def port(layer, name):
        """A dense layer: PyTorch has (out, in), Keras (in, out) or split heads."""
        loader.port_weight(
            layer.kernel,
            f"{name}.weight",
            hook_fn=lambda tensor, shape: np.reshape(np.transpose(tensor), shape),
        )
        loader.port_weight(
            layer.bias,
            f"{name}.bias",
            hook_fn=lambda tensor, shape: np.reshape(tensor, shape),
        )

    def port_norm(layer, name):
        loader.port_weight(layer.gamma, f"{name}.LayerNorm.weight")
        loader.port_weight(layer.beta, f"{name}.LayerNorm.bias")

    for variable, name in (
        (backbone.token_embedding.embeddings, "word_embeddings"),
        (backbone.position_embedding.position_embeddings, "position_embeddings"),
        (backbone.segment_embedding.embeddings, "token_type_embeddings"),
    ):
        loader.port_weight(variable, f"embeddings.{name}.weight")
    port_norm(backbone.embeddings_layer_norm, "embeddings")
    if backbone.embedding_dim != backbone.hidden_dim:
        port(backbone.embeddings_projection, "embeddings_project")

    for index, block in enumerate(backbone.transformer_layers):
        name = f"encoder.layer.{index}"
        attention = block._self_attention_layer
        port(attention.query_dense, f"{name}.attention.self.query")
        port(attention.key_dense, f"{name}.attention.self.key")
        port(attention.value_dense, f"{name}.attention.self.value")
        port(attention.output_dense, f"{name}.attention.output.dense")
        port_norm(block._self_attention_layer_norm, f"{name}.attention.output")
        port(block._feedforward_intermediate_dense, f"{name}.intermediate.dense")
        port(block._feedforward_output_dense, f"{name}.output.dense")
        port_norm(block._feedforward_layer_norm, f"{name}.output")
    # transformers' ELECTRA has no pooler; a converted checkpoint may.
    port(backbone.pooled_dense, "pooler.dense")
