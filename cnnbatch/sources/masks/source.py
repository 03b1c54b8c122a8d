"""Pictures in folders with a mask each: a PNG file with a class for every pixel.

The listing pairs pictures and masks by their names; the workers read the masks of their shard, many at once,
so that a set of any size is not held. What is wrong with a mask is said in its row of the ground truth.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.sources.files import patterns
from cnnbatch.sources.files.source import Files
from cnnbatch.sources.files.splits import folders_in
from cnnbatch.sources.masks.classes import listed_classes
from cnnbatch.sources.masks.meaning import Meaning, meaning_of
from cnnbatch.sources.masks.pairs import MaskedPictures
from cnnbatch.sources.masks.places import ANNOT, MaskPlaces, places_of
from cnnbatch.sources.masks.problems import left_out, several
from cnnbatch.sources.masks.reading import READERS, map_row
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.types import ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Input


@dataclass(frozen=True)
class Masks(MaskedPictures):
    """Pictures of a listing with their maps; what the values of masks mean is the same in all."""

    meaning: Meaning

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of maps, with their classes."""
        return self.meaning.schema

    def truth(self, shard: Shard) -> pa.Table:
        """Return the map of each picture; null where it has no mask, or one that can't be used."""
        with ThreadPoolExecutor(READERS, "masks") as pool:
            return truth.table(pool.map(self._row, shard.refs), self.truth_schema)

    def _row(self, ref: ImageRef) -> dict[str, Any]:
        paths = self.masks(ref)
        if len(paths) > 1:
            return {"image_id": ref.key, "problem": left_out(several(paths))}
        row = map_row(self.storage, self.places.root, paths[0], self.meaning) if paths else {}
        return {"image_id": ref.key, **row} if row else {}


def open_masks(input: Input, storage: Storage) -> Masks:
    """Return the source of pictures and masks in two folders, or laid out as in SegNet's tutorial."""
    pictures, places = masked(input, storage)
    return Masks(pictures, storage, places, meaning_of(input, listed_classes(places.root, storage)))


def masked(input: Input, storage: Storage) -> tuple[Files, MaskPlaces]:
    """Return the listing of a job's pictures, and where their masks lie.

    Raises UserError where the job does not say it.
    """
    if not isinstance(input.url, str):
        raise UserError(
            f"input.url: with masks one address was expected, got {len(input.url)}\n"
            "  what to do: give the folder of the pictures, and that of their masks as input.truth"
        )
    pictures = Files(storage, (input.url,), suffixes=frozenset(input.suffixes) or None)
    if input.truth is not None:
        return pictures, places_of(normalize(input.truth))
    root = patterns.split(normalize(input.url), storage)[0]
    if not has_mask_folders(root, storage):
        raise UserError(
            f"input.truth: it is not said where the masks of the pictures in {redact(root)} lie\n"
            "  what to do: give their folder, as in input=images input.truth=masks; without it, a folder "
            "train has its masks in trainannot beside it"
        )
    return pictures, MaskPlaces(root, beside=True)


def has_mask_folders(root: str, storage: Storage) -> bool:
    """Say whether folders below ``root`` have one of masks beside them, as SegNet's tutorial has CamVid."""
    names = set(folders_in(root, storage))
    return any(f"{name}{ANNOT}" in names for name in names)
