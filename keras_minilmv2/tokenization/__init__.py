"""Tokenizers: read, written, used in graphs, and with character offsets."""
