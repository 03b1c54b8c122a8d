"""Reads the class of every pixel back from a row, however the job has had it written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnbatch.images.class_map import NotAMap, Numbers, from_png, from_runs
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage

MapValue = bytes | str | Sequence[Mapping[str, Any]]
"""A value of the column ``map``: a PNG file, the address of one below the output, or run lengths a class."""


def map_of(value: MapValue, storage: Storage, output_uri: str) -> Numbers:
    """Return a map (H, W) of places among the model's classes.

    Raises:
        NotAMap: the value is damaged.
        UserError: it is an address at which there is nothing.
    """
    if isinstance(value, str):
        value = Output(output_uri, storage).asset(value)
    if isinstance(value, bytes):
        return from_png(value)
    if not value:
        raise NotAMap("it has no class at all, and so no size")
    height, width = value[0]["mask"]["size"]
    return from_runs(value, (height, width))
