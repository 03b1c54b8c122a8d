"""Chooses the fastest configuration of a worker that gives the same results."""
