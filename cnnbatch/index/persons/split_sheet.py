"""A proposed cut as a contact sheet: the faces of both halves, with how similar each is to either."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnbatch.humanize import counted
from cnnbatch.index.originals import Originals
from cnnbatch.index.persons.correcting import Cut
from cnnbatch.index.persons.group import FacesInOrder
from cnnbatch.index.persons.grouping import Ints
from cnnbatch.index.persons.record import Persons
from cnnbatch.index.search import Index
from cnnbatch.index.sheet import SIDE, Band, Cell, jpeg

MOST = 64
"""Faces of a half that are shown."""


def split_sheet(index: Index, persons: Persons, cut: Cut, originals: Originals) -> bytes:
    """Return a JPEG file with the faces of both halves, those that are clearly of their half first.

    Below each are its mean cosines with the other faces of its half and with those of the other half. Of more
    than `MOST` faces some from the first to the last are shown. ``originals`` say what can't be.
    """
    ordered = FacesInOrder.of(index.copy())
    first, second = (rows[rows >= 0] for rows in map(ordered.rows_of, (cut.first, cut.second)))
    stays, goes = f"First half, stays {persons.title(cut.person)}", "Second half, a new person"
    return jpeg([_band(index, stays, first, second, originals), _band(index, goes, second, first, originals)])


def _band(index: Index, title: str, rows: Ints, others: Ints, originals: Originals) -> Band:
    own, other = mean_cosines(index.copy().vectors, rows, others)
    order = np.argsort(np.nan_to_num(other - own), kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(MOST, len(order))).astype(np.int64))]
    shown = index.addressed(index.copy().rows(rows[chosen])).to_pylist()
    cells = [
        Cell(originals.crop(row, SIDE), [row["id"], f"{mine:.3f}, {theirs:.3f}"])
        for row, mine, theirs in zip(shown, own[chosen].tolist(), other[chosen].tolist(), strict=True)
    ]
    more = f", {len(chosen):,} shown" if len(chosen) < len(rows) else ""
    faces = f"{counted(len(rows), 'face')}{more}"
    return Band.of(cells, f"{title}: {faces} (mean cosine with this half, with the other)")


def mean_cosines(
    vectors: NDArray[np.float16], rows: Ints, others: Ints
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean cosines of each of ``rows`` (N,) with the rest of them and with ``others`` (M,).

    That with the rest is NaN where there is none.
    """
    own, other = (np.asarray(vectors[some], np.float64) for some in (rows, others))
    rest = (own @ own.sum(0) - np.einsum("nd,nd->n", own, own)) / max(1, len(own) - 1)
    return (rest if len(own) > 1 else np.full(len(own), np.nan)), own @ other.mean(0)
