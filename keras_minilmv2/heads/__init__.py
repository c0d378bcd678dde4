"""Which heads and feed-forward neurons of an encoder matter."""
