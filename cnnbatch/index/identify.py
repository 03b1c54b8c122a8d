"""Who is in photos: each face is searched for among people whose names are known, and named or left unknown.

Ranked matches always come. A name is given where the best match reaches the threshold that was measured for a
gallery of this size, so that strangers are named at most at the stated rate; where none was measured, nothing
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index.calibrated import read_calibrated
from cnnbatch.index.exact import search_exactly
from cnnbatch.index.named_pictures import FOLDER, NamedPictures, folders_of, largest_faces, named_pictures
from cnnbatch.index.photos import embed_all
from cnnbatch.index.search import Index
from cnnbatch.index.search_decision import SearchDecision, search_decision
from cnnbatch.storage import redact
from cnnbatch.truth import BOX

RATE = 1e-2
"""The false positive identification rate, unless said: of a hundred strangers one is named."""
MATCHES = 5
"""How many people are ranked for each face."""

_SPARE = 8  # Rows that are looked at for each person who is ranked: a person may have several.
_MATCH = pa.struct([("person", pa.string()), ("id", pa.string()), ("similarity", pa.float32())])

ROW = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("box", BOX),
        ("person", pa.string()),
        ("is_known", pa.bool_()),
        ("similarity", pa.float32()),
        ("probability", pa.float64()),
        ("prior", pa.float64()),
        ("threshold", pa.float32()),
        ("reason", pa.string()),
        ("matches", pa.list_(_MATCH)),
    ]
)
"""A face of a photo a row, by the keys of photos and from left to right; a photo without one has a row, too.

``person`` is who it is, null where ``is_known`` is false (nobody who is known), or null (nothing decides:
``reason``). ``similarity`` is that of the best match, ``probability`` that of one person with it, where a
share ``prior`` of best matches is.
"""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Faces whose people are known: ``vectors`` (G, D), ``names`` (G,), ``ids`` (G,)."""

    vectors: NDArray[np.float16]
    names: Sequence[str]
    ids: Sequence[str]

    @property
    def people(self) -> int:
        """How many people there are."""
        return len({*self.names})


@dataclass(frozen=True, slots=True)
class Named:
    """Whom faces may be: by a folder of photos in a folder a person (``gallery``), else by the index's names.

    These are a column that the index keeps, or the folders of its pictures.
    """

    gallery: str | None = None
    people: str = FOLDER


def identify(
    index: Index, photos: Sequence[str], named: Named, rate: float = RATE, prior: float = 0.5
) -> pa.Table:
    """Return who is in ``photos``, addresses or one folder: the columns of `ROW`.

    Raises UserError where there is nobody to be found.
    """
    gallery = gallery_of(index, named)
    found, without = embed_all(index.uri, index.manifest, photos)
    calibrated = read_calibrated(index.uri, index.storage, index.manifest.space)
    decision = search_decision(calibrated, index.uri, rate, prior, len(gallery.names), gallery.people)
    matches = ranked(np.asarray(found.vectors, np.float32), gallery)
    faces = found.rows.select(["key", "id", "box"]).to_pylist()
    rows = [{**face, **named_by(some, decision)} for face, some in zip(faces, matches, strict=True)]
    rows += [
        {"key": key, "reason": "no face was found, or it can't be read", "matches": []} for key in without
    ]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["key"]), schema=ROW)


def gallery_of(index: Index, named: Named, skip_damaged: bool = False) -> Gallery:
    """Return the faces of those whom faces may be.

    With ``skip_damaged`` those in segments that are missing or damaged are left out. Raises UserError where
    there is nobody.
    """
    gallery = _of_folder(index, named.gallery) if named.gallery else _of_index(index, named, skip_damaged)
    if not gallery.names:
        where = redact(named.gallery) if named.gallery else f"{redact(index.uri)} by {named.people}"
        raise UserError(
            f"nobody is known in {where}\n  what to do: give --gallery FOLDER with photos in a folder a "
            "person, or --people COLUMN of the index"
        )
    return gallery


def ranked(queries: NDArray[np.float32], gallery: Gallery) -> list[list[dict[str, Any]]]:
    """Return of each query (Q, D) the people who are most alike, best first, each by the most similar face.

    There are `MATCHES` of them, or all people where these are fewer.
    """
    people = min(MATCHES, gallery.people)
    found: list[list[dict[str, Any]]] = [[] for _ in queries]
    lacking, depth = np.arange(len(queries)), people * _SPARE
    while len(lacking):  # Those whose nearest faces are of too few people are searched for more deeply.
        scores, rows = search_exactly(queries[lacking], gallery.vectors, min(depth, len(gallery.names)))
        for query, *nearest in zip(lacking.tolist(), scores.tolist(), rows.tolist(), strict=True):
            found[query] = _people(gallery, *nearest)[:people]
        lacking = np.array([query for query in lacking if len(found[query]) < people], np.int64)
        depth *= _SPARE
    return found


def _people(gallery: Gallery, scores: Sequence[float], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return the people of faces, which come best first, each by the first."""
    best: dict[str, dict[str, Any]] = {}
    for score, row in zip(scores, rows, strict=True):
        match = {"person": gallery.names[row], "id": gallery.ids[row], "similarity": score}
        best.setdefault(gallery.names[row], match)
    return [*best.values()]


def named_by(matches: Sequence[dict[str, Any]], decision: SearchDecision) -> dict[str, Any]:
    """Return what is said of a face by its matches, of which there is at least one.

    These are the columns of `ROW` from ``person`` on.
    """
    best = matches[0]
    known, probability = decision.accepts(best["similarity"]), decision.probability(best["similarity"])
    return {
        "person": best["person"] if known else None,
        "is_known": known,
        "similarity": best["similarity"],
        "probability": probability,
        "prior": None if probability is None else decision.prior,
        "threshold": decision.threshold.similarity,
        "reason": decision.threshold.reason,
        "matches": matches,
    }


def _of_folder(index: Index, folder: str) -> Gallery:
    """Return the largest face of each photo of a folder, by the folders of their people."""
    found, _ = embed_all(index.uri, index.manifest, [folder])
    if not found.rows.num_rows:
        return Gallery(found.vectors, [], [])
    largest = largest_faces(found.rows["key"], found.rows["box"])
    keys = [*map(str, found.rows["key"].take(largest).to_pylist())]
    known = NamedPictures(largest, keys, folders_of(keys)).named()
    return Gallery(found.vectors[known.rows], [*map(str, known.names)], _ids(found.rows.take(known.rows)))


def _of_index(index: Index, named: Named, skip_damaged: bool) -> Gallery:
    """Return the faces of the index whose people are named."""
    copy = index.copy(skip_damaged)
    known = named_pictures(copy, [*index.manifest.kept], named.people).named()
    return Gallery(copy.vectors[known.rows], [*map(str, known.names)], _ids(copy.rows(known.rows)))


def _ids(rows: pa.Table) -> list[str]:
    return [*map(str, rows["id"].to_pylist())]
