"""Pictures with the paths of their masks: what every source of masks in folders lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.sources.files.source import Files
from cnnbatch.sources.masks.listing import MaskListing
from cnnbatch.sources.masks.places import MaskPlaces
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.storage import Storage, join, redact
from cnnbatch.types import ImageRef

MASKS = "masks"
"""The column of a ref that has the paths of its masks, as JSON."""

_TRIED = 1000  # pictures without a mask, from the first on, before their names are thought to differ


@dataclass(frozen=True)
class MaskedPictures(SourceWrapper):
    """The pictures of ``source``; each ref has as JSON the paths of its masks below ``places.root``."""

    source: Files
    storage: Storage
    places: MaskPlaces
    reads_masks: ClassVar[bool] = True

    @property
    def columns(self) -> pa.Schema:
        """Those of the listing, and the masks."""
        return self.source.columns.append(pa.field(MASKS, pa.string()))

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the pictures; where none of the first thousand has a mask, that is a `UserError`."""
        masks = _Masks(self, None if after is None else after.key)
        for ref in self.source.refs(after):
            if not self.places.holds(ref.uri, ref.key):
                paths = masks.of(ref)
                yield replace(ref, columns={**ref.columns, MASKS: json.dumps(paths) if paths else None})
        masks.close()

    def masks(self, ref: ImageRef) -> list[str]:
        """Return the paths of a picture's masks below the root of masks."""
        found: list[str] = json.loads(ref.columns.get(MASKS) or "[]")
        return found


class _Masks:
    """The masks of the pictures of one listing, which begins behind the key ``after``."""

    def __init__(self, pictures: MaskedPictures, after: str | None) -> None:
        self._storage, self._places = pictures.storage, pictures.places
        self._left_out = pictures.source.left_out
        self._after = after
        self._folder = ""
        self._listing: MaskListing | None = None
        self._without, self._first = 0, ""
        self._checks = after is None

    def of(self, ref: ImageRef) -> list[str]:
        """Return the paths of a picture's masks below the root; raises UserError where none has any."""
        folder, name = self._places.folder(ref.key), self._places.name(ref.key)
        if self._listing is None or folder != self._folder:
            self._open(folder, name)
        assert self._listing is not None
        below = [join(folder, path) if folder else path for path in self._listing.of(name)]
        paths = [path for path in below if join(self._places.root, path) != ref.uri]
        self._checks = self._checks and not paths
        if self._checks:
            self._without, self._first = self._without + 1, self._first or ref.key
            if self._without == _TRIED:
                raise self._unpaired()
        return paths

    def close(self) -> None:
        """Count the masks that are left, once the pictures are at their end."""
        if self._checks and self._listing is not None:
            raise self._unpaired()
        if self._listing is not None:
            self._listing.close()

    def _open(self, folder: str, name: str) -> None:
        """Go on with another folder of masks."""
        first = name if self._listing is None and self._after is not None else None
        if self._listing is not None:
            self._listing.close()
        self._folder = folder
        self._listing = MaskListing(self._storage, self._places, folder, first, self._left_out.counts)

    def _unpaired(self) -> UserError:
        example = None if self._listing is None else self._listing.first
        there = f"there is {example!r}" if example else "there are no masks"
        return UserError(
            f"input.truth: none of the first {self._without:,} pictures has a mask below "
            f"{redact(self._places.root)}: a picture is {self._first!r}, {there}\n"
            "  what to do: give the folder in which each mask is called as its picture, but for the suffix, "
            "or say how, as in input.truth=masks/{name}_mask.png"
        )
