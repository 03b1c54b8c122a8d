"""Networks in Darknet's files compute what OpenCV computes from the same files."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, fx, nn

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models.architectures import darknet_models, suppression
from cnnbatch.models.architectures.darknet import Darknet, build, load_weights
from cnnbatch.models.architectures.darknet_cfg import parse_cfg
from cnnbatch.models.architectures.darknet_layers import DarknetHead
from cnnbatch.models.weights import files as weights
from tests.places import SHARED

FLOATS = NDArray[np.float32]
OUTPUT_TOLERANCE = 1e-4  # of probabilities, and of boxes in parts of the input's side
SHARED = SHARED / "weights" / "darknet"
CLASSES = 3
HEADER = struct.pack("<3iq", 0, 2, 5, 32013312)
SIDE = 26


# --- The oracle ---


def opencv(cfg: str, weights_file: Path, batch: Tensor, folder: Path) -> list[FLOATS]:
    """Return what each [yolo] gives for one picture in OpenCV: (cells and anchors, 5 + C), unsuppressed.

    The columns are center x, center y, width, height in parts of the input, objectness, scores.
    """
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless, the oracle, is not installed")
    plain = folder / "oracle.cfg"
    plain.write_text(cfg.replace("[yolo]", "[yolo]\nthresh=0\nnms_threshold=0\n"))
    net: Any = cv2.dnn.readNetFromDarknet(str(plain), str(weights_file))
    net.enableWinograd(False)
    net.setInput(batch.numpy())
    names = [name for name in net.getUnconnectedOutLayersNames() if name.startswith("yolo_")]
    return [np.asarray(output) for output in net.forward(names)]


def own(module: Darknet, batch: Tensor) -> list[FLOATS]:
    """Return the same from this package, without objectness."""
    height, width = batch.shape[-2:]
    with torch.inference_mode():
        found = [
            head.decode(raw, (height, width))
            for head, raw in zip(module.heads, module.body(batch), strict=True)
        ]
    side = torch.tensor([width, height, width, height])
    return [torch.cat([box_cxcywh(boxes[0]) / side, scores[0]], dim=1).numpy() for boxes, scores in found]


def box_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return torch.cat([(low + high) / 2, high - low], dim=1)


def assert_opencv_agrees(module: Darknet, cfg: str, file: Path, batch: Tensor, folder: Path) -> None:
    expected, found = opencv(cfg, file, batch, folder), own(module, batch)
    assert len(found) == len(expected) > 0
    for theirs, ours in zip(expected, found, strict=True):
        np.testing.assert_allclose(
            ours, np.delete(theirs, 4, axis=1), rtol=OUTPUT_TOLERANCE, atol=OUTPUT_TOLERANCE
        )


@dataclass(frozen=True)
class Files:
    cfg: str
    weights: Path

    def load(self) -> Darknet:
        module = build(self.cfg, "test.cfg")
        load_weights(module, self.weights)
        return module


def address(uri: str, sha256: str) -> Path:
    try:
        return weights.fetch(uri, sha256)
    except EnvironmentFault as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tiny() -> Files:
    """Return YOLOv3-tiny with Darknet's weights for COCO."""
    cfg, file = address(*darknet_models.YOLOV3_TINY.cfg), address(*darknet_models.YOLOV3_TINY.weights)
    return Files(cfg.read_text(), file)


@pytest.fixture(scope="module")
def fastest() -> Files:
    """Return a network with grouped convolutions and shortcuts, trained by others on COCO."""
    if not SHARED.is_dir():
        pytest.skip("no folder of Darknet's files beside the checkout")
    return Files((SHARED / "yolo-fastest-1.1.cfg").read_text(), SHARED / "yolo-fastest-1.1.weights")


