"""A face detector that looks at large pictures in small.

What is cut from the picture later keeps all of its pixels: only the detector sees it smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from cnnbatch.models.face_detector import Faces

Size = tuple[int, int]
"""(height, width) in pixels."""


class ScaledDetector(nn.Module):
    """A module as `cnnbatch.models.face_detector.FaceDetector` has it, with pictures made smaller for it.

    The longer side of a picture is then at most ``size`` pixels (bilinear, antialiased, each picture by
    itself); smaller ones stay as they are. Boxes and landmarks are in pixels of the pictures that came in,
    while the fields of ``detector``, such as ``min_size``, count the pixels that it sees.
    """

    def __init__(self, detector: nn.Module, size: int) -> None:
        super().__init__()
        self.detector, self.size = detector, size

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[Faces]:
        """Return the faces of each picture; uint8 (N, 3, H, W), (height, width) (N, 2)."""
        originals: list[Size] = [(height, width) for height, width in sizes.tolist()]
        scaled = [self._scaled(size) for size in originals]
        if scaled == originals:
            unchanged: list[Faces] = self.detector(pictures, sizes)
            return unchanged
        height, width = (max(sides) for sides in zip(*scaled, strict=True))
        canvases = pictures.new_zeros((len(pictures), 3, height, width))
        for canvas, picture, size, original in zip(canvases, pictures, scaled, originals, strict=True):
            canvas[:, : size[0], : size[1]] = _resized(picture[:, : original[0], : original[1]], size)
        found = self.detector(canvases, torch.tensor(scaled))
        return [_enlarged(*one) for one in zip(found, scaled, originals, strict=True)]

    def _scaled(self, size: Size) -> Size:
        if max(size) <= self.size:
            return size
        height, width = (max(1, round(side * self.size / max(size))) for side in size)
        return height, width


def _resized(picture: Tensor, size: Size) -> Tensor:
    if picture.shape[1:] == size:
        return picture
    found: Tensor = transforms.resize_image(picture, list(size), antialias=True)
    return found


def _enlarged(faces: Faces, scaled: Size, original: Size) -> Faces:
    """Return faces of a picture of size ``scaled`` in pixels of the ``original``.

    Boxes count from the corner of the first pixel, landmarks from its centre.
    """
    factors = torch.tensor([original[1] / scaled[1], original[0] / scaled[0]], device=faces["boxes"].device)
    return {
        **faces,
        "boxes": faces["boxes"] * factors.repeat(2),
        "keypoints": (faces["keypoints"] + 0.5) * factors - 0.5,
    }
