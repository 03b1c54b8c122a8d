"""What a lesson shows of a training's inside: pictures as the network got them, and which blocks changed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cnnbatch.training.data.loader import Loader

PICTURES = 12
SIDE = 160


def pictures(loader: Loader) -> list[str]:
    """Return the first pictures of the first epoch, changed at random as they are, as JPEGs in base64."""
    examples = (example for some in loader.training(0, PICTURES) for example in some)
    found = []
    for example in islice(examples, PICTURES):
        pixels = example.pixels
        if pixels.dtype == torch.uint8:
            least = max(1.0, max(pixels.shape[1:]) / SIDE)
            size = [round(side / least) for side in pixels.shape[1:]]
            small = torch.nn.functional.interpolate(pixels[None].float(), size, mode="area")[0]
            found.append(_jpeg(small.to(torch.uint8)))
    return found


def _jpeg(pixels: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return for each layer with weights how far it moved, as a part of its own length, in their order."""
    found = []
    for name, tensor in before.items():
        later = after[name]
        if name.endswith("weight") and tensor.ndim > 1 and tensor.shape == later.shape:
            length = float(tensor.float().norm())
            moved = float((later.float() - tensor.float()).norm())
            found.append({"layer": name.removesuffix(".weight"), "change": moved / max(length, 1e-12)})
    return found
