"""Whether another way through a network gives the same results as eager fp32, by what the job writes.

Rounding differs between any two ways; what counts is that classes, boxes and decisions stay. Pure
functions over the outputs of the same images, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cnnbatch.config.entries import Entries, as_instance

CLEAR_MARGIN = 0.1
"""Between fp32's two best probabilities; where they are nearer, either class is right."""
SURE_SCORE = 0.3
SAME_IOU = 0.9
PAIRS = 20_000
GRID = 64
"""Places of a side of a map at which its classes are compared."""
TOLERANCE = 0.01
"""How much a plain number may differ, as a part of it or of the mean magnitude."""

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

    def worst(self, values: Sequence[float]) -> float:
        """Return the value that is nearest to the limit, or beyond it; one that is no number is the worst."""
        undefined = next((value for value in values if math.isnan(value)), None)
        return (min if self.at_least else max)(values) if undefined is None else undefined

    def to_json(self) -> dict[str, float]:
        """Return the limit as JSON values: ``{"at_least": 0.99}`` or ``{"at_most": 0.03}``."""
        return {"at_least" if self.at_least else "at_most": self.bound}


class PrecisionGuard:
    """How outputs that lead to one kind of answer are compared; on its own, as plain numbers."""

    outputs: frozenset[str] = frozenset()
    """The outputs of a forward pass that it compares; nothing is compared where one of them is lacking."""
    limits: Mapping[str, Limit] = {"numbers that agree": Limit(0.99, at_least=True)}
    """What its numbers have to be, by their names."""

    def kept(self, output: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what it compares of one input's outputs: so much is held for each image of a sample."""
        return {name: output[name] for name in self.outputs}

    def measure(self, reference: Outputs, found: Outputs, threshold: float | None) -> dict[str, float]:
        """Return the numbers that `limits` names; ``threshold`` is the task's own, where it has one.

        Here: the share of all numbers that differ by at most `TOLERANCE` of theirs or of the mean; nothing
        where there is no output of fractions, or one whose size varies.
        """
        alike = [
            _alike(*(torch.stack([one[name] for one in side]) for side in (reference, found)))
            for name in reference[0]
            if _is_stackable([one[name] for one in (*reference, *found)])
        ]
        return {"numbers that agree": float(torch.cat(alike).float().mean())} if alike else {}


class LabelGuard(PrecisionGuard):
    """Compares ``probabilities`` (C,) by class, and by how sure the network is."""

    outputs = frozenset({"probabilities"})
    limits = {
        "class agreement": Limit(0.99, at_least=True),
        "mean |Δ top-1 probability|": Limit(0.03, at_least=False),
    }

    def measure(self, reference: Outputs, found: Outputs, threshold: float | None) -> dict[str, float]:
        """Return the agreement of the classes and the mean change of the best probability."""
        return _classes(_stacked(reference, "probabilities"), _stacked(found, "probabilities"))


class ObjectsGuard(PrecisionGuard):
    """Compares ``boxes`` (K, 4) with their ``scores`` and ``labels``, and what else objects have.

    That is ``masks`` (K, 1, M, M) or ``embeddings`` (K, D).
    """

    outputs = frozenset({"boxes", "scores", "labels"})
    limits = {
        "boxes matched": Limit(0.98, at_least=True),
        "mask pixels that agree": Limit(0.98, at_least=True),
        "largest change of an embedding": Limit(0.05, at_least=False),
    }

    def kept(self, output: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the masks as what is inside."""
        masks = {"masks": output["masks"] > 0.5} if "masks" in output else {}
        embeddings = {"embeddings": output["embeddings"]} if "embeddings" in output else {}
        return {**super().kept(output), **masks, **embeddings}

    def measure(self, reference: Outputs, found: Outputs, threshold: float | None) -> dict[str, float]:
        """Return which part of the sure boxes of either side the other has, and how alike matched ones are.

        An embedding changes by the distance of both, as a part of its length.
        """
        pairs = [
            (here, there, _matches(here, there))
            for one, other in zip(reference, found, strict=True)
            for here, there in ((one, other), (other, one))
        ]
        total = sum(int((here["scores"] >= SURE_SCORE).sum()) for here, *_ in pairs)
        matched = sum(len(matches) for *_, matches in pairs)
        numbers = {"boxes matched": matched / total if total else 1.0}
        if "masks" in reference[0] and matched:
            same = [_same_masks(*one) for one in pairs]
            numbers["mask pixels that agree"] = float(torch.cat(same).float().mean())
        if "embeddings" in reference[0] and matched:
            changes = [_changes(*one) for one in pairs]
            numbers["largest change of an embedding"] = float(torch.cat(changes).max())
        return numbers


class EmbeddingGuard(PrecisionGuard):
    """Compares ``embedding`` (D,) by the decisions on random pairs, without a threshold by its direction."""

    outputs = frozenset({"embedding"})
    limits = {
        "pairs decided otherwise": Limit(0.001, at_least=False),
        "least cosine of embeddings": Limit(0.99, at_least=True),
    }

    def measure(self, reference: Outputs, found: Outputs, threshold: float | None) -> dict[str, float]:
        """Return how many pairs are decided otherwise at a cosine of ``threshold``, or the least cosine."""
        return _embeddings(_stacked(reference, "embedding"), _stacked(found, "embedding"), threshold)


class MapGuard(PrecisionGuard):
    """Compares ``map`` (H, W), a class for every pixel, on a grid; and the mean ``confidence``."""

    outputs = frozenset({"map", "confidence"})
    limits = {
        "pixels of the same class": Limit(0.99, at_least=True),
        "mean |Δ confidence|": Limit(0.03, at_least=False),
    }

    def kept(self, output: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the map at no more than `GRID` places a side, which are enough for a share."""
        steps = [-(-side // GRID) for side in output["map"].shape]
        return {**super().kept(output), "map": output["map"][:: steps[0], :: steps[1]].clone()}

    def measure(self, reference: Outputs, found: Outputs, threshold: float | None) -> dict[str, float]:
        """Return the share of equal pixels, the mean of the images', and the mean change of confidence."""
        pairs = list(zip(reference, found, strict=True))
        same = [float((one["map"] == other["map"]).float().mean()) for one, other in pairs]
        changes = [abs(float(one["confidence"]) - float(other["confidence"])) for one, other in pairs]
        return {
            "pixels of the same class": sum(same) / len(same),
            "mean |Δ confidence|": sum(changes) / len(changes),
        }


GUARDS: Entries[PrecisionGuard | type[PrecisionGuard]] = Entries(
    "autotune",
    {"label": LabelGuard, "objects": ObjectsGuard, "embedding": EmbeddingGuard, "map": MapGuard},
    PrecisionGuard,
)
"""The guards by kind of answer; of outputs that none of them compares the numbers are."""


def limits() -> dict[str, Limit]:
    """Return the guards' limits, by what is measured."""
    return {name: limit for one in (*GUARDS.values(), PrecisionGuard) for name, limit in one.limits.items()}


def kept(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `agreement` needs of one input's outputs; all, where no guard says what it compares."""
    if not isinstance(output, Mapping):  # A task of a package gives a tuple, which none of them compares.
        return output
    found: dict[str, Any] = {}
    for guard in _guards_of(output):
        found |= guard.kept(output)
    return found or output


def _guards_of(output: Mapping[str, Any]) -> list[PrecisionGuard]:
    guards = (as_instance(one) for one in GUARDS.values())
    return [one for one in guards if one.outputs and one.outputs <= output.keys()]


def agreement(reference: Outputs, found: Outputs, threshold: float | None = None) -> dict[str, float]:
    """Return what can be measured of how ``found`` agrees with ``reference``, as `limits` names it.

    Nothing, where there is none. ``threshold`` is the cosine similarity from which on the task takes two
    embeddings for the same. Where several networks are measured alike, the worst of them counts.
    """
    measured: dict[str, float] = {}
    for places in _by_network(reference):
        before, after = ([outputs[place] for place in places] for outputs in (reference, found))
        for guard in _guards_of(before[0]):
            for name, value in guard.measure(before, after, threshold).items():
                measured[name] = guard.limits[name].worst([value, measured.get(name, value)])
    return measured or (PrecisionGuard().measure(reference, found, threshold) if reference else measured)


def _by_network(outputs: Outputs) -> Iterable[Sequence[int]]:
    """Return the places of the outputs of each network: those of one have the same names."""
    places: dict[frozenset[str], list[int]] = {}
    for place, output in enumerate(outputs):
        places.setdefault(frozenset(output.keys()), []).append(place)
    return places.values()


def beyond(measured: Mapping[str, float]) -> str:
    """Say which of the measured numbers are beyond their limits; nothing where all are within."""
    known = limits()
    return "; ".join(
        f"{name} {value:.4g}, {'at least' if known[name].at_least else 'at most'} {known[name].bound:g}"
        for name, value in measured.items()
        if not known[name].holds(value)
    )


def _is_stackable(values: Sequence[Any]) -> bool:
    """Say whether one output of all images is an array of fractions of one size."""
    arrays = all(isinstance(one, Tensor) and one.is_floating_point() for one in values)
    return arrays and len({one.shape for one in values}) == 1


def _alike(reference: Tensor, found: Tensor) -> Tensor:
    """Say of each number (N * D,) whether it is the same but for rounding."""
    known, other = reference.float().flatten(), found.float().flatten()
    mean = float(known[known.isfinite()].abs().mean().nan_to_num())
    return torch.isclose(other, known, rtol=TOLERANCE, atol=TOLERANCE * mean, equal_nan=True)


def _classes(reference: Tensor, found: Tensor) -> dict[str, float]:
    """Compare probabilities (N, C)."""
    best = reference.topk(min(2, reference.shape[1]), dim=1).values
    clear = best[:, 0] - best[:, -1] >= CLEAR_MARGIN if best.shape[1] > 1 else torch.ones(len(best)).bool()
    same = (reference.argmax(1) == found.argmax(1))[clear]
    return {
        "class agreement": float(same.float().mean()) if len(same) else 1.0,
        "mean |Δ top-1 probability|": float((best[:, 0] - found.amax(1)).abs().mean()),
    }


def _matches(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the sure boxes that have one of the same class at `SAME_IOU` among others, each used once.

    A pair has the number of either.
    """
    from torchvision.ops import box_iou  # Which a classifier's workers need not load.

    sure = (here["scores"] >= SURE_SCORE).nonzero()[:, 0]
    if not len(sure) or not len(there["boxes"]):
        return []
    overlaps = box_iou(here["boxes"][sure], there["boxes"])
    overlaps *= here["labels"][sure][:, None] == there["labels"][None]
    found = []
    for row, number in enumerate(sure.tolist()):
        value, column = overlaps[row].max(0)
        if float(value) >= SAME_IOU:
            overlaps[:, column] = 0
            found.append((number, int(column)))
    return found


def _same_masks(
    here: Mapping[str, Any], there: Mapping[str, Any], matches: Sequence[tuple[int, int]]
) -> Tensor:
    """Return of every pixel of matched boxes' small masks whether both say the same, flat."""
    rows, columns = [row for row, _ in matches], [column for _, column in matches]
    first: Tensor = here["masks"][rows] > 0.5
    second: Tensor = there["masks"][columns] > 0.5
    return (first == second).flatten()


def _changes(here: Mapping[str, Any], there: Mapping[str, Any], matches: Sequence[tuple[int, int]]) -> Tensor:
    """Return how much the embeddings of matched boxes differ, as a part of their lengths."""
    rows, columns = [row for row, _ in matches], [column for _, column in matches]
    first, second = here["embeddings"][rows], there["embeddings"][columns]
    changes: Tensor = (first - second).norm(dim=1) / first.norm(dim=1).clamp(min=1e-12)
    return changes


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
