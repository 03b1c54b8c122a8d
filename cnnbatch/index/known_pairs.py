"""Pairs of pictures of an index of which it is known whether they are of one person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import by_ends
from cnnbatch.evaluation.face_lists import FacePairList, read_face_list
from cnnbatch.index.by_size import NOBODY
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.named_pictures import NamedPictures, hashes_of
from cnnbatch.metrics.verification import FacePairs
from cnnbatch.storage import Storage, normalize, redact

MOST = 2_000
"""Pictures of named people whose pairs are compared: two million."""
EACH = 30
"""Pictures of one person among them."""


@dataclass(frozen=True, slots=True)
class KnownPairs:
    """Pairs, and the rows of the index ``first`` and ``second``, int64 (N,), that they are of; -1: none."""

    pairs: FacePairs
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def listed_pairs(uri: str) -> FacePairList:
    """Return the list of pairs in a CSV file; raises UserError where there is none."""
    found = read_face_list(normalize(uri), Storage())
    if not isinstance(found, FacePairList):
        raise UserError(f"--pairs: expected a CSV file with the columns a, b and same; {redact(uri)} is none")
    return found


def pairs_of_list(copy: LocalCopy, named: NamedPictures, listed: FacePairList, index: str) -> KnownPairs:
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
    rows = [np.where(side >= 0, named.rows[side], -1) for side in (first, second)]
    scores[there] = _alike(copy, rows[0][there], rows[1][there])
    people = listed.people()
    one, other = (hashes_of([people[file] for file in files]) for files in (listed.first, listed.second))
    pairs = FacePairs(scores, np.array(listed.same), one, other, np.full(len(scores), -1, np.int16))
    return KnownPairs(pairs, *rows)


def pairs_of_people(copy: LocalCopy, named: NamedPictures) -> KnownPairs:
    """Return all pairs among at most `MOST` pictures of named people, whole people in the order of hashes.

    Of a person the first `EACH` pictures count.
    """
    chosen = some_pictures(named)
    vectors = np.asarray(copy.vectors[named.rows[chosen]], np.float32)
    people = named.people[chosen]
    first, second = np.triu_indices(len(chosen), 1)
    scores = (vectors @ vectors.T)[first, second].astype(np.float64)
    same = people[first] == people[second]
    pairs = FacePairs(scores, same, people[first], people[second], np.full(len(scores), -1, np.int16))
    rows = named.rows[chosen]
    return KnownPairs(pairs, rows[first], rows[second])


def some_pictures(named: NamedPictures) -> NDArray[np.int64]:
    """Return the places of the pictures that are compared: `EACH` of a person at most, and `MOST` of all."""
    order = np.argsort(named.people, kind="stable")
    order = order[named.people[order] != NOBODY]
    people = named.people[order]
    order = order[np.arange(len(people)) - np.searchsorted(people, people) < EACH]
    ends = np.flatnonzero(np.append(np.diff(named.people[order]) != 0, True)) + 1  # Behind each person.
    within = ends[ends <= MOST]
    chosen: NDArray[np.int64] = order[: int(within[-1]) if len(within) else 0]
    return chosen


def _alike(copy: LocalCopy, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cosines of rows (N,) and others (N,), one by one."""
    one, other = (np.asarray(copy.vectors[rows], np.float32) for rows in (first, second))
    found: NDArray[np.float64] = np.einsum("nd,nd->n", one, other, dtype=np.float64)
    return found
