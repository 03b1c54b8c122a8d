"""Changes pictures at random: torchvision's operations, with draws that follow from the image alone.

torchvision's own transforms draw from one generator of the whole process, so that what a picture gets
depends on the threads; here each picture has its own `random.Random`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import atan, degrees, exp, log
from random import Random

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from cnnbatch.config.train import Augment

Size = tuple[int, int]

_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)


def random_crop(size: Size, least: float, draw: Random) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a part of ``size`` with at least ``least`` of its area.

    As torchvision's RandomResizedCrop draws it: area uniform, aspect log-uniform in [3/4, 4/3].
    """
    height, width = size
    for _ in range(_TRIES):
        area = height * width * draw.uniform(least, 1.0)
        ratio = exp(draw.uniform(log(_RATIOS[0]), log(_RATIOS[1])))
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            return draw.randint(0, height - high), draw.randint(0, width - wide), high, wide
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def changed(pixels: Tensor, how: Augment, draw: Random, fill: list[float]) -> Tensor:
    """Return uint8 ``pixels`` (3, H, W), mirrored, moved and coloured by chance; ``fill`` colours borders."""
    if how.flip and draw.random() < 0.5:
        pixels = transforms.horizontal_flip_image(pixels)
    if how.shift:
        pixels = _shifted(pixels, how.shift, draw, fill)
    pixels = coloured(pixels, how, draw)
    for _ in range(how.randaugment):
        pixels = randaugment(pixels, how.magnitude, draw, fill)
    return pixels


def coloured(pixels: Tensor, how: Augment, draw: Random) -> Tensor:
    """Return uint8 ``pixels`` (3, H, W) with other colours by chance.

    Brightness, contrast and saturation change, then the tones: each channel of its own, and all by a power.
    """
    if how.colour:
        for operation in (
            transforms.adjust_brightness,
            transforms.adjust_contrast,
            transforms.adjust_saturation,
        ):
            pixels = operation(pixels, draw.uniform(1 - how.colour, 1 + how.colour))
    return _toned(pixels, how, draw) if how.cast or how.gamma != 1 else pixels


def _toned(pixels: Tensor, how: Augment, draw: Random) -> Tensor:
    """Return uint8 ``pixels`` (3, H, W) by a table a channel, since both changes are of a value alone."""
    power = exp(draw.uniform(-1, 1) * log(how.gamma))
    gains = np.array([draw.uniform(1 - how.cast, 1 + how.cast) for _ in range(3)])
    tones = gains[:, None] * (np.arange(256) / 255) ** power
    tables = (255 * tones).round().clip(0, 255).astype(np.uint8)  # (3, 256)
    found = [np.take(table, channel) for table, channel in zip(tables, pixels.numpy(), strict=True)]
    return torch.from_numpy(np.stack(found))


def _shifted(pixels: Tensor, most: float, draw: Random, fill: list[float]) -> Tensor:
    height, width = pixels.shape[1:]
    move = [round(draw.uniform(-most, most) * width), round(draw.uniform(-most, most) * height)]
    return _affine(pixels, fill, translate=move)


def _affine(
    pixels: Tensor, fill: list[float], translate: list[int] | None = None, shear: list[float] | None = None
) -> Tensor:
    found: Tensor = transforms.affine_image(
        pixels,
        angle=0.0,
        translate=translate or [0, 0],
        scale=1.0,
        shear=shear or [0.0, 0.0],
        interpolation=InterpolationMode.NEAREST,
        fill=fill,
        center=[0, 0] if shear else None,
    )
    return found


Operation = Callable[[Tensor, float, list[float]], Tensor]


def _degrees(shear: float) -> float:
    return degrees(atan(shear))


