"""How a segmenter is trained: what is tuned, where a window's classes lie, and what an epoch is judged by."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cnnbatch.config.train import Train
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.models import Choice, Segmenter
from cnnbatch.models.segmenters import build_segmenter
from cnnbatch.models.trained_files import Learned, put_model
from cnnbatch.storage import Storage
from cnnbatch.tasks.recipes.auxiliary_head import AuxiliaryHead
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.tasks.recipes.segmentation import SegmenterRecipe, Training
from cnnbatch.tasks.recipes.segmentation_losses import IGNORED
from cnnbatch.tasks.segment import Segment
from cnnbatch.types import Image, ImageRef
from tests import tiny_maps as tiny

NUMBERS = {"ground": 0, "green": 1, "red": 2}
PIXELS = {"ground": 9000, "green": 500, "red": 500}
CHOICE = Choice("tests.tiny_maps:build")


def recipe(strategy: str = "all", choice: Choice = CHOICE, **train: Any) -> SegmenterRecipe:
    spec = Train.model_validate({"strategy": strategy, **train})
    return SegmenterRecipe(choice, spec, TrainingData(tiny.CLASSES, PIXELS, 10, NUMBERS))


def image(number: int, size: tuple[int, int] = (96, 80), **truth: Any) -> Image:
    picture, numbers = tiny.drawn(number, size)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    known = {"map": class_map.png(numbers), "width": picture.width, "height": picture.height, **truth}
    return Image(ImageRef(str(number), ""), pixels, (picture.height, picture.width), known)


@pytest.mark.parametrize("strategy", ["head", "last_blocks", "most_blocks", "all", "scratch"])
def test_only_what_the_strategy_says_is_tuned(strategy: str) -> None:
    made = recipe(strategy)
    tuned = {name for name, tensor in made.module.named_parameters() if tensor.requires_grad}
    backbone = {name for name, _ in made.module.named_parameters() if ".backbone." in name}
    heads = {name for name, _ in made.module.named_parameters()} - backbone
    assert heads <= tuned
    expected = {"head": 0, "last_blocks": 2, "most_blocks": 5}.get(strategy, len(backbone))
    assert len(tuned & backbone) == pytest.approx(expected, abs=1)
    learned = [tensor for group in made.parameters() for tensor in group.tensors]
    assert len(learned) == len({id(tensor) for tensor in learned}) == len(tuned)


def test_the_backbone_has_a_rate_of_its_own() -> None:
    made = recipe(layer_decay=1.0, backbone_rate=0.25)
    assert [group.scale for group in made.parameters()] == [0.25] * (len(made.parameters()) - 1) + [1.0]


def test_what_was_learned_fits_the_segmenter() -> None:
    made = recipe()
    learned = made.learned(made.module.state_dict())
    built = build_segmenter(replace(CHOICE, classes=tiny.CLASSES))
    assert {name: tensor.shape for name, tensor in learned.state.items()} == {
        name: tensor.shape for name, tensor in built.module.state_dict().items()
    }
    assert learned.architecture["task"] == "segment"
    assert learned.preprocessing == {"fit": "own", "mean": [0.5] * 3, "std": [0.25] * 3}
    sized = recipe(choice=replace(CHOICE, preprocessing={"fit": "stretch", "size": (64, 96)}))
    assert sized.learned(sized.module.state_dict()).preprocessing["size"] == [64, 96]


def test_the_same_classes_keep_their_outputs_and_others_get_new_ones(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {name: tensor + 1 for name, tensor in build_segmenter(CHOICE).module.state_dict().items()}
    save_file(state, tmp_path / "trained.safetensors")
    choice = replace(CHOICE, weights=str(tmp_path / "trained.safetensors"))
    for known, others in ((tiny.CLASSES, tiny.CLASSES), (tiny.CLASSES, ("a", "b", "c"))):
        data = TrainingData(others, {}, 1, {name: place for place, name in enumerate(others)})
        made = SegmenterRecipe(replace(choice, classes=known), Train(strategy="all"), data)
        found = made.learned(made.module.state_dict()).state
        new = {name for name, tensor in state.items() if not torch.equal(found[name], tensor)}
        assert new == (set() if known == others else {"head.2.weight", "head.2.bias"})


def test_a_segmenter_that_knows_the_classes_can_stay_as_it_is() -> None:
    whole = build_segmenter(CHOICE)
    data = TrainingData(("Red", "ground"), {}, 1, {"Red": 2, "ground": 0})
    made = SegmenterRecipe(CHOICE, Train(strategy="as_is"), data)
    pixels = torch.rand(1, 3, 16, 16)
    (found,) = made.module.eval()(pixels)
    assert torch.equal(found, whole.module(pixels)[:, [2, 0]])
    assert made.learned(made.module.state_dict()).classes == ("Red", "ground")
    unknown = TrainingData(("blue", "ground"), {}, 1, {"blue": 1, "ground": 0})
    with pytest.raises(UserError, match="does not know blue"):
        SegmenterRecipe(CHOICE, Train(strategy="as_is"), unknown)


def test_a_window_of_a_picture_has_its_classes() -> None:
    made = recipe(augment={"crop_size": (48, 64), "scale": (0.7, 1.6), "aspect": 0.1})
    names = np.array(["other", "green", "red"])
    for number in range(0, 8):
        example = made.example(image(number), Random(number))
        assert example.pixels.shape == (3, 48, 64)
        assert example.pixels.dtype == torch.uint8
        red, green, _ = example.pixels.int()
        seen = names[((green - red > 60).int() + 2 * (red - green > 60).int()).numpy()]
        for place in (1, 2):
            inside = (example.target == place).numpy()
            assert not inside.any() or (seen[inside] == tiny.CLASSES[place]).mean() > 0.97
        assert set(np.unique(example.target)) <= {IGNORED, 0, 1, 2}


def test_a_validation_picture_is_whole() -> None:
    made = recipe()
    example = made.example(image(0, (97, 83)), None)
    assert example.pixels.shape == (3, 84, 100)
    assert example.size == (83, 97)
    assert example.target.shape == (83, 97)
    assert int((example.target == IGNORED).sum()) == int((tiny.drawn(0, (97, 83))[1] == 255).sum())


def test_pictures_of_several_shapes_are_validated_together_as_each_alone() -> None:
    made = recipe()
    made.module.eval()
    images = [image(number, size) for number, size in enumerate([(96, 80), (64, 80), (96, 80), (33, 41)])]
    examples = [made.example(one, None) for one in images]

    def confusions(some: Any) -> list[Any]:
        batch = made.on_device(made.collate(some, training=False), None)
        with torch.inference_mode():
            return made.judge(made.module(*batch.inputs), batch)

    together, alone = confusions(examples), [one for example in examples for one in confusions([example])]
    assert made.measure(together) == made.measure(alone)
    assert sum(one.sum() for one in together) == sum(int((one.target != IGNORED).sum()) for one in examples)


def test_an_epoch_is_judged_as_predictions_are() -> None:
    made = recipe()
    made.module.eval()
    examples = [made.example(image(number), None) for number in range(6)]
    batch = made.on_device(made.collate(examples, training=False), None)
    with torch.inference_mode():
        (logits,) = outputs = made.module(*batch.inputs)
    resized = functional.interpolate(logits, (80, 96), mode="bilinear")
    said = resized.argmax(1).numpy()
    true = np.stack([tiny.drawn(number)[1] for number in range(6)])
    found, kept = made.measure(made.judge(outputs, batch)), true != 255
    said, true = said[kept], true[kept]
    pairs = [(said == place, true == place) for place in range(3)]
    expected = {
        "mIoU": np.mean([(one & other).sum() / (one | other).sum() for one, other in pairs]),
        "mean_accuracy": np.mean([(one & other).sum() / other.sum() for one, other in pairs]),
        "pixel_accuracy": (said == true).mean(),
    }
    assert found == pytest.approx(expected, abs=1e-3)  # Its resizing rounds otherwise, here and there.
    assert made.measure([]) == {"mIoU": 0.0, "mean_accuracy": 0.0, "pixel_accuracy": 0.0}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"augment": {"mixup": 0.2, "crop": 0.5}}, r"train\.augment\.crop, train\.augment\.mixup: not for"),
        ({"class_weights": "balanced"}, r"train\.class_weights: not for segmenters"),
        ({"label_smoothing": 0.2}, r"train\.label_smoothing: not for segmenters"),
        ({"augment": {"crop_size": (50, 64)}}, r"expected multiples of 4.*got \[50, 64\]"),
    ],
)
def test_what_maps_cannot_have_is_refused(train: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(**train)


def test_a_map_that_does_not_fit_its_picture_is_refused() -> None:
    made = recipe()
    with pytest.raises(ValueError, match="its map is of 97 x 80 pixels, the picture of 96 x 80"):
        made.example(image(0, map=class_map.png(np.zeros((80, 97), np.uint8))), None)
    with pytest.raises(ValueError, match="no map of classes"):
        made.example(image(0, map=None), None)
    with pytest.raises(ValueError, match="no whole PNG"):
        made.example(image(0, map=class_map.png(tiny.drawn(0)[1])[:200]), None)


def test_numbers_of_classes_that_are_not_learned_do_not_count() -> None:
    data = TrainingData(("ground", "red"), {"ground": 1, "red": 1}, 10, {"ground": 0, "red": 2})
    made = SegmenterRecipe(CHOICE, Train(strategy="scratch"), data)
    numbers = tiny.drawn(1)[1]
    target = made.example(image(1), None).target.numpy()
    assert np.array_equal(target == 1, numbers == 2)
    assert np.array_equal(target == IGNORED, (numbers == 1) | (numbers == 255))


def coarse(tmp_path: Path) -> tuple[Segmenter, Path]:
    """Return FCN-32s over a small network, and the folder of a training that has written it."""
    made = build_segmenter(Choice("fcn32s_mobilenet_v2", "random:3", classes=tiny.CLASSES))
    architecture = {"task": "segment", "model": "fcn32s_mobilenet_v2", "library": made.library}
    how = {"fit": "multiples", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    put_model(Storage(), str(tmp_path), Learned(architecture, how, tiny.CLASSES, made.module.state_dict()))
    return made, tmp_path


def test_fcn_begins_as_the_one_with_a_skip_less(tmp_path: Path) -> None:
    before, folder = coarse(tmp_path)
    task = Segment(model="fcn16s_mobilenet_v2", weights=str(folder))
    task.require_weights_to_train()
    data = TrainingData(tiny.CLASSES, PIXELS, 10, NUMBERS)
    made = task.recipe(Train(strategy="all"), data)
    pixels = torch.rand(1, 3, 128, 160)
    with torch.inference_mode():
        (found,) = made.module.eval()(pixels)
        expected = functional.interpolate(before.module.eval()(pixels), scale_factor=2, mode="bilinear")
    inside = (..., slice(1, -1), slice(1, -1))  # At the edges a deconvolution has zeros beside the maps.
    assert torch.allclose(found[inside], expected[inside], atol=1e-4)
    others = TrainingData(("a", "b", "c"), {}, 10, {"a": 0, "b": 1, "c": 2})
    fresh = task.recipe(Train(strategy="all"), others)
    with torch.inference_mode():
        assert not torch.allclose(fresh.module.eval()(pixels)[0][inside], expected[inside], atol=1e-2)


def test_a_folder_of_another_architecture_does_not_predict(tmp_path: Path) -> None:
    _, folder = coarse(tmp_path)
    task = Segment(model="fcn16s_mobilenet_v2", weights=str(folder))
    with pytest.raises(UserError, match="was trained from 'fcn32s_mobilenet_v2', expected one from fcn16s"):
        task.choice({})


AUXILIARY = {"fcn_resnet50": 1024, "deeplabv3_mobilenet_v3_large": 40}


@pytest.mark.slow
@pytest.mark.parametrize("model", [*AUXILIARY, "lraspp_mobilenet_v3_large"])
def test_torchvisions_segmenters_learn_with_their_auxiliary_head(model: str) -> None:
    made = recipe("head", Choice(model, "random:0"), augment={"crop_size": (64, 64)})
    examples = [made.example(image(number), Random(number)) for number in range(2)]
    batch = made.on_device(made.collate(examples, training=True), Random(0))
    losses = made.loss(made.module.train()(*batch.inputs), batch)
    assert set(losses) == ({"cross_entropy", "auxiliary"} if model in AUXILIARY else {"cross_entropy"})
    torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
    tuned = {name: tensor for name, tensor in made.module.named_parameters() if tensor.requires_grad}
    assert all(tensor.grad is not None for tensor in tuned.values())
    assert any("auxiliary" in name for name in tuned) == (model in AUXILIARY)
    learned = made.learned(made.module.state_dict())
    build_segmenter(Choice(model, "random:1", classes=tiny.CLASSES)).module.load_state_dict(learned.state)
    assert len(made.module.eval()(*batch.inputs)) == 1


def test_an_average_has_an_auxiliary_head_of_its_own() -> None:
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    made = Training(body, AuxiliaryHead(body[0], torch.nn.Conv2d(4, 2, 1))).train()
    other = deepcopy(made)
    pixels = torch.rand(1, 3, 4, 4)
    assert len(other(pixels)) == 2
    with pytest.raises(AssertionError):
        made.auxiliary()  # type: ignore[misc]  # It was not the one that saw something.
