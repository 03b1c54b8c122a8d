"""What a lesson shows of a training's inside: pictures as the network got them, changes, and what it sees."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from cnnbatch.report import palette
from cnnbatch.report.layers import overlaid
from cnnbatch.tasks.recipes.inside import Shown, Strip
from cnnbatch.tasks.recipes.recipe import Example
from cnnbatch.training.data.loader import Loader

PICTURES = 12
SIDE = 160
ROWS, ROW_SIDE = 4, 240
"""Pictures of the validation that are shown with what is inside, and how large."""

_OUTLINE = "#ffd23f"
_INSIDE = (66, 105, 181)


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


def strips(
    recipe: Any, state: Mapping[str, Tensor], validation: Loader, step: Sequence[Example]
) -> list[dict[str, Any]]:
    """Return what the recipe shows of its network with the weights ``state``, on pictures of the validation.

    The pictures are spread over their listing, in which neighbours may be frames of one film, or over the
    classes. Then what it shows of the examples of a training ``step``, where there was one. See
    `tasks.recipes.recipe.Recipe`; pictures are JPEGs in base64. Nothing where the recipe shows nothing.
    """
    if not hasattr(recipe, "inside"):
        return []
    recipe.module.load_state_dict(state)
    recipe.module.cpu().eval()
    shown, each = getattr(recipe, "shown", ROWS), getattr(recipe, "pictures_per_class", None)
    examples = _examples(validation, shown, each)
    found = recipe.inside(examples) if examples else []
    more = recipe.inside_step(step) if step and hasattr(recipe, "inside_step") else []
    return [_strip(one) for one in (*found, *more)]


def first_step(loader: Loader, batch: int) -> list[Example]:
    """Return the images of the first step of a training as prediction has them."""
    return loader.at(loader.steps(0, batch)[0])


def _examples(loader: Loader, most: int, each: int | None) -> list[Example]:
    """Return some pictures of the validation, ``each`` of a class together where that says how many."""
    if each is not None:
        return loader.at(loader.refs.of_classes(most, each))
    count = min(most, len(loader.refs))
    parts = (loader.validating(1, rank, count) for rank in range(count))
    return [first for part in parts for first in islice((one for some in part for one in some), 1)]


def _strip(strip: Strip) -> dict[str, Any]:
    """Return a strip as JSON values."""
    colours = palette.colours(strip.classes) if strip.classes else np.array([_INSIDE], np.uint8)
    clear = np.array([palette.is_background(name) for name in strip.classes] or [False], np.bool_)
    rows = [[{"name": one.name, "picture": _drawn(one, colours, clear)} for one in row] for row in strip.rows]
    there = {
        int(place)
        for row in strip.rows
        for one in row
        if one.places is not None
        for place in np.unique(one.places)
    }
    legend = [
        {"colour": palette.css(colour), "name": name}
        for place, (name, colour) in enumerate(zip(strip.classes, colours, strict=False))
        if place in there and not clear[place]
    ]
    return {"title": strip.title, "text": strip.text, "rows": rows, "legend": legend}


def _drawn(shown: Shown, colours: NDArray[np.uint8], clear: NDArray[np.bool_]) -> str:
    """Return a picture with what lies over it, as a JPEG in base64; a ``clear`` class hides nothing."""
    image = Image.fromarray(shown.pixels.permute(1, 2, 0).contiguous().numpy())
    scale = ROW_SIDE / max(image.size)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    image = image.resize(size, Image.Resampling.BICUBIC if shown.smooth else Image.Resampling.NEAREST)
    if shown.places is not None:
        places = np.where(shown.places < 0, len(colours), shown.places).astype(np.int32)
        numbers = np.asarray(Image.fromarray(places).resize(size, Image.Resampling.NEAREST))
        image = overlaid(image, numbers, colours, clear)
    for box in shown.boxes:
        ImageDraw.Draw(image).rectangle([scale * side for side in box], outline=_OUTLINE, width=2)
    return _encoded(image)


def _jpeg(pixels: Tensor) -> str:
    return _encoded(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
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
