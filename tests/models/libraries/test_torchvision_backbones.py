"""Bodies of torchvision's classifiers: the maps that the classifiers themselves have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

from cnnbatch.errors import UserError
from cnnbatch.models import Choice
from cnnbatch.models.detectors import build_detector
from cnnbatch.models.libraries import torchvision_backbones, torchvision_models, torchvision_rcnn
from cnnbatch.models.network import Network

FAMILIES = {
    "alexnet": (4, 8, 16, 32),
    "convnext_tiny": (4, 8, 16, 32),
    "densenet121": (4, 8, 16, 32),
    "efficientnet_b0": (4, 8, 16, 32),
    "googlenet": (4, 8, 16, 32),
    "inception_v3": (4, 8, 16, 32),
    "mnasnet0_5": (4, 8, 16, 32),
    "mobilenet_v2": (4, 8, 16, 32),
    "mobilenet_v3_small": (4, 8, 16, 32),
    "regnet_y_400mf": (4, 8, 16, 32),
    "resnet18": (4, 8, 16, 32),
    "shufflenet_v2_x0_5": (4, 8, 16, 32),
    "squeezenet1_1": (4, 8, 16),
    "swin_t": (4, 8, 16, 32),
    "vgg11": (4, 8, 16, 32),
}
QUICK = ("mobilenet_v2", "resnet18", "vgg11", "swin_t")


def random(name: str) -> Network:
    torch.manual_seed(0)
    return torchvision_backbones.classifier(Choice(name, "random"), name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FAMILIES]
)
def test_maps_are_those_of_the_classifier(name: str) -> None:
    network = random(name)
    body = torchvision_backbones.body(network, name)
    assert tuple(level.stride for level in body.levels) == FAMILIES[name]
    seen: dict[str, Tensor] = {}

    def keep(part: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen[part] = output.clone()

        return hook

    for level in body.levels:
        body[level.part].register_forward_hook(keep(level.part))
    pixels = torch.rand((2, 3, *network.preprocessing.crop), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        network.module(pixels)
        whole, seen = seen, {}
        # What some do to their inputs themselves, a body leaves to who prepares them.
        own: Any = getattr(network.module, "_transform_input", None)
        found = body(pixels if own is None else own(pixels))
    for level, maps in zip(body.levels, found.values(), strict=True):
        expected = whole[level.part]
        expected = expected.permute(0, 3, 1, 2) if level.channels_last else expected
        assert maps.shape[1] == level.channels
        assert torch.allclose(maps, expected, atol=1e-5)


def test_a_network_of_tokens_has_no_body() -> None:
    with pytest.raises(UserError, match="vit_b_16 has no maps of several sizes"):
        torchvision_backbones.body(random("vit_b_16"), "vit_b_16")


def test_every_family_of_classifiers_is_tried() -> None:
    without = {"vision_transformer", "maxvit"}
    tried = {torchvision.models.get_model_builder(name).__module__ for name in FAMILIES}
    there = {torchvision.models.get_model_builder(name).__module__ for name in torchvision_models.names()}
    ours = {one.rpartition(".")[2] for one in tried}
    others = {one.rpartition(".")[2] for one in there}
    assert {one.removeprefix("mobilenet") for one in others - ours - without} <= {"v2", "v3"}


@pytest.mark.slow
def test_on_a_resnet_it_is_torchvisions_own_network() -> None:
    plain = _resnet_fpn_extractor(torchvision.models.resnet18(weights=None), 5)
    expected = MaskRCNN(plain, 3, min_size=64, max_size=96, rpn_post_nms_top_n_test=30).eval()
    made = torchvision_rcnn.make("maskrcnn", random("resnet18"), "resnet18", 3).eval()
    made.load_state_dict(expected.state_dict())
    made.transform, made.rpn._post_nms_top_n = expected.transform, expected.rpn._post_nms_top_n  # type: ignore[union-attr]
    picture = torch.rand((3, 70, 90), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,), (wanted,) = made([picture]), expected([picture])
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in wanted.items()}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskrcnn_mobilenet_v2_fpn", "keypointrcnn_shufflenet_v2_x0_5_fpn"])
def test_detectors_are_built_on_any_backbone(name: str) -> None:
    head: Any = "masks" if name.startswith("mask") else "keypoints"
    found = build_detector(Choice(name, "random:3", preprocessing={"size": (64, 64)}), [head])
    assert found.weights == "random:3"
    assert len(found.classes) == (91 if head == "masks" else 2)
    again = build_detector(Choice(name, "random:3", preprocessing={"size": (64, 64)}), [head])
    assert all(
        torch.equal(a, b) for a, b in zip(found.module.parameters(), again.module.parameters(), strict=True)
    )


# Weights


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a MobileNetV2 with five classes."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "five.safetensors"
    save_file(torchvision.models.mobilenet_v2(num_classes=5).state_dict(), path)
    return path


@pytest.mark.slow
def test_a_training_may_begin_with_the_classifiers_weights(classifier: Path) -> None:
    choice = Choice("maskrcnn_mobilenet_v2_fpn", str(classifier), classes=("cat",))
    found = build_detector(choice, ["masks"], head_seed=0)
    torch.manual_seed(7)
    expected = torchvision.models.mobilenet_v2(num_classes=5).features.state_dict()
    body = found.module.get_submodule("module.backbone.body").state_dict()
    assert body.keys() == expected.keys()
    assert all(torch.equal(body[name], expected[name]) for name in expected)
    assert len(found.weights) == 64


@pytest.mark.slow
def test_a_file_of_the_classifier_may_lack_its_head(classifier: Path, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in load_file(classifier).items() if name.startswith("features.")}
    save_file(state, tmp_path / "features.safetensors")
    choice = Choice("maskrcnn_mobilenet_v2_fpn", str(tmp_path / "features.safetensors"), classes=("cat",))
    body = build_detector(choice, ["masks"], head_seed=0).module.get_submodule("module.backbone.body")
    assert torch.equal(body.get_parameter("18.0.weight"), state["features.18.0.weight"])
    del state["features.3.conv.0.0.weight"]
    save_file(state, tmp_path / "features.safetensors")
    with pytest.raises(UserError, match=r"missing \(1\): features\.3\.conv\.0\.0\.weight"):
        build_detector(choice, ["masks"], head_seed=0)


@pytest.mark.slow
def test_so_may_one_of_torchvisions_own(tmp_path: Path) -> None:
    torch.manual_seed(7)
    whole = torchvision.models.resnet50()
    save_file(whole.state_dict(), tmp_path / "resnet50.safetensors")
    choice = Choice("maskrcnn_resnet50_fpn", str(tmp_path / "resnet50.safetensors"), classes=("cat",))
    found = build_detector(choice, ["masks"], head_seed=0)
    body = found.module.get_submodule("module.backbone.body")
    assert torch.equal(body.get_parameter("layer4.2.conv3.weight"), whole.layer4[2].conv3.weight)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("DEFAULT", "maskrcnn_mobilenet_v2_fpn has no published weights"),
        ("IMAGENET1K_V1", "maskrcnn_mobilenet_v2_fpn has no weights 'IMAGENET1K_V1'"),
        ("FILE", "does not fit MaskRCNN"),
    ],
)
def test_a_classifiers_weights_alone_predict_nothing(classifier: Path, weights: str, words: str) -> None:
    choice = Choice("maskrcnn_mobilenet_v2_fpn", weights.replace("FILE", str(classifier)))
    with pytest.raises(UserError, match=words):
        build_detector(choice, ["masks"])


@pytest.mark.slow
def test_a_whole_detectors_weights_come_back(tmp_path: Path) -> None:
    made = build_detector(
        Choice("maskrcnn_mobilenet_v3_small_fpn", "random:1", classes=("cat", "dog")), ["masks"]
    )
    state = made.module.get_submodule("module").state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    again = Choice(
        "maskrcnn_mobilenet_v3_small_fpn", str(tmp_path / "whole.safetensors"), classes=("cat", "dog")
    )
    for seed in (None, 0):
        found = build_detector(again, ["masks"], head_seed=seed).module.get_submodule("module").state_dict()
        assert all(torch.equal(found[name], state[name]) for name in state)
