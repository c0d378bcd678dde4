"""What a tokenizer must be for its tokens to be packed, in training and in serving."""

import keras_hub

_KINDS = ("WordPieceTokenizer", "BytePairTokenizer", "SentencePieceTokenizer")


def check_packable(tokenizer):
    """Raises unless a tokenizer gives plain tokens and knows the special ones.

    Raises:
        TypeError: if it is of no supported kind, or has no start, end or pad token.
        ValueError: if it pads, truncates, adds special tokens itself, or does not
            split words.
    """
    kinds = tuple(getattr(keras_hub.tokenizers, kind) for kind in _KINDS)
    received = f"Received: tokenizer of type {type(tokenizer).__name__}."
    if not isinstance(tokenizer, kinds):
        raise TypeError(f"`tokenizer` must be one of {', '.join(_KINDS)}. {received}")
    for name in ("start_token_id", "end_token_id", "pad_token_id"):
        if getattr(tokenizer, name, None) is None:
            raise TypeError(f"`tokenizer` must have a `{name}`. {received}")
    for name in ("sequence_length", "add_bos", "add_eos"):
        if getattr(tokenizer, name, None):
            raise ValueError(
                f"`tokenizer` must not set `{name}`: packing does it. "
                f"Received: {name}={getattr(tokenizer, name)}."
            )
    if not getattr(tokenizer, "split", True):
        raise ValueError("`tokenizer` must split words. Received: split=False.")