def photograph(name: str, side: int) -> Tensor:
    """Return one of scikit-image's photographs, letterboxed to a square (1, 3, side, side), 0 to 1."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, which has the photographs, is not installed")
    picture = Image.open(Path(spec.origin).parent / "data" / name).convert("RGB")
    scale = side / max(picture.size)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    box = Image.new("RGB", (side, side), (127, 127, 127))
    box.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return torch.from_numpy(np.array(box)).permute(2, 0, 1)[None].float() / 255


# --- Real networks ---


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png"])
def test_yolov3_tiny_gives_opencvs_outputs(tiny: Files, name: str, tmp_path: Path) -> None:
    batch = photograph(name, 416)
    assert_opencv_agrees(tiny.load(), tiny.cfg, tiny.weights, batch, tmp_path)


@pytest.mark.parametrize(("name", "best"), [("coffee.png", "cup"), ("motorcycle_left.png", "motorbike")])
def test_yolov3_tiny_gives_opencvs_detections(tiny: Files, name: str, best: str, tmp_path: Path) -> None:
    batch, module = photograph(name, 416), tiny.load()
    module.max_objects = 100_000
    expected = suppressed(opencv(tiny.cfg, tiny.weights, batch, tmp_path), 416)
    with torch.inference_mode():
        (found,) = module(batch, torch.tensor([[416, 416]]))
    names = address(*darknet_models.YOLOV3_TINY.names).read_text().splitlines()
    assert names[int(found["labels"][0])] == best
    assert found["scores"][0] > 0.5
    assert found["scores"].diff().max() <= 0
    assert_same_detections(found, expected)


def test_yolo_fastest_gives_opencvs_outputs(fastest: Files, tmp_path: Path) -> None:
    batch = photograph("astronaut.png", 320)
    assert_opencv_agrees(fastest.load(), fastest.cfg, fastest.weights, batch, tmp_path)


def suppressed(outputs: Sequence[FLOATS], side: int) -> list[tuple[int, float, FLOATS]]:
    """Return (label, score, box xyxy in pixels) after thresholds 0.005 and 0.45, a class at a time."""
    rows = np.concatenate(outputs)
    center, half = rows[:, :2] * side, rows[:, 2:4] * side / 2
    boxes = np.concatenate([center - half, center + half], axis=1)
    kept: list[tuple[int, float, FLOATS]] = []
    for label, scores in enumerate(rows[:, 5:].T):
        mine: list[int] = []
        for row in np.argsort(-scores):
            if scores[row] > 0.005 and all(overlap(boxes[row], boxes[other]) <= 0.45 for other in mine):
                mine.append(int(row))
        kept += [(label, float(scores[row]), boxes[row]) for row in mine]
    return kept


def overlap(one: FLOATS, other: FLOATS) -> float:
    """Return the intersection over the union of two boxes xyxy."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = float(sides.clip(min=0).prod())
    return both / (float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - both)


def assert_same_detections(found: dict[str, Tensor], expected: list[tuple[int, float, FLOATS]]) -> None:
    def order(each: tuple[int, float, FLOATS]) -> tuple[int, float]:
        return each[0], -each[1]

    ours = list(zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].numpy(), strict=True))
    assert len(ours) == len(expected) > 0
    for mine, theirs in zip(sorted(ours, key=order), sorted(expected, key=order), strict=True):
        assert mine[0] == theirs[0]
        assert mine[1] == pytest.approx(theirs[1], abs=OUTPUT_TOLERANCE)
        np.testing.assert_allclose(mine[2], theirs[2], rtol=1e-3, atol=0.05)


def test_names_of_coco_that_darknet_has_otherwise() -> None:
    names = address(*darknet_models.YOLOV3_TINY.names).read_text().splitlines()
    assert len(names) == 80
    assert set(darknet_models.COCO_ALIASES) <= set(names)
    assert not set(darknet_models.COCO_ALIASES.values()) & set(names)


# --- Each section, on networks of a few weights ---


