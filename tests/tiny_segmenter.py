"""Small segmenters: one that sees the nearest of some colours, and one of convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cnnbatch.models import Segmenter
from cnnbatch.models.segmenter import own_size

COLOURS = {"sky": (110, 170, 240), "grass": (60, 150, 50), "road": (120, 120, 125)}
NAMES = tuple(COLOURS)


class NearestColour(nn.Module):
    """Logits that are the larger the nearer a pixel is to a colour."""

    def __init__(self, colours: Sequence[Sequence[float]] = tuple(COLOURS.values())) -> None:
        super().__init__()
        mean, std = (torch.tensor(one) for one in (own_size().mean, own_size().std))
        known = (torch.tensor(colours) / 255 - mean) / std  # [C, 3]
        self.backbone = nn.Conv2d(3, len(colours), 1)
        with torch.no_grad():
            self.backbone.weight.copy_(40 * known[:, :, None, None])
            self.backbone.bias.copy_(-20 * known.square().sum(1))  # type: ignore[union-attr]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, H, W)."""
        logits: Tensor = self.backbone(pixels)
        return logits


def colours() -> Segmenter:
    """Return the segmenter of colours."""
    return Segmenter(NearestColour(), own_size(), NAMES, weights="colours", library="tiny 1")


def convolutions(classes: tuple[str, ...] | None = None) -> Segmenter:
    """Return a fully convolutional network of stride 4, seeded, of which a logit sees 15 x 15 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
        body = nn.Sequential(*layers, nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        head = nn.Conv2d(16, len(classes or NAMES), 1)
        with torch.no_grad():
            for layer in (*body, head):
                if isinstance(layer, nn.Conv2d):
                    layer.weight.mul_(3)
    module = nn.Sequential()
    module.add_module("backbone", body)
    module.add_module("head", head)
    return Segmenter(module, own_size(), classes or NAMES, weights="convolutions", library="tiny 1")


def scene(number: int, size: tuple[int, int] = (48, 64)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pixels (H, W, 3) of sky above grass with a road in it, and the class of each (H, W)."""
    rng = np.random.default_rng(number)
    height, width = size
    classes = np.zeros(size, np.uint8)
    horizon, left = int(height * rng.uniform(0.3, 0.6)), int(width * rng.uniform(0.2, 0.6))
    classes[horizon:] = 1
    classes[horizon:, left : left + width // 4] = 2
    noise = rng.normal(0, 6, (*size, 3))
    pixels = np.array(list(COLOURS.values()))[classes] + noise
    return pixels.clip(0, 255).astype(np.uint8), classes


def scenes(folder: Path, count: int, size: tuple[int, int] = (48, 64)) -> list[NDArray[np.uint8]]:
    """Fill a folder with scenes as PNG files, and return the class of each pixel of each."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        pixels, classes = scene(number, size)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        found.append(classes)
    return found
