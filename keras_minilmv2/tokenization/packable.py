"""What a tokenizer must be for its tokens to be packed, in training and in serving."""


def check_packable(tokenizer):
    """Raises unless a tokenizer gives plain tokens and knows the special ones.

    Raises:
        TypeError: if it has no start, end or padding token.
        ValueError: if it pads, truncates or adds special tokens itself.
    """
    for name in ("start_token_id", "end_token_id", "pad_token_id"):
        if getattr(tokenizer, name, None) is None:
            raise TypeError(
                f"`tokenizer` must have a `{name}`. "
                f"Received: tokenizer of type {type(tokenizer).__name__}."
            )
    for name in ("sequence_length", "add_bos", "add_eos"):
        if getattr(tokenizer, name, None):
            raise ValueError(
                f"`tokenizer` must not set `{name}`: packing does it. "
                f"Received: {name}={getattr(tokenizer, name)}."
            )


def without_special_tokens_in_text(tokenizer):
    """The tokenizer, or one like it for which `"[MASK]"` in a text is plain text."""
    if not getattr(tokenizer, "special_tokens_in_strings", False):
        return tokenizer
    return type(tokenizer).from_config(
        {
            **tokenizer.get_config(),
            "vocabulary": tokenizer.get_vocabulary(),
            # get_config of keras-hub 0.32 lacks it.
            "split_on_cjk": tokenizer.split_on_cjk,
            "special_tokens_in_strings": False,
        }
    )
