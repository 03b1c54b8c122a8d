"""Moves faces to where an embedder wants them: a similarity transform from their landmarks to a template.

By OpenCV's ``warpAffine`` on the CPU, face by face, which is many times as fast there as anything in torch;
on CUDA in torch, all faces of a picture at once, with OpenCV's own rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cnnbatch.errors import UserError
from cnnbatch.models.face_conventions import BOX_POINTS, Template

Size = tuple[int, int]
"""(height, width) in pixels."""


def transforms_to(template: Template, landmarks: Tensor) -> Tensor:
    """Return the similarity transforms (K, 2, 3), float64, that lead ``landmarks`` (K, 5, 2) to ``template``.

    (x', y') = M (x, y, 1), with the least squared distances among all rotations, scales and shifts, without
    reflections: Umeyama 1991, "Least-squares estimation of transformation parameters between two point
    patterns", equations 40 to 43; in the plane it is one complex factor. Landmarks that are all one point
    give a transform of scale 0.
    """
    points = torch.complex(*landmarks.double().unbind(2))  # [K, 5]
    goal = torch.view_as_complex(torch.tensor(template, dtype=torch.float64, device=points.device))  # [5]
    middle = points.mean(1, keepdim=True)
    around, wanted = points - middle, goal - goal.mean()
    spread = (around.abs() ** 2).sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    factor = (around.conj() * wanted).sum(1) / spread
    shift = goal.mean() - factor * middle[:, 0]
    rows = (factor.real, -factor.imag, shift.real, factor.imag, factor.real, shift.imag)
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def points_in(boxes: Tensor) -> Tensor:
    """Return where landmarks (K, 5, 2) lie in ``boxes`` (K, 4) on average: by them a face is not aligned.

    The transform that leads them to a template cuts the square around a box, so that an upright face which
    looks to the front is as large, and where, as an aligned one. All are `BOX_POINTS`, turned as the picture
    is.
    """
    low, high = boxes.double().view(-1, 2, 2).unbind(1)  # [K, 2]
    side = (high - low).amax(1)[:, None, None]
    corner = (low + high)[:, None] / 2 - side / 2
    return corner + side * torch.tensor(BOX_POINTS, dtype=torch.float64, device=boxes.device) - 0.5


def aligned(pictures: Sequence[Tensor], transforms: Tensor, counts: Sequence[int], size: Size) -> Tensor:
    """Return the chips of all faces, uint8 (K, height, width, 3), of ``size``, on the pictures' device.

    ``pictures`` are uint8 (3, H, W), each of its own size. ``transforms`` (K, 2, 3) lead from the pixels of a
    picture to those of a chip: the first ``counts[0]`` from the first picture's, and so on. What lies beside
    the picture is black. A face more than twice as large as its chip is made smaller by a whole number of
    pixels before, as an average, since single pixels of it would be a picture of its noise.
    """
    if pictures[0].is_cuda:
        each = zip(pictures, torch.split(transforms, list(counts)), strict=True)
        return torch.cat([sampled(picture, some.to(picture.device), size) for picture, some in each])
    chips = np.empty((len(transforms), *size, 3), np.uint8)
    faces = zip(chips, *_made_smaller(transforms.cpu().numpy()), strict=True)
    cv2 = opencv()
    for picture, count in zip(pictures, counts, strict=True):
        if count:
            pixels = _pixels(picture.cpu())
            for chip, transform, times in islice(faces, count):
                smaller = _averaged(cv2, pixels, times) if times > 1 else pixels
                cv2.warpAffine(smaller, transform, size[::-1], chip, cv2.INTER_LINEAR)
    return torch.from_numpy(chips).to(pictures[0].device)


def _pixels(picture: Tensor) -> NDArray[np.uint8]:
    """Return a picture (3, H, W) as OpenCV reads it, (H, W, 3); a copy only where it is a plane a colour."""
    pixels: NDArray[np.uint8] = picture.numpy().transpose(1, 2, 0)
    return pixels if pixels.strides[1:] == (3, 1) else np.ascontiguousarray(pixels)


def _made_smaller(transforms: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[int]]:
    """Return the transforms (K, 2, 3) of pictures that are made smaller, and by how much each is."""
    times = [_times_smaller(scale) for scale in np.hypot(*transforms[:, :, 0].T).tolist()]
    return _of_smaller(transforms, np.array(times, np.int64)[:, None, None]), times


def _averaged(cv2: Any, pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) ``times`` smaller, as the mean of its pixels."""
    height, width = (side // times for side in pixels.shape[:2])
    whole = pixels[: height * times, : width * times]
    found: NDArray[np.uint8] = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    return found


def sampled(picture: Tensor, transforms: Tensor, size: Size) -> Tensor:
    """Return what `aligned` does of one picture, on any device.

    Values differ by at most 1, or 2 of a face made smaller.
    """
    smaller = [_times_smaller(one) for one in transforms[:, :, 0].norm(dim=1).tolist()]
    found = torch.zeros((len(transforms), *size, 3), dtype=torch.uint8, device=picture.device)
    for times in sorted({*smaller}):
        places = [place for place, one in enumerate(smaller) if one == times]
        pixels = functional.avg_pool2d(picture.float(), times).round() if times > 1 else picture
        found[places] = _gathered(pixels, _inverse(_of_smaller(transforms[places], times)), size)
    return found


def _gathered(picture: Tensor, back: Tensor, size: Size) -> Tensor:
    """Return chips, uint8 (K, *size, 3), from where transforms (K, 2, 3) lead ``back`` to in a picture."""
    height, width = picture.shape[1:]
    flat = picture.permute(1, 2, 0).reshape(-1, 3)
    (rows, down), (columns, right) = (_sources(back[:, along], size) for along in (1, 0))  # [K, h, w]
    total = torch.zeros(*rows.shape, 3, device=picture.device)
    for below, beside in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = rows + below, columns + beside
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        weight = (down if below else 1 - down) * (right if beside else 1 - right) * inside
        total += weight[..., None] * flat[(y * width + x).where(inside, 0)]
    return total.round().to(torch.uint8)


def _sources(back: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return the rows or columns (K, *size) that chips' pixels begin in, and how far behind they lie.

    ``back`` (K, 3) gives one coordinate of a picture for (x, y, 1) of a chip. OpenCV adds up what x and what
    y contribute, each rounded to 1/1024 of a pixel, and rounds their sum to 1/32: without that, noise differs
    by several levels.
    """
    y, x = (torch.arange(side, dtype=back.dtype, device=back.device) for side in size)
    by_row = ((back[:, 1, None] * y + back[:, 2, None]) * 1024).round()
    by_column = (back[:, 0, None] * x * 1024).round()
    sums = (by_row[:, :, None] + by_column[:, None, :]).clamp(-(2.0**40), 2.0**40).long()
    steps = (sums + 16) // 32
    return steps // 32, (steps % 32).float() / 32


def _times_smaller(scale: float) -> int:
    """Return by how much a picture is made smaller before it is scaled by ``scale``."""
    return int(1 / scale) if 0 < scale <= 0.5 else 1


def _of_smaller(transforms: Any, times: Any) -> Any:
    """Return the transforms (K, 2, 3) of pictures ``times`` smaller: a number, or (K, 1, 1).

    A pixel of a smaller picture lies amid those it stands for.
    """
    found = transforms * times
    found[..., 2:] = transforms[..., 2:] + (transforms[..., :1] + transforms[..., 1:2]) * (times - 1) / 2
    return found


def _inverse(transforms: Tensor) -> Tensor:
    """Return the transforms (K, 2, 3) that lead back; of one that makes all a point, zero."""
    a, b, x, c, d, y = transforms.flatten(1).unbind(1)
    determinant = a * d - b * c
    factor = torch.where(determinant == 0, 0.0, 1 / determinant)
    back = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2) * factor[:, None, None]
    return torch.cat([back, -back @ torch.stack([x, y], dim=1)[..., None]], dim=2)


def opencv() -> Any:
    """Import OpenCV; raises UserError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise UserError(
            "faces are aligned by OpenCV, which is not installed\n  what to do: pip install 'cnnbatch[faces]'"
        ) from None
    return cv2
