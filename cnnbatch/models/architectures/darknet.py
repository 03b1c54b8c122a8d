"""Darknet's .cfg and .weights as a torch module that detects: YOLOv3 and its kin, on their own files.

Only the sections and options below are known: whatever else would change a number is refused instead of
ignored. Shapes and sizes are settled before memory is taken, so that a hostile file costs little.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.architectures.darknet_cfg import CfgSection, parse_cfg
from cnnbatch.models.architectures.suppression import detections
from cnnbatch.models.detector import Detections

_MOST_LAYERS = 1000  # YOLOv4's largest has 334
_MOST_WEIGHTS = 1 << 29  # floats, 2 GiB; YOLOv4's largest has 287 million
_LARGEST_MAP = 1 << 27  # floats of one picture in one layer, 512 MiB


# --- What sections become ---


class Convolution(nn.Module):
    """Convolution, batch normalisation where the section has it, and activation."""

    def __init__(self, convolution: nn.Conv2d, normalize: bool, activation: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        # Darknet's CPU code divides by sqrt(variance) + 1e-6, AlexeyAB's by sqrt(variance + 1e-5), OpenCV,
        # from which the tests take their numbers, by sqrt(variance + 1e-6).
        self.norm = nn.BatchNorm2d(convolution.out_channels, eps=1e-6) if normalize else None
        self.activation = activation

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the activated feature maps (N, C, H, W)."""
        pixels = self.convolution(pixels)
        if self.norm is not None:
            pixels = self.norm(pixels)
        activated: Tensor = self.activation(pixels)
        return activated

    def stored(self) -> Iterator[Tensor]:
        """Yield the tensors in the order of a .weights file: bias, scale, mean, variance, kernels."""
        if self.norm is not None:
            statistics = (self.norm.running_mean, self.norm.running_var)
            yield from (self.norm.bias, self.norm.weight, *(each for each in statistics if each is not None))
        elif self.convolution.bias is not None:
            yield self.convolution.bias
        yield self.convolution.weight


class Route(nn.Module):
    """The channels of several layers one after the other; of each only part ``group`` of ``groups``."""

    def __init__(self, groups: int, group: int) -> None:
        super().__init__()
        self._groups, self._group = groups, group

    def forward(self, *maps: Tensor) -> Tensor:
        """Return maps (N, C, H, W) from maps of the same N, H and W."""
        parts = [each.chunk(self._groups, 1)[self._group] for each in maps]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Shortcut(nn.Module):
    """A sum with an earlier layer, that loses channels, or has zeros for those that it lacks."""

    def __init__(self, lacking: int, activation: nn.Module) -> None:
        super().__init__()
        self._lacking = lacking
        self.activation = activation

    def forward(self, pixels: Tensor, earlier: Tensor) -> Tensor:
        """Return maps of the shape of ``pixels`` (N, C, H, W)."""
        if self._lacking:
            earlier = nn.functional.pad(earlier, (0, 0, 0, 0, 0, self._lacking))  # below zero it cuts
        activated: Tensor = self.activation(pixels + earlier)
        return activated


