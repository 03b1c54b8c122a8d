"""From a name to a segmenter: weights that fit, those that do not, and those that a training begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from cnnbatch.errors import UserError
from cnnbatch.models import Choice, Segmenter
from cnnbatch.models.segmenter import check, own_size
from cnnbatch.models.segmenters import build_segmenter, names

LRASPP = "lraspp_mobilenet_v3_large"
SIX = tuple("abcdef")


def saved(path: Path, module: torch.nn.Module) -> str:
    torch.save(module.state_dict(), path)
    return str(path)


def test_unknown_segmenters_are_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean lraspp_mobilenet_v3_large"):
        build_segmenter(Choice("lraspp_mobilnet_v3_large"))
    assert LRASPP in names()


def test_unknown_weights_are_told() -> None:
    with pytest.raises(UserError, match="COCO_WITH_VOC_LABELS_V1"):
        build_segmenter(Choice(LRASPP, "IMAGENET1K_V1"))


def test_weights_are_loaded_and_their_auxiliary_head_is_left_out(tmp_path: Path) -> None:
    first = build_segmenter(Choice(LRASPP, "random:3", classes=SIX))
    state = {**first.module.state_dict(), "aux_classifier.0.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "whole.pth")
    second = build_segmenter(Choice(LRASPP, str(tmp_path / "whole.pth"), classes=SIX))
    for name, tensor in second.module.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert second.classes == SIX
    assert second.weights != first.weights == "random:3"
    with pytest.raises(UserError, match="does not fit"):
        build_segmenter(Choice(LRASPP, str(tmp_path / "whole.pth"), classes=SIX[:4]))


def test_a_training_begins_with_weights_of_other_classes(tmp_path: Path) -> None:
    old = build_segmenter(Choice(LRASPP, "random:1", classes=SIX))
    new = build_segmenter(
        Choice(LRASPP, saved(tmp_path / "six.pth", old.module), classes=("a", "b")), new_head=True
    )
    for name, tensor in new.module.state_dict().items():
        is_last = "low_classifier" in name or "high_classifier" in name
        assert torch.equal(tensor, old.module.state_dict()[name]) is not is_last, name


def test_a_training_begins_with_the_classifier_of_its_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = torchvision.models.get_model("mobilenet_v3_large", weights=None)
    begun = build_segmenter(Choice(LRASPP, saved(tmp_path / "c.pth", classifier), classes=SIX), new_head=True)
    state = classifier.state_dict()
    names_of = [name for name in begun.module.state_dict() if name.startswith("backbone.")]
    assert names_of
    for name in names_of:
        expected = state["features." + name.removeprefix("backbone.")]
        assert torch.equal(begun.module.state_dict()[name], expected)


def test_another_backbones_weights_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = torchvision.models.get_model("mobilenet_v2", weights=None)
    with pytest.raises(UserError, match=r"does not fit the backbone of TorchvisionSegmenter.\n  missing"):
        build_segmenter(Choice(LRASPP, saved(tmp_path / "c.pth", other), classes=SIX), new_head=True)


def _refused(module: torch.nn.Module, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(Segmenter(module, own_size(), ("a", "b")), "it")


def test_outputs_that_are_no_logits_are_refused() -> None:
    _refused(torch.nn.Conv2d(3, 3, 1), "gives logits of 3 classes, but there are 2 class names")
    _refused(torch.nn.Flatten(), r"expected to give for each picture a map .* got shape")
    _refused(torch.nn.Conv2d(4, 2, 1), "refuses an input of 64 x 96 pixels")
    infinite = torch.nn.Conv2d(3, 2, 1)
    infinite.bias.data.fill_(float("inf"))  # type: ignore[union-attr]
    _refused(infinite, "infinite or undefined")


def test_a_segmenter_of_another_package_is_built_by_its_address() -> None:
    found = build_segmenter(Choice("tests.tiny_segmenter:colours"))
    assert found.classes == ("sky", "grass", "road")
    renamed = build_segmenter(replace(Choice("tests.tiny_segmenter:colours"), classes=("x", "y", "z")))
    assert renamed.classes == ("x", "y", "z")
