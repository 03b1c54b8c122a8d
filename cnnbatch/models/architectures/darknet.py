"""Darknet's .cfg and .weights as a torch module that detects: YOLOv3 and its kin, on their own files.

Only the sections and options below are known: whatever else would change a number is refused instead of
ignored. Shapes and sizes are settled before memory is taken, so that a hostile file costs little.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.architectures.darknet_cfg import CfgSection, parse_cfg
from cnnbatch.models.architectures.darknet_layers import (
    BUILDERS,
    MOST_LAYERS,
    Convolution,
    DarknetHead,
    DarknetLayer,
    MapShape,
    refuse_unknown,
)
from cnnbatch.models.architectures.suppression import detections
from cnnbatch.models.detector import Detections

_MOST_WEIGHTS = 1 << 29  # floats, 2 GiB; YOLOv4's largest has 287 million
_LARGEST_MAP = 1 << 27  # floats of one picture in one layer, 512 MiB


class Body(nn.Module):
    """All layers up to the heads; ``layers`` has Darknet's numbers."""

    def __init__(self, layers: Sequence[DarknetLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.module for layer in layers)
        self._sources = [layer.sources for layer in layers]
        self._heads = [place for place, layer in enumerate(layers, 1) if layer.head is not None]
        self._spent = _spent(self._sources, self._heads)

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Return the map (N, A * (5 + C), h, w) of each head for pictures (N, 3, H, W)."""
        values = {0: batch}
        for place, layer in enumerate(self.layers, 1):
            values[place] = layer(*(values[source] for source in self._sources[place - 1]))
            for spent in self._spent[place - 1]:
                del values[spent]
        return tuple(values[place] for place in self._heads)


def _spent(sources: Sequence[tuple[int, ...]], heads: Sequence[int]) -> list[list[int]]:
    """Return for each layer the places that nothing reads after it, so that their memory can go."""
    last = {place: place for place in range(1, len(sources) + 1)}
    last |= {source: place for place, read in enumerate(sources, 1) for source in read}
    spent: list[list[int]] = [[] for _ in sources]
    for source, place in last.items():
        if source not in heads:
            spent[place - 1].append(source)
    return spent


class Darknet(nn.Module):
    """A detector of the YOLO family.

    A box of every class whose score is above ``score_threshold`` is a detection of its own; those that
    overlap a better one of their class by an IoU above ``nms_threshold`` go; of the rest the
    ``max_objects`` best stay. ``body`` may be exchanged for a module that gives the same maps.
    """

    def __init__(self, body: nn.Module, heads: Sequence[DarknetHead], input_size: tuple[int, int]) -> None:
        super().__init__()
        self.body = body
        self.heads = tuple(heads)
        self._input_size = input_size
        self.score_threshold = 0.005
        self.nms_threshold = 0.45
        self.max_objects = 100  # as many as COCO's evaluation looks at

    @property
    def input_size(self) -> tuple[int, int]:
        """The (height, width) of the pictures that the network was made for."""
        return self._input_size

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.heads[0].classes

    def forward(self, batch: Tensor, sizes: Tensor | None = None) -> list[Detections]:
        """Return what each picture shows, best score first.

        Args:
            batch: float32 (N, 3, H, W), RGB from 0 to 1, letterboxed to `input_size` (another H and W do
                as well, where the network's strides divide them).
            sizes: int (N, 2), the part that is picture. Not used: Darknet looks for things on the border,
                too.

        Returns:
            For each of the N pictures ``boxes`` float32 (K, 4), xyxy in pixels of the H x W input and not
            clipped to it, ``scores`` float32 (K,), and ``labels`` int64 (K,), 0 to `num_classes` - 1.

        Source: Redmon and Farhadi 2018 (arXiv 1804.02767); get_yolo_detections and do_nms_sort in
            https://github.com/pjreddie/darknet
        """
        height, width = batch.shape[-2:]
        found = [
            head.decode(raw, (height, width)) for head, raw in zip(self.heads, self.body(batch), strict=True)
        ]
        boxes = torch.cat([each for each, _ in found], dim=1)  # [N, R, 4]
        scores = torch.cat([each for _, each in found], dim=1)  # [N, R, C]
        return [
            detections(*picture, self.score_threshold, self.nms_threshold, self.max_objects)
            for picture in zip(boxes, scores, strict=True)
        ]


def build(cfg_text: str, where: str) -> Darknet:
    """Return the network of a .cfg in evaluation mode, with random weights; ``where`` names the file.

    Raises:
        UserError: a section or a value is not understood, layers don't fit each other, nothing detects, or
            the network is far larger than any known one.
    """
    net, *sections = parse_cfg(cfg_text, where)
    if net.kind != "net" or len(sections) > MOST_LAYERS:
        raise UserError(
            f"{where}:{net.line}: expected [net] and then at most {MOST_LAYERS} layers, "
            f"came [{net.kind}] and then {len(sections)} sections"
        )
    refuse_unknown(net)
    picture = MapShape(3, net.integer("height"), net.integer("width"))
    with torch.device("meta"):  # Nothing is allocated before the whole is known to be of a sane size.
        layers = _layers(sections, picture)
        body = Body(layers)
    heads = [layer.head for layer in layers if layer.head is not None]
    _check_whole(body, heads, where)
    return Darknet(_allocated(body), heads, (picture.height, picture.width)).eval()


def _layers(sections: Sequence[CfgSection], picture: MapShape) -> list[DarknetLayer]:
    layers: list[DarknetLayer] = []
    shapes: list[MapShape | None] = [picture]
    for section in sections:
        refuse_unknown(section)
        if section.kind not in BUILDERS:
            raise UserError(f"{section.where}:{section.line}: expected one [net], came a second")
        layers.append(BUILDERS[section.kind](section, shapes))
        shapes.append(layers[-1].shape)
        if math.prod(shapes[-1] or ()) > _LARGEST_MAP:
            raise UserError(
                f"{section.where}:{section.line}: expected feature maps of at most {_LARGEST_MAP} numbers a "
                f"picture, came {' x '.join(map(str, shapes[-1] or ()))}"
            )
    return layers


def _check_whole(body: Body, heads: Sequence[DarknetHead], where: str) -> None:
    classes = sorted({head.classes for head in heads})
    if len(classes) != 1:
        came = f"{len(heads)} of them, for {' and '.join(map(str, classes)) or 'no'} classes"
        raise UserError(f"{where}: expected [yolo] sections, all of the same classes, came {came}")
    weights = sum(parameter.numel() for parameter in body.parameters())
    if weights > _MOST_WEIGHTS:
        raise UserError(f"{where}: expected a network of at most {_MOST_WEIGHTS} weights, came {weights}")


def _allocated(body: Body) -> Body:
    """Give a module from the meta device memory and random weights."""
    body.to_empty(device="cpu")
    for module in body.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    return body


def load_weights(module: Darknet, path: Path) -> None:
    """Read a .weights file into ``module``, in place.

    The file is three int32 (major, minor, revision), the number of pictures seen (int64 from version 0.2
    on, else int32), and float32 for each [convolutional] in turn: bias, then scale, mean and variance where
    it is normalised, then kernels (filters, channels / groups, size, size); all of it little-endian.

    Raises:
        UserError: there is no such file, it has not exactly the bytes that the module needs, or values that
            are infinite or undefined.

    Source: load_weights_upto in https://github.com/pjreddie/darknet/blob/master/src/parser.c
    """
    if not os.path.isfile(path):
        raise UserError(f"task.weights: expected a Darknet .weights file, but there is no file {path}")
    layers = [layer for layer in module.modules() if isinstance(layer, Convolution)]
    tensors = [tensor for layer in layers for tensor in layer.stored()]
    try:
        with path.open("rb") as file, torch.no_grad():
            _check_length(file, 4 * sum(tensor.numel() for tensor in tensors), path)
            for tensor in tensors:
                _fill(tensor, file, path)
    except OSError as error:
        raise UserError(f"task.weights: {str(path)!r} could not be read: {error}") from error


def _check_length(file: BinaryIO, needed: int, path: Path) -> None:
    """Leave ``file`` behind its header, if exactly ``needed`` bytes follow."""
    version = file.read(12)
    major, minor, _ = struct.unpack("<3i", version.ljust(12, b"\0"))
    header = 12 + (8 if major * 10 + minor >= 2 else 4)
    size = os.fstat(file.fileno()).st_size
    if size != header + needed:
        what = "cut short" if size < header + needed else "too long"
        raise UserError(
            f"task.weights: {str(path)!r} is {what}: expected {header + needed} bytes for this .cfg "
            f"({header} of header and {needed // 4} numbers), came {size}\n"
            "  what to do: fetch the file again, or give the .cfg that it was trained with"
        )
    file.seek(header)


def _fill(tensor: Tensor, file: BinaryIO, path: Path) -> None:
    values = np.fromfile(file, "<f4", tensor.numel())
    if values.size != tensor.numel() or not np.isfinite(values).all():
        raise UserError(
            f"task.weights: {str(path)!r} is damaged: expected finite numbers, came infinite or undefined "
            f"ones before byte {file.tell()}\n  what to do: fetch the file again"
        )
    tensor.copy_(torch.from_numpy(values).view(tensor.shape))
