"""A COCO file as a table on disk: streamed through once, so that its size costs disk and not memory."""

from __future__ import annotations

import json
import shutil
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO

import ijson

from cnnbatch.errors import UserError
from cnnbatch.truth import Class

_BUFFER = 1 << 20
_CACHE_KB = 32 << 10
_KEPT = ("bbox", "segmentation", "keypoints", "area", "iscrowd", "ignore")
_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{cache};
CREATE TABLE image (
    place INTEGER PRIMARY KEY, id INTEGER UNIQUE, name TEXT UNIQUE, width INTEGER, height INTEGER
);
CREATE TABLE object (image INTEGER, label TEXT, body TEXT);
"""


class CocoIndex:
    """The images of one COCO file in its order, each with its objects; in a temporary folder of its own.

    Raises UserError where the file is no COCO file, lacks a key, or contradicts itself.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], where: str) -> None:
        self._open, self._where = open_file, where
        folder = mkdtemp(prefix="cnnbatch-coco-")
        self._base = sqlite3.connect(Path(folder) / "index", check_same_thread=False)
        weakref.finalize(self, _remove, self._base, folder)
        self._base.executescript(_TABLES.format(cache=_CACHE_KB))
        self.classes = self._read_categories()
        self._names = {one.id: one.name for one in self.classes}
        self.images = self._fill("image", self._images())
        self._fill("object", self._annotations())
        self._base.execute("CREATE INDEX of_image ON object (image)")
        self._base.commit()
        self._require_known_images()

    def place(self, name: str) -> int | None:
        """Return the place of the image with this file name; None where the file doesn't know it."""
        found = self._base.execute("SELECT place FROM image WHERE name = ?", (name,)).fetchone()
        return None if found is None else int(found[0])

    def name(self, place: int) -> str:
        """Return the file name of the image at ``place``."""
        return str(self._base.execute("SELECT name FROM image WHERE place = ?", (place,)).fetchone()[0])

    def entry(self, place: int) -> str:
        """Return as JSON the ``id``, ``width``, ``height`` and ``objects`` of the image at ``place``."""
        number, width, height = self._base.execute(
            "SELECT id, width, height FROM image WHERE place = ?", (place,)
        ).fetchone()
        rows = self._base.execute("SELECT label, body FROM object WHERE image = ? ORDER BY rowid", (number,))
        objects = [{"label": label, **json.loads(body)} for label, body in rows]
        entry = {"id": number, "width": width, "height": height, "objects": objects}
        return json.dumps(entry, separators=(",", ":"))

    def _read_categories(self) -> tuple[Class, ...]:
        found = [
            Class(str(self._of(one, "name", "category")), int(self._of(one, "id", "category")))
            for one in self._items("categories")
        ]
        if not found:
            raise self._wrong("holds no `categories`", "give an instances file of COCO's form")
        for field in ("id", "name"):
            values = [getattr(one, field) for one in found]
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise self._wrong(f"has two categories with the {field} {twice!r}", "mend the file")
        return tuple(found)

    def _images(self) -> Iterator[tuple[Any, ...]]:
        for place, image in enumerate(self._items("images")):
            name = str(self._of(image, "file_name", "image"))
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise self._wrong(f"names {name!r}, which leaves the folder of its images", "mend the file")
            yield place, self._of(image, "id", "image"), name, image.get("width"), image.get("height")

    def _annotations(self) -> Iterator[tuple[Any, ...]]:
        for one in self._items("annotations"):
            category = self._of(one, "category_id", "annotation")
            label = self._names.get(category)
            if label is None:
                raise self._wrong(
                    f"gives annotation {one.get('id')} the category_id {category!r}, "
                    "which is not in `categories`",
                    "mend the file",
                )
            self._check(one)
            body = {name: one[name] for name in _KEPT if one.get(name) is not None}
            yield self._of(one, "image_id", "annotation"), label, json.dumps(body, separators=(",", ":"))

    def _check(self, one: Mapping[str, Any]) -> None:
        """Insist on what an object is made of: so the workers need not."""
        box, points, mask = one.get("bbox"), one.get("keypoints") or [], one.get("segmentation") or []
        expected = {
            "bbox": ("[x, y, width, height] in pixels", _numbers(box, 4)),
            "keypoints": ("[x, y, visibility, ...]", _numbers(points) and len(points) % 3 == 0),
            "segmentation": ("polygons [[x, y, ...], ...] or {counts, size}", _is_mask(mask)),
        }
        for name, (form, holds) in expected.items():
            if not holds:
                raise self._wrong(
                    f"gives annotation {one.get('id')} the {name} {str(one.get(name))[:100]}, "
                    f"where {form} was expected",
                    "mend the file",
                )

    def _items(self, section: str) -> Iterator[dict[str, Any]]:
        """Stream the objects of a top-level list."""
        with self._open() as file:
            try:
                for item in ijson.items(file, f"{section}.item", use_float=True, buf_size=_BUFFER):
                    if not isinstance(item, dict):
                        raise self._wrong(
                            f"has {item!r} among its {section}, where an object was expected",
                            "mend the file",
                        )
                    yield item
            except ijson.JSONError as error:
                raise self._wrong(f"is not whole JSON: {error}", "fetch the file again") from None

    def _fill(self, table: str, rows: Iterator[tuple[Any, ...]]) -> int:
        """Insert rows; an image's id or name that comes twice is a `UserError`."""
        marks = {"image": "?, ?, ?, ?, ?", "object": "?, ?, ?"}[table]
        count = 0
        for row in rows:
            try:
                self._base.execute(f"INSERT INTO {table} VALUES ({marks})", row)
            except sqlite3.IntegrityError:
                raise self._twice(row) from None
            count += 1
        if table == "image" and not count:
            raise self._wrong("holds no `images`", "give an instances file of COCO's form")
        return count

    def _twice(self, row: tuple[Any, ...]) -> UserError:
        place, number, name = row[:3]
        first = self._base.execute(
            "SELECT place, id, name FROM image WHERE id = ? OR name = ?", (number, name)
        ).fetchone()
        return self._wrong(
            f"has the same image twice: `images` {first[0]:,} (id {first[1]}, {first[2]}) and {place:,} "
            f"(id {number}, {name})",
            "remove one of them",
        )

    def _require_known_images(self) -> None:
        stray = self._base.execute(
            "SELECT image, COUNT(*) FROM object WHERE image NOT IN (SELECT id FROM image)"
            " GROUP BY image LIMIT 1"
        ).fetchone()
        if stray:
            raise self._wrong(
                f"has {stray[1]:,} annotations of image {stray[0]!r}, which is not in `images`",
                "mend the file",
            )

    def _of(self, item: Mapping[str, Any], key: str, what: str) -> Any:
        if item.get(key) is None:
            raise self._wrong(f"has an {what} without {key!r}: {json.dumps(item)[:200]}", "mend the file")
        return item[key]

    def _wrong(self, what: str, mend: str) -> UserError:
        return UserError(f"{self._where} {what}\n  what to do: {mend}")


def _remove(base: sqlite3.Connection, folder: str) -> None:
    base.close()
    shutil.rmtree(folder, ignore_errors=True)


def _numbers(value: Any, count: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and count in (None, len(value))
        and all(isinstance(one, int | float) for one in value)
    )


def _is_mask(value: Any) -> bool:
    if isinstance(value, list):
        return all(_numbers(polygon) and len(polygon) % 2 == 0 for polygon in value)
    counts = value.get("counts") if isinstance(value, dict) else None
    size = value.get("size") if isinstance(value, dict) else None
    return (isinstance(counts, str) or _numbers(counts)) and _numbers(size, 2)
