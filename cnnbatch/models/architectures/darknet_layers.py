"""From a section of Darknet's .cfg to the layer that it stands for, and to the shape of what that gives.

Options that would change a number in a way that nothing here has are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.architectures.darknet_cfg import CfgSection

MOST_LAYERS = 1000  # YOLOv4's largest has 334


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


class MapShape(NamedTuple):
    """The shape of a feature map of one picture."""

    channels: int
    height: int
    width: int


MapShapes = Sequence[MapShape | None]
"""What there is to read: first the picture, then what each layer gives; None: detections, not a map."""


@dataclass(frozen=True)
class DarknetLayer:
    """A section's module, the places in `MapShapes` that it reads, and what it gives."""

    module: nn.Module
    sources: tuple[int, ...]
    shape: MapShape | None
    head: DarknetHead | None = None


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "mish": nn.Mish,
    "logistic": nn.Sigmoid,
    "swish": nn.SiLU,
}


def _convolutional(section: CfgSection, shapes: MapShapes) -> DarknetLayer:
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
    return DarknetLayer(Convolution(convolution, normalize, activation), (source,), after)


def _maxpool(section: CfgSection, shapes: MapShapes) -> DarknetLayer:
    source, shape = _previous(section, shapes)
    size, stride = section.integer("size"), section.integer("stride")
    padding = section.integer("padding", size - 1, least=0, most=size - 1)
    return DarknetLayer(_pool(size, stride, padding), (source,), _slid(section, shape, size, stride, padding))


def _pool(size: int, stride: int, padding: int) -> nn.Module:
    """Pool with ``padding`` in all: the smaller half left and above, the rest right and below."""
    if padding % 2 == 0:
        return nn.MaxPool2d(size, stride, padding // 2)
    if size == stride == 2:
        return nn.MaxPool2d(2, 2, ceil_mode=True)  # the same without a padded copy
    before, after = padding // 2, padding - padding // 2
    pad = nn.ConstantPad2d((before, after, before, after), -math.inf)
    return nn.Sequential(pad, nn.MaxPool2d(size, stride))


def _upsample(section: CfgSection, shapes: MapShapes) -> DarknetLayer:
    source, shape = _previous(section, shapes)
    stride = section.integer("stride")
    after = MapShape(shape.channels, shape.height * stride, shape.width * stride)
    return DarknetLayer(nn.Upsample(scale_factor=float(stride)), (source,), after)


def _dropout(section: CfgSection, shapes: MapShapes) -> DarknetLayer:
    source, shape = _previous(section, shapes)
    return DarknetLayer(nn.Identity(), (source,), shape)


def _route(section: CfgSection, shapes: MapShapes) -> DarknetLayer:
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
    return DarknetLayer(Route(groups, group), tuple(source for source, _ in found), after)


def _shortcut(section: CfgSection, shapes: MapShapes) -> DarknetLayer:
    source, shape = _previous(section, shapes)
    earlier, other = _earlier(
        section, "from", section.integer("from", least=-MOST_LAYERS, most=MOST_LAYERS), shapes
    )
    if other[1:] != shape[1:]:
        came = f"{other.height} x {other.width}"
        raise section.error("from", f"a layer of {shape.height} x {shape.width} (this has {came})")
    activation = _ACTIVATIONS[section.word("activation", _ACTIVATIONS, "linear")]()
    return DarknetLayer(Shortcut(shape.channels - other.channels, activation), (source, earlier), shape)


def _yolo(section: CfgSection, shapes: MapShapes) -> DarknetLayer:
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
    return DarknetLayer(nn.Identity(), (source,), None, head)


BUILDERS: Mapping[str, Callable[[CfgSection, MapShapes], DarknetLayer]] = {
    "convolutional": _convolutional,
    "dropout": _dropout,
    "maxpool": _maxpool,
    "route": _route,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "yolo": _yolo,
}
"""How each kind of section becomes a layer, from the shapes that there are to read."""

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


def _previous(section: CfgSection, shapes: MapShapes) -> tuple[int, MapShape]:
    """Return the place and the shape of what the layer before gives."""
    shape = shapes[-1]
    if shape is None:
        raise UserError(
            f"{section.where}:{section.line}: expected a [route] after [yolo], which gives detections and no "
            f"feature map, came [{section.kind}]\n  what to do: mend the order of the sections"
        )
    return len(shapes) - 1, shape


def _earlier(section: CfgSection, option: str, number: int, shapes: MapShapes) -> tuple[int, MapShape]:
    """Return the place and the shape of layer ``number``, which below zero is counted back from here."""
    here = len(shapes) - 1
    place = 1 + (number + here if number < 0 else number)
    if not 1 <= place <= here:
        raise section.error(option, f"the number of one of the {here} layers before this ({number} is none)")
    shape = shapes[place]
    if shape is None:
        raise section.error(option, f"a layer with a feature map ({number} is [yolo])")
    return place, shape


def _slid(section: CfgSection, shape: MapShape, size: int, stride: int, padding: int) -> MapShape:
    """Return the shape after a window of ``size`` went over maps that have ``padding`` more in all."""
    height, width = ((side + padding - size) // stride + 1 for side in shape[1:])
    if min(height, width) < 1:
        raise section.error("size", f"at most the map's {shape.height} x {shape.width} pixels")
    return MapShape(shape.channels, height, width)


def refuse_unknown(section: CfgSection) -> None:
    """Refuse a section that has an option of `_UNKNOWN`; raises UserError."""
    for option, harmless in _UNKNOWN.get(section.kind, {}).items():
        if option in section.options and section.options[option] not in harmless:
            wanted = f"no such option, or {harmless[0]}" if harmless else "no such option"
            raise section.error(option, f"{wanted}: what it does is not built in")
