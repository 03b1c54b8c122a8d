"""What encoder and skips of a segmenter contribute, on pictures of the validation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnbatch.tasks.recipes.inside import Shown, Strip, principal, unnormalized

_DEPTHS = (
    "Feature maps of the backbone, the finest first. Their first three principal components are red, green "
    "and blue, so that regions of one colour look alike to the network, in all pictures. Early maps have "
    "edges and texture; in late ones a few large cells stand for whole objects."
)
_PARTS = (
    "Predictions of the same trained network when its head gets the coarsest feature map alone, then one "
    "finer map more from picture to picture, with the share of pixels that are correct. A map that the head "
    "does not get is replaced by its mean over the picture. The coarsest map has the widest context; the "
    "finer ones, the skips, add position and detail."
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture as a segmenter gets it, floats (1, 3, H, W), whose part ``inside`` is picture.

    ``inside`` is (top, left, bottom, right); ``truth`` (h, w) has the original's size, negative where no
    class is known.
    """

    pixels: Tensor
    inside: tuple[int, int, int, int]
    truth: NDArray[np.int64]


def strips(
    module: nn.Module, pictures: Sequence[Seen], classes: Sequence[str], mean: Any, std: Any
) -> Iterator[Strip]:
    """Yield the feature maps by depth, and what each contributes; nothing for a backbone of one map."""
    with torch.inference_mode():
        maps = [_maps(module, one.pixels) for one in pictures]
        if len(maps[0]) < 2:
            return
        inputs = [Shown("input", unnormalized(_cut(one.pixels[0], one), mean, std)) for one in pictures]
        depths = [[whole, *row] for whole, row in zip(inputs, _by_depth(maps, pictures), strict=True)]
        parts = [
            [*_by_parts(module, list(maps[0]), one, whole), _true(whole, one.truth)]
            for one, whole in zip(pictures, inputs, strict=True)
        ]
    yield Strip("Feature maps by depth", _DEPTHS, depths)
    yield Strip("What encoder and skips contribute", _PARTS, parts, classes)


def _maps(module: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """Return the maps (C, h, w) of the backbone that the head gets, by their names, the finest first."""
    found = module.get_submodule("backbone")(pixels)
    named = {name: one[0] for name, one in found.items()} if isinstance(found, Mapping) else {}
    return dict(sorted(named.items(), key=lambda pair: -pair[1].shape[1]))


def _by_depth(maps: Sequence[Mapping[str, Tensor]], pictures: Sequence[Seen]) -> list[list[Shown]]:
    """Return a row of maps for each picture; each is as large as the picture, its cells are squares."""
    columns = []
    for name, first in maps[0].items():
        stride = round(pictures[0].pixels.shape[2] / first.shape[1])
        title = f"stride {stride}, {first.shape[0]} channels"
        drawn = principal([one[name] for one in maps])
        columns.append(
            [
                Shown(title, _cut(_enlarged(cells, one), one), smooth=False)
                for cells, one in zip(drawn, pictures, strict=True)
            ]
        )
    return [[*row] for row in zip(*columns, strict=True)]


def _enlarged(cells: Tensor, one: Seen) -> Tensor:
    """Return a picture (3, h, w) at the size of the network's input."""
    return nn.functional.interpolate(cells[None], one.pixels.shape[2:], mode="nearest")[0]


def _by_parts(module: nn.Module, names: Sequence[str], one: Seen, whole: Shown) -> Iterator[Shown]:
    """Yield the classes that the network finds with the coarsest map alone, then with one more each time.

    A map that changes nothing, since the head does not use it, is passed over.
    """
    coarsest_first, before = [*reversed(names)], None
    for count in range(1, len(names) + 1):
        with _given(module, coarsest_first[:count]):
            logits = module(one.pixels).float()
        if before is not None and torch.equal(logits, before):
            continue
        before = logits
        logits = nn.functional.interpolate(logits, one.pixels.shape[2:], mode="bilinear", align_corners=False)
        places = _cut(logits[0], one).argmax(0).cpu().numpy()
        name = f"{_stride(names, count)} alone" if count == 1 else f"with {_stride(names, count)}"
        share = _right(places, one.truth)
        yield Shown(f"{name}: {share:.0%} correct".replace("%", " %"), whole.pixels, places)


def _stride(names: Sequence[str], count: int) -> str:
    """Return what the last of ``count`` maps is called, the coarsest being the first."""
    return f"stride {names[-count]}" if names[-count].isdigit() else names[-count]


@contextmanager
def _given(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Let the head have these maps of the backbone only; of others it gets the mean."""

    def hook(_: nn.Module, inputs: Any, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: one if name in names else one.mean((2, 3), keepdim=True).expand_as(one)
            for name, one in found.items()
        }

    handle = module.get_submodule("backbone").register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _cut(pixels: Tensor, one: Seen) -> Tensor:
    """Return of (C, H, W) what is picture."""
    top, left, bottom, right = one.inside
    return pixels[:, top:bottom, left:right]


def _true(whole: Shown, truth: NDArray[np.int64]) -> Shown:
    return Shown("ground truth", whole.pixels, _resized(truth, whole.pixels.shape[1:]))


def _right(places: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return the share of the pixels that count whose class is the true one."""
    true = _resized(truth, places.shape)
    counted = true >= 0
    return float((places == true)[counted].mean()) if counted.any() else 0.0


def _resized(places: NDArray[np.int64], size: Sequence[int]) -> NDArray[np.int64]:
    """Return a map of another size: the nearest pixels."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, places.shape, strict=True))
    return places[np.ix_(rows, columns)]
