"""Detectors find the same by every backend, in every precision and in few shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from cnnbatch.images.decode import decode
from cnnbatch.inference.autotune import agreement as guard
from cnnbatch.models import Choice, Detector, Resizing
from cnnbatch.models.detectors import build_detector
from cnnbatch.models.libraries.torchvision_detectors import TorchvisionDetector, _resizing
from cnnbatch.models.resizing import prepare
from cnnbatch.models.runtime.backends import Unavailable
from cnnbatch.models.runtime.parts import Part, runnable
from cnnbatch.tasks.detect import Detect, ObjectDetector
from cnnbatch.types import Backend, Image, Runtime
from tests.models.architectures.test_darknet import Files, tiny  # noqa: F401 - a fixture
from tests.models.architectures.test_yolov3_tiny import photograph
from tests.places import SHARED
from tests.tasks.test_detect import ours, pictures, reference

QUICK = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")
OTHER_HEADS = ("fcos_resnet50_fpn", "retinanet_resnet50_fpn_v2")
OPENVINO = Runtime("cpu", backend="openvino")
PHOTOGRAPHS = SHARED / "data" / "coco-sample"

ROUNDING = 5e-4  # What another order of sums makes of the scores of random weights, which are extreme.

Outputs = Mapping[str, list[Tensor]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep torch's threads from waiting for cores that others have taken."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seen(model: ObjectDetector, image: Image, count: int = 1) -> Outputs:
    """Return what a batch of one picture, ``count`` times, gives."""
    (prepared,) = model.prepare(image)
    batch = prepared.pixels.expand(count, -1, -1, -1)
    return model.forward(batch, torch.tensor([prepared.size] * count))


def assert_same(found: Outputs, expected: Outputs) -> None:
    """Insist on the same boxes, but for the order of those whose scores are alike."""
    for place, scores in enumerate(expected["scores"]):
        assert len(scores) == len(found["scores"][place]) > 0
        assert (scores - found["scores"][place]).abs().max() <= ROUNDING
        overlaps = box_iou(expected["boxes"][place], found["boxes"][place]).nan_to_num(1)  # Of no area.
        same = expected["labels"][place][:, None] == found["labels"][place][None]
        alike = (scores[:, None] - found["scores"][place][None]).abs() <= ROUNDING
        assert bool((overlaps * same * alike).amax(1).ge(0.9).float().mean() >= 0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_HEADS)]
)
def test_openvino_finds_the_same(name: str) -> None:
    pytest.importorskip("openvino")
    model = reference(name)
    plain, other = ours(name, model), ours(name, model, OPENVINO)
    for image in pictures():
        assert_same(seen(other, image, 2), seen(plain, image, 2))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_a_network_of_darknet_finds_the_same(tiny: Files, backend: Backend) -> None:  # noqa: F811
    if backend == "openvino":
        pytest.importorskip("openvino")
    built = build_detector(Choice("yolov3_tiny"))
    whole = ObjectDetector(Detect(model="yolov3_tiny"), replace(built, parts=()), Runtime("cpu"))
    expected = [seen(whole, photograph(name)) for name in ("coffee.png", "astronaut.png")]
    model = Detect(model="yolov3_tiny").load(Runtime("cpu", backend=backend))
    for name, one in zip(("coffee.png", "astronaut.png"), expected, strict=True):
        assert_same(seen(model, photograph(name)), one)


class FewLayers(nn.Module):
    """A backbone that a compiler is soon done with: maps of two sizes."""

    out_channels = (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return two maps."""
        large = self.first(pixels).relu()
        return {"0": large, "1": self.second(large).relu()}


@pytest.mark.slow
def test_what_is_compiled_once_finds_the_same() -> None:
    torch.manual_seed(0)
    boxes = DefaultBoxGenerator([[2], [2]])
    least: dict[str, Any] = {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 30}
    model = SSD(FewLayers(), boxes, (96, 96), 91, **least).eval()
    name = "ssd300_vgg16"
    plain, other = ours(name, model), ours(name, model, Runtime("cpu", backend="compile", batch=3))
    for image, count in zip(pictures(), (3, 1, 2), strict=True):
        (few,) = other.prepare(image)
        exact = plain.forward(few.pixels.expand(count, -1, -1, -1), torch.tensor([few.size] * count))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert_same(seen(other, image, count), exact)


