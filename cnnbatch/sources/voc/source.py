"""Trees of images with one XML file each: PASCAL VOC's, and ImageNet-DET's, which differ in their folders.

A worker reads the XML of its shard, many at once; so a tree of any size is listed by its images' names
alone, and its classes are known beforehand for VOC's own twenty only.
"""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.humanize import nearest
from cnnbatch.images.formats import SUFFIXES, suffix_of
from cnnbatch.sources.files.cursor import ListingCursor
from cnnbatch.sources.files.left_out import HIDDEN, LeftOut, count, kind_of
from cnnbatch.sources.lists.rows import lines_of
from cnnbatch.sources.lists.source import opened
from cnnbatch.sources.reading import readers
from cnnbatch.sources.voc.xml import parse
from cnnbatch.storage import (
    Entry,
    Forbidden,
    NotFound,
    Storage,
    TooLarge,
    Unreadable,
    is_local,
    join,
    normalize,
    redact,
)
from cnnbatch.storage.unique import unique_keys
from cnnbatch.types import Content, Failure, ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_READERS = 16
_MOST_BYTES = 4 << 20  # of one XML file
_MOST_LINES = 1 << 32  # of one list, so that a number tells both the list and the line
_SHOWN = 12
_MARKED = re.compile(r"(.*\S)\s+(-?\d+)")  # a line of a class's list: -1 where the image has none


@dataclass(frozen=True)
class TreeLayout:
    """Where a tree keeps what, as folders below its root; ``sets`` holds lists of image names.

    ``suffix`` is that of images that only an annotation names, ``annotated`` that of annotations.
    """

    images: str
    annotations: str
    sets: str
    name: str
    suffix: str
    annotated: str = ".xml"


VOC = TreeLayout("JPEGImages", "Annotations", "ImageSets/Main", "voc", ".jpg")
IMAGENET_DET = TreeLayout("Data/DET", "Annotations/DET", "ImageSets/DET", "imagenet_det", ".JPEG")


