"""One image's XML file, as PASCAL VOC, ImageNet-DET and most labelling tools write it."""

from __future__ import annotations

import math
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from cnnbatch.errors import UserError
from cnnbatch.storage.text import MARK_BYTES, decoded, encoding_of

_LARGEST = 2**31


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Return ``width``, ``height`` and ``objects`` of one XML file.

    VOC counts pixels from 1 and includes the last: (xmin, ymin, xmax, ymax) is the box
    (xmin - 1, ymin - 1, xmax, ymax). Raises UserError for what is not such a file.
    """
    root = _xml(data, where)
    size = root.find("size")
    return {
        "width": _side(size, "width"),
        "height": _side(size, "height"),
        "objects": [_object(one, where) for one in root.iter("object")],
    }


class _Plain(TreeBuilder):
    """Refuses a document type: so no entity can grow, or name a file."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which no annotation needs")


def _xml(data: bytes, where: str) -> Element:
    marked = encoding_of(data[:MARK_BYTES]) != "utf-8"
    parser = XMLParser(target=_Plain(), encoding="utf-8" if marked else None)  # a mark beats what it declares
    try:
        parser.feed(decoded(data).encode() if marked else data)
        return parser.close()
    except (ParseError, ValueError, LookupError) as error:  # the last two: an encoding that is not known
        _wrong(where, f"is no whole XML in UTF-8: {error}", "write the file again")


def _object(one: Element, where: str) -> dict[str, Any]:
    name = (one.findtext("name") or "").strip()
    if not name:
        _wrong(where, "has an object without a name", "mend the file")
    left, top, right, bottom = (_corner(one, side, where) for side in ("xmin", "ymin", "xmax", "ymax"))
    box = {"x1": left - 1, "y1": top - 1, "x2": right, "y2": bottom}
    return {
        "label": name,
        "box": box,
        "crowd": False,
        "area": (box["x2"] - box["x1"]) * (box["y2"] - box["y1"]),
        "difficult": (one.findtext("difficult") or "").strip() == "1",
        "ignore": False,
    }


def _corner(one: Element, side: str, where: str) -> float:
    text = (one.findtext(f"bndbox/{side}") or "").strip()
    number = _number(text)
    if number is None:
        _wrong(where, f"has an object whose {side} is no number of pixels", "mend the file")
    return number


def _side(size: Element | None, side: str) -> int | None:
    """Return a side in pixels; None where it is not said, or as what no image has."""
    number = None if size is None else _number(size.findtext(side) or "")
    return round(number) if number is not None and 1 <= number < _LARGEST else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _wrong(where: str, what: str, mend: str) -> NoReturn:
    raise UserError(f"{where} {what}\n  what to do: {mend}") from None
