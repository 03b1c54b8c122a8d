"""Whether another way through a network gives the same results as eager fp32, by what the job writes.

Rounding differs between any two ways; what counts is that classes, boxes and decisions stay. Pure
functions over the outputs of the same images, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

CLEAR_MARGIN = 0.1
"""Between fp32's two best probabilities; where they are nearer, either class is right."""
SURE_SCORE = 0.3
SAME_IOU = 0.9
PAIRS = 20_000

Outputs = Sequence[Mapping[str, Any]]
"""One mapping an input, on the CPU."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a number has to be: at least, or at most, ``bound``."""

    bound: float
    at_least: bool

    def holds(self, value: float) -> bool:
        """Say whether ``value`` is within."""
        return value >= self.bound if self.at_least else value <= self.bound

    def to_json(self) -> dict[str, float]:
        """Return the limit as JSON values: ``{"at_least": 0.99}`` or ``{"at_most": 0.03}``."""
        return {"at_least" if self.at_least else "at_most": self.bound}


LIMITS: Mapping[str, Limit] = {
    "class agreement": Limit(0.99, at_least=True),
    "mean |Δ top-1 probability|": Limit(0.03, at_least=False),
    "boxes matched": Limit(0.98, at_least=True),
    "pairs decided otherwise": Limit(0.001, at_least=False),
    "least cosine of embeddings": Limit(0.99, at_least=True),
}
"""The guard's limits, by what is measured."""


def agreement(reference: Outputs, found: Outputs, threshold: float | None = None) -> dict[str, float]:
    """Return what can be measured of how ``found`` agrees with ``reference``, as `LIMITS` names it.

    Outputs with ``probabilities`` (C,) are compared by class, with ``boxes`` (K, 4), ``scores`` and
    ``labels`` by their boxes, with ``embedding`` (D,) by the decisions on random pairs at a cosine
    similarity of ``threshold``, without one by their own directions. Nothing, where there is none.
    """
    measured: dict[str, float] = {}
    if not reference:
        return measured
    names = reference[0].keys()
    if "probabilities" in names:
        measured |= _classes(_stacked(reference, "probabilities"), _stacked(found, "probabilities"))
    if {"boxes", "scores", "labels"} <= names:
        measured["boxes matched"] = _boxes(reference, found)
    if "embedding" in names:
        measured |= _embeddings(_stacked(reference, "embedding"), _stacked(found, "embedding"), threshold)
    return measured


def beyond(measured: Mapping[str, float]) -> str:
    """Say which of the measured numbers are beyond their limits; nothing where all are within."""
    return "; ".join(
        f"{name} {value:.4g}, {'at least' if LIMITS[name].at_least else 'at most'} {LIMITS[name].bound:g}"
        for name, value in measured.items()
        if not LIMITS[name].holds(value)
    )


def _classes(reference: Tensor, found: Tensor) -> dict[str, float]:
    """Compare probabilities (N, C)."""
    best = reference.topk(min(2, reference.shape[1]), dim=1).values
    clear = best[:, 0] - best[:, -1] >= CLEAR_MARGIN if best.shape[1] > 1 else torch.ones(len(best)).bool()
    same = (reference.argmax(1) == found.argmax(1))[clear]
    return {
        "class agreement": float(same.float().mean()) if len(same) else 1.0,
        "mean |Δ top-1 probability|": float((best[:, 0] - found.amax(1)).abs().mean()),
    }


def _boxes(reference: Outputs, found: Outputs) -> float:
    """Return the part of the sure boxes of either side that the other has, too."""
    matched = total = 0
    for one, other in zip(reference, found, strict=True):
        for here, there in ((one, other), (other, one)):
            sure = here["scores"] >= SURE_SCORE
            total += int(sure.sum())
            matched += _matched(here["boxes"][sure], here["labels"][sure], there["boxes"], there["labels"])
    return matched / total if total else 1.0


def _matched(boxes: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor) -> int:
    """Count the boxes that have one of the same class at `SAME_IOU` among the others, each used once."""
    if not len(boxes) or not len(others):
        return 0
    overlaps = box_iou(boxes, others) * (labels[:, None] == other_labels[None])
    count = 0
    for row in range(len(boxes)):
        value, column = overlaps[row].max(0)
        if float(value) >= SAME_IOU:
            overlaps[:, column] = 0
            count += 1
    return count


def _embeddings(reference: Tensor, found: Tensor, threshold: float | None) -> dict[str, float]:
    """Compare embeddings (N, D)."""
    if threshold is None:
        return {"least cosine of embeddings": float(torch.cosine_similarity(reference, found).min())}
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(reference), (2, PAIRS), generator=generator)
    pairs = one[one != other], other[one != other]
    before, after = (_similarity(vectors, *pairs) >= threshold for vectors in (reference, found))
    return {"pairs decided otherwise": float((before != after).float().mean()) if len(before) else 0.0}


def _similarity(vectors: Tensor, one: Tensor, other: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    return (unit[one] * unit[other]).sum(1)


def _stacked(outputs: Outputs, name: str) -> Tensor:
    return torch.stack([one[name].float() for one in outputs])
