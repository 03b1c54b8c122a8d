"""COCO's JSON: either the collection itself, or the truth of a folder (``input.truth``).

What the file says of an image travels with its ref, as JSON, so that it is parsed once for the whole
job; the price is that a plan page holds it, too.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.images.class_map import NONE
from cnnbatch.sources.coco.panoptic import map_row, objects_row
from cnnbatch.sources.coco.rows import row_of
from cnnbatch.sources.containers import opened
from cnnbatch.sources.files import globs
from cnnbatch.sources.files.cursor import ListingCursor
from cnnbatch.sources.files.left_out import LeftOut
from cnnbatch.sources.files.source import Files
from cnnbatch.sources.lists.backslashes import Backslashes
from cnnbatch.sources.masks.meaning import VALUES, Meaning, meaning_of
from cnnbatch.sources.masks.reading import READERS
from cnnbatch.sources.objects import TRUTH
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
    def reads_masks(self) -> bool:
        """Whether masks are files of their own, as those of a panoptic file are; false before the listing."""
        return "_index" in vars(self) and self._index.panoptic

    @property
    def has_masks(self) -> bool:
        """Whether some object has its mask in the file itself; false before the listing."""
        return "_index" in vars(self) and self._index.has_masks

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of objects, and the classes."""
        return truth.with_classes(truth.OBJECTS_SCHEMA, self.classes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index behind, which only the listing needs; the classes and the reach travel."""
        return {name: value for name, value in vars(self).items() if name != "_index"} | {
            "classes": self.classes,
            "_images": self._images,
            "_maps": self._maps,
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
        images = [json.loads(ref.columns[TRUTH] or "{}") for ref in shard.refs]
        with ThreadPoolExecutor(READERS, "maps") as pool:
            rows = (
                pool.map(self._row, images) if any("file" in one for one in images) else map(row_of, images)
            )
            return truth.table(rows, self.truth_schema)

    def _row(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Return an image's row, whose masks may lie in a file."""
        return objects_row(self.storage, self._maps, image) if "file" in image else row_of(image)

    @cached_property
    def _index(self) -> CocoIndex:
        from cnnbatch.sources.coco.index import CocoIndex

        return CocoIndex(self._open, redact(self.url))

    @cached_property
    def _images(self) -> Storage:
        """The storage as the file may use it, whose names lie beside it; in the person's folder all of it."""
        return self.storage.for_list(self.url, self.allow) if self.folder is None else self.storage

    @cached_property
    def _maps(self) -> str:
        """The folder of a panoptic file's maps, which is called as the file and lies beside it."""
        return posixpath.splitext(without_query(self.url))[0]

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


@dataclass
class CocoMaps(Coco):
    """The same of a panoptic file, with a map of classes for each image; numbers are categories' ids.

    ``void`` is the number of pixels that belong to no object.
    """

    meaning: Meaning = Meaning((), frozenset())
    void: int = NONE

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of maps, with their classes."""
        return self.meaning.schema

    @property
    def occurring(self) -> None:
        """Nothing: classes that no pixel has are no mistake."""

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images; raises UserError for a file that is not panoptic."""
        if not self._index.panoptic:
            raise UserError(
                f"{redact(self.url)} is no panoptic file: none of its annotations has segments_info, of "
                "which maps are made\n  what to do: read its objects by input.format=coco"
            )
        yield from super().refs(after)

    def _row(self, image: Mapping[str, Any]) -> dict[str, Any]:
        if "file" not in image:
            return {}
        return map_row(self.storage, self._maps, image, self.meaning, self.void)


def open_coco(input: Input, storage: Storage) -> Coco:
    """Return the source of a COCO file, or of a folder with one as its truth."""
    return Coco(storage, **_places(input))


def open_coco_maps(input: Input, storage: Storage) -> CocoMaps:
    """Return the source of a panoptic COCO file, or of a folder with one as its truth, for its maps."""
    source = CocoMaps(storage, **_places(input))
    if strange := next((one for one in source.classes if one.id not in range(VALUES - 1)), None):
        raise UserError(
            f"{redact(source.url)}: in maps the id of a category is a number from 0 to {VALUES - 2:,}, "
            f"got {strange.id!r} of {strange.name!r}\n  what to do: number the categories otherwise"
        )
    void = NONE if all(int(one.id) < NONE for one in source.classes) else VALUES - 1
    chosen = input.model_copy(update={"ignore": (*input.ignore, void)})
    source.meaning, source.void = meaning_of(chosen, source.classes), void
    return source


def _places(input: Input) -> dict[str, Any]:
    """Return where the images and the file of a job's input lie, as fields of `Coco`."""
    url, file = input.url, input.truth
    if not isinstance(url, str):
        raise UserError(
            f"input.url: with a COCO file as ground truth one address was expected, got {len(url)}\n"
            "  what to do: give the folder of the images, and the file as input.truth"
        )
    if file is None:
        return {"url": normalize(url), "allow": input.allow}
    return {"url": normalize(file), "folder": url, "suffixes": frozenset(input.suffixes) or None}
