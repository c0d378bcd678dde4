"""Facts about a model, and the papers' settings for distilling it."""

import math
from pathlib import Path

from keras_minilmv2.backbones.families import family_of, vocabulary_size
from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.backbones.preset_files import weight_bytes
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.pruned import (
    is_pruned,
    last_layer_with_heads,
    layer_counts,
    layer_width,
)
from keras_minilmv2.utils.tables import count, megabytes


def paper_settings(backbone):
    """Teacher layer and relation heads of the paper for a teacher.

    Args:
        backbone: a keras-nlp backbone.

    Returns:
        tuple of the layer (int, from 1), the number of relation heads (int), and a str
        of where the two come from. Of a pruned teacher, the last layer with heads; 0
        relation heads where there is none.

    Reference:
        [Wang et al., 2021](https://arxiv.org/abs/2012.15828), section 4.1.
    """
    family = family_of(backbone)
    depth = len(block_calls(backbone))
    shape = depth, backbone.hidden_dim
    if family.large_teacher_layer is not None and not is_pruned(backbone):
        if shape == (12, 768):
            return 12, 48, "the paper's for this shape"
        if shape == (24, 1024):
            return family.large_teacher_layer, 64, "the paper's for this shape"
    # 64 of 1024 and 48 of 768 are both 16 channels a head; the layer is a guess.
    layer = last_layer_with_heads(backbone)
    if not layer:
        return depth, 0, "no layer has heads: nothing to distil relations of"
    heads = math.gcd(48, layer_width(backbone, layer))
    return layer, heads, "not in the paper: last layer, and 48 heads or what divides"


def model_facts(preset):
    """Loads a model and lists what it is.

    Args:
        preset: str. As for `load_backbone`.

    Returns:
        list of pairs of str, name and value.
    """
    backbone = load_backbone(preset)
    layer, heads, source = paper_settings(backbone)
    parameters = backbone.count_params()
    embedding = sum(
        math.prod(weight.shape) for weight in backbone.token_embedding.weights
    )
    size = weight_bytes(preset) if Path(preset).is_dir() else 0
    facts = [
        ("family", family_of(backbone).name),
        ("layers", f"{len(block_calls(backbone))}"),
        ("hidden_dim", f"{backbone.hidden_dim}"),
        ("num_heads", f"{backbone.num_heads}"),
        ("intermediate_dim", f"{backbone.intermediate_dim}"),
        ("vocabulary", f"{vocabulary_size(backbone):,} token ids"),
        ("positions", f"{backbone.max_sequence_length}"),
        (
            "parameters",
            f"{parameters:,} ({count(parameters)}), {count(embedding)} of them token "
            "embeddings",
        ),
        ("weights on disk", megabytes(size) if size else "not local"),
        ("float32 weights", megabytes(4 * parameters)),
        ("teacher_layer", f"{layer} ({source})"),
        ("num_relation_heads", f"{heads} ({source})"),
    ]
    if is_pruned(backbone):
        heads, neurons = (", ".join(map(str, n)) for n in layer_counts(backbone))
        facts.insert(5, ("neurons left in each layer", neurons))
        facts.insert(5, ("heads left in each layer", heads))
    if family_of(backbone).has_embedding_dim:
        facts.insert(3, ("embedding_dim", f"{backbone.embedding_dim}"))
    return facts
