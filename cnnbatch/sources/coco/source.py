"""COCO's JSON: either the collection itself, or the truth of a folder (``input.truth``).

What the file says of an image travels with its ref, as JSON, so that it is parsed once for the whole
job; the price is that a plan page holds it, too.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.sources.containers import opened
from cnnbatch.sources.files import globs
from cnnbatch.sources.files.cursor import ListingCursor
from cnnbatch.sources.files.left_out import LeftOut
from cnnbatch.sources.files.source import Files
from cnnbatch.sources.lists.backslashes import Backslashes
from cnnbatch.sources.objects import TRUTH, of_coco
from cnnbatch.sources.reading import readers
from cnnbatch.storage import (
    Allowed,
    Forbidden,
    NotFound,
    Storage,
    Unreadable,
    is_local,
    join,
    normalize,
    parent,
    redact,
    without_query,
)
from cnnbatch.types import Content, Failure, ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Input
    from cnnbatch.sources.coco.index import CocoIndex

_TRIED = 8  # images that are looked for in each likely folder
_UNKNOWN = 1000  # images of a folder without truth, from the first on, before it is asked whether any has one


@dataclass
class Coco:
    """The images of a COCO file in its order, or those of ``folder`` with their truth in it.

    Keys are the file names below the images' folder. An image that only the truth names comes last
    and has a row of its own, ``not_found``, unless ``folder`` is a pattern. Without a list of
    ``annotations`` in the file there is no truth: all objects are null.
    """

    storage: Storage
    url: str
    folder: str | None = None
    columns: pa.Schema = field(default_factory=lambda: pa.schema([(TRUTH, pa.string())]))
    allow: tuple[Allowed, ...] = ()
    suffixes: frozenset[str] | None = None
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def __post_init__(self) -> None:
        """Prepare to ask what backslashes mean."""
        self._backslashes = Backslashes(self.storage)

    @cached_property
    def classes(self) -> tuple[truth.Class, ...]:
        """The categories, in the file's order, with COCO's ids; the images are not indexed for them."""
        if "_index" in vars(self):
            return self._index.classes
        from cnnbatch.sources.coco.index import read_classes

        return read_classes(self._open, redact(self.url))

    @property
    def occurring(self) -> tuple[str, ...] | None:
        """The classes that some object has; None before the listing, and where it may be of some images."""
        folder = self.folder or ""
        some = globs.has_wildcard(folder) or posixpath.splitext(folder)[1]  # a pattern or a file
        return self._index.occurring if not some and "_index" in vars(self) else None

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of objects, and the classes."""
        return truth.with_classes(truth.OBJECTS_SCHEMA, self.classes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index behind, which only the listing needs; the classes and the reach travel."""
        return {name: value for name, value in vars(self).items() if name != "_index"} | {
            "classes": self.classes,
            "_images": self._images,
        }

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images."""
        if self.folder is not None:
            yield from self._of_folder(self.folder, after)
            return
        first = 0 if after is None else self._place_behind(after)
        root = self._root()
        for place in range(first, self._index.images):
            yield self._ref(root, place)

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image."""
        root = None
        if shard.refs and is_local(shard.refs[0].uri):
            root = shard.refs[0].uri.removesuffix(shard.refs[0].key)
        return readers(self._images, shard, root)

    def truth(self, shard: Shard) -> pa.Table:
        """Return the objects of each image; null where the file doesn't know it."""
        return truth.table([_row(ref.columns[TRUTH]) for ref in shard.refs], self.truth_schema)

    @cached_property
    def _index(self) -> CocoIndex:
        from cnnbatch.sources.coco.index import CocoIndex

        return CocoIndex(self._open, redact(self.url))

    @cached_property
    def _images(self) -> Storage:
        """The storage as the file may use it, whose names lie beside it; in the person's folder all of it."""
        return self.storage.for_list(self.url, self.allow) if self.folder is None else self.storage

    def _open(self) -> AbstractContextManager[BinaryIO]:
        return opened(self.storage, self.url)

    def _ref(self, root: str, place: int) -> ImageRef:
        key = self._key(root, place)
        uri = join(root, key)
        return ImageRef(key, uri, etag=self._etag(uri), columns={TRUTH: self._index.entry(place)})

    def _key(self, root: str, place: int) -> str:
        """Return an image's path below ``root``: its name, whose backslashes may be slashes."""
        name = self._index.name(place)
        path = self._index.path(place) if "\\" in name else None
        return name if path is None or self._backslashes.belong_to(join(root, name)) else path

    def _etag(self, uri: str) -> str | None:
        """Return the etag of a local file, which costs no request."""
        if not is_local(uri):
            return None
        try:
            return self._images.head(uri).etag
        except (NotFound, Forbidden, Unreadable):
            return None

    def _place_behind(self, after: ImageRef) -> int:
        place = self._index.place(after.key)
        if place is None:
            raise UserError(
                f"{redact(self.url)} no longer holds {after.key!r}, behind which the listing goes on\n"
                "  what to do: give the file as it was, or a new output"
            )
        return place + 1

    def _files(self, folder: str) -> Files:
        return Files(self.storage, (folder,), suffixes=self.suffixes, left_out=self.left_out)

    def _of_folder(self, folder: str, after: ImageRef | None) -> Iterator[ImageRef]:
        seen, cursor = bytearray(self._index.images), ListingCursor(after)
        for number, ref in enumerate(self._files(folder).refs(), 1):
            place = self._place(ref)
            if place is not None:
                seen[place] = 1
            elif number == _UNKNOWN and not any(seen) and not self._has_any(normalize(folder)):
                raise self._strangers(number, ref.key)
            if cursor.takes(ref):
                entry = None if place is None else self._index.entry(place)
                yield ImageRef(ref.key, ref.uri, etag=ref.etag, columns={TRUTH: entry})
        if not any(seen):
            raise self._strangers(number, ref.key)
        if ref.uri == join(normalize(folder), ref.key):  # a pattern or a single file means no others
            absent = cursor.absent()
            yield from self._absent(seen, 0 if absent is None else self._place_behind(absent))

    def _place(self, ref: ImageRef) -> int | None:
        """Return an image's place in the file; None where the file means another one, or does not know it."""
        place = self._index.place(ref.key)
        if place is None or self._index.name(place) == ref.key:
            return place
        return place if self._key(ref.uri.removesuffix(ref.key), place) == ref.key else None

    def _absent(self, seen: bytearray, first: int) -> Iterator[ImageRef]:
        """Yield the images that are not in the folder."""
        for place in range(first, len(seen)):
            if not seen[place]:
                yield self._ref(normalize(self.folder or ""), place)

    def _strangers(self, count: int, key: str) -> UserError:
        return UserError(
            f"input.truth: none of the first {count:,} images below {redact(self.folder or '')} is in "
            f"{redact(self.url)}: an image is {key!r} here, {self._index.name(0)!r} there\n"
            "  what to do: give as input.url the folder that those names are relative to"
        )

    def _root(self) -> str:
        """Return the folder that the file names are relative to: the first likely one that has an image."""
        folders = list(dict.fromkeys(map(normalize, self._likely_folders())))
        for folder in folders:
            if self._has_any(folder):
                return folder
        raise UserError(
            f"{redact(self.url)}: no image such as {self._index.name(0)!r} was found in "
            f"{', '.join(map(redact, folders))}\n"
            "  what to do: give the images' folder as input.url, and this file as input.truth"
        )

    def _likely_folders(self) -> Iterator[str]:
        here = parent(self.url)
        split = posixpath.splitext(posixpath.basename(without_query(self.url)))[0].rpartition("_")[2]
        yield from (here, join(here, "images"))
        above = parent(here)
        if not above.endswith("://"):  # above a bucket are other people's
            yield from (join(above, split), join(above, "images"), join(above, "images", split), above)
        yield join(here, split)

    def _has_any(self, folder: str) -> bool:
        """Say whether one of the file's first images lies in a folder."""
        places = range(min(_TRIED, self._index.images))
        names = chain.from_iterable((self._index.name(place), self._index.path(place)) for place in places)
        return any(self._is_there(join(folder, name)) for name in names if name)

    def _is_there(self, uri: str) -> bool:
        try:
            self._images.head(uri)
        except (NotFound, Forbidden, Unreadable):
            return False
        return True


def open_coco(input: Input, storage: Storage) -> Coco:
    """Return the source of a COCO file, or of a folder with one as its truth."""
    url, file = input.url, input.truth
    if not isinstance(url, str):
        raise UserError(
            f"input.url: with COCO's truth one address was expected, got {len(url)}\n"
            "  what to do: give the folder of the images, and the file as input.truth"
        )
    suffixes = frozenset(input.suffixes) or None
    if file is None:
        return Coco(storage, normalize(url), allow=input.allow)
    return Coco(storage, normalize(file), url, suffixes=suffixes)


def _row(entry: str | None) -> dict[str, Any]:
    if entry is None:
        return {}
    image = json.loads(entry)
    size, found = (image["height"], image["width"]), image["objects"]
    objects = None if found is None else [_object(one, size) for one in found]
    return {"image_id": str(image["id"]), "width": size[1], "height": size[0], "objects": objects}


def _object(one: dict[str, Any], size: tuple[int | None, int | None]) -> dict[str, Any]:
    return {
        "label": one["label"],
        **of_coco(one, one["bbox"]),
        "mask": _mask(one.get("segmentation"), size),
        "keypoints": _keypoints(one.get("keypoints")),
    }


def _mask(segmentation: Any, size: tuple[int | None, int | None]) -> dict[str, Any] | None:
    """Return a mask as compressed run lengths, as pycocotools makes them of polygons and of plain counts."""
    if not segmentation:
        return None
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons or None in size:
            return None
        found = coco.merge(coco.frPyObjects(polygons, *size))
    elif isinstance(segmentation["counts"], list):
        found = coco.frPyObjects(segmentation, *segmentation["size"])
    else:
        return {"size": segmentation["size"], "counts": segmentation["counts"]}
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def _keypoints(flat: list[float] | None) -> list[dict[str, float]] | None:
    if not flat:
        return None
    points = zip(*(islice(flat, start, None, 3) for start in range(3)), strict=True)
    return [{"x": x, "y": y, "visibility": visibility} for x, y, visibility in points]
