"""A COCO file as a table on disk: streamed through once, so that its size costs disk and not memory."""

from __future__ import annotations

import json
import posixpath
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NoReturn

from cnnbatch.errors import UserError
from cnnbatch.images import redaction
from cnnbatch.sources.coco.categories import Ambiguous, Categories, Category, categories_of
from cnnbatch.sources.coco.checks import is_id, problem, problem_of_segments, side, size_of_runs
from cnnbatch.sources.coco.json_lists import Element, NotJson, sections
from cnnbatch.storage.scratch import on_disk, scratch
from cnnbatch.truth import Class

OpenFile = Callable[[], AbstractContextManager[BinaryIO]]

_KEPT = ("bbox", "segmentation", "keypoints", "area", "iscrowd", "ignore")
_SHORT = {*_KEPT, "id", "image_id", "category_id", "num_keypoints"}
_SIDES = ("width", "height")
_CACHE_KB = 32 << 10
_TABLES = """
CREATE TABLE image (place INTEGER PRIMARY KEY, id UNIQUE, name TEXT UNIQUE, path TEXT, width, height);
CREATE TABLE object (place INTEGER, image, category, body TEXT, height, width);
CREATE TABLE map (place INTEGER, image UNIQUE, file TEXT);
"""
_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class CocoIndex:
    """The images of one COCO file in its order, each with its objects, in a file without a name.

    Raises UserError where the file is no COCO file, lacks a key, or contradicts itself.
    """

    def __init__(self, open_file: OpenFile, where: str) -> None:
        self._where = where
        self._categories = Categories((), {})
        with on_disk(f"the index of {where}"):
            self._base = scratch(self, _TABLES, _CACHE_KB)
            self.has_masks = False
            self._annotated = self._read(open_file)
            self._base.execute("CREATE INDEX of_image ON object (image)")
            self._base.execute("CREATE INDEX by_path ON image (path) WHERE path IS NOT NULL")
            self._base.commit()
            self.images = int(self._base.execute("SELECT COUNT(*) FROM image").fetchone()[0])
            self.panoptic = self._base.execute("SELECT file FROM map LIMIT 1").fetchone() is not None
            self._require_all()
        self._labels = {number: _compact(name) for number, name in self._categories.names.items()}

    @property
    def classes(self) -> tuple[Class, ...]:
        """The classes in the file's order."""
        return self._categories.classes

    @property
    def occurring(self) -> tuple[str, ...]:
        """The names of the classes that some object has."""
        rows = self._base.execute("SELECT DISTINCT category FROM object")
        return tuple(dict.fromkeys(self._categories.names[category] for (category,) in rows))

    def place(self, name: str) -> int | None:
        """Return the place of the image with this file name; None where the file doesn't know it.

        A name that the file has with backslashes is known by the path that it means, too.
        """
        for column in ("name", "path"):
            sql = f"SELECT place FROM image WHERE {column} = ? ORDER BY place"
            if found := self._base.execute(sql, (name,)).fetchone():
                return int(found[0])
        return None

    def path(self, place: int) -> str | None:
        """Return the path that the name of the image at ``place`` means if its backslashes are slashes.

        None where it has none, or leaves the folder so. Raises UserError where another image has that path.
        """
        found = self._base.execute("SELECT path FROM image WHERE place = ?", (place,)).fetchone()[0]
        if found is None:
            return None
        sql = "SELECT place FROM image WHERE (name = ? OR path = ?) AND place != ? ORDER BY place"
        if other := self._base.execute(sql, (found, found, place)).fetchone():
            self._wrong(f"images[{other[0]}] and images[{place}]", f"are the same image, {found}")
        return str(found)

    def name(self, place: int) -> str:
        """Return the file name of the image at ``place``."""
        return str(self._base.execute("SELECT name FROM image WHERE place = ?", (place,)).fetchone()[0])

    def entry(self, place: int) -> str:
        """Return as JSON the ``id``, ``width``, ``height`` and ``objects`` of the image at ``place``.

        ``objects`` is null where the file has no ``annotations`` at all, or a panoptic one none of the image.
        Of a panoptic file there is ``file``, too, the PNG that has the objects' numbers.
        """
        number, width, height = self._base.execute(
            "SELECT id, width, height FROM image WHERE place = ?", (place,)
        ).fetchone()
        image = {"id": number, "width": width, "height": height}
        known = self._annotated
        if self.panoptic:
            file = self._base.execute("SELECT file FROM map WHERE image = ?", (number,)).fetchone()
            known, image = file is not None, {**image, **({"file": file[0]} if file else {})}
        head = _compact(image)
        objects = f"[{','.join(self._objects(number))}]" if known else "null"
        return f'{head[:-1]},"objects":{objects}}}'

    def _objects(self, number: Any) -> Iterator[str]:
        rows = self._base.execute(
            "SELECT category, body FROM object WHERE image = ? ORDER BY rowid", (number,)
        )
        for category, body in rows:
            yield f'{{"label":{self._labels[category]},{self._thing(category)}{body[1:]}'

    def _thing(self, category: Any) -> str:
        """Return what a panoptic file says of a category, as the beginning of an object's JSON."""
        if not self.panoptic:
            return ""
        return f'"is_thing":{"false" if category in self._categories.stuff else "true"},'

    def _read(self, open_file: OpenFile) -> bool:
        """Fill the tables; say whether there was a list of annotations."""
        annotated = False
        with open_file() as file, _whole(self._where):
            for name, items in sections(file):
                if name == "categories":
                    self._categories = _categories(items, self._where)
                elif name == "images":
                    self._add_images(items)
                elif name == "annotations":
                    annotated = True
                    self._add_objects(items)
        return annotated

    def _add_images(self, items: Iterator[Element]) -> None:
        for place, (one, _) in enumerate(items):
            here = f"images[{place}]"
            name = posixpath.normpath(str(_of(one, "file_name", here, self._where)))
            if _leaves(name):
                self._wrong(here, f"the file_name {name!r} leaves the folder of the images")
            sides = (side(one.get(of)) for of in _SIDES)
            row = place, _id(one, "id", here, self._where), name, _with_slashes(name), *sides
            try:
                self._base.execute("INSERT INTO image VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                self._twice(row)

    def _add_objects(self, items: Iterator[Element]) -> None:
        for place, (one, text) in enumerate(items):
            here = f"annotations[{place}]"
            if isinstance(one, dict) and "segments_info" in one:
                self._add_map(place, one, here)
                continue
            image, category = (_id(one, of, here, self._where) for of in ("image_id", "category_id"))
            _of(one, "bbox", here, self._where)
            if found := problem(one):
                self._wrong(here, found)
            self.has_masks = self.has_masks or bool(one.get("segmentation"))
            self._add_object(place, image, category, _body(one, text), size_of_runs(one))

    def _add_object(
        self, place: int, image: Any, category: Any, body: str, size: tuple[int | None, int | None]
    ) -> None:
        row = place, image, category, body, *size
        self._base.execute("INSERT INTO object VALUES (?, ?, ?, ?, ?, ?)", row)

    def _add_map(self, place: int, one: Mapping[str, Any], here: str) -> None:
        """Add a panoptic annotation: the file of an image's numbers, and the object that each stands for."""
        image = _id(one, "image_id", here, self._where)
        file = posixpath.normpath(str(_of(one, "file_name", here, self._where)))
        if _leaves(file):
            self._wrong(here, f"the file_name {file!r} leaves the folder of the maps")
        try:
            self._base.execute("INSERT INTO map VALUES (?, ?, ?)", (place, image, file))
        except sqlite3.IntegrityError:
            first = self._base.execute("SELECT place FROM map WHERE image = ?", (image,)).fetchone()[0]
            self._wrong(f"annotations[{first}] and {here}", f"are both of the image {image!r}")
        if found := problem_of_segments(one["segments_info"]):
            self._wrong(here, found)
        for number, segment in enumerate(one["segments_info"]):
            inner = f"{here}.segments_info[{number}]"
            category = _id(segment, "category_id", inner, self._where)
            kept = {name: segment[name] for name in ("id", *_KEPT) if segment.get(name) is not None}
            kept["category"] = category
            self._add_object(place, image, category, _compact(kept), (None, None))

    def _twice(self, row: tuple[Any, ...]) -> NoReturn:
        place, number, name = row[:3]
        first = self._base.execute(
            "SELECT place, id, name FROM image WHERE id = ? OR name = ?", (number, name)
        ).fetchone()
        self._wrong(
            f"images[{first[0]}] and images[{place}]",
            f"are the same image: id {first[1]}, {first[2]} and id {number}, {name}",
        )

    def _require_all(self) -> None:
        """Insist on images and classes, and that every object is of one of each."""
        known = self._categories.names
        if not self.images or not known:
            raise _lacking(self._where, "categories" if self.images else "images")
        places = dict(self._base.execute("SELECT category, MIN(place) FROM object GROUP BY category"))
        if strange := {category: place for category, place in places.items() if category not in known}:
            category = min(strange, key=strange.__getitem__)
            here = f"annotations[{strange[category]}]"
            self._wrong(here, f"the category_id {category!r} is not in `categories`")
        stray = self._base.execute(
            "SELECT MIN(place), image, COUNT(*) FROM (SELECT place, image FROM object UNION ALL"
            " SELECT place, image FROM map) WHERE image NOT IN (SELECT id FROM image)"
            " GROUP BY image ORDER BY 1 LIMIT 1"
        ).fetchone()
        if stray:
            self._wrong(
                f"annotations[{stray[0]}]",
                f"the image_id {stray[1]!r} is not in `images`, in {stray[2]:,} of the annotations",
            )
        self._require_sizes()

    def _require_sizes(self) -> None:
        """Insist that run lengths are of their image's size, where that is stated."""
        wrong = self._base.execute(
            "SELECT object.place, object.width, object.height, image.width, image.height FROM object"
            " JOIN image ON image.id = object.image WHERE object.height IS NOT NULL"
            " AND (object.width, object.height) != (image.width, image.height) ORDER BY 1 LIMIT 1"
        ).fetchone()
        if wrong:
            place, *sides = wrong
            self._wrong(
                f"annotations[{place}]",
                "its run lengths are of {} x {} pixels, its image of {} x {}".format(*sides),
            )

    def _wrong(self, here: str, what: str) -> NoReturn:
        raise _mistake(self._where, here, what)


def read_classes(open_file: OpenFile, where: str) -> tuple[Class, ...]:
    """Return the categories of a COCO file alone, in its order."""
    with open_file() as file, _whole(where):
        for name, items in sections(file):
            if name == "categories" and (found := _categories(items, where).classes):
                return found
    raise _lacking(where, "categories")


def _categories(items: Iterator[Element], where: str) -> Categories:
    entries = []
    for place, (one, _) in enumerate(items):
        here = f"categories[{place}]"
        name, number = str(_of(one, "name", here, where)), _id(one, "id", here, where)
        above, is_thing = one.get("supercategory"), one.get("isthing") != 0
        entries.append(Category(place, number, name, above if isinstance(above, str) else None, is_thing))
    try:
        return categories_of(entries)
    except Ambiguous as error:
        raise _mistake(where, error.where, error.what) from None


def _body(one: dict[str, Any], text: str) -> str:
    """Return what is kept of an annotation: its own text, which costs nothing, where that is short."""
    if "\n" not in text and _SHORT.issuperset(one):
        return text
    return _compact({name: one[name] for name in _KEPT if one.get(name) is not None})


def _of(item: Any, key: str, here: str, where: str) -> Any:
    if not isinstance(item, dict):
        raise _mistake(where, here, f"an object {{...}} was expected, got {redaction.value(item)}")
    if item.get(key) in (None, ""):
        raise _mistake(where, here, f"there is no {key!r} in it, {redaction.value(item)}")
    return item[key]


def _id(item: Any, key: str, here: str, where: str) -> int | str:
    value = _of(item, key, here, where)
    if not is_id(value):
        raise _mistake(where, here, f"the {key} must be a whole number or text, got {str(value)[:100]}")
    return int(value) if isinstance(value, float) else value


def _leaves(name: str) -> bool:
    """Say whether a normal path leaves the folder that it is relative to, or is no path."""
    return name.startswith(("/", "../")) or name == ".." or not _is_path(name)


def _with_slashes(name: str) -> str | None:
    """Return what a name with backslashes, as Windows writes it, means; None for a name without."""
    path = posixpath.normpath(name.replace("\\", "/"))
    return None if "\\" not in name or _leaves(path) else path


def _is_path(name: str) -> bool:
    return "\0" not in name and not any("\ud800" <= mark <= "\udfff" for mark in name)


def _mistake(where: str, here: str, what: str) -> UserError:
    return UserError(f"{where}, {here}: {what}\n  what to do: mend the file")


def _lacking(where: str, section: str) -> UserError:
    return UserError(
        f"{where} holds no `{section}`\n"
        "  what to do: give an instances file of COCO's form, {images, annotations, categories}"
    )


@contextmanager
def _whole(where: str) -> Iterator[None]:
    try:
        yield
    except NotJson as error:
        raise UserError(
            f"{where} is not a whole JSON object {{...}}: {error}\n  what to do: fetch the file again"
        ) from None
