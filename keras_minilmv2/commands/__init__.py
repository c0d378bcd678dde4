"""The commands, one module each: what it takes, calls and prints."""
