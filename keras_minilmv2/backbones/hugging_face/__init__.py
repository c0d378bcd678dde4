"""Encoders as Hugging Face transformers saves them, both ways."""
