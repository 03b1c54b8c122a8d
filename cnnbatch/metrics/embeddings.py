"""How well distances of embeddings tell pictures of one class from those of two: verification over all pairs.

Of many pictures some are taken, so that the pairs stay few enough to be sorted: `MOST` pictures make half a
million. They are `EACH` of a class at most, by the hashes of their keys, and those of some classes, by the
hashes of the classes' names; so it does not matter how the pictures come. How many are left out is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Value, verification
from cnnbatch.metrics.verification import FacePairs, name_hashes

MOST = 1000
"""Pictures of which all pairs are judged."""
EACH = 100
"""Pictures of a class among them."""
HARDEST = 50
"""Pairs of one class, and of two, that are kept by name."""

_FIELDS: list[pa.Field[Any]] = [
    pa.field("a", pa.string()),
    pa.field("b", pa.string()),
    pa.field("same", pa.bool_()),
    pa.field("score", pa.float64()),
]
_PAIRS = pa.schema(_FIELDS)

Vectors = NDArray[np.float32]
Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True, slots=True)
class EmbeddedPictures:
    """Pictures, a row each: ``vectors`` (N, D), NaN where one failed; ``classes`` are hashes, ``keys`` texts.

    Only classes whose hash is below ``below`` are there; None: all. ``left_out`` counts the other pictures.
    """

    vectors: Vectors
    classes: NDArray[np.uint64]
    keys: NDArray[np.object_]
    distance: Distance
    below: int | None = None
    left_out: int = 0

    def taken(self, rows: NDArray[np.bool_] | NDArray[np.intp], below: int | None) -> EmbeddedPictures:
        """Return some rows, the others being left out."""
        classes = self.classes[rows]
        left_out = self.left_out + len(self.classes) - len(classes)
        return EmbeddedPictures(self.vectors[rows], classes, self.keys[rows], self.distance, below, left_out)


def partial(
    vectors: Vectors, names: Sequence[str], keys: Sequence[str], distance: Distance
) -> EmbeddedPictures:
    """Return pictures as rows; ``names`` (N,) are their classes, ``keys`` (N,) tell the pictures apart."""
    return _bounded(EmbeddedPictures(vectors, name_hashes(names), np.array(keys, np.object_), distance))


def merge(partials: Sequence[EmbeddedPictures]) -> EmbeddedPictures:
    """Return the pictures of all ``partials``, at least one, as far as they are judged."""
    bounds = [one.below for one in partials if one.below is not None]
    together = EmbeddedPictures(
        np.concatenate([one.vectors for one in partials]),
        np.concatenate([one.classes for one in partials]),
        np.concatenate([one.keys for one in partials]),
        partials[0].distance,
        left_out=sum(one.left_out for one in partials),
    )
    if not bounds:
        return _bounded(together)
    return _bounded(together.taken(together.classes < min(bounds), min(bounds)))


def _bounded(pictures: EmbeddedPictures) -> EmbeddedPictures:
    """Return `EACH` pictures of a class at most, and of the classes with the least hashes `MOST` at most."""
    order = np.lexsort((name_hashes(pictures.keys.tolist()), pictures.classes))
    classes, first, counts = np.unique(pictures.classes[order], return_index=True, return_counts=True)
    since = np.arange(len(order)) - np.repeat(first, counts)
    pictures = pictures.taken(np.sort(order[since < EACH]), pictures.below)
    if len(pictures.classes) <= MOST:
        return pictures
    below = int(classes[np.searchsorted(np.cumsum(np.minimum(counts, EACH)), MOST, side="right")])
    return pictures.taken(pictures.classes < below, below)


def pairs(pictures: EmbeddedPictures) -> tuple[FacePairs, NDArray[np.intp], NDArray[np.intp]]:
    """Return all pairs of two pictures, with the places of both; a pair with one that failed has no score."""
    one, other = np.triu_indices(len(pictures.classes), 1)
    first, second = pictures.classes[one], pictures.classes[other]
    scores = similarities(pictures.vectors, pictures.vectors, pictures.distance)[one, other]
    folds = np.full(len(scores), -1, np.int16)
    return FacePairs(scores, first == second, first, second, folds), one, other


def similarities(one: Vectors, other: Vectors, distance: Distance) -> NDArray[np.float64]:
    """Return how alike embeddings (M, D) and (N, D) are, (M, N): the cosine, or minus the distance."""
    if distance == "cosine":
        one, other = (each / lengths(each) for each in (one, other))
        return (one @ other.T).astype(np.float64)
    first, second = one.astype(np.float64), other.astype(np.float64)
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    found: NDArray[np.float64] = -np.sqrt(squares.clip(min=0))
    return found


def lengths(vectors: Vectors) -> Vectors:
    """Return the Euclidean lengths of embeddings (N, D), (N, 1), never 0."""
    found: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=np.finfo(np.float32).tiny)
    return found


def result(merged: EmbeddedPictures, fars: Sequence[float] = verification.FARS) -> Evaluated:
    """Return the numbers of `metrics.verification` over all pairs, their number, and what is left out.

    The table ``hardest_pairs`` has the `HARDEST` pairs of each kind.
    """
    found, one, other = pairs(merged)
    numbers = verification.result(found, fars)
    counted = {"pairs": Value(float(len(found.scores)), count=len(merged.classes))}
    rate = numbers.metrics["EER"]
    first = {"EER": rate, "verification_accuracy": _opposite(rate)}
    if merged.left_out:
        whole = len(merged.classes) + merged.left_out
        counted["pictures_left_out"] = Value(float(merged.left_out), count=whole)
    tables = {**numbers.tables, "hardest_pairs": _hardest(found, merged.keys[one], merged.keys[other])}
    return Evaluated({**first, **numbers.metrics, **counted}, tables)


def _hardest(found: FacePairs, one: NDArray[np.object_], other: NDArray[np.object_]) -> pa.Table:
    """Return the pairs of two classes that are most alike, then those of one class that are least.

    ``one`` and ``other`` (P,) are the keys of their pictures, of which the table has the lesser as ``a``; so
    it is the same however the pictures come.
    """
    rows = np.concatenate([_first(-found.scores, ~found.same), _first(found.scores, found.same)])
    ordered = [sorted(pair) for pair in zip(one[rows], other[rows], strict=True)]
    keys = np.array(ordered, np.object_).reshape(-1, 2)
    columns = {"a": keys[:, 0], "b": keys[:, 1], "same": found.same[rows], "score": found.scores[rows]}
    return pa.table(columns, schema=_PAIRS)


def _first(ranks: NDArray[np.float64], kind: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the places of the `HARDEST` pairs of a kind that have the least ranks, by these."""
    places = np.flatnonzero(kind & ~np.isnan(ranks))
    return places[np.argsort(ranks[places], kind="stable")[:HARDEST]]


def _opposite(rate: Value) -> Value:
    """Return 1 - a share."""
    value, low, high = (None if one is None else 1 - one for one in (rate.value, rate.low, rate.high))
    replicates = None if rate.replicates is None else 1 - rate.replicates
    return replace(rate, value=value, low=high, high=low, replicates=replicates)
