"""The merges of byte-level byte-pair encoding, and the model that applies them."""


def plain_merges(merges):
    """Merges without the version line that a file of merges starts with.

    Args:
        merges: iterable of str, `"left right"`.

    Returns:
        list of str.
    """
    return [merge for merge in merges if merge and "#version:" not in merge]


def byte_pair_model(tokenizer):
    """The `tokenizers.models.BPE` of a keras-nlp byte-pair tokenizer."""
    # Here, because shards are read with NumPy alone.
    from tokenizers import models

    merges = [tuple(merge.split(" ")) for merge in plain_merges(tokenizer.merges)]
    return models.BPE(vocab=dict(tokenizer.vocabulary), merges=merges)