def convolution(
    rng: np.random.Generator, channels: int, filters: int, activation: str, **options: int
) -> tuple[str, bytes]:
    """Return a [convolutional] and its weights in the order of Darknet's file."""
    given = {"size": 3, "stride": 1, "pad": 1, "groups": 1, "batch_normalize": 0} | options
    bias = rng.normal(0, 0.5, filters)
    kernel = rng.normal(0, 1, (filters, channels // given["groups"], given["size"], given["size"]))
    kernel *= 1.5 / np.sqrt(kernel[0].size)
    # One variance is so small that Darknet's epsilon shows.
    variance = np.append(rng.uniform(0.5, 2, filters - 1), 2e-5)
    mean, scale = rng.normal(0, 0.5, filters), rng.uniform(0.5, 1.5, filters)
    scale[-1] = 0.004
    normal = (scale, mean, variance) if given["batch_normalize"] else ()
    text = "\n".join(f"{name}={value}" for name, value in given.items())
    return (
        f"[convolutional]\nfilters={filters}\nactivation={activation}\n{text}\n",
        b"".join(part.astype("<f4").tobytes() for part in (bias, *normal, kernel)),
    )


YOLO = f"[yolo]\nmask=1,2\nanchors=3,4, 5,9, 12,7\nclasses={CLASSES}\nnum=3\n"
NET = f"[net]\nwidth={SIDE}\nheight={SIDE}\n"


class Toy:
    """Writes a network layer by layer; all convolutions have ``width`` filters but the heads'."""

    def __init__(self, seed: int = 0, net: str = NET) -> None:
        self._rng = np.random.default_rng(seed)
        self._text, self._data = [net], [HEADER]

    def convolution(self, channels: int, filters: int, activation: str = "leaky", **options: int) -> Toy:
        text, data = convolution(self._rng, channels, filters, activation, **options)
        self._text.append(text)
        self._data.append(data)
        return self

    def section(self, text: str) -> Toy:
        self._text.append(text.replace("; ", "\n") + "\n")
        return self

    def head(self, channels: int, yolo: str = YOLO) -> Toy:
        return self.convolution(channels, 2 * (5 + CLASSES), "linear", size=1).section(yolo)

    def write(self, folder: Path) -> Files:
        path = folder / "toy.weights"
        path.write_bytes(b"".join(self._data))
        return Files("\n".join(self._text), path)


def noise(count: int = 1, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(0))


TOYS: dict[str, Callable[[], Toy]] = {
    "plain": lambda: Toy().convolution(3, 8).head(8),
    "normalized": lambda: Toy().convolution(3, 8, batch_normalize=1).head(8),
    "grouped": lambda: Toy().convolution(3, 12).convolution(12, 8, groups=4, batch_normalize=1).head(8),
    "depthwise": lambda: Toy().convolution(3, 8).convolution(8, 8, groups=8).head(8),
    "unpadded": lambda: Toy().convolution(3, 8, pad=0, size=5).head(8),
    "padding in pixels": lambda: Toy().convolution(3, 8, pad=0, padding=2, stride=2).head(8),
    "linear": lambda: Toy().convolution(3, 8, "linear").head(8),
    "mish": lambda: Toy().convolution(3, 8, "mish").head(8),
    "swish": lambda: Toy().convolution(3, 8, "swish").head(8),
    "logistic": lambda: Toy().convolution(3, 8, "logistic").head(8),
    "maxpool": lambda: Toy().convolution(3, 8).section("[maxpool]; size=2; stride=2").head(8),
    "maxpool of odd maps": lambda: (
        Toy().convolution(3, 8, pad=0, size=4).section("[maxpool]; size=2; stride=2").head(8)
    ),
    "maxpool that keeps the size": lambda: (
        Toy().convolution(3, 8).section("[maxpool]; size=2; stride=1").head(8)
    ),
    "maxpool of 5": lambda: Toy().convolution(3, 8).section("[maxpool]; size=5; stride=1").head(8),
    "maxpool of 4": lambda: Toy().convolution(3, 8).section("[maxpool]; size=4; stride=2").head(8),
    "maxpool unpadded": lambda: (
        Toy().convolution(3, 8).section("[maxpool]; size=3; stride=2; padding=0").head(8)
    ),
    "dropout": lambda: Toy().convolution(3, 8).section("[dropout]; probability=.5").head(8),
    "upsample": lambda: Toy().convolution(3, 8, stride=2).section("[upsample]; stride=2").head(8),
    "shortcut": lambda: (
        Toy()
        .convolution(3, 8)
        .convolution(8, 8)
        .section("[shortcut]; from=-2; activation=leaky")
        .convolution(8, 8)
        .section("[shortcut]; from=1; activation=linear")
        .head(8)
    ),
    "shortcut to fewer channels": lambda: (
        Toy().convolution(3, 4).convolution(4, 8).section("[shortcut]; from=0; activation=linear").head(8)
    ),
    "shortcut to more channels": lambda: (
        Toy().convolution(3, 9).convolution(9, 8).section("[shortcut]; from=0; activation=linear").head(8)
    ),
    "route": lambda: (
        Toy()
        .convolution(3, 4)
        .convolution(4, 5)
        .convolution(5, 6)
        .section("[route]; layers = -1, 0, -2")
        .head(15)
    ),
    "route to one": lambda: Toy().convolution(3, 4).convolution(4, 5).section("[route]; layers=0").head(4),
    "route to a part": lambda: (
        Toy().convolution(3, 8).section("[route]; layers=-1; groups=2; group_id=1").head(4)
    ),
    "two heads": lambda: (
        Toy()
        .convolution(3, 8, stride=2)
        .head(8)
        .section("[route]; layers=0")
        .section("[upsample]; stride=2")
        .head(8, YOLO.replace("mask=1,2", "mask=0,2"))
    ),
    "scale_x_y": lambda: Toy().convolution(3, 8).head(8, YOLO + "scale_x_y = 1.2\n"),
}


@pytest.mark.parametrize("name", TOYS)
def test_every_section_gives_opencvs_numbers(name: str, tmp_path: Path) -> None:
    files = TOYS[name]().write(tmp_path)
    assert_opencv_agrees(files.load(), files.cfg, files.weights, noise(), tmp_path)


def test_pictures_that_are_not_square(tmp_path: Path) -> None:
    wide = NET.replace(f"width={SIDE}", "width=37")  # 19 columns of another width than the rows' height
    files = Toy(net=wide).convolution(3, 8, stride=2).head(8).write(tmp_path)
    assert files.load().input_size == (SIDE, 37)
    assert_opencv_agrees(files.load(), files.cfg, files.weights, noise(width=37), tmp_path)


def test_relu_cuts_at_zero(tmp_path: Path) -> None:  # OpenCV knows no relu in a .cfg.
    (tmp_path / "linear").mkdir()
    plain = Toy().convolution(3, 8, "linear").head(8).write(tmp_path / "linear").load()
    cut = Toy().convolution(3, 8, "relu").head(8).write(tmp_path).load()
    layers, activated = children(plain), children(cut)
    with torch.inference_mode():
        before = layers[0](noise())
        assert before.min() < 0
        assert torch.equal(activated[0](noise()), before.clamp(min=0))


def children(module: Darknet) -> list[nn.Module]:
    layers = module.body.get_submodule("layers")
    return list(layers.children())


def test_the_old_header_has_a_shorter_count(tmp_path: Path) -> None:
    files = TOYS["normalized"]().write(tmp_path)
    new = own(files.load(), noise())
    files.weights.write_bytes(struct.pack("<4i", 0, 1, 0, 7) + files.weights.read_bytes()[len(HEADER) :])
    np.testing.assert_array_equal(own(files.load(), noise())[0], new[0])


# --- What forward gives ---


@pytest.fixture
def crowded(tmp_path: Path) -> Darknet:
    """Return a network that finds thousands of things in noise."""
    return TOYS["two heads"]().write(tmp_path).load()


def test_detections_have_their_types_and_limits(crowded: Darknet) -> None:
    with torch.inference_mode():
        (found,) = crowded(noise())
    assert {name: (value.dtype, tuple(value.shape)) for name, value in found.items()} == {
        "boxes": (torch.float32, (100, 4)),
        "scores": (torch.float32, (100,)),
        "labels": (torch.int64, (100,)),
    }
    assert bool((found["boxes"][:, :2] < found["boxes"][:, 2:]).all())
    assert found["scores"].diff().max() <= 0
    assert set(found["labels"].tolist()) == set(range(CLASSES)) == set(range(crowded.num_classes))


def test_thresholds_are_heeded(crowded: Darknet) -> None:
    with torch.inference_mode():
        (before,) = crowded(noise())
        crowded.score_threshold = float(before["scores"][10])
        (better,) = crowded(noise())
        crowded.score_threshold, crowded.nms_threshold = 1.0, 1.0
        (none,) = crowded(noise())
        crowded.score_threshold, crowded.max_objects = 0.005, 100_000
        (all_of_them,) = crowded(noise())
    assert len(better["scores"]) == 10
    assert [tuple(value.shape) for value in none.values()] == [(0, 4), (0,), (0,)]
    flat = torch.cat([torch.from_numpy(rows[:, 4:]) for rows in own(crowded, noise())])
    assert len(all_of_them["scores"]) == int((flat > 0.005).sum())


def test_neighbours_do_not_change_a_picture(crowded: Darknet) -> None:
    batch = noise(4)
    dark = torch.cat([batch[:1], torch.zeros_like(batch[1:])])
    with torch.inference_mode():
        among, dull = crowded(batch)[0], crowded(dark)[0]
        maps, alone = crowded.body(batch), crowded.body(batch[:1])
    for name, value in among.items():
        assert torch.equal(value, dull[name])
    for one, other in zip(maps, alone, strict=True):  # Of near ties rounding may change the order.
        torch.testing.assert_close(one[:1], other, rtol=1e-5, atol=1e-4)


class Maps(nn.Module):
    """Gives one map, whatever the picture."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, _batch: Tensor) -> tuple[Tensor]:
        return (self.raw,)


def two_corners(labels: tuple[int, int]) -> Darknet:
    """Return what sees two boxes of 200 x 200 pixels, from -96 to 104 and, worse, from -72 to 128."""
    raw = torch.full((1, 7, 4, 4), -9.0)
    raw[:, :4] = 0
    raw[0, 4, 0, 0], raw[0, 4, 3, 3] = 9, 8
    raw[0, 5 + labels[0], 0, 0] = raw[0, 5 + labels[1], 3, 3] = 9
    return Darknet(Maps(raw), [DarknetHead(((200.0, 200.0),), 2)], (32, 32))


def test_only_boxes_of_the_same_class_suppress_each_other() -> None:
    boxes = [[-96.0, -96.0, 104.0, 104.0], [-72.0, -72.0, 128.0, 128.0]]
    for labels in ((0, 0), (0, 1), (1, 0)):
        module = two_corners(labels)
        module.nms_threshold = 0.1
        (found,) = module(noise(1, 32, 32))
        kept = 2 if labels[0] != labels[1] else 1
        assert found["labels"].tolist() == list(labels[:kept])
        assert found["boxes"].tolist() == boxes[:kept]


def test_overlaps_are_exact_in_the_last_class_too() -> None:
    raw = torch.full((1, 1005, 8, 8), -9.0)
    raw[:, :4] = 0
    raw[0, 2:6, 7, 7] = torch.tensor([7.0, 7.0, 9.0, 9.0])  # thousands of pixels wide, of the first class
    for column in (0, 1):
        raw[0, 4, 0, column] = raw[0, 1004, 0, column] = 9 - column
    module = Darknet(Maps(raw), [DarknetHead(((8.3, 8.3),), 1000)], (32, 32))
    overlap_of_both = (8.3 - 4) * 8.3 / (2 * 8.3**2 - (8.3 - 4) * 8.3)
    for threshold, kept in ((overlap_of_both + 1e-5, 2), (overlap_of_both - 1e-5, 1)):
        module.nms_threshold = threshold
        (found,) = module(noise(1, 32, 32))
        assert found["labels"].tolist().count(999) == kept


def test_boxes_without_end_are_none() -> None:
    module = two_corners((0, 1))
    maps = module.body
    assert isinstance(maps, Maps)
    maps.raw[0, 2, 0, 0] = 100.0  # exp(100) is no float32
    (found,) = module(noise(1, 32, 32))
    assert found["labels"].tolist() == [1]


def test_suppression_of_many_boxes_keeps_the_best(crowded: Darknet, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        (before,) = crowded(noise())
        monkeypatch.setattr(suppression, "_MOST_CANDIDATES", 700)
        (after,) = crowded(noise())
    assert len(after["scores"]) == 100
    for name, value in before.items():
        assert torch.equal(value, after[name])


def test_the_body_can_be_traced(crowded: Darknet) -> None:
    with torch.inference_mode():
        (before,) = crowded(noise())
        crowded.body = fx.symbolic_trace(crowded.body)
        (after,) = crowded(noise())
    for name, value in before.items():
        torch.testing.assert_close(value, after[name])


# --- What is refused ---


def test_sections_have_options_and_lines() -> None:
    text = "# a comment\n\n[net]\nwidth = 416 ; pixels\n height=3 20\n[route]\nlayers = -1, 8  # two\n"
    net, route = parse_cfg(text, "a.cfg")
    assert (net.kind, net.line, dict(net.options)) == ("net", 3, {"width": "416", "height": "320"})
    assert (route.kind, route.line, route.integers("layers")) == ("route", 6, (-1, 8))


CONV = "[convolutional]\nfilters=16\nsize=1\nactivation=linear\n"
START = "[net]\nwidth=8\nheight=8\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a.cfg:1: expected a Darknet .cfg, that begins with \[net\], came ''"),
        ("width=3\n[net]\n", r"a.cfg:1: .*came 'width=3'"),
        ("# x\n[net]\nwidth\n", r"a.cfg:3: expected \[section\] or option=value, came 'width'"),
        ("[net]\nwidth=\n", r"a.cfg:2: expected .*option=value, came 'width='"),
        ("[net]\n[gru]\n", r"a.cfg:2: .*\[net\], \[convolutional\].*\[yolo\], came '\[gru\]'"),
        ("[net]\n[route\n", r"a.cfg:2: .*came '\[route'"),
        ("[net]\nwidth=3\nheight=4\nwidth=5\n", r"a.cfg:4: .*came '3' on line 2 and '5' here"),
        (CONV, r"a.cfg:1: expected \[net\] .*came \[convolutional\]"),
        (START + START + CONV + YOLO, r"a.cfg:4: expected one \[net\], came a second"),
        ("[net]\nwidth=8\n" + CONV + YOLO, r"\[net\] height: expected a value, but it is not there"),
        ("[net]\nwidth=x\nheight=8\n", r"a.cfg:2: .*whole number from 1 to 65536, came 'x'"),
        ("[net]\nwidth=8\nheight=0\n", r"a.cfg:3: .*whole number from 1 to 65536, came '0'"),
        ("[net]\nwidth=8\nheight=" + "9" * 99, r"whole number from 1 to 65536, came '9"),
        ("[net]\nwidth=8\nheight=8\nchannels=1\n", r"a.cfg:4: .*no such option, or 3.*came '1'"),
        (START + CONV, r"a.cfg: expected \[yolo\] sections.*came 0 of them"),
        (START + CONV.replace("linear", "elu") + YOLO, r"a.cfg:7: .*activation.*leaky.*came 'elu'"),
        (START + CONV.replace("size=1\n", "") + YOLO, r"a.cfg:4: \[convolutional\] size: expected a value"),
        (START + CONV + "groups=2\n" + YOLO, r"a.cfg:8: .*groups.*divisor of 3 channels and of 16"),
        (START + CONV + "dilation=2\n" + YOLO, r"a.cfg:8: .*dilation.*not built in, came '2'"),
        (START + CONV + "[route]\nlayers=-2\n" + YOLO, r"a.cfg:9: .*1 layers before .*-2 is none"),
        (START + CONV + "[route]\nlayers=1\n" + YOLO, r"a.cfg:9: .*1 layers before .*1 is none"),
        (START + "[route]\nlayers=-1\n" + YOLO, r"a.cfg:5: .*0 layers before"),
        (START + CONV + "[route]\nlayers=0,\n" + YOLO, r"a.cfg:9: .*whole numbers with commas.*'0,'"),
        (START + CONV + YOLO + "[route]\nlayers=1\n", r"layer with a feature map \(1 is \[yolo\]\)"),
        (START + CONV + YOLO + CONV, r"a.cfg:13: expected a \[route\] after \[yolo\]"),
        (
            START + CONV + CONV + "stride=2\n[route]\nlayers=0,1\n" + YOLO,
            r"a.cfg:14: .*one height and width \(these have 8 x 8, 4 x 4\)",
        ),
        (
            START + CONV + CONV + "stride=2\n[shortcut]\nfrom=0\n" + YOLO,
            r"a.cfg:14: .*a layer of 4 x 4 \(this has 8 x 8\)",
        ),
        (START + CONV.replace("size=1", "size=9") + YOLO, r"a.cfg:6: .*at most the map's 8 x 8"),
        (START + CONV + YOLO.replace("classes=3", "classes=4"), r"16 channels .* 2 anchors"),
        (START + CONV + YOLO.replace("mask=1,2", "mask=1,3"), r"a.cfg:9: .*from 0 to 2, came '1,3'"),
        (START + CONV + YOLO.replace("12,7", "12"), r"a.cfg:10: .*6 numbers above 0"),
        (START + CONV + YOLO.replace("12,7", "12,nan"), r"a.cfg:10: .*numbers with commas"),
        (START + CONV + YOLO + "scale_x_y=1,2\n", r"a.cfg:13: .*one number, came '1,2'"),
    ],
)
def test_a_cfg_that_is_wrong_says_where(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(text, "a.cfg")
    assert re.search(message, str(caught.value).partition("\n")[0]), str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[net]\n" + "#" * (1 << 20), "more than 1048576 characters"),
        (START + "[dropout]\n" * 1001, "at most 1000 layers"),
        (START + CONV + "[upsample]\nstride=65536\n" + YOLO, "feature maps of at most"),
        (
            START + (CONV.replace("16", "65536") + "groups=1\n") * 2 + CONV + YOLO,
            r"at most 536870912 weights, came 42\d{8}",
        ),
    ],
)
def test_a_monstrous_cfg_costs_nothing(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(text, "a.cfg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-4], "is cut short: expected {0} bytes .*20 of header .*came {1}"),
        (lambda data: data + b"\0", "is too long: expected {0} bytes .*20 of header .*came {1}"),
        (lambda data: data[:7], "is cut short: .*came 7"),
        (lambda data: data[:-4] + struct.pack("<f", float("nan")), "is damaged: expected finite numbers"),
    ],
)
def test_weights_have_to_fit(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    files = TOYS["normalized"]().write(tmp_path)
    data = files.weights.read_bytes()
    files.weights.write_bytes(change(data))
    with pytest.raises(UserError, match=message.format(len(data), len(change(data)))):
        files.load()


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    files = TOYS["plain"]().write(tmp_path)
    with files.weights.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="came 1099511627776"):
        files.load()


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        Files(TOYS["plain"]().write(tmp_path).cfg, tmp_path / "none.weights").load()
