"""Pictures in folders with the masks of objects: a file an object, or one with a number for each of them.

A file an object has it where it is not 0. In one file for all, every number but 0 is an object, unless
``input.relabel`` says of which classes its values are: then the pixels of each class are one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cnnbatch import truth
from cnnbatch.images.class_map import NONE, Numbers
from cnnbatch.sources.files.source import Files
from cnnbatch.sources.key_patterns import KeyPattern, key_pattern
from cnnbatch.sources.masks import problems
from cnnbatch.sources.masks.classes import listed_classes
from cnnbatch.sources.masks.meaning import Meaning, meaning_of
from cnnbatch.sources.masks.objects import object_of, objects_in
from cnnbatch.sources.masks.pairs import MaskedPictures
from cnnbatch.sources.masks.places import ANY_SUFFIX, MaskPlaces
from cnnbatch.sources.masks.problems import Unusable
from cnnbatch.sources.masks.reading import READERS, read_values
from cnnbatch.sources.masks.source import masked
from cnnbatch.storage import NotFound, Storage, join
from cnnbatch.truth import Class
from cnnbatch.types import ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

OBJECT = "object"
"""What an object is called where nothing says it."""

_TRIED = 8  # pictures whose masks are looked for, to see how they lie
_LAID_OUT = {".": ANY_SUFFIX, "/": "/*.png", "_": "_*.png"}  # By what follows a picture's name.


@dataclass(frozen=True)
class ObjectMasks(MaskedPictures):
    """Pictures of a listing with their objects, which are called ``label``.

    Or what the regular expression ``pattern`` finds in the path of each one's file; or, by ``meaning``, as
    the class of its pixels.
    """

    label: str = OBJECT
    pattern: KeyPattern | None = None
    meaning: Meaning | None = None
    ignored: frozenset[int] = frozenset()

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of objects, with their classes where they are known."""
        return truth.with_classes(truth.OBJECTS_SCHEMA, self._classes)

    @property
    def occurring(self) -> tuple[str, ...] | None:
        """The classes, so that nobody reads all masks to know them; None where they stand in their paths."""
        return tuple(one.name for one in self._classes) or None

    @property
    def _classes(self) -> Sequence[Class]:
        if self.pattern is not None:
            return ()
        return [Class(self.label, 1)] if self.meaning is None else self.meaning.classes

    def truth(self, shard: Shard) -> pa.Table:
        """Return the objects of each picture; null where it has no mask, or one that can't be used."""
        with ThreadPoolExecutor(READERS, "masks") as pool:
            return truth.table(pool.map(self._row, shard.refs), self.truth_schema)

    def _row(self, ref: ImageRef) -> dict[str, Any]:
        try:
            found = self._objects(self.masks(ref))
        except Unusable as problem:
            found = {"problem": problems.left_out(problem, "objects are")}
        return {"image_id": ref.key, **found} if found else {}

    def _objects(self, paths: Sequence[str]) -> dict[str, Any]:
        """Return the objects of some files, and their size; nothing of none."""
        if len(paths) > 1 and not self.places.several:
            raise problems.several(paths)
        masks = {path: values for path in paths if (values := self._values(path)) is not None}
        if not masks:
            return {}
        (height, width), *others = dict.fromkeys(values.shape for values in masks.values())
        if others:
            raise Unusable(f"its masks are of different sizes, {width} x {height} and others")
        if self.places.several:
            objects = [object_of(values != 0, self._label(path)) for path, values in masks.items()]
        else:
            objects = [one for path, values in masks.items() for one in self._numbered(path, values)]
        return {"objects": objects, "width": width, "height": height}

    def _values(self, path: str) -> Numbers | None:
        return read_values(self.storage, self.places.root, path)

    def _label(self, path: str) -> str:
        """Return the label of the object of a file."""
        if self.pattern is None:
            return self.label
        label = self.pattern.group(path)
        if label is None:
            raise Unusable(f"input.label finds no class in {path}")
        return label

    def _numbered(self, path: str, values: Numbers) -> list[dict[str, Any]]:
        """Return an object for each number of a file, or for each class."""
        if self.meaning is None:
            there = [one for one in np.unique(values).tolist() if one and one not in self.ignored]
            return objects_in(values, dict.fromkeys(there, self._label(path)))
        numbers = self.meaning.of(values)
        if unknown := [one for one in self.meaning.strange(numbers) if one]:
            raise problems.strange(path, unknown)
        return objects_in(numbers, self._labels)

    @cached_property
    def _labels(self) -> dict[int, str]:
        assert self.meaning is not None
        return {int(one.id): one.name for one in self.meaning.classes}


def open_object_masks(input: Input, storage: Storage) -> ObjectMasks:
    """Return the source of a folder of pictures and one of masks of their objects."""
    pictures, places = masked(input, storage)
    if places == MaskPlaces(places.root):
        places = laid_out(pictures, storage, places)
    listed = listed_classes(places.root, storage)
    return ObjectMasks(
        pictures,
        storage,
        places,
        label=listed[0].name if len(listed) == 1 else OBJECT,
        pattern=None if input.label is None else key_pattern(input.label, "input.label"),
        meaning=meaning_of(input, listed) if input.relabel else None,
        ignored=frozenset({NONE, *(one for one in input.ignore if isinstance(one, int))}),
    )


def laid_out(pictures: Files, storage: Storage, places: MaskPlaces) -> MaskPlaces:
    """Return how masks are called by those of the first pictures, as `_LAID_OUT` has it."""
    for ref in islice(pictures.refs(), _TRIED):
        for behind, after in _LAID_OUT.items():
            begins = join(places.root, places.name(ref.key)) + behind
            if not places.holds(ref.uri, ref.key) and _has(storage, places.root, begins):
                return replace(places, after=after)
    return places


def _has(storage: Storage, folder: str, begins: str) -> bool:
    """Say whether a folder has a file whose address begins so."""
    try:
        entry = next(storage.list(folder, begins), None)
    except NotFound:  # Which is said when it is listed.
        return False
    return entry is not None and entry.uri.startswith(begins)
