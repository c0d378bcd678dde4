"""`python -m keras_minilmv2`."""

from keras_minilmv2.cli import run

run()
