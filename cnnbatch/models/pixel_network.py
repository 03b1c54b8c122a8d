"""A segmenter on its device: from prepared inputs to a class for every pixel of the originals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, lcm

import torch
from torch import Tensor

from cnnbatch.models.pixel_classes import LogitRows, PixelClasses, WholeLogits, pixel_classes
from cnnbatch.models.resizing import Box, Canvas, Normalized
from cnnbatch.models.runtime.backends import executable, noise
from cnnbatch.models.segmenter import Segmenter, probe_size, stride_of
from cnnbatch.models.tiles import ALIGNMENT, TiledLogits, Tiling
from cnnbatch.models.views import Views
from cnnbatch.types import Runtime


class PixelNetwork:
    """Runs a segmenter on several views of an input, whole or in tiles."""

    def __init__(
        self,
        segmenter: Segmenter,
        runtime: Runtime,
        views: Views | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        self._views, self._tiling = views or Views(), tiling
        self._how, self._classes = segmenter.resizing, len(segmenter.classes)
        self._device = runtime.device
        self._normalized = Normalized(self._how, runtime.device)
        self._may_overflow = runtime.precision == "fp16"
        varies = self._how.varies or tiling is not None or self._views.scales != (1.0,)
        example = noise(probe_size(self._how))
        self._network = executable(segmenter.module, example, runtime, varies)

    def __call__(self, batch: Tensor, sizes: Tensor) -> list[PixelClasses]:
        """Return the classes of each picture's pixels.

        ``batch`` is uint8 (N, 3, H, W), as `resizing.prepare_bytes` makes it; ``sizes`` (N, 4) are the
        picture's (height, width) in it, and the original's. Raises FloatingPointError where float16 was too
        narrow.
        """
        canvases = [self._canvas(batch, size) for size in sizes.tolist()]
        views = self._whole if self._tiling is None else self._in_tiles
        with torch.inference_mode():
            return [
                pixel_classes(rows, self._classes, canvas, self._device)
                for rows, canvas in zip(views(batch, canvases), canvases, strict=True)
            ]

    def _canvas(self, batch: Tensor, sizes: Sequence[int]) -> Canvas:
        height, width, *original = sizes
        shape, inside = (batch.shape[2], batch.shape[3]), (height, width)
        return Canvas(shape, self._how.offset(inside), inside, (original[0], original[1]))

    def _whole(self, batch: Tensor, canvases: Sequence[Canvas]) -> Iterator[Sequence[LogitRows]]:
        """Yield of each input the logits of its views."""
        views = self._logits(batch, [canvas.picture for canvas in canvases])
        for place in range(len(batch)):
            yield [WholeLogits(view[place]) for view in views]

    def _in_tiles(self, batch: Tensor, canvases: Sequence[Canvas]) -> Iterator[Sequence[LogitRows]]:
        """Yield of each input the logits of its views, which are computed as they are taken."""
        assert self._tiling is not None
        for pixels, canvas in zip(batch.to(self._device), canvases, strict=True):
            tiled = TiledLogits(pixels, canvas.picture, self._joined_logits, self._tiling)
            yield [tiled.view(number, self._classes) for number in range(self._views.count)]

    def _joined_logits(self, tiles: Tensor, pictures: Sequence[Box]) -> Tensor:
        """Return the logits of all views of some tiles, (N, views * C, h, w)."""
        return torch.cat(self._logits(tiles, pictures), 1)

    def _logits(self, batch: Tensor, pictures: Sequence[Box]) -> list[Tensor]:
        """Return the logits of each view of some inputs; ``pictures`` are their parts that are picture."""
        return self._views.logits(self._run, self._normalized(batch, pictures))

    def _run(self, inputs: Tensor) -> Tensor:
        """Run the network on normalised floats (N, 3, H, W)."""
        found: Tensor = self._network(inputs.to(self._network.dtype))
        if self._may_overflow and not bool(found.isfinite().all()):
            raise FloatingPointError("outputs overflow float16; use compute.precision=bf16 or fp32")
        return found


def tiling(segmenter: Segmenter, tile: int, overlap: int, at_once: int) -> Tiling:
    """Return how inputs are cut, in tiles of at least ``tile`` pixels a side that the network takes.

    Raises:
        UserError: the network takes no such tiles, or its logits don't fit one another.
    """
    alignment = lcm(ALIGNMENT, segmenter.resizing.divisor)
    stride = stride_of(segmenter, 2 * alignment)
    return Tiling(ceil(tile / alignment) * alignment, overlap, stride, alignment, at_once)
