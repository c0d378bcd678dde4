"""RoBERTa from transformers, with the segment embedding that keras-hub drops.

Reads `keras_hub.src.utils.transformers.convert_roberta`, checked on keras-hub 0.32.
"""

from keras_hub.src.utils.transformers import convert_roberta


def convert_weights(backbone, loader, config):
    """Assigns the weights that the loader finds to the backbone.

    `RobertaBackbone` has no segment embedding: its one row is added to the positions,
    as keras-hub's converter of XLM-R does.
    """
    convert_roberta.convert_weights(backbone, loader, config)
    segment = loader.get_tensor("embeddings.token_type_embeddings.weight")[0]
    loader.port_weight(
        backbone.embeddings.position_embedding.position_embeddings,
        "embeddings.position_embeddings.weight",
        # The first two rows belong to the padding token.
        hook_fn=lambda positions, shape: positions[2:] + segment,
    )