@dataclass(frozen=True)
class XmlTree:
    """The images of a tree, each with the objects of the XML file of its name.

    Without ``splits`` they are all that lie in the images' folder, and then those that only an XML
    file names, which have a row ``not_found``; with them those that the splits' lists name. Keys are
    paths below the root.
    """

    storage: Storage
    root: str
    layout: TreeLayout
    splits: tuple[str, ...] = ()
    classes: tuple[truth.Class, ...] = ()
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of objects, and the classes where they are VOC's."""
        return truth.with_classes(truth.OBJECTS_SCHEMA, self.classes)

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images."""
        return self._of_splits(after) if self.splits else self._listed(after)

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image."""
        return readers(self.storage, shard, self.root if is_local(self.root) else None)

    def truth(self, shard: Shard) -> pa.Table:
        """Return the objects of each image; null where it has no XML file."""
        with ThreadPoolExecutor(_READERS, "truth") as pool:
            return truth.table(pool.map(self.row, shard.refs), self.truth_schema)

    def _listed(self, after: ImageRef | None) -> Iterator[ImageRef]:
        """Yield the images, then those that only an XML file names: each folder in its own order."""
        annotations = self._files(self.layout.annotations, {self.layout.annotated})
        first = next(annotations, None)  # that there are none is said before any image is given
        cursor = ListingCursor(after)
        with closing(_Pictures()) as pictures:
            for ref in self._images(pictures):
                if cursor.takes(ref):
                    yield ref
            gone = cursor.absent()
            last = "" if gone is None else join(self.root, self.annotation(gone))
            for entry in chain(() if first is None else (first,), annotations):
                name = self._name(entry, self.layout.annotations)
                if entry.uri > last and pictures.find(name) is None:
                    yield self._absent(name)

    def _of_splits(self, after: ImageRef | None) -> Iterator[ImageRef]:
        """Yield the images that the lists name, a name a line, but those of a class's list that lack it."""
        behind = after is None
        with closing(_Pictures()) as pictures, unique_keys() as keys:
            for _ in self._images(pictures):
                pass
            for number, split in enumerate(self.splits):
                for line, ref in self._lines(split, pictures):
                    if pair := keys.add(ref.key, number * _MOST_LINES + line):
                        raise self._twice(*pair)
                    if behind:
                        yield ref
                    behind = behind or (after is not None and ref.key == after.key)
            if pair := keys.duplicate():
                raise self._twice(*pair)
        if not behind and after is not None:
            names = " and ".join(map(repr, self.splits))
            raise UserError(
                f"input.split: {names} no longer names {after.key!r}, behind which the listing goes on\n"
                "  what to do: give the list as it was, or a new output"
            )

    def _lines(self, split: str, pictures: _Pictures) -> Iterator[tuple[int, ImageRef]]:
        """Yield the images of a list's lines, whose names lie below the images or below their ``split``."""
        part = split.partition("_")[0]
        with self._open_list(split) as lines:
            for number, line in enumerate(lines_of(lines, f"input.split: {split!r}", "replace"), 1):
                name, mark = line.strip(), ""
                if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                    raise UserError(
                        f"input.split: {split!r} names {name!r} in line {number:,}, which leaves the folder "
                        "of the images\n  what to do: mend the list"
                    )
                found = pictures.meant(name)
                if found is None and (marked := _MARKED.fullmatch(name)):
                    name, mark = marked.groups()
                found = found or pictures.meant(name) or pictures.meant(f"{part}/{name}")
                if name and mark != "-1":
                    yield number, found or self._absent(name)

    def _open_list(self, split: str) -> AbstractContextManager[BinaryIO]:
        folder = join(self.root, self.layout.sets)
        names = _lists(self.storage, folder)
        if split not in names:
            near = nearest(split, names)
            raise UserError(
                f"input.split: there is no list {split!r} in {redact(folder)}"
                f"{f'; did you mean {near!r}?' if near else ''}\n"
                f"  its lists: {', '.join(names[:_SHOWN]) or 'none'}{', ...' * (len(names) > _SHOWN)}"
            )
        return opened(self.storage, join(folder, f"{split}.txt"))

    def _twice(self, first: int, second: int) -> UserError:
        (one, line), (other, again) = (divmod(place, _MOST_LINES) for place in (first, second))
        where = f"lines {line:,} and {again:,}"
        if one != other:
            where = f"line {line:,} and {self.splits[other]!r} in line {again:,}"
        return UserError(
            f"input.split: {self.splits[one]!r} names the same image in {where}\n"
            "  what to do: remove one of them"
        )

    def _images(self, pictures: _Pictures) -> Iterator[ImageRef]:
        """Yield the images in the order of their names, and note them in ``pictures``."""
        entry, counts = None, Counter[str]()
        self.left_out.counts = counts
        for entry in self._files(self.layout.images, SUFFIXES, counts):
            ref = ImageRef(entry.uri[len(self.root) :].lstrip("/"), entry.uri, etag=entry.etag)
            pictures.add(self._name(entry, self.layout.images), ref)
            yield ref
        if entry is None:
            raise UserError(
                f"input.url: expected images in {redact(join(self.root, self.layout.images))}, found none\n"
                "  what to do: give the folder that holds the whole tree"
            )

    def _files(
        self, folder: str, suffixes: Collection[str], left_out: Counter[str] | None = None
    ) -> Iterator[Entry]:
        """Yield the files of these suffixes but for hidden ones; an absent folder is a `UserError`.

        Other files are counted in ``left_out``.
        """
        root = join(self.root, folder)
        try:
            for entry in _entries(self.storage, root):
                hidden = "/." in entry.uri[len(root) :]
                if not hidden and suffix_of(entry.uri) in suffixes:
                    yield entry
                elif left_out is not None:
                    count(left_out, HIDDEN if hidden else kind_of(entry.uri))
        except NotFound:
            raise UserError(
                f"input.url: {redact(self.root)} has no {folder}, where a tree of the format "
                f"{self.layout.name} has it\n"
                "  what to do: give the folder that holds it, or another input.format"
            ) from None

    def _name(self, entry: Entry, folder: str) -> str:
        """Return a file's path below ``folder``, without its suffix."""
        return posixpath.splitext(entry.uri[len(join(self.root, folder)) :].lstrip("/"))[0]

    def _absent(self, name: str) -> ImageRef:
        key = f"{self.layout.images}/{name}{self.layout.suffix}"
        return ImageRef(key, join(self.root, key))

    def name(self, ref: ImageRef) -> str:
        """Return an image's path below the folder of images, without its suffix."""
        return posixpath.splitext(ref.key[len(self.layout.images) :].lstrip("/"))[0]

    def annotation(self, ref: ImageRef) -> str:
        """Return the path below the root of what is known of an image."""
        return f"{self.layout.annotations}/{self.name(ref)}{self.layout.annotated}"

    def row(self, ref: ImageRef) -> dict[str, Any]:
        """Return an image's row of the truth; empty where there is none. Raises UserError for a bad file."""
        path = self.annotation(ref)
        uri = join(self.root, path)
        try:
            data = self.storage.read(uri, limit=_MOST_BYTES)
        except NotFound:
            return {}
        except (Forbidden, Unreadable, TooLarge) as error:
            raise UserError(
                f"{redact(uri)} cannot be read: {error}\n  what to do: mend or remove the file"
            ) from None
        return {"image_id": self.name(ref), **parse(data, redact(uri))}


