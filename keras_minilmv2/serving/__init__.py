"""Models as TensorFlow Serving takes them: strings in, named outputs out."""
