"""Tasks that encoders are fine-tuned on, and their metrics."""