OPERATIONS: Mapping[str, tuple[Operation, Callable[[int, Size], float], bool]] = {
    "identity": (lambda p, m, f: p, lambda n, s: 0.0, False),
    "shear_x": (lambda p, m, f: _affine(p, f, shear=[_degrees(m), 0.0]), lambda n, s: 0.3 * n / 30, True),
    "shear_y": (lambda p, m, f: _affine(p, f, shear=[0.0, _degrees(m)]), lambda n, s: 0.3 * n / 30, True),
    "translate_x": (
        lambda p, m, f: _affine(p, f, translate=[int(m), 0]),
        lambda n, s: 150 / 331 * s[1] * n / 30,
        True,
    ),
    "translate_y": (
        lambda p, m, f: _affine(p, f, translate=[0, int(m)]),
        lambda n, s: 150 / 331 * s[0] * n / 30,
        True,
    ),
    "rotate": (
        lambda p, m, f: transforms.rotate_image(p, m, interpolation=InterpolationMode.NEAREST, fill=f),
        lambda n, s: 30.0 * n / 30,
        True,
    ),
    "brightness": (lambda p, m, f: transforms.adjust_brightness(p, 1 + m), lambda n, s: 0.9 * n / 30, True),
    "colour": (lambda p, m, f: transforms.adjust_saturation(p, 1 + m), lambda n, s: 0.9 * n / 30, True),
    "contrast": (lambda p, m, f: transforms.adjust_contrast(p, 1 + m), lambda n, s: 0.9 * n / 30, True),
    "sharpness": (lambda p, m, f: transforms.adjust_sharpness(p, 1 + m), lambda n, s: 0.9 * n / 30, True),
    "posterize": (lambda p, m, f: transforms.posterize(p, int(m)), lambda n, s: 8 - round(n / 7.5), False),
    "solarize": (lambda p, m, f: transforms.solarize(p, 255 * m), lambda n, s: 1 - n / 30, False),
    "autocontrast": (lambda p, m, f: transforms.autocontrast(p), lambda n, s: 0.0, False),
    "equalize": (lambda p, m, f: transforms.equalize(p), lambda n, s: 0.0, False),
}
"""RandAugment's operations (Cubuk et al. 2020, figure 2; strengths as torchvision has them): what is done,
how strong at n of 30, and whether its sign is drawn."""


def randaugment(pixels: Tensor, strength: int, draw: Random, fill: list[float]) -> Tensor:
    """Return uint8 ``pixels`` (3, H, W) after one operation of RandAugment, of ``strength`` 0 to 30."""
    operation, magnitude, signed = OPERATIONS[draw.choice(list(OPERATIONS))]
    value = magnitude(strength, (pixels.shape[1], pixels.shape[2]))
    if signed and draw.random() < 0.5:
        value = -value
    return operation(pixels, value, fill)


def mixing(how: Augment, size: Size, draw: Random) -> tuple[str, float, tuple[int, int, int, int]]:
    """Draw how two pictures of ``size`` are mixed: ``mixup``, ``cutmix`` or ``none``.

    Returns the part that is the first picture's, and of CutMix the (top, left, height, width) that is the
    other's. MixUp: Zhang et al. 2018, section 2; CutMix: Yun et al. 2019, equation 2.
    """
    kinds = [kind for kind, alpha in (("mixup", how.mixup), ("cutmix", how.cutmix)) if alpha > 0]
    if not kinds:
        return "none", 1.0, (0, 0, 0, 0)
    kind = draw.choice(kinds)
    alpha = how.mixup if kind == "mixup" else how.cutmix
    part = draw.betavariate(alpha, alpha)
    if kind == "mixup":
        return kind, part, (0, 0, 0, 0)
    (height, width), ratio = size, (1 - part) ** 0.5
    y, x = draw.randrange(height), draw.randrange(width)
    half_high, half_wide = int(ratio * height / 2), int(ratio * width / 2)
    top, bottom = max(y - half_high, 0), min(y + half_high, height)
    left, right = max(x - half_wide, 0), min(x + half_wide, width)
    return (
        kind,
        1 - (bottom - top) * (right - left) / (height * width),
        (top, left, bottom - top, right - left),
    )
