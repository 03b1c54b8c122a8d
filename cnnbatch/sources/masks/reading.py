"""Reads masks for rows of the ground truth, and says what is wrong with one."""

from __future__ import annotations

from typing import Any

from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.images.class_map import NotAMap, Numbers
from cnnbatch.sources.masks import problems
from cnnbatch.sources.masks.meaning import Meaning
from cnnbatch.sources.masks.problems import Unusable
from cnnbatch.storage import Forbidden, NotFound, Storage, TooLarge, Unreadable, join, redact

READERS = 16
"""Masks that are read at once."""

_MOST_BYTES = 512 << 20


def map_row(storage: Storage, root: str, path: str, meaning: Meaning) -> dict[str, Any]:
    """Return ``map``, ``width`` and ``height`` of the mask at a path below ``root``, or its ``problem``.

    Nothing where there is no such file. Raises UserError for one that can't be read.
    """
    data = mask_bytes(storage, root, path)
    if data is None:
        return {}
    try:
        values = values_of(data, path)
        numbers = known_numbers(values, meaning, path)
    except Unusable as problem:
        return {"problem": problems.left_out(problem)}
    height, width = numbers.shape
    return {"map": data if numbers is values else png(numbers), "width": width, "height": height}


def read_values(storage: Storage, root: str, path: str) -> Numbers | None:
    """Return the values (H, W) of a mask; None where there is no such file. Raises Unusable for no mask."""
    data = mask_bytes(storage, root, path)
    return None if data is None else values_of(data, path)


def values_of(data: bytes, path: str) -> Numbers:
    """Return the values (H, W) of a mask's file; raises Unusable for one that is no mask."""
    try:
        return class_map.from_png(data)
    except NotAMap as error:
        raise Unusable(f"its mask {path}: {error}") from None


def known_numbers(values: Numbers, meaning: Meaning, path: str) -> Numbers:
    """Return the map of a mask's values; raises Unusable where some have no class."""
    numbers = meaning.of(values)
    if unknown := meaning.strange(numbers):
        raise problems.strange(path, unknown)
    return numbers


def png(numbers: Numbers) -> bytes:
    """Return a map as a PNG file, made quickly: it is read again soon."""
    return class_map.png(numbers, compress_level=1)


def mask_bytes(storage: Storage, root: str, path: str) -> bytes | None:
    """Return a file of masks; None where there is none. Raises UserError for one that can't be read."""
    uri = join(root, path)
    try:
        return storage.read(uri, limit=_MOST_BYTES)
    except NotFound:
        return None
    except (Forbidden, Unreadable, TooLarge) as error:
        raise UserError(
            f"{redact(uri)} cannot be read: {error}\n  what to do: mend or remove the file"
        ) from None
