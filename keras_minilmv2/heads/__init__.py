"""Which heads and neurons of an encoder matter, and encoders without the others."""
