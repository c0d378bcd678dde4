"""Encoder backbones: the only code that reads keras-nlp and Keras internals."""

# From here on keras-hub's presets keep the form of GELU and the epsilon of a model, and
# pruned ones can be read.
from keras_minilmv2.backbones import pruned, variants  # noqa: F401
