"""What a lesson keeps of a training of embeddings: vectors of the validation, before and after some epochs.

They are those after 1, 2, 4, 8 … epochs and the newest, so that however long a training is, there are few.
They are a part of its checkpoints, and go on with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class VectorsByEpoch:
    """The vectors that a recipe shows of a validation, by how many epochs were over; only of a lesson.

    See `tasks.recipes.recipe.Recipe`.
    """

    def __init__(self, recipe: Any, lesson: bool) -> None:
        self._shown = getattr(recipe, "vectors", None) if lesson else None
        self._metric: str = recipe.metric
        self._state: dict[str, Any] = {"classes": [], "epochs": {}}

    @property
    def are_kept(self) -> bool:
        """Whether anything is kept, and so worth a validation before the first step."""
        return self._shown is not None

    def take(self, epochs: int, values: Sequence[Any], measured: Mapping[str, float]) -> None:
        """Take a validation's ``values`` after so many epochs, and what was ``measured`` by it."""
        if self._shown is None or not values:
            return
        kept: dict[int, Any] = self._state["epochs"]
        newest = max(kept, default=0)
        if newest & (newest - 1):  # No power of two: it was there as the newest only.
            del kept[newest]
        self._state["classes"], vectors = self._shown(values)
        kept[epochs] = {"vectors": vectors, "measured": measured[self._metric]}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has of it."""
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint has."""
        self._state = dict(state)

    def projected(self) -> dict[str, Any] | None:
        """Return the vectors in two dimensions, as JSON values; None where they are few or undefined.

        ``classes`` has that of each picture, ``states`` has by ``epochs`` the ``points`` (N, 2) and the value
        of the ``metric``; ``share`` is how much of the variance of the last state the two axes hold.
        """
        kept: dict[int, Any] = self._state["epochs"]
        are_known = all(bool(one["vectors"].isfinite().all()) for one in kept.values())
        if len(kept) < 2 or len(self._state["classes"]) < 2 or not are_known:
            return None
        centre, axes, share = principal_axes(kept[max(kept)]["vectors"])
        states = [
            {
                "epochs": epochs,
                "measured": one["measured"],
                "points": ((one["vectors"].double() - centre) @ axes).tolist(),
            }
            for epochs, one in sorted(kept.items())
        ]
        return {"classes": self._state["classes"], "metric": self._metric, "share": share, "states": states}


def principal_axes(vectors: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the mean (D,) of vectors (N, D), and their first two principal axes (D, 2), in float64.

    The third value is the share of the variance that the two hold. Where there are too few vectors for two
    axes, the other one is zero.
    """
    whole = vectors.double()
    centre = whole.mean(0)
    _, lengths, axes = torch.linalg.svd(whole - centre, full_matrices=False)
    two = torch.zeros(2, whole.shape[1], dtype=torch.float64)
    two[: len(axes)] = axes[:2]
    variances = lengths.square()
    return centre, two.T, float(variances[:2].sum() / variances.sum().clamp(min=1e-300))
