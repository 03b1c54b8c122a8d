"""Calibrates an index: by pairs whose truth is known, and by photos of people who are known to be absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import by_ends
from cnnbatch.evaluation.face_lists import FacePairList, read_face_list
from cnnbatch.index import by_size
from cnnbatch.index.by_size import NOBODY, AtSize, Probes, SearchesBySize
from cnnbatch.index.calibrated import Calibrated, put_calibrated
from cnnbatch.index.calibration import RATES
from cnnbatch.index.calibration import calibrate as fitted
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.named_pictures import (
    NamedPictures,
    folders_of,
    hashes_of,
    largest_faces,
    named_pictures,
)
from cnnbatch.index.photos import embed_all
from cnnbatch.index.search import Index
from cnnbatch.metrics.intervals import key_hashes
from cnnbatch.metrics.verification import FacePairs
from cnnbatch.storage import Storage, normalize, redact

MOST = 2_000
"""Pictures of named people whose pairs are compared: two million."""
EACH = 30
"""Pictures of one person among them."""

_BLOCK = 4_096  # rows that are searched at once


@dataclass(frozen=True, slots=True)
class Known:
    """What is known: a list of ``pairs``, where the index names ``people``, photos of ``absent`` people."""

    pairs: str | None = None
    people: str | None = None
    absent: str | None = None


def calibrate(
    index: Index,
    known: Known,
    rates: Sequence[float] = RATES,
    identification_rates: Sequence[float] = by_size.RATES,
) -> Calibrated:
    """Measure what similarities mean in an index, and keep it there as ``calibration.json``.

    Of several faces of a picture the largest counts. Raises UserError where nothing is known, and as
    `calibration.calibrate` does.
    """
    if known.pairs is None and known.people is None:
        raise UserError(
            "expected pairs of which it is known whether they are of one person\n  what to do: give --pairs "
            "FILE (a CSV file with the columns a, b, same), or --people folder where pictures lie in a "
            "folder a person, or --people COLUMN of the index"
        )
    copy = index.copy()
    named = named_pictures(copy, [*index.manifest.kept], known.people)
    pairs = fitted(_pairs(index, copy, named, known), rates)
    sizes = [] if known.absent is None else _by_size(index, copy, named, known.absent, identification_rates)
    found = Calibrated(rows=len(index), space=index.manifest.space, pairs=pairs, sizes=tuple(sizes))
    put_calibrated(index.uri, index.storage, found)
    return found


def _pairs(index: Index, copy: LocalCopy, named: NamedPictures, known: Known) -> FacePairs:
    if known.pairs is not None:
        return pairs_of_list(copy, named, _listed(known.pairs), redact(index.uri))
    return pairs_of_people(copy, named)


def _listed(uri: str) -> FacePairList:
    found = read_face_list(normalize(uri), Storage())
    if not isinstance(found, FacePairList):
        raise UserError(f"--pairs: expected a CSV file with the columns a, b and same; {redact(uri)} is none")
    return found


def pairs_of_list(copy: LocalCopy, named: NamedPictures, listed: FacePairList, index: str) -> FacePairs:
    """Return the pairs of a list as an index has them; one of which a picture is not there has failed.

    A picture is named by its key, or by a longer path that ends with it, as no other file of the list does.
    Raises UserError where no pair has both pictures.
    """
    files = {file: [file] for file in listed.files}
    ends = by_ends(files)
    found = {
        file: place for place, key in enumerate(named.keys) for file in files.get(key) or ends.get(key, [])
    }
    first, second = (
        np.array([found.get(file, -1) for file in side]) for side in (listed.first, listed.second)
    )
    there = (first >= 0) & (second >= 0)
    if not there.any():
        raise UserError(
            f"--pairs: {index} has no pair of the list with a face in each picture, as {listed.first[0]} and "
            f"{listed.second[0]}\n  what to do: name pictures as the keys of the index do"
        )
    scores = np.full(len(first), np.nan)
    scores[there] = _alike(copy, named.rows[first[there]], named.rows[second[there]])
    people = listed.people()
    one, other = (hashes_of([people[file] for file in files]) for files in (listed.first, listed.second))
    return FacePairs(scores, np.array(listed.same), one, other, np.full(len(scores), -1, np.int16))


def pairs_of_people(copy: LocalCopy, named: NamedPictures) -> FacePairs:
    """Return all pairs among at most `MOST` pictures of named people, whole people in the order of hashes.

    Of a person the first `EACH` pictures count.
    """
    chosen = _some(named)
    vectors = np.asarray(copy.vectors[named.rows[chosen]], np.float32)
    people = named.people[chosen]
    first, second = np.triu_indices(len(chosen), 1)
    scores = (vectors @ vectors.T)[first, second].astype(np.float64)
    same = people[first] == people[second]
    return FacePairs(scores, same, people[first], people[second], np.full(len(scores), -1, np.int16))


def _some(named: NamedPictures) -> NDArray[np.int64]:
    """Return the places of the pictures that are compared."""
    order = np.argsort(named.people, kind="stable")
    order = order[named.people[order] != NOBODY]
    people = named.people[order]
    order = order[np.arange(len(people)) - np.searchsorted(people, people) < EACH]
    ends = np.flatnonzero(np.append(np.diff(named.people[order]) != 0, True)) + 1  # Behind each person.
    within = ends[ends <= MOST]
    chosen: NDArray[np.int64] = order[: int(within[-1]) if len(within) else 0]
    return chosen


def _by_size(
    index: Index, copy: LocalCopy, named: NamedPictures, absent: str, rates: Sequence[float]
) -> list[AtSize]:
    """Return the thresholds of searches, by photos of people who are not in the index."""
    found, without = embed_all(index.uri, index.manifest, [absent])
    if not len(found.vectors):
        raise UserError(f"--absent: no face was found in the {len(without):,} pictures of {redact(absent)}")
    strangers = largest_faces(found.rows["key"], found.rows["box"])
    keys = [*map(str, found.rows["key"].take(strangers).to_pylist())]
    folders = [folder or key for folder, key in zip(folders_of(keys), keys, strict=True)]
    mates = _with_mates(named)
    vectors = np.asarray(found.vectors[strangers], np.float32), copy.vectors[named.rows[mates]]
    ids = _ids(copy)
    own = ids[np.searchsorted(copy.live, named.rows[mates])]
    probes = Probes(
        np.concatenate(vectors, dtype=np.float32, casting="unsafe"),
        np.concatenate([hashes_of(folders), named.people[mates]]),
        np.concatenate([np.full(len(strangers), NOBODY, np.uint64), own]),
        np.arange(len(strangers) + len(mates)) < len(strangers),
    )
    searches = SearchesBySize(probes)
    people = np.full(len(copy.vectors), NOBODY, np.uint64)
    people[named.rows] = named.people
    for start in range(0, len(copy.live), _BLOCK):
        rows = copy.live[start : start + _BLOCK]
        block = np.asarray(copy.vectors[rows], np.float32)
        searches.add(ids[start : start + _BLOCK], block, people[rows])
    return by_size.curve(searches, rates)


def _with_mates(named: NamedPictures) -> NDArray[np.int64]:
    """Return the places of pictures whose person has another one, of those that are compared."""
    chosen = _some(named)
    _, inverse, counts = np.unique(named.people[chosen], return_inverse=True, return_counts=True)
    return chosen[counts[inverse] > 1]


def _ids(copy: LocalCopy) -> NDArray[np.uint64]:
    """Return the hashes of the ids of the live rows."""
    return key_hashes(map(str, copy.columns(["id"]).take(copy.live)["id"].to_pylist()))


def _alike(copy: LocalCopy, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cosines of rows (N,) and others (N,), one by one."""
    one, other = (np.asarray(copy.vectors[rows], np.float32) for rows in (first, second))
    found: NDArray[np.float64] = np.einsum("nd,nd->n", one, other, dtype=np.float64)
    return found