@dataclass(frozen=True)
class DarknetHead:
    """What a [yolo] section makes of a feature map; ``anchors`` are (width, height) in input pixels."""

    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_x_y: float = 1.0

    def decode(self, raw: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the boxes and the scores of all anchors of all cells.

        Args:
            raw: the map (N, A * (5 + C), h, w) that the section reads; each anchor's channels are x, y,
                width, height, objectness and C classes.
            size: the (height, width) of the network's input.

        Returns:
            Boxes (N, h * w * A, 4), xyxy in input pixels, and scores (N, h * w * A, C), objectness times
            class probability; both float32, row by row, the anchors of a cell beside each other.

        Source: Redmon and Farhadi 2018 (arXiv 1804.02767), section 2.1; scale_x_y is Bochkovskiy et al.
            2020 (arXiv 2004.10934), section 3.4, "eliminate grid sensitivity".
        """
        count, _, rows, columns = raw.shape
        cells = raw.float().permute(0, 2, 3, 1).reshape(count, rows, columns, len(self.anchors), -1)
        position, extent, objectness, classes = torch.split(cells, [2, 2, 1, self.classes], dim=-1)
        stride = cells.new_tensor([size[1] / columns, size[0] / rows])
        offset = position.sigmoid() * self.scale_x_y - (self.scale_x_y - 1) / 2
        center = (_corners(rows, columns, raw.device) + offset) * stride  # [N, h, w, A, 2]
        half = extent.exp() * cells.new_tensor(self.anchors) / 2  # [N, h, w, A, 2]
        boxes = torch.cat([center - half, center + half], dim=-1)
        scores = objectness.sigmoid() * classes.sigmoid()
        return boxes.flatten(1, 3), scores.flatten(1, 3)


def _corners(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return each cell's (x, y) as [h, w, 1, 2]."""
    x, y = torch.arange(columns, device=device), torch.arange(rows, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[:, :, None]


# --- One builder a kind of section ---


class _Shape(NamedTuple):
    channels: int
    height: int
    width: int


_Shapes = Sequence[_Shape | None]
"""What there is to read: first the picture, then what each layer gives; None: detections, not a map."""


@dataclass(frozen=True)
class _Layer:
    """A section's module, the places in `_Shapes` that it reads, and what it gives."""

    module: nn.Module
    sources: tuple[int, ...]
    shape: _Shape | None
    head: DarknetHead | None = None


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "mish": nn.Mish,
    "logistic": nn.Sigmoid,
    "swish": nn.SiLU,
}


def _convolutional(section: CfgSection, shapes: _Shapes) -> _Layer:
    source, shape = _previous(section, shapes)
    filters, size = section.integer("filters"), section.integer("size")
    stride, groups = section.integer("stride", 1), section.integer("groups", 1)
    if shape.channels % groups or filters % groups:
        raise section.error("groups", f"a divisor of {shape.channels} channels and of {filters} filters")
    pad = section.integer("pad", 0, least=0)
    padding = size // 2 if pad else section.integer("padding", 0, least=0)
    normalize = section.integer("batch_normalize", 0, least=0, most=1) == 1
    convolution = nn.Conv2d(shape.channels, filters, size, stride, padding, groups=groups, bias=not normalize)
    # Without an activation Darknet takes logistic and OpenCV linear, so it has to be there.
    activation = _ACTIVATIONS[section.word("activation", _ACTIVATIONS)]()
    after = _slid(section, shape, size, stride, 2 * padding)._replace(channels=filters)
    return _Layer(Convolution(convolution, normalize, activation), (source,), after)


def _maxpool(section: CfgSection, shapes: _Shapes) -> _Layer:
    source, shape = _previous(section, shapes)
    size, stride = section.integer("size"), section.integer("stride")
    padding = section.integer("padding", size - 1, least=0, most=size - 1)
    return _Layer(_pool(size, stride, padding), (source,), _slid(section, shape, size, stride, padding))


def _pool(size: int, stride: int, padding: int) -> nn.Module:
    """Pool with ``padding`` in all: the smaller half left and above, the rest right and below."""
    if padding % 2 == 0:
        return nn.MaxPool2d(size, stride, padding // 2)
    if size == stride == 2:
        return nn.MaxPool2d(2, 2, ceil_mode=True)  # the same without a padded copy
    before, after = padding // 2, padding - padding // 2
    pad = nn.ConstantPad2d((before, after, before, after), -math.inf)
    return nn.Sequential(pad, nn.MaxPool2d(size, stride))


def _upsample(section: CfgSection, shapes: _Shapes) -> _Layer:
    source, shape = _previous(section, shapes)
    stride = section.integer("stride")
    after = _Shape(shape.channels, shape.height * stride, shape.width * stride)
    return _Layer(nn.Upsample(scale_factor=float(stride)), (source,), after)


def _dropout(section: CfgSection, shapes: _Shapes) -> _Layer:
    source, shape = _previous(section, shapes)
    return _Layer(nn.Identity(), (source,), shape)


def _route(section: CfgSection, shapes: _Shapes) -> _Layer:
    found = [_earlier(section, "layers", number, shapes) for number in section.integers("layers")]
    groups = section.integer("groups", 1)
    group = section.integer("group_id", 0, least=0, most=groups - 1)
    first = found[0][1]
    if any(shape[1:] != first[1:] for _, shape in found):
        sizes = ", ".join(f"{shape.height} x {shape.width}" for _, shape in found)
        raise section.error("layers", f"layers of one height and width (these have {sizes})")
    if any(shape.channels % groups for _, shape in found):
        raise section.error("groups", "a divisor of each layer's channels")
    after = first._replace(channels=sum(shape.channels // groups for _, shape in found))
    return _Layer(Route(groups, group), tuple(source for source, _ in found), after)


def _shortcut(section: CfgSection, shapes: _Shapes) -> _Layer:
    source, shape = _previous(section, shapes)
    earlier, other = _earlier(
        section, "from", section.integer("from", least=-_MOST_LAYERS, most=_MOST_LAYERS), shapes
    )
    if other[1:] != shape[1:]:
        came = f"{other.height} x {other.width}"
        raise section.error("from", f"a layer of {shape.height} x {shape.width} (this has {came})")
    activation = _ACTIVATIONS[section.word("activation", _ACTIVATIONS, "linear")]()
    return _Layer(Shortcut(shape.channels - other.channels, activation), (source, earlier), shape)


def _yolo(section: CfgSection, shapes: _Shapes) -> _Layer:
    source, shape = _previous(section, shapes)
    classes, sides = section.integer("classes"), section.numbers("anchors")
    count = section.integer("num")
    if len(sides) != 2 * count or min(sides) <= 0:
        raise section.error("anchors", f"{2 * count} numbers above 0, a width and a height for each of num")
    mask = section.integers("mask")
    if not all(0 <= number < count for number in mask):
        raise section.error("mask", f"numbers of anchors, from 0 to {count - 1}")
    if shape.channels != len(mask) * (5 + classes):
        raise section.error(
            "classes", f"{shape.channels} channels before this to be {len(mask)} anchors * (5 + classes)"
        )
    anchors = tuple((sides[2 * number], sides[2 * number + 1]) for number in mask)
    head = DarknetHead(anchors, classes, section.number("scale_x_y", 1.0))
    return _Layer(nn.Identity(), (source,), None, head)


_BUILDERS: Mapping[str, Callable[[CfgSection, _Shapes], _Layer]] = {
    "convolutional": _convolutional,
    "dropout": _dropout,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "yolo": _yolo,
}

_ONE = ("1", "1.", "1.0")
_UNKNOWN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "net": {"channels": ("3",)},
    "convolutional": {
        "antialiasing": ("0",),
        "assisted_excitation": ("0",),
        "binary": ("0",),
        "coordconv": ("0",),
        "dilation": ("1",),
        "flipped": ("0",),
        "rotate": ("0",),
        "share_index": (),
        "stretch": ("0",),
        "stretch_sway": ("0",),
        "stride_x": (),
        "stride_y": (),
        "sway": ("0",),
        "xnor": ("0",),
    },
    "maxpool": {"antialiasing": ("0",), "maxpool_depth": ("0",), "stride_x": (), "stride_y": ()},
    "shortcut": {"alpha": _ONE, "beta": _ONE, "weights_type": ("none",)},
    "upsample": {"scale": _ONE},
    "yolo": {"new_coords": ("0",)},
}
"""Options that change numbers in a way that nothing here has, with the values at which they don't."""


def _previous(section: CfgSection, shapes: _Shapes) -> tuple[int, _Shape]:
    """Return the place and the shape of what the layer before gives."""
    shape = shapes[-1]
    if shape is None:
        raise UserError(
            f"{section.where}:{section.line}: expected a [route] after [yolo], which gives detections and no "
            f"feature map, came [{section.kind}]\n  what to do: mend the order of the sections"
        )
    return len(shapes) - 1, shape


def _earlier(section: CfgSection, option: str, number: int, shapes: _Shapes) -> tuple[int, _Shape]:
    """Return the place and the shape of layer ``number``, which below zero is counted back from here."""
    here = len(shapes) - 1
    place = 1 + (number + here if number < 0 else number)
    if not 1 <= place <= here:
        raise section.error(option, f"the number of one of the {here} layers before this ({number} is none)")
    shape = shapes[place]
    if shape is None:
        raise section.error(option, f"a layer with a feature map ({number} is [yolo])")
    return place, shape


def _slid(section: CfgSection, shape: _Shape, size: int, stride: int, padding: int) -> _Shape:
    """Return the shape after a window of ``size`` went over maps that have ``padding`` more in all."""
    height, width = ((side + padding - size) // stride + 1 for side in shape[1:])
    if min(height, width) < 1:
        raise section.error("size", f"at most the map's {shape.height} x {shape.width} pixels")
    return _Shape(shape.channels, height, width)


# --- The whole ---


class Body(nn.Module):
    """All layers up to the heads; ``layers`` has Darknet's numbers."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
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
    if net.kind != "net" or len(sections) > _MOST_LAYERS:
        raise UserError(
            f"{where}:{net.line}: expected [net] and then at most {_MOST_LAYERS} layers, "
            f"came [{net.kind}] and then {len(sections)} sections"
        )
    _refuse_unknown(net)
    picture = _Shape(3, net.integer("height"), net.integer("width"))
    with torch.device("meta"):  # Nothing is allocated before the whole is known to be of a sane size.
        layers = _layers(sections, picture)
        body = Body(layers)
    heads = [layer.head for layer in layers if layer.head is not None]
    _check_whole(body, heads, where)
    return Darknet(_allocated(body), heads, (picture.height, picture.width)).eval()


def _layers(sections: Sequence[CfgSection], picture: _Shape) -> list[_Layer]:
    layers: list[_Layer] = []
    shapes: list[_Shape | None] = [picture]
    for section in sections:
        _refuse_unknown(section)
        if section.kind not in _BUILDERS:
            raise UserError(f"{section.where}:{section.line}: expected one [net], came a second")
        layers.append(_BUILDERS[section.kind](section, shapes))
        shapes.append(layers[-1].shape)
        if math.prod(shapes[-1] or ()) > _LARGEST_MAP:
            raise UserError(
                f"{section.where}:{section.line}: expected feature maps of at most {_LARGEST_MAP} numbers a "
                f"picture, came {' x '.join(map(str, shapes[-1] or ()))}"
            )
    return layers


def _refuse_unknown(section: CfgSection) -> None:
    for option, harmless in _UNKNOWN.get(section.kind, {}).items():
        if option in section.options and section.options[option] not in harmless:
            wanted = f"no such option, or {harmless[0]}" if harmless else "no such option"
            raise section.error(option, f"{wanted}: what it does is not built in")


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


# --- The .weights ---


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
