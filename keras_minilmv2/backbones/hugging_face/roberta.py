"""RoBERTa and XLM-R from transformers, with their one segment embedding.

Their keras-nlp classes have no segment embedding: its row is added to the positions,
in float32 before anything is rounded. keras-hub's converter of RoBERTa drops it.

Reads `keras_hub.src.utils.transformers.convert_*`, checked on keras-hub 0.32.
"""

from keras_hub.src.utils.transformers import convert_roberta, convert_xlm_roberta


def convert_roberta_weights(backbone, loader, config):
    """Assigns the weights that the loader finds to a `RobertaBackbone`."""
    convert_roberta.convert_weights(backbone, loader, config)
    _port_positions(backbone, loader)


def convert_xlm_roberta_weights(backbone, loader, config):
    """Assigns the weights that the loader finds to an `XLMRobertaBackbone`."""
    convert_xlm_roberta.convert_weights(backbone, loader, config)
    _port_positions(backbone, loader)


def _port_positions(backbone, loader):
    segment = loader.get_tensor("embeddings.token_type_embeddings.weight")[0]
    loader.port_weight(
        backbone.embeddings.position_embedding.position_embeddings,
        "embeddings.position_embeddings.weight",
        # The first two rows belong to the padding token.
        hook_fn=lambda positions, shape: positions[2:] + segment,
    )
