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
from cnnbatch.index.gallery import Gallery, gallery_of_photos
from cnnbatch.index.persons.gallery import gallery_of_names
from cnnbatch.index.photos import embed_all
from cnnbatch.index.search import Index
from cnnbatch.index.search_decision import SearchDecision, search_decision
from cnnbatch.storage import redact
from cnnbatch.truth import BOX

RATE = 1e-2
"""The false positive identification rate, unless said: of a hundred strangers one is named."""
MATCHES = 5
"""How many people are ranked for each face."""

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
class Named:
    """Whom faces may be: by a folder of photos in a folder a person (``gallery``), else by the index's names.

    ``people`` are as `gallery_of_names` takes them: the persons of the index, a column, or folders.
    """

    gallery: str | None = None
    people: str | None = None


def identify(
    index: Index, photos: Sequence[str], named: Named, rate: float = RATE, prior: float = 0.5
) -> pa.Table:
    """Return who is in ``photos``, addresses or one folder: the columns of `ROW`.

    Raises UserError where there is nobody to be found.
    """
    gallery = gallery_of(index, named)
    found, without = embed_all(index.uri, index.manifest, photos)
    calibrated = read_calibrated(index.uri, index.storage, index.manifest.space)
    decision = search_decision(calibrated, index.uri, rate, prior, len(gallery), len(gallery.names))
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
    if named.gallery:
        found, _ = embed_all(index.uri, index.manifest, [named.gallery])
        gallery = gallery_of_photos(found)
    else:
        copy = index.copy(skip_damaged)
        gallery = gallery_of_names(index, copy, named.people, copy.live)
    if not gallery.names:
        where = redact(named.gallery) if named.gallery else redact(index.uri)
        raise UserError(
            f"nobody is known in {where}\n  what to do: give --gallery FOLDER with photos in a folder a "
            "person, or --people COLUMN of the index, or name its persons with cnnbatch persons"
        )
    return gallery


def ranked(queries: NDArray[np.float32], gallery: Gallery) -> list[list[dict[str, Any]]]:
    """Return of each query (Q, D) the people who are most alike, best first, each by the most similar face.

    There are `MATCHES` of them, or all people where these are fewer.
    """
    scores, places = gallery.nearest(queries, MATCHES, np.full(len(queries), -1))
    lines, columns = np.nonzero(places >= 0)
    faces = places[lines, columns]
    people, ids = gallery.people[faces].tolist(), gallery.ids_of(gallery.rows[faces])
    found: list[list[dict[str, Any]]] = [[] for _ in queries]
    for line, person, face, score in zip(lines, people, ids, scores[lines, columns].tolist(), strict=True):
        found[line].append({"person": gallery.names[person], "id": face, "similarity": score})
    return found


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
