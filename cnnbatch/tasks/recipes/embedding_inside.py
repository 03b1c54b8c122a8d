"""What an embedding network makes of pairs of the validation, and of the triplets that it learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cnnbatch.tasks.recipes.face_losses import Mining, mined
from cnnbatch.tasks.recipes.inside import Shown, Strip

ROWS = 4
CLASSES, EACH = 10, 12
"""Classes whose vectors are shown by epoch, as many as have colours of their own, and pictures of each."""

_PAIRS = (
    "On the left the pictures of one class that are farthest from each other, on the right the pictures of "
    "two classes that are nearest, with their distances. Where the left distance is the larger one, no "
    "threshold tells both pairs right."
)
_TRIPLETS = (
    "Anchor, positive and negative as the loss mines them among the pictures of one training step, by the "
    "weights of the best epoch, the hardest first: {how}. A triplet teaches while its negative is not "
    "farther from the anchor than its positive by the margin."
)
_MINED: Mapping[Mining, str] = {
    "semi_hard": "of each pair of one class the negative is the nearest one that is farther from the anchor "
    "than the positive, or where all are nearer, the farthest",
    "batch_hard": "of each anchor the farthest positive and the nearest negative",
    "all": "every one counts",
}


def few_of_each(names: Sequence[str]) -> list[int]:
    """Return the places of pictures of the `CLASSES` with most of them, `EACH` of one at most.

    ``names`` (N,) are those of their classes; of classes with equally many the first by name are taken.
    """
    counts = Counter(names)
    chosen = sorted(counts, key=lambda name: (-min(counts[name], EACH), name))[:CLASSES]
    taken = Counter[str]()
    places = []
    for place, name in enumerate(names):
        if name in chosen and taken[name] < EACH:
            taken[name] += 1
            places.append(place)
    return places


def hardest_pairs(pictures: Sequence[Tensor], embeddings: Tensor, classes: Tensor) -> Iterator[Strip]:
    """Yield the hardest pairs of pictures uint8 (3, H, W) of the validation.

    ``embeddings`` are (N, D), ``classes`` (N,) numbers. Nothing where there are no pairs of either kind.
    """
    distances = _distances(embeddings)
    same = classes[:, None] == classes[None]
    upper = torch.ones_like(same).triu(1)
    if not bool((same & upper).any()) or bool(same.all()):
        return
    farthest = _ordered(distances, same & upper, descending=True)
    nearest = _ordered(distances, ~same & upper, descending=False)
    pairs = [
        _pair(pictures, distances, one, "one class") + _pair(pictures, distances, other, "two classes")
        for one, other in zip(farthest, nearest, strict=False)
    ]
    yield Strip("Hardest pairs of the validation", _PAIRS, pairs)


def mined_triplets(
    pictures: Sequence[Tensor], embeddings: Tensor, classes: Tensor, mining: Mining
) -> Iterator[Strip]:
    """Yield the hardest triplets that are mined among the pictures of a training step; nothing without any.

    The shapes are those of `hardest_pairs`.
    """
    distances = _distances(embeddings)
    triplets = [_triplet(pictures, distances, one) for one in _hardest(distances, classes, mining)]
    if triplets:
        yield Strip("Mined triplets", _TRIPLETS.format(how=_MINED[mining]), triplets)


def _distances(embeddings: Tensor) -> Tensor:
    return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")


def _ordered(distances: Tensor, kind: Tensor, descending: bool) -> list[tuple[int, int]]:
    """Return the first places of pairs of a kind, by their distances."""
    rows, columns = kind.nonzero(as_tuple=True)
    order = distances[rows, columns].argsort(descending=descending)[:ROWS]
    return list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))


def _pair(pictures: Sequence[Tensor], distances: Tensor, places: tuple[int, int], kind: str) -> list[Shown]:
    one, other = places
    return [
        Shown(kind, pictures[one]),
        Shown(f"distance {float(distances[one, other]):.3f}", pictures[other]),
    ]


def _hardest(distances: Tensor, classes: Tensor, mining: Mining) -> list[tuple[int, int, int]]:
    """Return the first of the mined triplets by how much farther the positive is than the negative."""
    squares = distances.square()
    anchors, positives, negatives = mined(squares, classes, mining)
    order = (squares[anchors, positives] - squares[anchors, negatives]).argsort(descending=True)[:ROWS]
    chosen = (places[order].tolist() for places in (anchors, positives, negatives))
    return list(zip(*chosen, strict=True))


def _triplet(pictures: Sequence[Tensor], distances: Tensor, places: tuple[int, int, int]) -> list[Shown]:
    anchor, *others = places
    said = [
        Shown(f"{name}, distance {float(distances[anchor, place]):.3f}", pictures[place])
        for name, place in zip(("positive", "negative"), others, strict=True)
    ]
    return [Shown("anchor", pictures[anchor]), *said]
