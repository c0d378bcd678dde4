"""What a model is worth: measurements on a finished student."""
