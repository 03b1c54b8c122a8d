"""How masks are learned: where they lie in an input, what the loss gets, and how a validation judges."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import _resize_image_and_masks

from cnnbatch.config.train import Train
from cnnbatch.errors import UserError
from cnnbatch.images import rle
from cnnbatch.models import Choice
from cnnbatch.models.detector_heads import class_layers
from cnnbatch.models.detectors import build_detector
from cnnbatch.tasks.recipes import masks
from cnnbatch.tasks.recipes.boxes import Boxes, average_precision
from cnnbatch.tasks.recipes.detection import DetectorRecipe
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.tasks.recipes.targets import Details
from cnnbatch.truth.problems import partly
from cnnbatch.types import Image, ImageRef
from tests import tiny_instances as tiny

CLASSES = tiny.CLASSES


def recipe(
    model: str = "maskrcnn_mobilenet_v3_small_fpn", strategy: str = "scratch", **train: Any
) -> DetectorRecipe:
    spec = Train.model_validate({"strategy": strategy, "proposals": 16, **train})
    choice = Choice(model, "random:0", preprocessing={"size": (tiny.SIDE, tiny.SIDE)})
    data = TrainingData(CLASSES, dict.fromkeys(CLASSES, 5), 10)
    return DetectorRecipe(choice, spec, data, Details(("masks",)), "instances")


def image(number: int, size: tuple[int, int] = (80, 120), **fields: Any) -> Image:
    """Return the drawn picture with its truth, whose objects have ``fields`` as well."""
    picture, objects = tiny.drawn(number, size)
    truth = []
    for name, mask in objects:
        x, y, width, height = map(float, tiny.box_xywh(mask))
        box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
        truth.append({"label": name, "box": box, "mask": tiny.run_lengths(mask), **fields})
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    stated = {"width": size[1], "height": size[0]}
    return Image(ImageRef(str(number), ""), pixels, size, {"objects": truth, **stated})


@pytest.mark.parametrize("size", [(80, 120), (200, 150), (96, 96), (301, 77)])
def test_masks_are_resized_as_torchvision_resizes_them(size: tuple[int, int]) -> None:
    original = image(1, size)
    drawn = torch.from_numpy(np.stack([mask for _, mask in tiny.drawn(1, size)[1]]).astype(np.uint8))
    resized, target = _resize_image_and_masks(original.pixels.float(), 96, 160, {"masks": drawn})
    assert target is not None
    assert original.truth is not None
    found = masks.resized([one["mask"] for one in original.truth["objects"]], size, tuple(resized.shape[1:]))
    assert np.array_equal(found, target["masks"].numpy())


@pytest.mark.slow
def test_masks_lie_where_their_objects_are_mirrored_or_not() -> None:
    made = recipe(augment={"colour": 0.0})
    for seed in range(6):
        example = made.example(image(3), Random(seed))
        red, _, blue = (example.pixels * torch.tensor([0.229, 0.224, 0.225])[:, None, None]).unbind()
        height, width = example.size
        seen = ((red - blue).abs() > 0.25)[:height, :width].numpy()
        together = example.target.masks.any(axis=0)
        assert (seen == together).mean() > 0.97
        for box, mask in zip(example.target.objects.boxes_xyxy, example.target.masks, strict=True):
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == pytest.approx(box, abs=1.5)


@pytest.mark.slow
def test_both_ways_to_see_a_picture_are_drawn() -> None:
    made = recipe(augment={"colour": 0.0})
    plain = made.example(image(3), None).target.masks
    found = {made.example(image(3), Random(seed)).target.masks.tobytes() for seed in range(8)}
    assert found == {plain.tobytes(), np.ascontiguousarray(plain[:, :, ::-1]).tobytes()}


@pytest.mark.slow
def test_the_loss_learns_masks_too() -> None:
    made = recipe()
    examples = [made.example(image(number), Random(number)) for number in (0, 1)]
    made.module.train()
    for precision in (torch.float32, torch.bfloat16):
        batch = made.collate(examples, training=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            parts = made.loss(made.module(*batch.inputs), batch)
        assert parts["loss_mask"].dtype == torch.float32
        assert 0 < float(parts["loss_mask"].detach()) < 100
    torch.stack([*parts.values()]).sum().backward()  # type: ignore[no-untyped-call]
    learned = [tensor for group in made.parameters() for tensor in group.tensors]
    assert all(tensor.grad is not None for tensor in learned)


@pytest.mark.slow
def test_a_validation_judges_masks_and_boxes() -> None:
    made = recipe()
    assert made.metric == "mask_AP50"
    batch = made.collate([made.example(image(number), None) for number in range(4)], training=False)
    made.module.eval()
    with torch.inference_mode():
        values = made.judge(made.module(*batch.inputs), batch)
    assert set(made.measure(values)) == {"AP50", "AP", "mask_AP50", "mask_AP"}
    sizes = {tuple(mask["size"]) for pair in values for side in pair for mask in side.masks}
    assert sizes == {tuple(size) for size in batch.inputs[1].tolist()}


@pytest.mark.slow
def test_a_perfect_mask_has_an_average_precision_of_one() -> None:
    made = recipe()
    truth = made.collate([made.example(image(number), None) for number in range(6)], training=False).truth
    found = [replace(one, scores=np.linspace(0.9, 0.5, len(one), dtype=np.float32)) for one in truth]
    numbers = made.measure(list(zip(found, truth, strict=True)))
    assert numbers == {"AP50": 1.0, "AP": 1.0, "mask_AP50": 1.0, "mask_AP": 1.0}
    empty = [replace(one, masks=tuple(_nothing(mask) for mask in one.masks)) for one in found]
    numbers = made.measure(list(zip(empty, truth, strict=True)))
    assert (numbers["AP50"], numbers["mask_AP50"]) == (1.0, 0.0)
    assert average_precision([(found[0], truth[0])], ("", *CLASSES)).keys() == {"AP50", "AP"}


def _nothing(mask: dict[str, Any]) -> dict[str, Any]:
    return tiny.run_lengths(np.zeros(mask["size"], np.bool_))


def test_masks_go_with_the_objects_that_are_kept() -> None:
    runs = masks.encoded(np.arange(24, dtype=np.uint8).reshape(3, 2, 4) % 2)
    boxes = np.array([[0, 0, 4, 2], [9, 9, 9, 9], [1, 0, 2, 1]], np.float32)
    some = Boxes(boxes, np.arange(3), masks=runs)
    kept, _ = some.clipped((2, 4))
    assert kept.masks == (runs[0], runs[2])
    assert some.take(np.array([2, 0])).masks == (runs[2], runs[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_run_lengths_of_an_input_are_its_pixels(number: int) -> None:
    target = recipe().example(image(number), None).target
    for mask, runs in zip(target.masks, target.judged().masks, strict=True):
        inside = rle.pixels(runs)
        assert inside is not None
        assert np.array_equal(inside, mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (None, "an object of the class '(bar|disc)' has no mask to learn"),
        (tiny.run_lengths(np.zeros((80, 119), np.bool_)), r"made for \(80, 119\) \(height, width\)"),
        ({"size": [80, 120], "counts": "~~~"}, "the run lengths of a mask are damaged"),
    ],
)
def test_a_mask_that_cannot_be_learned_is_refused(mask: dict[str, Any] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe().example(image(0, mask=mask), None)


def test_an_object_whose_polygon_was_left_out_is_left_out() -> None:
    whole = image(1)
    assert whole.truth is not None
    first, second = whole.truth["objects"]
    problem = partly(1, "polygons", "fewer than three points")
    truth = {**whole.truth, "objects": [{**first, "mask": None}, second], "problem": problem}
    (mask,) = recipe().example(replace(whole, truth=truth), None).target.masks
    assert np.array_equal(mask, recipe().example(whole, None).target.masks[1])


@pytest.mark.slow
def test_crowds_are_not_learned() -> None:
    made = recipe()
    (target,) = made.collate([made.example(image(0, crowd=True), None)], training=True).inputs[2][:1]
    assert target["masks"].shape == (0, 42, 64)
    (judged,) = made.collate([made.example(image(0, crowd=True), None)], training=False).truth
    assert len(judged.masks) == 1
    assert judged.crowd.all()


# What training begins with


@pytest.mark.slow
@pytest.mark.parametrize("model", ["maskrcnn_mobilenet_v3_small_fpn", "maskrcnn_resnet50_fpn"])
def test_a_new_head_has_the_classes_and_leaves_the_rest(model: str) -> None:
    made = recipe(model, "all")
    whole = build_detector(Choice(model, "random:0"), ["masks"])
    new, state = made.module.get_submodule("network").state_dict(), whole.module.state_dict()
    layers = {name for name, *_ in class_layers(whole.module)}
    predictors = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    assert layers == {f"module.roi_heads.{name}" for name in predictors}
    for name, tensor in state.items():
        is_of_classes = name.rpartition(".")[0] in layers
        assert (new[name].shape != tensor.shape) == is_of_classes
        assert is_of_classes or torch.equal(new[name], tensor)


@pytest.mark.slow
def test_fewer_proposals_are_learned_from_where_the_job_says_so() -> None:
    heads: Any = recipe().module.get_submodule("network.module.roi_heads")
    assert heads.fg_bg_sampler.batch_size_per_image == 16
    spec = Train.model_validate({"proposals": 16, "strategy": "scratch"})
    choice = Choice("ssdlite320_mobilenet_v3_large", "random:0", preprocessing={"size": (64, 64)})
    with pytest.raises(UserError, match=r"train\.proposals: only for detectors in two stages"):
        DetectorRecipe(choice, spec, TrainingData(("a",), {}, 1))


@pytest.mark.parametrize(
    "model", ["fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50"]
)
def test_what_gives_no_masks_does_not_learn_them(model: str) -> None:
    with pytest.raises(UserError, match="(?s)does not train.*maskrcnn_resnet50_fpn.*maskrcnn_BACKBONE_fpn"):
        recipe(model)
