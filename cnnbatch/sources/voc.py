"""Trees of images with one XML file each: PASCAL VOC's, and ImageNet-DET's, which differ in their folders.

A worker reads the XML of its shard, many at once; so a tree of any size is listed by its images' names
alone, and its classes are known beforehand for VOC's own twenty only.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError, fromstring

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.records import Content, Failure, ImageRef, Shard
from cnnbatch.sources.files import SUFFIXES
from cnnbatch.sources.lists import opened
from cnnbatch.sources.reading import readers
from cnnbatch.storage import Entry, NotFound, Storage, is_local, join, normalize, redact

if TYPE_CHECKING:
    from cnnbatch.job import Input

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
_NAMED = 5


@dataclass(frozen=True)
class Layout:
    """Where a tree keeps what, as folders below its root; ``sets`` holds lists of image names."""

    images: str
    annotations: str
    sets: str
    name: str


VOC = Layout("JPEGImages", "Annotations", "ImageSets/Main", "voc")
IMAGENET_DET = Layout("Data/DET", "Annotations/DET", "ImageSets/DET", "imagenet_det")


@dataclass(frozen=True)
class XmlTree:
    """The images of a tree, each with the objects of the XML file of its name.

    Without ``split`` they are all that lie in the images' folder, and then those that only an XML
    file names, which have a row ``not_found``; with it those that the split's list names. Keys are
    paths below the root.
    """

    storage: Storage
    root: str
    layout: Layout
    split: str | None = None
    classes: tuple[truth.Class, ...] = ()
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of objects, and the classes where they are VOC's."""
        return truth.with_classes(truth.OBJECTS_SCHEMA, self.classes)

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images."""
        stream = self._listed() if self.split is None else self._of_split(self.split)
        behind = after is None
        for ref in stream:
            if behind:
                yield ref
            elif after is not None and ref.key == after.key:
                behind = True

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image."""
        return readers(self.storage, shard, self.root if is_local(self.root) else None)

    def truth(self, shard: Shard) -> pa.Table:
        """Return the objects of each image; null where it has no XML file."""
        with ThreadPoolExecutor(_READERS, "truth") as pool:
            return truth.table(pool.map(self._row, shard.refs), self.truth_schema)

    def _listed(self) -> Iterator[ImageRef]:
        """Merge the two folders by name: both are listed in the same order."""
        annotations = (
            self._stem(entry.uri, self.layout.annotations)
            for entry in self._entries(self.layout.annotations)
            if entry.uri.endswith(".xml")
        )
        strays: list[str] = []
        waiting = next(annotations, None)
        for entry in self._entries(self.layout.images):
            if posixpath.splitext(entry.uri)[1].lower() not in SUFFIXES:
                continue
            stem = self._stem(entry.uri, self.layout.images)
            while waiting is not None and waiting + "." < stem + ".":
                strays.append(waiting)
                waiting = next(annotations, None)
            waiting = next(annotations, None) if waiting == stem else waiting
            yield ImageRef(entry.uri[len(self.root) :].lstrip("/"), entry.uri, etag=entry.etag)
        for stem in chain(strays, () if waiting is None else (waiting,), annotations):
            yield self._absent(stem)

    def _of_split(self, split: str) -> Iterator[ImageRef]:
        """Yield the images that a list names, a name a line (of VOC's class lists only what has a 1)."""
        file = join(self.root, *self.layout.sets.split("/"), f"{split}.txt")
        suffixes = self._suffixes()
        with opened(self.storage, file) as lines:
            for line in lines:
                name, *mark = line.decode("utf-8", "replace").split() or [""]
                if name and mark[:1] != ["-1"]:
                    yield self._named(name, suffixes)

    def _suffixes(self) -> tuple[str, ...]:
        """Return the suffixes to try for a name: that of the first image is the first."""
        first = next((entry.uri for entry in self._entries(self.layout.images)), "")
        return tuple(dict.fromkeys((posixpath.splitext(first)[1] or ".jpg", ".jpg", ".JPEG", ".png")))

    def _named(self, name: str, suffixes: tuple[str, ...]) -> ImageRef:
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(
                f"{redact(self.root)}: the split names {name!r}, which leaves the folder of the images"
            )
        if not is_local(self.root):
            return self._ref(name + suffixes[0])
        for suffix in suffixes:
            ref = self._ref(name + suffix)
            if ref.etag is not None:
                return ref
        return self._ref(name + suffixes[0])

    def _ref(self, file: str) -> ImageRef:
        key = f"{self.layout.images}/{file}"
        uri = join(self.root, key)
        etag = None
        if is_local(uri):
            try:
                etag = self.storage.head(uri).etag
            except NotFound:
                etag = None
        return ImageRef(key, uri, etag=etag)

    def _absent(self, stem: str) -> ImageRef:
        return self._ref(stem + ".jpg")

    def _entries(self, folder: str) -> Iterator[Entry]:
        try:
            yield from self.storage.list(join(self.root, *folder.split("/")))
        except NotFound:
            raise UserError(
                f"input.url: {redact(self.root)} has no {folder}, where a tree of the format "
                f"{self.layout.name} has it\n"
                "  what to do: give the folder that holds it, or another input.format"
            ) from None

    def _stem(self, uri: str, folder: str) -> str:
        return posixpath.splitext(uri[len(join(self.root, folder)) :].lstrip("/"))[0]

    def _row(self, ref: ImageRef) -> dict[str, Any]:
        stem = posixpath.splitext(ref.key[len(self.layout.images) :].lstrip("/"))[0]
        uri = join(self.root, self.layout.annotations, f"{stem}.xml")
        try:
            data = self.storage.read(uri, limit=_MOST_BYTES)
        except NotFound:
            return {}
        return {"image_id": stem, **parse(data, redact(uri))}


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Return ``width``, ``height`` and ``objects`` of one XML file.

    VOC counts pixels from 1 and includes the last: (xmin, ymin, xmax, ymax) is the box
    (xmin - 1, ymin - 1, xmax, ymax). Raises UserError for what is not such a file.
    """
    root = _xml(data, where)
    size = root.find("size")
    return {
        "width": _whole(size, "width"),
        "height": _whole(size, "height"),
        "objects": [_object(one, where) for one in root.iter("object")],
    }


def _xml(data: bytes, where: str) -> Element:
    """Parse without a document type: so no entity can grow, or name a file."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise _wrong(where, "declares a document type, which no annotation needs", "remove it")
    try:
        return fromstring(data)
    except ParseError as error:
        raise _wrong(where, f"is no whole XML: {error}", "write the file again") from None


