"""Several views of the same inputs, mirrored and of other sizes, whose probabilities are averaged.

Test-time augmentation as in Chen et al. 2017 (arXiv 1706.05587, section 4.1): scales, and left-right flips of
each. Of every view the network's own logits are kept; they become probabilities at the original's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from torch import Tensor
from torch.nn.functional import interpolate

from cnnbatch.models.resizing import Size


@dataclass(frozen=True, slots=True)
class Views:
    """Which views: each of ``scales`` of the input's sides and, with ``flips``, its mirror image."""

    scales: Sequence[float] = (1.0,)
    flips: bool = False
    divisor: int = 1

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.scales) * (2 if self.flips else 1)

    def logits(self, run: Callable[[Tensor], Tensor], inputs: Tensor) -> list[Tensor]:
        """Return each view's logits (N, C, h, w), float32, of inputs (N, 3, H, W) that ``run`` is given.

        They lie as the input itself does: what was mirrored is mirrored back. Where a scale changes the
        sides, they become the next multiples of ``divisor``.
        """
        found = []
        for scale in self.scales:
            scaled = _resized(inputs, self.size(scale, (inputs.shape[2], inputs.shape[3])))
            found.append(run(scaled).float())
            if self.flips:
                found.append(run(scaled.flip(3)).float().flip(3))
        return found

    def size(self, scale: float, size: Size) -> Size:
        """Return the (height, width) of a view."""
        if scale == 1:
            return size
        height, width = (max(1, ceil(round(side * scale) / self.divisor)) * self.divisor for side in size)
        return height, width


def _resized(inputs: Tensor, size: Size) -> Tensor:
    if tuple(inputs.shape[2:]) == size:
        return inputs
    smaller = size[0] < inputs.shape[2]
    return interpolate(inputs, size=size, mode="bilinear", align_corners=False, antialias=smaller)
