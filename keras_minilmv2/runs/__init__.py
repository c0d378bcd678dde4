"""One module a command, over one run directory, one grid and one report."""
