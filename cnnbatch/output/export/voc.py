"""PASCAL VOC's tree of XML files, and its results as the development kit evaluates them.

Everingham et al., "The PASCAL VOC2012 Challenge Development Kit" (2012), sections 8.1 and 8.3. VOC
counts pixels from 1 and includes the last: the box (x1, y1, x2, y2) is (x1 + 1, y1 + 1, x2, y2) there,
whole numbers in the XML, as the kit reads no others.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from xml.sax.saxutils import escape

from cnnbatch.output.export import voc_png
from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import Tree, encoded, path_of, require_free, require_unique, spool
from cnnbatch.output.export.predictions import Found, ImageObjects, Predictions
from cnnbatch.storage import Storage

_IMAGES = "JPEGImages"
_LIST = "ImageSets/Main/predicted.txt"
_RESULTS = "results/Main/comp4_det_test_{}.txt"
_NOT_XML = re.compile("[\x00-\x1f\x7f-\x9f\ufffe\uffff]")
_NOT_A_NAME = re.compile(r"[%/\\\x00-\x1f\x7f]")
_TOGETHER = 100_000  # lines that wait in memory
_ANNOTATION = """\
<annotation>
  <filename>%s</filename>
  <size>
    <width>%d</width>
    <height>%d</height>
    <depth>3</depth>
  </size>
  <segmented>%d</segmented>
%s</annotation>
"""
_OBJECT = """\
  <object>
    <name>%s</name>
    <pose>Unspecified</pose>
    <truncated>0</truncated>
    <difficult>0</difficult>
    <bndbox>
      <xmin>%d</xmin>
      <ymin>%d</ymin>
      <xmax>%d</xmax>
      <ymax>%d</ymax>
    </bndbox>
    <score>%s</score>
  </object>
"""


class VocTree(ExportFormat):
    """PASCAL VOC's tree: an XML file an image, the results by class, and PNG files of masks and maps."""

    kinds = ("objects", "boxes", "map")

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write below ``to`` an XML file an image, the list of these, and the results, a file a class.

        Masks are PNG files of classes and of objects beside it, maps are those of classes alone. An image
        where nothing was found has its files; one that failed has none and is not in the lists.
        """
        require_free(storage, to)
        require_unique(predictions.keys, _path, ".xml")
        with spool() as folder, Tree(storage, to) as tree:
            files = _Spooled(folder)
            if predictions.are_objects:
                _write_objects(predictions, tree, files)
            else:
                _write_maps(predictions, tree, files)
            for name, file in files.all():
                tree.put(name, file)


def _write_objects(predictions: Predictions, tree: Tree, files: _Spooled) -> None:
    numbers = {name: number for number, name in enumerate(predictions.class_names(), 1)}
    masks = predictions.has("mask")
    if masks:
        voc_png.require_few(len(numbers) + 1)
        tree.write(voc_png.NAMES, "".join(f"{name}\n" for name in ("background", *numbers)))
    for image in chain.from_iterable(map(predictions.images, predictions.parts)):
        if image is not None and image.error is None:
            path = _path(image.key)
            tree.write(f"Annotations/{path}.xml", annotation(image, masks))
            files.add(_LIST, [path])
            for label, lines in _results(path, image):
                files.add(_RESULTS.format(encoded(label, _NOT_A_NAME)), lines)
            for name, data in voc_png.of_objects(predictions, image, numbers) if masks else ():
                tree.write(f"{name}/{path}.png", data)
            files.add(voc_png.LIST, [path] if masks else [])


def _write_maps(predictions: Predictions, tree: Tree, files: _Spooled) -> None:
    names = predictions.map_names()
    voc_png.require_few(len(names))
    tree.write(voc_png.NAMES, "".join(f"{name}\n" for name in names))
    for image in chain.from_iterable(map(predictions.maps, predictions.parts)):
        if image is not None and image.error is None:
            path = _path(image.key)
            tree.write(f"{voc_png.CLASSES}/{path}.png", voc_png.of_map(image))
            files.add(voc_png.LIST, [path])


def _path(key: str) -> str:
    return path_of(key, _IMAGES)


def annotation(image: ImageObjects, segmented: bool = False) -> str:
    """Return an image's XML file; each object has its ``score`` beside what VOC has."""
    name = _text(image.key.removeprefix(f"{_IMAGES}/"))
    objects = "".join(_OBJECT % (_text(one.label), *pixels(one, image), one.score) for one in image.objects)
    return _ANNOTATION % (name, image.width, image.height, segmented, objects)


def _text(value: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", value))


def pixels(one: Found, image: ImageObjects) -> tuple[int, int, int, int]:
    """Return a box as VOC's (xmin, ymin, xmax, ymax): the nearest pixels in the image, at least one."""
    x1, y1, x2, y2 = one.box
    (xmin, xmax), (ymin, ymax) = _span(x1, x2, image.width), _span(y1, y2, image.height)
    return xmin, ymin, xmax, ymax


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    first = min(max(round(low), 0), side - 1) + 1
    return first, max(min(round(high), side), first)


def _results(path: str, image: ImageObjects) -> Iterator[tuple[str, list[str]]]:
    """Yield each class found in an image with its lines: the image, score, xmin, ymin, xmax, ymax."""
    lines = defaultdict[str, list[str]](list)
    for one in image.objects:
        x1, y1, x2, y2 = one.box
        numbers = one.score, x1 + 1, y1 + 1, x2, y2
        lines[one.label].append(f"{path} {' '.join(f'{number:f}' for number in numbers)}")
    yield from lines.items()


class _Spooled:
    """Text files that grow together on the local disk, one open at a time whatever their number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting = defaultdict[str, list[str]](list)
        self._lines = 0
        self._numbers: dict[str, int] = {}

    def add(self, name: str, lines: list[str]) -> None:
        """Add lines to the file ``name``."""
        if not lines:
            return
        self._waiting[name] += lines
        self._lines += len(lines)
        if self._lines >= _TOGETHER:
            self._flush()

    def all(self) -> Iterator[tuple[str, Path]]:
        """Yield all names, each with its file."""
        self._flush()
        yield from ((name, self._file(name)) for name in self._numbers)

    def _flush(self) -> None:
        for name, lines in self._waiting.items():
            with self._file(name).open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        self._waiting.clear()
        self._lines = 0

    def _file(self, name: str) -> Path:
        return self._folder / str(self._numbers.setdefault(name, len(self._numbers)))
