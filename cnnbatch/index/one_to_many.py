"""Searches of a whole gallery reduced to what error rates need: streamed, and as exact as brute force.

Each probe's similarity to its own person's faces is known first; then every vector is compared once, and
those that are at least as similar are counted. Products of matrices tell all but the nearest of these apart;
what they leave open by rounding is compared again, alone, so that a rank does not depend on how blocks are
cut. Memory holds one block of similarities, whatever the size of the gallery, whose vectors may be mapped.

A rank counts faces: a person with several faces ahead counts as often (unconsolidated enrolment in Grother,
Ngan, Hanaoka: FRVT Part 2: Identification, NISTIR 8271).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.exact import Vectors, similarities
from cnnbatch.metrics.identification import Searches

PROBES, ROWS = 2_048, 2_048
"""How many probes are compared with how many rows at once: 16 MB of similarities."""

_ROUNDED = 1e-5
"""Products of vectors of length 1 differ from `similarities` by less, however they are summed."""

Queries = NDArray[np.float32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Enrolled:
    """A gallery: ``rows`` (G,) of ``vectors`` (N, D) float16 of length 1, and whose each is, ``people`` (G,).

    ``people`` are numbers of people, ascending from 0, int64.
    """

    vectors: Vectors
    rows: Places
    people: Places

    @cached_property
    def by_person(self) -> tuple[Places, Places]:
        """The places (G,) of the gallery by people, and where each person's begin, (P + 1,)."""
        order = np.argsort(self.people, kind="stable")
        count = int(self.people.max(initial=-1)) + 1
        return order, np.searchsorted(self.people[order], np.arange(count + 1))


@dataclass(frozen=True, slots=True)
class Probes:
    """Searches to be made: ``vectors`` (Q, D) of length 1, float16 or float32.

    ``people`` (Q,) are the numbers of their people in the gallery, -1 for nobody who is enrolled; ``own``
    (Q,) the rows of the vectors that are the probes themselves and never count, -1 for none.
    """

    vectors: NDArray[Any]
    people: Places
    own: Places

    def block(self, start: int, count: int) -> Probes:
        """Return some of them, as float32."""
        some = slice(start, start + count)
        return Probes(np.asarray(self.vectors[some], np.float32), self.people[some], self.own[some])


def searched(probes: Probes, gallery: Enrolled, names: NDArray[np.uint64]) -> Iterator[Searches]:
    """Yield the searches of all probes, some at a time, in order; ``names`` (Q,) are hashes of their people.

    A search is mated where the gallery has a face of its person that is not the probe itself. None failed.
    """
    for start in range(0, len(probes.people), PROBES):
        some = probes.block(start, PROBES)
        mate = _best_mates(some, gallery)
        ahead, other = _others(some, gallery, mate)
        mated = np.isfinite(mate)
        yield Searches(
            names[start : start + PROBES],
            mated,
            np.zeros(len(mate), np.bool_),
            np.where(mated, 1 + ahead, 0).astype(np.int32),
            np.where(mated, mate, np.nan),
            np.where(np.isfinite(other), other, np.nan),
            len(gallery.rows),
        )


def _best_mates(probes: Probes, gallery: Enrolled) -> NDArray[np.float64]:
    """Return the similarity of each probe to the most similar other face of its person, -inf for none."""
    order, starts = gallery.by_person
    best = np.full(len(probes.people), -np.inf)
    known = np.flatnonzero((probes.people >= 0) & (probes.people < len(starts) - 1))
    counts = starts[probes.people[known] + 1] - starts[probes.people[known]]
    for start, end in _cuts(counts, PROBES * ROWS):
        some, number = known[start:end], counts[start:end]
        within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        rows = gallery.rows[order[np.repeat(starts[probes.people[some]], number) + within]]
        queries = np.repeat(some, number)
        scores = _paired(probes, gallery, queries, rows)
        np.maximum.at(best, queries, np.where(rows == probes.own[queries], -np.inf, scores))
    return best


def _cuts(counts: Places, most: int) -> Iterator[tuple[int, int]]:
    """Yield runs of ``counts`` (N,) whose sums are at most ``most``, or single ones that are larger."""
    start = 0
    sums = np.append(0, np.cumsum(counts))
    while start < len(counts):
        end = max(start + 1, int(np.searchsorted(sums, sums[start] + most, "right")) - 1)
        yield start, end
        start = end


def _others(
    probes: Probes, gallery: Enrolled, mate: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how many faces of others are at least as similar as ``mate`` (Q,), and the best of others'."""
    ahead = np.zeros(len(mate), np.int64)
    best, best_row = np.full(len(mate), -np.inf, np.float32), np.full(len(mate), -1, np.int64)
    sure, open_from = _limits(mate)
    whole = len(gallery.rows) == len(gallery.vectors)
    for start in range(0, len(gallery.rows), ROWS):
        rows = gallery.rows[start : start + ROWS]
        chosen = gallery.vectors[start : start + ROWS] if whole else gallery.vectors[rows]
        products = probes.vectors @ np.asarray(chosen, np.float32).T  # [Q, B]
        _leave_out(products, probes, gallery.people[start : start + ROWS], rows)
        place = products.argmax(axis=1)
        score = products[np.arange(len(products)), place]
        better = score > best
        best[better], best_row[better] = score[better], rows[place[better]]
        near = np.flatnonzero(score >= open_from)
        if len(near):
            ahead[near] += np.count_nonzero(products[near] >= sure[near, None], axis=1)
            lines, columns = np.nonzero(
                (products[near] >= open_from[near, None]) & (products[near] < sure[near, None])
            )
            queries = near[lines]
            exact = _paired(probes, gallery, queries, rows[columns])
            np.add.at(ahead, queries, exact >= mate[queries])
    found = similarities(probes.vectors, gallery.vectors, best_row[:, None])[:, 0]
    return ahead, found.astype(np.float64)


def _limits(mate: NDArray[np.float64]) -> tuple[Queries, Queries]:
    """Return from which product on a face is surely at least as similar as the mate, and maybe; (Q,) each."""
    limit = np.where(np.isfinite(mate), mate, np.inf)
    return (limit + _ROUNDED).astype(np.float32), (limit - _ROUNDED).astype(np.float32)


def _leave_out(products: Queries, probes: Probes, people: Places, rows: Places) -> None:
    """Set the products of probes with faces of their own people, and with themselves, to -inf."""
    order = np.argsort(people, kind="stable")
    first = np.searchsorted(people[order], probes.people, "left")
    number = np.searchsorted(people[order], probes.people, "right") - first
    lines = np.repeat(np.arange(len(products)), number)
    within = np.arange(len(lines)) - np.repeat(np.cumsum(number) - number, number)
    products[lines, order[np.repeat(first, number) + within]] = -np.inf
    place = np.searchsorted(rows, probes.own)
    own = np.flatnonzero(rows[np.minimum(place, len(rows) - 1)] == probes.own)
    products[own, place[own]] = -np.inf


def _paired(probes: Probes, gallery: Enrolled, queries: Places, rows: Places) -> NDArray[np.float64]:
    """Return the similarity of probes (N,) to rows (N,), one by one."""
    found = np.empty(len(queries), np.float64)
    step = max(1, PROBES * ROWS // gallery.vectors.shape[1])
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        each = similarities(probes.vectors[queries[some]], gallery.vectors, rows[some, None])
        found[some] = each[:, 0]
    return found
