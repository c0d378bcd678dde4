"""Encoder backbones: the only code that reads keras-nlp and Keras internals."""
