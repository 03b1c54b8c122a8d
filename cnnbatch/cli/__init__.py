"""The command line: what is typed, and what is said; the commands themselves are elsewhere."""
