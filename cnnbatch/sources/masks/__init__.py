"""Masks as ground truth: a class for every pixel, or one object a mask."""
