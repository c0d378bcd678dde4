"""MiniLMv2 self-attention relation distillation for Keras 3."""

from keras_minilmv2.version import __version__

__all__ = ["__version__"]
