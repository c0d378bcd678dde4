"""Which attention heads and neurons matter, and encoders without the others."""
