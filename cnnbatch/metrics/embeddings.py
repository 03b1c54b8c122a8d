"""How well distances of embeddings tell pictures of one class from those of two: verification over all pairs.

Of many pictures those of some classes are taken, by the hashes of the classes' names, so that the pairs stay
few enough to be sorted: `MOST` pictures make half a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Value, verification
from cnnbatch.metrics.verification import FacePairs, name_hashes

MOST = 1000
"""Pictures of which all pairs are judged."""

Vectors = NDArray[np.float32]
Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True, slots=True)
class EmbeddedPictures:
    """Pictures, a row each: ``vectors`` (N, D), NaN where the picture failed, and ``classes`` (N,), hashes.

    Only classes whose hash is below ``below`` are there; None: all. ``left_out`` counts the other pictures.
    """

    vectors: Vectors
    classes: NDArray[np.uint64]
    distance: Distance
    below: int | None = None
    left_out: int = 0


def partial(vectors: Vectors, names: Sequence[str], distance: Distance) -> EmbeddedPictures:
    """Return pictures as rows; ``names`` (N,) are their classes."""
    return _bounded(EmbeddedPictures(vectors, name_hashes(names), distance))


def merge(partials: Sequence[EmbeddedPictures]) -> EmbeddedPictures:
    """Return the pictures of all ``partials``, at least one, as far as they are judged."""
    bounds = [one.below for one in partials if one.below is not None]
    below = min(bounds, default=None)
    kept = [np.ones(len(one.classes), np.bool_) if below is None else one.classes < below for one in partials]
    filled = [(one, rows) for one, rows in zip(partials, kept, strict=True) if rows.any()]
    some = filled or [(partials[0], kept[0])]
    return _bounded(
        EmbeddedPictures(
            np.concatenate([one.vectors[rows] for one, rows in some]),
            np.concatenate([one.classes[rows] for one, rows in some]),
            partials[0].distance,
            below,
            sum(
                one.left_out + int(np.count_nonzero(~rows)) for one, rows in zip(partials, kept, strict=True)
            ),
        )
    )


def _bounded(pictures: EmbeddedPictures) -> EmbeddedPictures:
    """Return the pictures of the classes with the least hashes, `MOST` of them at most."""
    if len(pictures.classes) <= MOST:
        return pictures
    classes, counts = np.unique(pictures.classes, return_counts=True)
    fits = int(np.searchsorted(np.cumsum(counts), MOST, side="right"))
    below = int(classes[fits])
    rows = pictures.classes < below
    return EmbeddedPictures(
        pictures.vectors[rows],
        pictures.classes[rows],
        pictures.distance,
        below,
        pictures.left_out + int(np.count_nonzero(~rows)),
    )


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
    """Return the numbers of `metrics.verification` over all pairs, and ``pairs``, how many there are."""
    found, _, _ = pairs(merged)
    numbers = verification.result(found, fars)
    counted = {"pairs": Value(float(len(found.scores)), count=len(merged.classes))}
    rate = numbers.metrics["EER"]
    first = {"EER": rate, "verification_accuracy": _opposite(rate)}
    return Evaluated({**first, **numbers.metrics, **counted}, numbers.tables)


def _opposite(rate: Value) -> Value:
    """Return 1 - a share."""
    value, low, high = (None if one is None else 1 - one for one in (rate.value, rate.low, rate.high))
    replicates = None if rate.replicates is None else 1 - rate.replicates
    return replace(rate, value=value, low=high, high=low, replicates=replicates)
