"""How well grouping finds the people whom an index names, at several similarities; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cnnbatch.errors import UserError
from cnnbatch.index.named_pictures import named_pictures
from cnnbatch.index.persons.group import FacesInOrder
from cnnbatch.index.persons.grouping import NOBODY, Said, group_faces
from cnnbatch.index.search import Index
from cnnbatch.metrics import Value
from cnnbatch.metrics.clustering import cells, result

STEPS = (-0.02, -0.01, 0.0, 0.01, 0.02)
"""How far the similarities that are tried lie from the one that is asked for."""


@dataclass(frozen=True, slots=True)
class AtSimilarity:
    """What grouping all faces anew at a ``similarity`` gives: how many persons, and how well found."""

    similarity: float
    persons: int
    alone: int
    metrics: Mapping[str, Value]


def evaluate(index: Index, people: str, similarity: float) -> Iterator[AtSimilarity]:
    """Yield what grouping gives around a ``similarity``, by people whom the index names.

    ``people`` is a column that it keeps, or ``folder``. All faces are grouped, and of each picture with a
    name the largest is judged. What people said plays no part. Raises UserError.
    """
    copy = index.copy()
    named = named_pictures(copy, [*index.manifest.kept], people).named()
    if len(named.rows) < 2:
        raise UserError(
            f"expected at least two pictures with a name in {people}, got {len(named.rows)}\n"
            "  what to do: give a column that says who is in a picture"
        )
    faces = FacesInOrder.of(copy)
    place = np.argsort(faces.rows)[np.searchsorted(np.sort(faces.rows), named.rows)]
    nobody = np.full(len(faces.rows), NOBODY)
    for one in _around(similarity):
        group, _ = group_faces(copy.vectors, faces.rows, nobody, Said(), one, one)
        sizes = np.bincount(group)
        names = [str(name) for name in named.names]
        metrics = result(cells(names, group[place]))
        yield AtSimilarity(one, int((sizes > 0).sum()), int((sizes == 1).sum()), metrics)


def lines(found: Sequence[AtSimilarity]) -> Iterator[str]:
    """Yield a line for each similarity, for people."""
    yield "similarity  persons  of one face  pairs: precision, recall  B-cubed: precision, recall, F1"
    for one in found:
        pairs = ", ".join(_share(one.metrics[f"pair_{name}"]) for name in ("precision", "recall"))
        cubed = ", ".join(_share(one.metrics[f"bcubed_{name}"]) for name in ("precision", "recall", "F1"))
        yield f"{one.similarity:10.4f}  {one.persons:7,}  {one.alone:11,}  {pairs}  {cubed}"


def _around(similarity: float) -> list[float]:
    return [round(min(1.0, similarity + step), 6) for step in STEPS if similarity + step <= 1]


def _share(value: Value) -> str:
    if value.value is None or np.isnan(value.value):
        return "–"
    if value.low is None or value.high is None:
        return f"{value.value:.3f}"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
