"""Calibrates an index: by pairs whose truth is known, and by photos of people who are known to be absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index import by_size
from cnnbatch.index.by_size import (
    NOBODY,
    AtSize,
    Gallery,
    Probes,
    Searched,
    curve,
    detection_errors,
    searched,
)
from cnnbatch.index.calibrated import Calibrated, put_calibrated
from cnnbatch.index.calibration import RATES
from cnnbatch.index.calibration import calibrate as fitted
from cnnbatch.index.growth import beyond
from cnnbatch.index.known_pairs import (
    KnownPairs,
    listed_pairs,
    pairs_of_list,
    pairs_of_people,
    some_pictures,
)
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.named_pictures import (
    NamedPictures,
    folders_of,
    hashes_of,
    largest_faces,
    named_pictures,
)
from cnnbatch.index.page import write_index_report
from cnnbatch.index.pair_figures import figures_of
from cnnbatch.index.photos import embed_all
from cnnbatch.index.search import Index
from cnnbatch.storage import redact


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
    """Measure what similarities mean in an index, keep it there as ``calibration.json``, and report it.

    Of several faces of a picture the largest counts. Raises UserError where nothing is known, and as
    `calibration.calibrate` does.
    """
    people = known.people or index.manifest.people
    if known.pairs is None and people is None:
        raise UserError(
            "expected pairs of which it is known whether they are of one person\n  what to do: give --pairs "
            "FILE (a CSV file with the columns a, b, same), or --people folder where pictures lie in a "
            "folder a person, or --people COLUMN of the index"
        )
    copy = index.copy()
    named = named_pictures(copy, [*index.manifest.kept], people)
    pairs = _pairs(index, copy, named, known)
    searches = None if known.absent is None else searched_for(index, copy, named, known.absent)
    found = Calibrated(
        rows=len(index),
        space=index.manifest.space,
        pairs=fitted(pairs.pairs, rates),
        sizes=() if searches is None else _sizes(searches, identification_rates),
        figures=figures_of(pairs, copy.columns(["id"])["id"]),
        errors=() if searches is None else detection_errors(searches),
        known_by=redact(known.pairs) if known.pairs else str(people),
        strangers=0 if searches is None else int(searches.absent.sum()),
        stranger_people=0 if searches is None else len(np.unique(searches.strangers.person)),
    )
    put_calibrated(index.uri, index.storage, found)
    write_index_report(index)
    return found


def _sizes(searches: Searched, rates: Sequence[float]) -> tuple[AtSize, ...]:
    """Return what was measured of all sizes, the whole first, and what is to be expected of larger ones."""
    measured = curve(searches, rates)
    return (*measured, *beyond(searches, measured[: len(rates)]))


def _pairs(index: Index, copy: LocalCopy, named: NamedPictures, known: Known) -> KnownPairs:
    if known.pairs is not None:
        return pairs_of_list(copy, named, listed_pairs(known.pairs), redact(index.uri))
    return pairs_of_people(copy, named)


def searched_for(index: Index, copy: LocalCopy, named: NamedPictures, absent: str) -> Searched:
    """Return what the index finds for photos of people who are not in it, and for those who are."""
    found, without = embed_all(index.uri, index.manifest, [absent])
    if not len(found.vectors):
        raise UserError(f"--absent: no face was found in the {len(without):,} pictures of {redact(absent)}")
    strangers = largest_faces(found.rows["key"], found.rows["box"])
    keys = [*map(str, found.rows["key"].take(strangers).to_pylist())]
    folders = [folder or key for folder, key in zip(folders_of(keys), keys, strict=True)]
    mates = _with_mates(named)
    vectors = np.asarray(found.vectors[strangers], np.float32), copy.vectors[named.rows[mates]]
    probes = Probes(
        np.concatenate(vectors, dtype=np.float32, casting="unsafe"),
        np.concatenate([hashes_of(folders), named.people[mates]]),
        np.concatenate([np.full(len(strangers), -1), named.rows[mates]]),
        np.arange(len(strangers) + len(mates)) < len(strangers),
    )
    people = np.full(len(copy.vectors), NOBODY, np.uint64)
    people[named.rows] = named.people
    return searched(probes, Gallery(copy.vectors, copy.live, people))


def _with_mates(named: NamedPictures) -> NDArray[np.int64]:
    """Return the places of pictures whose person has another one, of those that are compared."""
    chosen = some_pictures(named)
    _, inverse, counts = np.unique(named.people[chosen], return_inverse=True, return_counts=True)
    return chosen[counts[inverse] > 1]
