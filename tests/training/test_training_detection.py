"""How a detector is trained: what is tuned, what a new head leaves, and where the boxes of an input lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops.misc import FrozenBatchNorm2d

from cnnbatch.config.train import Train
from cnnbatch.models import Choice
from cnnbatch.models.detector import Detector
from cnnbatch.models.detector_heads import class_layers
from cnnbatch.models.detectors import build_detector
from cnnbatch.models.libraries import torchvision_detectors
from cnnbatch.models.resizing import Resizing
from cnnbatch.tasks.detect import _Frame
from cnnbatch.tasks.recipes import detection
from cnnbatch.tasks.recipes.boxes import Boxes, average_precision
from cnnbatch.tasks.recipes.detection import DetectorRecipe
from cnnbatch.tasks.recipes.recipe import Example, TrainingData
from cnnbatch.types import Image, ImageRef
from tests import tiny_detections as tiny

CLASSES = ("green", "red")


def recipe(strategy: str = "all", model: str = tiny.MODEL, **fields: Any) -> DetectorRecipe:
    size = fields.pop("size", (tiny.SIDE, tiny.SIDE))
    spec = Train.model_validate({"strategy": strategy, **fields.pop("train", {})})
    choice = Choice(model, fields.pop("weights", "random:0"), preprocessing={"size": size})
    return DetectorRecipe(choice, spec, TrainingData(CLASSES, dict.fromkeys(CLASSES, 5), 10))


def image(number: int, size: tuple[int, int] = (96, 80), **fields: Any) -> Image:
    """Return the drawn picture with its truth, whose objects have ``fields`` as well."""
    picture, objects = tiny.drawn(number, size)
    truth = [
        {"label": name, "box": dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True)), **fields}
        for name, box in objects
    ]
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    stated = {"width": picture.width, "height": picture.height}
    return Image(
        ImageRef(str(number), ""), pixels, (picture.height, picture.width), {"objects": truth, **stated}
    )


# Strategies and heads


@pytest.mark.parametrize("strategy", ["head", "last_blocks", "all", "scratch"])
def test_only_what_the_strategy_says_is_tuned(strategy: str) -> None:
    made = recipe(strategy)
    tuned = {name for name, tensor in made.module.named_parameters() if tensor.requires_grad}
    backbone = {name for name, _ in made.module.named_parameters() if ".backbone." in name}
    heads = {name for name, _ in made.module.named_parameters()} - backbone
    assert heads <= tuned
    share = len(tuned & backbone) / len(backbone)
    assert {"head": share == 0, "last_blocks": 0.1 < share < 0.7}.get(strategy, share == 1)
    learned = [tensor for group in made.parameters() for tensor in group.tensors]
    assert len(learned) == len({id(tensor) for tensor in learned}) == len(tuned)
    if strategy == "last_blocks":
        first = "network.module.backbone.features.0.0.0.weight"
        assert first not in tuned
        assert not made.module.train().get_submodule("network.module.backbone.features.0.0.1").training


def test_a_new_head_leaves_the_rest_of_trained_weights_as_it_is(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    coco = build_detector(Choice(tiny.MODEL, "random:5"))
    state = coco.module.get_submodule("module").state_dict()
    save_file(state, tmp_path / "coco.safetensors")
    made = recipe("all", weights=str(tmp_path / "coco.safetensors"))
    new = made.module.get_submodule("network.module").state_dict()
    layers = {name.removeprefix("module.") for name, *_ in class_layers(coco.module)}
    assert len(layers) == 6
    for name, tensor in state.items():
        is_of_classes = name.rpartition(".")[0] in layers
        assert (tuple(new[name].shape) != tuple(tensor.shape)) == is_of_classes
        assert is_of_classes or torch.equal(new[name], tensor)
    # Normalisations of trained weights stay as they are.
    norms = [one for one in made.module.train().modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(one.training or one.weight.requires_grad for one in norms)
    assert all(
        one.training
        for one in recipe("scratch").module.train().modules()
        if isinstance(one, torch.nn.BatchNorm2d)
    )


def test_a_detector_that_knows_the_classes_can_stay_as_it_is() -> None:
    whole = build_detector(Choice(tiny.MODEL, "random:0", preprocessing={"size": (64, 64)}))
    spec = Train.model_validate({"strategy": "as_is"})
    choice = Choice(tiny.MODEL, "random:0", preprocessing={"size": (64, 64)})
    made = DetectorRecipe(choice, spec, TrainingData(("Cat", "dog"), {}, 1))
    kept = [0, whole.classes.index("cat"), whole.classes.index("dog")]
    batch, features = torch.rand(1, 3, 64, 64), []
    for module in (whole.module, made.module.get_submodule("network")):
        backbone, head = module.get_submodule("module.backbone"), module.get_submodule("module.head")
        features.append(head([*backbone(batch).values()])["cls_logits"])
    assert features[0].shape[-1] == 91
    assert torch.allclose(features[0][..., kept], features[1], atol=1e-6)
    assert made.learned(made.module.state_dict()).classes == ("Cat", "dog")


def test_one_picture_alone_can_be_a_step() -> None:
    made = recipe("scratch")
    made.module.train()
    losses = []
    for count in (1, 2):
        batch = made.collate([made.example(image(0), None)] * count, training=True)
        assert batch.size == count
        losses.append(made.loss(made.module(*batch.inputs), batch))
    for name, value in losses[0].items():
        assert torch.allclose(value, losses[1][name])


def test_an_epsilon_of_none_moves_into_the_variance() -> None:
    norm = FrozenBatchNorm2d(3, eps=0.0)
    norm.running_var.copy_(torch.tensor([1e-6, 0.5, 2.0]))
    pixels = torch.rand(1, 3, 4, 4)
    before = norm(pixels)
    detection._at_default_epsilon(
        Detector(torch.nn.Sequential(norm), Resizing("stretch", (4, 4)), ("background",))
    )
    assert norm.eps == 1e-5
    assert torch.allclose(norm(pixels), before, rtol=1e-4)


FAMILIES = {
    "ssdlite320_mobilenet_v3_large": 64,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 64,
    "fasterrcnn_mobilenet_v3_large_fpn": 64,
    "fasterrcnn_resnet50_fpn": 64,
    "fasterrcnn_resnet50_fpn_v2": 32,  # Its box head has convolutions for each of a thousand proposals.
    "retinanet_resnet50_fpn": 64,
    "retinanet_resnet50_fpn_v2": 64,
    "fcos_resnet50_fpn": 64,
    "ssd300_vgg16": 300,
}


def test_every_family_is_tried() -> None:
    assert FAMILIES.keys() == set(torchvision_detectors.trainable())


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_gets_a_new_head_and_takes_a_step(model: str) -> None:
    side = FAMILIES[model]
    made = recipe("head", model, size=(side, side))
    examples = [made.example(image(number), Random(number)) for number in (0, 4)]
    assert not len(examples[1].target.objects)  # A picture without objects teaches what is none.
    tuned = [tensor for group in made.parameters() for tensor in group.tensors]
    before = [tensor.detach().clone() for tensor in tuned]
    made.module.train()
    losses = []
    for precision in (torch.float32, torch.bfloat16):
        batch = made.collate(examples, training=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            losses.append(made.loss(made.module(*batch.inputs), batch))
        assert all(value.ndim == 0 and value.dtype == torch.float32 for value in losses[-1].values())
    total = torch.stack([*losses[0].values()]).sum()
    assert float(total.detach()) == pytest.approx(
        sum(float(one.detach()) for one in losses[1].values()), rel=0.2
    )
    total.backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for tensor in tuned)  # Else several workers would wait for it.
    torch.optim.SGD(tuned, lr=1e-3).step()
    assert any(not torch.equal(old, new) for old, new in zip(before, tuned, strict=True))
    batch = made.collate(examples, training=False)
    made.module.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        values = made.judge(made.module(*batch.inputs), batch)
    assert {found.boxes_xyxy.dtype for found, _ in values} == {np.dtype(np.float32)}
    assert max((found.labels.max(initial=1) for found, _ in values)) <= len(CLASSES)
    # What was learned fits a detector that is built for these classes.
    learned = made.learned(made.module.state_dict())
    fresh = build_detector(Choice(model, "random:1", classes=CLASSES)).module.get_submodule("module")
    expected = {name: tuple(tensor.shape) for name, tensor in fresh.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in learned.state.items()} == expected


# Boxes


def seen(example: Example) -> tuple[int, int, int, int]:
    """Return the box (x1, y1, x2, y2) of what has a colour in an input."""
    red, green, _ = (example.pixels * 0.5 + 0.5) * 255
    is_coloured = (red - green).abs() > 60
    rows, columns = (is_coloured.any(1 - axis).nonzero()[:, 0].tolist() for axis in (0, 1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_boxes_lie_where_the_rectangles_are_mirrored_or_not(seed: int) -> None:
    made = recipe()
    number = next(number for number in range(seed, 50) if len(tiny.drawn(number)[1]) == 1)
    example = made.example(image(number), Random(seed))
    (box,) = example.target.objects.boxes_xyxy
    assert box == pytest.approx(seen(example), abs=1.0)


def test_mirroring_moves_boxes_exactly() -> None:
    made = recipe(train={"augment": {"colour": 0.0}})
    plain = made.example(image(0), None)
    both = {bool(Random(seed).random() < 0.5): made.example(image(0), Random(seed)) for seed in range(8)}
    assert torch.allclose(both[True].pixels, both[False].pixels.flip(2), atol=1e-6)
    assert np.array_equal(both[False].target.objects.boxes_xyxy, plain.target.objects.boxes_xyxy)
    x1, y1, x2, y2 = plain.target.objects.boxes_xyxy.T
    assert np.array_equal(both[True].target.objects.boxes_xyxy.T, [tiny.SIDE - x2, y1, tiny.SIDE - x1, y2])
    # Resized as prediction resizes, but for the rounding to whole numbers.
    assert (both[False].pixels - plain.pixels).abs().max() <= 1.01 / 255 / 0.5


@pytest.mark.parametrize("model", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_boxes_of_the_input_lead_back_to_the_original(model: str) -> None:
    made = recipe(model=model, size=(48, 80))
    original = image(3, (150, 101))
    example = made.example(original, None)
    assert original.truth is not None
    boxes = [[*one["box"].values()] for one in original.truth["objects"]]
    assert _Frame(original, example).boxes(example.target.objects.boxes_xyxy) == pytest.approx(
        np.array(boxes), abs=1e-4
    )


def test_a_perfect_prediction_has_an_average_precision_of_one() -> None:
    made = recipe()
    batch = made.collate([made.example(image(number), None) for number in range(10)], training=False)
    outputs = [
        {
            "boxes": torch.from_numpy(one.boxes_xyxy),
            "labels": torch.from_numpy(one.labels),
            "scores": torch.linspace(0.9, 0.5, len(one)),
        }
        for one in batch.truth
    ]
    assert made.measure(made.judge(outputs, batch)) == {"AP50": 1.0, "AP": 1.0}
    for one in outputs:
        one["labels"] = 3 - one["labels"]
    assert made.measure(made.judge(outputs, batch)) == {"AP50": 0.0, "AP": 0.0}
    assert made.measure([]) == {"AP50": 0.0, "AP": 0.0}
    assert average_precision([(batch.truth[4], batch.truth[4])], ("", *CLASSES))["AP"] == 0


def test_crowds_and_what_is_to_be_ignored_are_not_learned() -> None:
    made = recipe()
    for unlearned in (image(0, crowd=True), image(0, ignore=True)):
        example = made.example(unlearned, None)
        assert not len(made.collate([example], training=True).inputs[2][0]["boxes"])
    unknown = image(0, crowd=True, label="a crowd of something else")
    assert not len(made.example(unknown, None).target.objects)


def test_boxes_are_clipped_and_those_without_an_area_left_out() -> None:
    boxes = np.array(
        [[-5, 2, 10, 8], [30, 2, 45, 8], [3, 3, 3, 8], [50, 2, 60, 8], [4, 8, 9, 2], [np.nan, 1, 2, 3]],
        np.float32,
    )
    found, kept = Boxes(boxes, np.arange(6)).clipped((20, 40))
    assert kept.tolist() == [True, True, False, False, False, False]
    assert found.boxes_xyxy.tolist() == [[0, 2, 10, 8], [30, 2, 40, 8]]
    assert found.labels.tolist() == [0, 1]


def test_a_truth_that_cannot_be_learned_is_refused() -> None:
    made = recipe()
    with pytest.raises(ValueError, match="label 'blue' is none of the classes"):
        made.example(image(0, label="blue"), None)
    other = image(0)
    assert other.truth is not None
    with pytest.raises(ValueError, match=r"ground truth is for \(80, 97\)"):
        made.example(replace(other, truth={**other.truth, "width": 97}), None)
