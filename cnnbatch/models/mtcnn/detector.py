"""MTCNN as a detector of faces: the image pyramid, three networks, and what lies between them, batched.

Source: Zhang, Zhang, Li and Qiao 2016, https://arxiv.org/abs/1604.02878. Thresholds and the order of steps
are those of facenet-pytorch 2.6.0, whose weights these are, so that it finds the same faces.

Pixels and networks are on the device of the weights; boxes, of which there are few, are on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from cnnbatch.models.architectures.mtcnn import ONet, PNet, RNet
from cnnbatch.models.face_detector import Faces
from cnnbatch.models.mtcnn.windows import (
    Size,
    Windows,
    cell_boxes,
    joined,
    moved,
    passes,
    pixels_of,
    rows_of,
    scales,
    sides,
    squares,
    suppressed,
    suppressed_inside,
)
from cnnbatch.models.summed_areas import SummedAreas, summed_areas

_P_SCORE, _R_SCORE, _O_SCORE = 0.6, 0.7, 0.7
_R_SIDE, _O_SIDE = 24, 48
_OVERLAP_IN_LEVEL, _OVERLAP = 0.5, 0.7

_GROUP_PIXELS = 16_000_000  # of the pictures whose tables of sums, 16 bytes a pixel, are kept at once
_PASS_PIXELS = 100_000  # of one pass of P-Net, whose largest maps have 40 bytes a pixel
_R_CROPS, _O_CROPS = 128, 16  # of one pass


class MTCNN(nn.Module):
    """P-Net over a pyramid, R-Net and O-Net over crops; see `cnnbatch.models.face_detector.FaceDetector`.

    Pictures of one size share P-Net's passes, and the crops of all pictures those of R- and O-Net. A face
    comes out the same whatever is in the batch beside it.

    ``min_size`` sets the pyramid's first level, as in the paper: faces are looked for from that many pixels
    on, and the box of a narrow one may come out a few pixels narrower. ``min_score`` is O-Net's threshold.
    """

    def __init__(self, min_size: int = 20, min_score: float = _O_SCORE, max_faces: int | None = None) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()
        self.to(memory_format=torch.channels_last)
        self.min_size, self.min_score, self.max_faces = min_size, min_score, max_faces

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[Faces]:
        """Return the faces of each picture, the best first; uint8 (N, 3, H, W), (height, width) (N, 2)."""
        canvases = pictures.to(self.pnet.conv1.weight.device)
        cut = [
            canvas[:, :height, :width]
            for canvas, (height, width) in zip(canvases, sizes.tolist(), strict=True)
        ]
        with _without_tf32():
            return [faces for group in _groups(cut) for faces in self._faces(group)]

    def _faces(self, pictures: Sequence[Tensor]) -> list[Faces]:
        tables = [summed_areas(picture) for picture in pictures]
        found, points = self._landmarked(tables, self._refined(tables, self._proposed(tables)))
        return [self._best(found, points, place) for place in range(len(pictures))]

    def _best(self, found: Windows, points: Tensor, place: int) -> Faces:
        mine = (found.pictures == place).nonzero().squeeze(1)
        order = mine[found.scores[mine].argsort(descending=True, stable=True)][: self.max_faces]
        return {"boxes": found.boxes[order], "scores": found.scores[order], "keypoints": points[order]}

    def _proposed(self, tables: Sequence[SummedAreas]) -> Windows:
        """Return the squares in which P-Net sees a face."""
        windows, offsets = self._levels(tables)
        kept = suppressed(windows, _OVERLAP)
        windows, offsets = windows[kept], offsets[kept]
        width_height = windows.boxes[:, 2:] - windows.boxes[:, :2]  # Here alone no pixel is added.
        boxes = windows.boxes + offsets * width_height.repeat(1, 2)
        return Windows(squares(boxes), windows.scores, windows.pictures)

    def _levels(self, tables: Sequence[SummedAreas]) -> tuple[Windows, Tensor]:
        """Return P-Net's windows at all levels, by picture, and their offsets (K, 4)."""
        places = sorted(range(len(tables)), key=lambda place: tables[place].size)
        found = [
            self._level(tables, same, size, scale)
            for size, group in groupby(places, key=lambda place: tables[place].size)
            for same in [list(group)]
            for scale in scales(size, self.min_size)
        ]
        windows = joined([one for one, _ in found])
        order = windows.pictures.argsort(stable=True)
        return windows[order], torch.cat([torch.empty(0, 4), *(offsets for _, offsets in found)])[order]

    def _level(
        self, tables: Sequence[SummedAreas], places: Sequence[int], size: Size, scale: float
    ) -> tuple[Windows, Tensor]:
        """Return the windows of the pictures at some ``places``, all of one size, at one level."""
        level = int(size[0] * scale + 1), int(size[1] * scale + 1)
        found = [
            self._pass([tables[place] for place in places[pictures]], level, rows, pictures.start)
            for pictures, rows in passes(len(places), level, _PASS_PIXELS)
        ]
        at, scores, offsets = map(torch.cat, zip(*found, strict=True))
        windows = Windows(cell_boxes(at[:, [2, 1]], scale), scores, torch.tensor(places)[at[:, 0]])
        kept = suppressed(windows, _OVERLAP_IN_LEVEL)
        return windows[kept], offsets[kept]

    def _pass(
        self, tables: Sequence[SummedAreas], level: Size, rows: slice, first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (picture, row, column) (K, 3) of the answers above the threshold, scores and offsets.

        ``rows`` are those of P-Net's answers; ``first`` is the number of the first picture.
        """
        pixels = torch.stack([table.resized(level, rows_of(rows)) for table in tables])
        scores, features = self.pnet(_input(pixels))
        at = (scores >= _P_SCORE).nonzero()
        chosen = at.unbind(1)
        offsets = self.pnet.offsets(features[chosen])
        return at.cpu() + torch.tensor([first, rows.start, 0]), scores[chosen].cpu(), offsets.cpu()

    def _refined(self, tables: Sequence[SummedAreas], windows: Windows) -> Windows:
        """Return the squares in which R-Net sees a face."""
        windows, (scores, offsets) = _answers(self.rnet, tables, windows, _R_SIDE, _R_CROPS)
        passed = (scores > _R_SCORE).nonzero().squeeze(1)
        found = Windows(windows.boxes, scores, windows.pictures)
        kept = passed[suppressed(found[passed], _OVERLAP)]
        return Windows(
            squares(moved(windows.boxes[kept], offsets[kept])), scores[kept], windows.pictures[kept]
        )

    def _landmarked(self, tables: Sequence[SummedAreas], windows: Windows) -> tuple[Windows, Tensor]:
        """Return the faces that O-Net sees, with their landmarks (K, 5, 2)."""
        windows, (scores, offsets, points) = _answers(self.onet, tables, windows, _O_SIDE, _O_CROPS)
        passed = (scores > self.min_score).nonzero().squeeze(1)
        boxes = windows.boxes[passed]
        landmarks = points[passed] * sides(boxes)[:, None] + boxes[:, None, :2] - 1
        found = Windows(moved(boxes, offsets[passed]), scores[passed], windows.pictures[passed])
        kept = suppressed_inside(found, _OVERLAP)
        return found[kept], landmarks[kept]


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Have CUDA multiply all bits of float32 meanwhile: with fewer, other faces are found."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def _groups(pictures: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the pictures in groups of `_GROUP_PIXELS`, so that memory does not grow with a batch."""
    group: list[Tensor] = []
    pixels = 0
    for picture in pictures:
        own = picture.shape[1] * picture.shape[2]
        if group and pixels + own > _GROUP_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(picture)
        pixels += own
    if group:
        yield group


def _answers(
    network: nn.Module, tables: Sequence[SummedAreas], windows: Windows, side: int, at_once: int
) -> tuple[Windows, list[Tensor]]:
    """Return the windows that cover pixels, and a network's answers for them, on the CPU."""
    sizes = torch.tensor([table.size for table in tables])
    pixels, covering = pixels_of(windows.boxes, sizes[windows.pictures])
    windows = windows[covering]
    found = [network(_input(crops)) for crops in _crops(tables, windows.pictures, pixels, side, at_once)]
    return windows, [torch.cat(parts).cpu() for parts in zip(*found, strict=True)]


def _crops(
    tables: Sequence[SummedAreas], pictures: Tensor, pixels: Tensor, side: int, at_once: int
) -> Iterator[Tensor]:
    """Yield ``at_once`` crops at a time, of the windows' pictures; where there is no window, none of them."""
    for first in range(0, max(1, len(pixels)), at_once):
        chunk = slice(first, first + at_once)
        places, starts = np.unique(pictures[chunk].numpy(), return_index=True)
        parts = np.split(pixels[chunk].numpy(), starts[1:])
        some = zip(places.tolist() or [0], parts, strict=True)
        yield torch.cat([tables[place].crops(part, side) for place, part in some])


def _input(pixels: Tensor) -> Tensor:
    """Return pixels (N, h, w, 3) from 0 to 255 as the networks want them; overwrites them."""
    return pixels.sub_(127.5).mul_(1 / 128).permute(0, 3, 1, 2)