class _Pictures:
    """The images of a tree by name, in a file that has none itself and goes with its handle."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", check_same_thread=False)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32768;"
            "CREATE TABLE picture (name TEXT PRIMARY KEY, key, uri, etag) WITHOUT ROWID;"
        )

    def add(self, name: str, ref: ImageRef) -> None:
        """Note an image; of two with one name the first counts."""
        try:
            self._base.execute(
                "INSERT OR IGNORE INTO picture VALUES (?, ?, ?, ?)", (name, ref.key, ref.uri, ref.etag)
            )
        except sqlite3.OperationalError as error:
            raise EnvironmentFault(
                f"the index of the images' names could not be written: {error}",
                "free space for temporary files, or set SQLITE_TMPDIR to another disk",
            ) from None

    def find(self, name: str) -> ImageRef | None:
        """Return the image of a name."""
        row = self._base.execute("SELECT key, uri, etag FROM picture WHERE name = ?", (name,)).fetchone()
        return None if row is None else ImageRef(row[0], row[1], etag=row[2])

    def meant(self, name: str) -> ImageRef | None:
        """Return the image of a name in a list, whose backslashes may be slashes."""
        return self.find(name) or (self.find(name.replace("\\", "/")) if "\\" in name else None)

    def close(self) -> None:
        """Remove it."""
        self._base.close()


def open_xml_tree(input: Input, storage: Storage) -> XmlTree:
    """Return the source of a PASCAL VOC tree with its XML files.

    The classes are VOC's own where there are lists for all of them.
    """
    root = root_of(input)
    listed = {name.partition("_")[0] for name in _lists(storage, join(root, VOC.sets))}
    own = listed.issuperset(VOC_CLASSES)
    classes = tuple(truth.Class(name, number) for number, name in enumerate(VOC_CLASSES, 1)) if own else ()
    return XmlTree(storage, root, VOC, splits_of(input), classes)


def open_imagenet_det(input: Input, storage: Storage) -> XmlTree:
    """Return the source of an ImageNet-DET tree (``ILSVRC``), whose labels are WordNet's numbers."""
    return XmlTree(storage, root_of(input), IMAGENET_DET, splits_of(input))


def splits_of(input: Input) -> tuple[str, ...]:
    """Return the names of the lists that a job's input asks for; none where it asks for all images."""
    return (input.split,) if isinstance(input.split, str) else input.split or ()


def _lists(storage: Storage, folder: str) -> list[str]:
    """Return the names of the lists in a folder; none where there is no such folder."""
    try:
        names = [entry.uri[len(folder) + 1 :] for entry in _entries(storage, folder)]
    except NotFound:
        return []
    return [name.removesuffix(".txt") for name in names if name.endswith(".txt")]


def _entries(storage: Storage, folder: str) -> Iterator[Entry]:
    try:
        yield from storage.list(folder)
    except Forbidden as error:
        raise EnvironmentFault(f"the input may not be listed: {error}", "give the right to list it") from None


def root_of(input: Input) -> str:
    """Return the address of a tree; raises UserError for several."""
    if not isinstance(input.url, str):
        raise UserError(
            f"input.url: one tree was expected, got {len(input.url)}\n  what to do: run a job for each"
        )
    return normalize(input.url)