def _object(one: Element, where: str) -> dict[str, Any]:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise _wrong(where, "has an object without a name", "mend the file")
    left, top, right, bottom = (_corner(one, side, where) for side in ("xmin", "ymin", "xmax", "ymax"))
    box = {"x1": left - 1, "y1": top - 1, "x2": right, "y2": bottom}
    return {
        "label": name,
        "box": box,
        "crowd": False,
        "area": (box["x2"] - box["x1"]) * (box["y2"] - box["y1"]),
        "difficult": one.findtext("difficult", "0").strip() == "1",
        "ignore": False,
    }


def _corner(one: Element, side: str, where: str) -> float:
    text = one.findtext(f"bndbox/{side}", "").strip()
    try:
        return float(text)
    except ValueError:
        raise _wrong(
            where, f"has an object whose {side} is {text!r}; expected a number of pixels", "mend the file"
        ) from None


def _whole(size: Element | None, side: str) -> int | None:
    """Return a side in pixels; None where it is not said, or as 0."""
    text = "" if size is None else size.findtext(side, "")
    try:
        return round(float(text)) or None
    except ValueError:
        return None


def _wrong(where: str, what: str, mend: str) -> UserError:
    return UserError(f"{where} {what}\n  what to do: {mend}")


def open_voc(input: Input, storage: Storage) -> XmlTree:
    """Return the source of a PASCAL VOC tree (``VOC2007``, or one of the same folders)."""
    root = _root(input)
    own = any(
        posixpath.basename(entry.uri).partition("_")[0] in VOC_CLASSES
        for entry in _sets(storage, join(root, "ImageSets", "Main"))
    )
    classes = tuple(truth.Class(name, number) for number, name in enumerate(VOC_CLASSES, 1)) if own else ()
    return XmlTree(storage, root, VOC, input.split, classes)


def open_imagenet_det(input: Input, storage: Storage) -> XmlTree:
    """Return the source of an ImageNet-DET tree (``ILSVRC``), whose labels are WordNet's numbers."""
    return XmlTree(storage, _root(input), IMAGENET_DET, input.split)


def _sets(storage: Storage, folder: str) -> Iterator[Entry]:
    try:
        yield from storage.list(folder)
    except NotFound:
        return


def _root(input: Input) -> str:
    if not isinstance(input.url, str):
        raise UserError(
            f"input.url: one tree was expected, got {len(input.url)}\n  what to do: run a job for each"
        )
    return normalize(input.url)
