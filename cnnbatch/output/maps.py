"""Reads the class of every pixel back from a row, however the job has had it written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnbatch.images.class_map import NotAMap, Numbers, from_png, from_runs
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage

MapValue = bytes | str | Sequence[Mapping[str, Any]]
"""A value of the column ``map``: a PNG file, the address of one below the output, or run lengths a class."""


def map_of(
    value: MapValue, storage: Storage, output_uri: str, size: tuple[int, int] | None = None
) -> Numbers:
    """Return a map (H, W) of places among the model's classes; `class_map.NONE` where no class is.

    ``size`` is the row's (height, width), by which run lengths are checked; without it, it is theirs.

    Raises:
        NotAMap: the value is damaged, or run lengths of no class whose size is not given.
        UserError: it is an address at which there is nothing.
    """
    if isinstance(value, str):
        value = Output(output_uri, storage).asset(value)
    return decoded(value, size)


def decoded(value: bytes | Sequence[Mapping[str, Any]], size: tuple[int, int] | None = None) -> Numbers:
    """Return the map of a PNG file or of run lengths, as `map_of` does."""
    if isinstance(value, bytes):
        return from_png(value)
    if size is None:
        if not value:
            raise NotAMap("its run lengths are of no class, so its size has to be given")
        height, width = value[0]["mask"]["size"]
        size = height, width
    return from_runs(value, size)
