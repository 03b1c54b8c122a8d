"""A face embedder as one value: network, the chip that it wants, and how its embeddings are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Template = tuple[tuple[float, float], ...]
"""Where (x, y) the left eye, the right eye, the nose, and the left and the right corner of the mouth lie in
a chip, in pixels: five pairs, left and right as the picture shows them. The centre of the pixel in the first
row and column is at (0, 0)."""


@dataclass(frozen=True)
class FaceEmbedder:
    """A network that gives a vector to every face.

    ``module`` maps floats (N, 3, height, width) to embeddings (N, ``dimensions``) float32, as its publisher
    gives them. Its input are chips: of each picture a face, moved by a similarity transform so that its five
    landmarks come close to ``template``, ``size`` (height, width) pixels large. Of their values 0..255 the
    ``mean`` is subtracted, and the rest divided by ``std``, a number a channel each, in the order of
    ``channels``.

    ``normalisation`` is what is done with the module's output: nothing, or a division by its Euclidean
    length. ``metric`` is the distance by which two embeddings are then compared.

    ``allows_commercial_use`` is False where the licence of the weights, or that of the pictures that they
    were trained on, does not allow it, and ``licence`` names it. ``parts`` are the names of submodules that
    any backend can run, tensors going in and out; where there are none, the module as a whole is such a part.
    ``notes`` are sentences on what was assumed of the weights, for the person who runs the job.
    """

    module: nn.Module
    template: Template
    size: tuple[int, int]
    dimensions: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: Literal["RGB", "BGR"] = "RGB"
    normalisation: Literal["none", "l2"] = "none"
    metric: Literal["euclidean", "cosine"] = "euclidean"
    allows_commercial_use: bool = True
    licence: str | None = None
    weights: str = ""
    library: str = ""
    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
