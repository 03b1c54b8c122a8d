"""A face embedder as one value: network, the chip that it wants, and how its embeddings are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.face_conventions import EmbedderConvention, Template
from cnnbatch.models.passes import trying


@dataclass(frozen=True)
class FaceEmbedder:
    """A network that gives a vector to every face.

    ``module`` maps floats (N, 3, height, width) to embeddings (N, ``dimensions``) float32, as its publisher
    gives them. Its input are chips: of each picture a face, moved by a similarity transform so that its five
    landmarks come close to ``template``, ``size`` (height, width) pixels large. Of their values 0..255 the
    ``mean`` is subtracted, and the rest divided by ``std``, a number a channel each, in the order of
    ``channels``.

    ``normalisation`` is what is done with the module's output: nothing, or a division by its Euclidean
    length. ``metric`` is the distance by which two embeddings are then compared. With ``mirror`` an embedding
    is the mean of the module's outputs for a chip and for its mirror image, before it is normalised: twice
    the work.

    ``allows_commercial_use`` is False where the licence of the weights, or that of the pictures that they
    were trained on, does not allow it, and ``licence`` names it. ``notes`` are sentences
    on what was assumed of the weights, for the person who runs the job.
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
    mirror: bool = False
    allows_commercial_use: bool = True
    licence: str | None = None
    weights: str = ""
    library: str = ""
    notes: tuple[str, ...] = ()


def embedder(module: nn.Module, dimensions: int, how: EmbedderConvention) -> FaceEmbedder:
    """Return a network as an embedder that follows a convention; what is said of its weights comes later."""
    return FaceEmbedder(
        module=module,
        template=how.template,
        size=how.size,
        dimensions=dimensions,
        mean=how.mean,
        std=how.std,
        channels=how.channels,
        normalisation=how.normalisation,
        metric=how.metric,
    )


def check(found: FaceEmbedder, model: str) -> None:
    """Run one black chip through an embedder, so that what does not fit is found before the first image.

    Raises:
        UserError: it refuses it, gives other than a vector of its dimensions, or that is not finite.
    """
    height, width = found.size
    try:
        with torch.inference_mode(), trying():
            vectors = found.module(torch.zeros(1, 3, height, width))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"task.embedder: {model} refuses a chip of {height} x {width} pixels: {error}\n"
            "  what to do: look at the model itself"
        ) from error
    if not isinstance(vectors, Tensor) or vectors.shape != (1, found.dimensions):
        what = f"shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise UserError(
            f"task.embedder: {model} is expected to give a vector of {found.dimensions} numbers for each "
            f"chip, (N, {found.dimensions}); got {what}"
        )
    if not bool(vectors.isfinite().all()):
        raise UserError(
            f"task.embedder: {model} gives infinite or undefined numbers for a black chip\n"
            "  what to do: look whether the weights are damaged"
        )
