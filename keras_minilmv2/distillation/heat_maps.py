"""Heat maps of one relation, for several encoders beside each other."""

import numpy as np
from keras import ops
from matplotlib.figure import Figure

from keras_minilmv2.backbones.families import zero_segment_ids
from keras_minilmv2.backbones.projections import block_calls, qkv_model
from keras_minilmv2.distillation.relations import (
    PROJECTION_OF_LETTER,
    relation_log_probs,
    split_relation_heads,
)
from keras_minilmv2.tokenization.fast import fast_tokenizer

_MOST_TOKENS = 32


def relation_heat_maps(
    encoders, tokenizer, text, num_relation_heads, pair="qq", relation_head=0
):
    """Draws one relation of one text, for several encoders beside each other.

    Args:
        encoders: dict by title of tuples of a keras-nlp backbone and its layer, from
            1; None is its last one.
        tokenizer: the keras-nlp tokenizer of all of them.
        text: str. Its first 32 tokens are shown.
        num_relation_heads: int.
        pair: str, two letters of q, k and v.
        relation_head: int, from 0.

    Returns:
        `matplotlib.figure.Figure`. Rows and columns are tokens; a row is a
        distribution over the columns.
    """
    ids = fast_tokenizer(tokenizer).ids([text])[0].tolist()[: _MOST_TOKENS - 2]
    ids = [tokenizer.start_token_id, *ids, tokenizer.end_token_id]
    tokens = [tokenizer.id_to_token(token_id) for token_id in ids]
    token_ids = ops.convert_to_tensor([ids], "int32")
    inputs = {"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids)}
    relations = {}
    for title, (backbone, layer) in encoders.items():
        model = qkv_model(backbone, layer or len(block_calls(backbone)))
        vectors = model(zero_segment_ids(backbone, inputs), training=False)
        left, right = (
            split_relation_heads(
                vectors[PROJECTION_OF_LETTER[letter]], num_relation_heads
            )
            for letter in pair
        )
        log_probs = relation_log_probs(left, right, inputs["padding_mask"])
        relations[title] = np.exp(ops.convert_to_numpy(log_probs))[0, relation_head]
    figure = Figure(figsize=(5 * len(encoders), 5), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(encoders), squeeze=False)[0]
    # One scale, so that colours compare.
    largest = max(relation.max() for relation in relations.values())
    for ax, (title, relation) in zip(axes, relations.items(), strict=True):
        image = ax.imshow(relation, cmap="viridis", vmin=0, vmax=largest)
        ax.set_title(title)
        ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        ax.set_yticks(range(len(tokens)), tokens, fontsize=7)
    figure.colorbar(image, ax=list(axes), shrink=0.7)
    figure.suptitle(
        f"{'-'.join(pair.upper())} relation, head {relation_head} of "
        f"{num_relation_heads}"
    )
    return figure