@pytest.mark.slow
def test_only_parts_of_pictures_are_compiled_for_full_batches_of_few_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: dict[str, set[tuple[int, ...]]] = {}

    def watched(module: nn.Module, **options: Any) -> Callable[..., Any]:
        assert options["dynamic"]

        def call(*inputs: Any) -> Any:
            first = inputs[0] if isinstance(inputs[0], Tensor) else inputs[0][0]
            shapes.setdefault(type(module).__name__, set()).add(tuple(first.shape))
            return module(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model = ours(name, reference(name), Runtime("cpu", backend="compile", batch=3))
    for width in (60, 70, 80, 85, 95, 110):
        seen(model, pictures([(60, width)])[0])
    assert shapes.keys() == {"BackboneWithFPN", "RPNHead"}
    assert shapes["BackboneWithFPN"] == {(3, 3, 96, 96), (3, 3, 96, 128), (3, 3, 96, 160)}


def detector(name: str, model: Any) -> Detector:
    module = TorchvisionDetector(copy.deepcopy(model))
    resizing = _resizing(model.transform)
    return Detector(module, resizing, (), parts=module.parts, box_parts=module.box_parts)


@pytest.mark.slow
def test_what_is_no_part_stays_in_float32() -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    plain, narrow = (detector(name, reference(name)) for _ in range(2))
    runnable(narrow, Runtime("cpu", "bf16"))
    pixels = torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(5))
    maps = [one.module.get_submodule("module.backbone")(pixels) for one in (plain, narrow)]
    assert list(maps[0]) == list(maps[1])
    for exact, found in zip(maps[0].values(), maps[1].values(), strict=True):
        assert found.dtype == torch.float32
        assert (exact - found).abs().max() <= 0.1 * exact.abs().max()
        assert not torch.equal(exact, found)
    predictor = narrow.module.get_submodule("module.roi_heads.box_predictor")
    assert all(value.dtype == torch.float32 for value in predictor.parameters())
    with torch.inference_mode():
        (found,) = narrow.module(pixels[:1], torch.tensor([[64, 96]]))
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


@pytest.mark.slow
def test_every_part_stands_where_it_was() -> None:
    name = "keypointrcnn_resnet50_fpn"
    built = build_detector(Choice(name, "random"), ["keypoints"])
    assert built.box_parts == ("module.roi_heads.box_head", "module.roi_heads.keypoint_head")
    runnable(built, Runtime("cpu"))
    for part in (*built.parts, *built.box_parts):
        assert isinstance(built.module.get_submodule(part), Part)


@pytest.mark.slow
def test_a_picture_without_proposals_goes_through_the_parts_of_boxes() -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model = reference(name)
    model.rpn.score_thresh = 2.0
    found = seen(ours(name, model), pictures()[0])
    assert [len(boxes) for boxes in found["boxes"]] == [0]


class Whole(nn.Module):
    """A detector of others, which says nothing of its parts."""

    def forward(self, batch: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return one box, and as its score whether autocast is on."""
        narrow = torch.full((1,), float(torch.is_autocast_enabled("cpu")))
        return [{"boxes": torch.ones((1, 4)), "scores": narrow, "labels": torch.ones(1).long()}] * len(batch)


class Own(Whole):
    """One that knows how it runs."""

    def executable(self, runtime: Runtime) -> Callable[[Tensor, Tensor], list[dict[str, Tensor]]]:
        """Return what gives a box without an end on this side."""
        return lambda batch, sizes: [{"boxes": torch.full((1, 4), float(runtime.batch))}] * len(batch)


def test_a_detector_without_parts_stays_eager_as_a_whole() -> None:
    whole = Detector(Whole(), Resizing("sides", (64, 96), divisor=32), ("cat",))
    pixels, sizes = torch.zeros((2, 3, 64, 96)), torch.tensor([[64, 96]] * 2)
    scores = {
        precision: float(runnable(whole, Runtime("cpu", precision))(pixels, sizes)[1]["scores"])
        for precision in ("fp32", "bf16")
    }
    assert scores == {"fp32": 0, "bf16": 1}
    assert whole.resizing_for(Runtime("cuda")) == whole.resizing
    with pytest.raises(Unavailable, match="does not say which of its parts are networks"):
        runnable(whole, OPENVINO)


def test_a_detector_that_knows_how_runs_itself() -> None:
    own = Detector(Own(), Resizing("stretch", (64, 96)), ("cat",))
    (found,) = runnable(own, replace(OPENVINO, batch=7))(
        torch.zeros((1, 3, 64, 96)), torch.tensor([[64, 96]])
    )
    assert found["boxes"].tolist() == [[7] * 4]


@pytest.mark.slow
def test_a_part_that_a_backend_refuses_makes_it_unavailable() -> None:
    pytest.importorskip("openvino")
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    refused = detector(name, reference(name))
    refused.module.get_submodule("module.backbone.fpn.layer_blocks.0").register_forward_hook(
        lambda _layer, _inputs, found: torch.special.i0(found)
    )
    with pytest.raises(Unavailable, match="i0"):
        runnable(refused, OPENVINO)


@pytest.mark.slow
def test_padding_to_few_shapes_leaves_the_boxes_of_real_weights(tiny: Files) -> None:  # noqa: F811
    paths = sorted(PHOTOGRAPHS.rglob("*.jpg"))
    if not paths:
        pytest.skip("no photographs of COCO beside the checkout")
    network = build_detector(Choice("yolov3_tiny")).module  # It takes any picture that its strides divide.
    exact = Resizing("sides", (320, 640), divisor=32)
    few = exact.with_few_shapes()
    inputs = [
        (prepare(pixels, exact), prepare(pixels, few))
        for pixels, size in (decode(path.read_bytes()) for path in paths)
        if exact.padded(exact.resized(size)) not in few.shapes
    ]
    with torch.inference_mode():
        before, after = ([network(one.pixels[None])[0] for one in side] for side in zip(*inputs, strict=True))
    assert sum(int((one["scores"] >= guard.SURE_SCORE).sum()) for one in before) > 20
    assert guard.agreement(before, after)["boxes matched"] >= 0.98
