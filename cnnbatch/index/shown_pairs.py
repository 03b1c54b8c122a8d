"""The hardest pairs of a calibration, their faces side by side, where their pictures can be read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cnnbatch.index.originals import Originals
from cnnbatch.index.pair_figures import HardPair
from cnnbatch.index.search import Index
from cnnbatch.report.pictures import JPEG_QUALITY, jpeg_uri
from cnnbatch.storage import Allowed

SIDE = 224
"""Pixels of a face's longer side."""


@dataclass(frozen=True, slots=True)
class ShownFace:
    """A row of the index by its id, and its picture as a JPEG inside a URI, empty where it can't be read.

    ``words`` are said below it.
    """

    id: str
    uri: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class ShownPair:
    """Two faces, of one person or of two, and their similarity in words."""

    same: bool
    words: str
    faces: tuple[ShownFace, ShownFace]


@dataclass(frozen=True, slots=True)
class ShownPairs:
    """Pairs to show, and what is to be said of pictures that can't be."""

    pairs: Sequence[ShownPair] = ()
    problems: Sequence[str] = ()


def shown_pairs(index: Index, hardest: Sequence[HardPair], allow: Collection[Allowed] = ()) -> ShownPairs:
    """Return the pairs whose rows are still in the index, with their pictures.

    What lies beyond an index that others may have written is shown as far as ``allow`` says.
    """
    rows = index.named([one for pair in hardest for one in (pair.a, pair.b)])
    originals = Originals(index.uri, index.storage, allow)
    faces: dict[str, ShownFace] = {}
    for name, row in rows.items():
        crop = originals.crop(row, SIDE)
        faces[name] = ShownFace(name, "" if crop is None else jpeg_uri(crop, JPEG_QUALITY))
    pairs = [
        ShownPair(pair.same, f"similarity {pair.similarity:.3f}", (faces[pair.a], faces[pair.b]))
        for pair in hardest
        if pair.a in faces and pair.b in faces
    ]
    return ShownPairs(pairs, [*originals.problems()])
