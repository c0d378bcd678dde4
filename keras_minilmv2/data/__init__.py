"""Text in, batches of packed token ids out."""
