"""What happens inside a network, as pictures: what a lesson shows of a training's end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture, uint8 (3, H, W), under its ``name``.

    Over it lie ``places`` (H, W), of each pixel the place of its class, negative for none, and the outlines
    of ``boxes``, (x1, y1, x2, y2) in its pixels. Without ``smooth`` its pixels stay squares when enlarged.
    """

    name: str
    pixels: Tensor
    places: NDArray[np.int64] | None = None
    boxes: Sequence[Box] = ()
    smooth: bool = True


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows of pictures that belong together: a ``title``, and a ``text`` that says how to read them."""

    title: str
    text: str
    rows: Sequence[Sequence[Shown]]
    classes: Sequence[str] = ()


def unnormalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return an input of a network (3, H, W) as a picture, uint8."""
    centre, width = (torch.tensor(one, device=pixels.device)[:, None, None] for one in (mean, std))
    return (255 * (pixels * width + centre)).round().clamp(0, 255).to(torch.uint8).cpu()


def principal(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return feature maps (C, h, w) as pictures, uint8 (3, h, w): their principal components as colours.

    The components are those of all maps together, so that a colour is the same in all pictures. The first
    three, the greatest as red, each stretched over what 96 % of its values take.
    """
    flat = torch.cat([one.float().flatten(1).T for one in maps])  # [sum of h * w, C]
    flat = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    found = flat @ axes[:3].T  # [sum of h * w, at most 3]
    low, high = (torch.quantile(found, share, dim=0) for share in (0.02, 0.98))
    shares = ((found - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    padded = nn.functional.pad(shares, (0, 3 - shares.shape[1]), value=0.5)
    colours: Tensor = (255 * padded).round().to(torch.uint8)
    parts = torch.split(colours, [one.shape[1] * one.shape[2] for one in maps])
    return [part.T.reshape(3, *one.shape[1:]).cpu() for part, one in zip(parts, maps, strict=True)]
