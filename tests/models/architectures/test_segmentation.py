"""Our own segmenters: layers and parameters as in the papers, strides, and what training begins with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cnnbatch.errors import UserError
from cnnbatch.models import Choice
from cnnbatch.models.architectures import segmentation
from cnnbatch.models.architectures.fcn import FCN, VGG16, FixedDeconvolution, PaperFCN, bilinear_kernel
from cnnbatch.models.architectures.feature_maps import STRIDES, backbone, levels
from cnnbatch.models.architectures.pyramid import PyramidNet
from cnnbatch.models.architectures.segnet import SegNet, unpooled
from cnnbatch.models.segmenter import stride_of
from cnnbatch.models.segmenters import build_segmenter
from cnnbatch.models.weights import backbones

CLASSES = tuple(f"class {number}" for number in range(11))


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def build(name: str, weights: str = "random:0") -> nn.Module:
    return build_segmenter(Choice(name, weights, classes=CLASSES)).module


# ---- backbones --------------------------------------------------------------------------------

CHANNELS = {
    "mobilenet_v2": (16, 24, 32, 96, 320),
    "mobilenet_v3_large": (16, 24, 40, 112, 160),
    "resnet18": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "vgg16_bn": (128, 256, 512, 512, 512),
    "efficientnet_b0": (16, 24, 40, 112, 320),
    "densenet121": (64, 128, 256, 512, 1024),
    "regnet_y_400mf": (32, 48, 104, 208, 440),
    "mnasnet1_0": (16, 24, 40, 96, 320),
    "shufflenet_v2_x1_0": (24, 24, 116, 232, 464),
    "googlenet": (64, 192, 480, 832, 1024),
}
"""Channels at strides 2 to 32, as each paper's table has the last layer of a stage."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANNELS)
def test_a_backbone_gives_the_last_features_of_each_stride(name: str) -> None:
    found = levels(name)
    assert tuple(level.stride for level in found) == STRIDES
    assert tuple(level.channels for level in found) == CHANNELS[name]
    body = backbone(name, found)
    for mode in (True, False):
        maps = body.train(mode)(torch.zeros(2, 3, 64, 96))
        assert {int(stride): tuple(one.shape[1:]) for stride, one in maps.items()} == {
            level.stride: (level.channels, 64 // level.stride, 96 // level.stride) for level in found
        }


@pytest.mark.slow
def test_features_are_those_of_the_classifier() -> None:
    torch.manual_seed(0)
    whole = torchvision.models.mobilenet_v2(weights=None).eval()
    body = backbone("mobilenet_v2", levels("mobilenet_v2")).eval()
    body.load_state_dict({name: one for name, one in whole.state_dict().items() if name in body.state_dict()})
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(body(picture)["32"], whole.features[:18](picture))
        assert torch.equal(body(picture)["4"], whole.features[:4](picture))


def test_no_backbone_is_made_of_what_has_no_such_maps() -> None:
    for name in ("vit_b_16", "squeezenet1_1"):
        with pytest.raises(UserError, match=f"{name} is no backbone for a segmenter"):
            segmentation.architecture(f"unet_{name}")


# ---- all of them ------------------------------------------------------------------------------


def convolution(taken: int, given: int, side: int = 3, norm: bool = False, bias: bool = True) -> int:
    """Return the parameters of a convolution and, with ``norm``, of what normalises it."""
    return taken * given * side * side + given * bias + 2 * given * norm


def decoder_of_fcn(channels: dict[int, int], stride: int, width: int = 512, classes: int = 11) -> int:
    skips = [skip for skip in (16, 8) if skip >= stride]
    scores = sum(convolution(channels[skip], classes, 1) + classes * classes * 16 for skip in skips)
    top = convolution(channels[32], width, 7) + convolution(width, width, 1) + convolution(width, classes, 1)
    return top + scores


def decoder_of_unet(channels: dict[int, int], classes: int = 11) -> int:
    total, below = 0, channels[32]
    for stride, width in {16: 256, 8: 128, 4: 64, 2: 32, 1: 16}.items():
        joined = width + channels.get(stride, 0)
        total += below * width * 4 + width
        total += convolution(joined, width, norm=True, bias=False)
        total += convolution(width, width, norm=True, bias=False)
        below = width
    return total + convolution(below, classes, 1)


def decoder_of_pyramid(channels: dict[int, int], classes: int = 11) -> int:
    def plain(taken: int, given: int) -> int:
        return convolution(taken, given, 1, norm=True, bias=False)

    total, width = plain(channels[32], 128) + 4 * plain(128, 32) + plain(256, 128), 128
    for stride, wanted in {16: 128, 8: 96, 4: 96, 2: 48}.items():
        total += convolution(channels[stride], width, 1)
        total += 9 * width + 2 * width + plain(width, wanted)
        width = wanted
    return total + convolution(width, classes, 1)


MOBILENET_V2, RESNET18 = (
    dict(zip(STRIDES, CHANNELS["mobilenet_v2"], strict=True)),
    dict(zip(STRIDES, CHANNELS["resnet18"], strict=True)),
)
IN_MOBILENET_V2 = 3_504_872 - convolution(1280, 1000, 1) - convolution(320, 1280, 1, norm=True, bias=False)
IN_RESNET18 = 11_689_512 - convolution(512, 1000, 1)
IN_VGG16 = 14_714_688
"""torchvision's published numbers of parameters, without what only serves the classifier."""

NORMS_OF_VGG16 = 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
SEGNETS_DECODER = [
    *((512, 512),) * 3,
    *((512, 512), (512, 512), (512, 256)),
    *((256, 256), (256, 256), (256, 128)),
    *((128, 128), (128, 64)),
    (64, 64),
]
"""Its convolutions by what each takes and gives (Badrinarayanan et al., figure 2)."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stride", "count"),
    [
        ("fcn32s_mobilenet_v2", 32, IN_MOBILENET_V2 + decoder_of_fcn(MOBILENET_V2, 32)),
        ("fcn16s_mobilenet_v2", 16, IN_MOBILENET_V2 + decoder_of_fcn(MOBILENET_V2, 16)),
        ("fcn8s_mobilenet_v2", 8, IN_MOBILENET_V2 + decoder_of_fcn(MOBILENET_V2, 8)),
        ("fcn8s_vgg16", 8, IN_VGG16 + decoder_of_fcn({8: 256, 16: 512, 32: 512}, 8)),
        ("unet_mobilenet_v2", 1, IN_MOBILENET_V2 + decoder_of_unet(MOBILENET_V2)),
        ("unet_resnet18", 1, IN_RESNET18 + decoder_of_unet(RESNET18)),
        ("pyramid_mobilenet_v2", 2, IN_MOBILENET_V2 + decoder_of_pyramid(MOBILENET_V2)),
        ("pyramid_resnet18", 2, IN_RESNET18 + decoder_of_pyramid(RESNET18)),
        (
            "segnet",
            1,
            IN_VGG16
            + NORMS_OF_VGG16
            + sum(convolution(*one, norm=True) for one in SEGNETS_DECODER)
            + convolution(64, 11),
        ),
    ],
)
def test_strides_and_parameters(name: str, stride: int, count: int) -> None:
    segmenter = build_segmenter(Choice(name, "random:0", classes=CLASSES))
    assert stride_of(segmenter, 64) == stride
    assert parameters(segmenter.module) == count
    with torch.inference_mode():
        assert segmenter.module(torch.zeros(2, 3, 64, 96)).shape == (2, 11, 64 // stride, 96 // stride)
    assert "backbone" in dict(segmenter.module.named_children())


def test_the_network_for_small_data_has_two_million_parameters() -> None:
    assert IN_MOBILENET_V2 + decoder_of_pyramid(MOBILENET_V2) == pytest.approx(2.0e6, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn8s_mobilenet_v2", "unet_resnet18", "pyramid_mobilenet_v2", "segnet"])
def test_a_step_reaches_every_parameter_and_the_same_seed_gives_the_same(name: str) -> None:
    module, again = build(name).train().requires_grad_(True), build(name)
    pairs = zip(module.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    logits: Tensor = module(torch.randn(2, 3, 64, 96))
    truth = torch.zeros((2, *logits.shape[2:]), dtype=torch.long)
    nn.functional.cross_entropy(logits, truth).backward()  # type: ignore[no-untyped-call]
    without = [key for key, one in module.named_parameters() if one.grad is None]
    assert without == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("pyramid_mobilenet_v2", "mobilenet_v2"),
        ("unet_resnet18", "resnet18"),
        ("segnet", "vgg16_bn"),
        ("fcn32s_vgg16", "vgg16"),
    ],
)
def test_training_begins_with_a_classifiers_weights(name: str, classifier: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = {"init_weights": False} if classifier.startswith("vgg") else {}
    whole = torchvision.models.get_model(classifier, weights=None, **options)
    torch.save(whole.state_dict(), tmp_path / "classifier.pth")
    choice = Choice(name, str(tmp_path / "classifier.pth"), classes=CLASSES)
    module = build_segmenter(choice, new_head=True).module
    of_backbone = {key: one for key, one in module.state_dict().items() if key.startswith("backbone.")}
    assert of_backbone
    for key, one in of_backbone.items():
        assert torch.equal(one, whole.state_dict()[key.removeprefix("backbone.")])
    with pytest.raises(UserError, match="does not fit"):
        build_segmenter(choice)


def test_fully_connected_layers_become_the_papers_convolutions() -> None:
    connected = segmentation.architecture("fcn8s_paper").connected
    with torch.device("meta"):
        ours = PaperFCN(3).state_dict()
        its = torchvision.models.vgg16(weights=None, init_weights=False).state_dict()
    for layer, source in connected.items():
        assert ours[f"{layer}.weight"].flatten(1).shape == its[f"{source}.weight"].shape
        assert ours[f"{layer}.bias"].shape == its[f"{source}.bias"].shape
    assert not segmentation.architecture("fcn8s_vgg16").connected


def test_a_fully_connected_layer_is_a_convolution_as_large_as_its_input() -> None:
    module, seen = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 1)), torch.randn(1, 2, 3, 3)
    first, second, other = nn.Linear(18, 5), nn.Linear(5, 4), nn.Linear(7, 4)
    state = {
        f"{name}.{key}": one
        for name, layer in (("a", first), ("b", second), ("c", other))
        for key, one in layer.state_dict().items()
    }
    backbones.load_connected(module, state, {"0": "a", "1": "b"})
    expected = second(first(seen.flatten(1)))
    assert torch.allclose(module(seen)[..., 0, 0], expected, atol=1e-6)
    backbones.load_connected(module, {"c.weight": state["c.weight"]}, {"1": "c", "0": "d"})
    assert torch.allclose(module(seen)[..., 0, 0], expected, atol=1e-6)


def test_without_published_weights_one_is_told_what_to_give() -> None:
    with pytest.raises(UserError, match="unet_resnet18 has no published weights"):
        build_segmenter(Choice("unet_resnet18", classes=CLASSES))
    with pytest.raises(UserError, match="the names of unet_resnet18's classes are not known"):
        build_segmenter(Choice("unet_resnet18", "random"))
    with pytest.raises(UserError, match="did you mean unet_resnet18"):
        build_segmenter(Choice("unet_resnet81", "random"))


@pytest.mark.slow
def test_a_network_can_be_copied_and_fused() -> None:
    from cnnbatch.models.runtime.fusion import fuse

    module = build("pyramid_mobilenet_v2")
    picture = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = module(picture)
        assert torch.equal(copy.deepcopy(module)(picture), expected)
        fused = fuse(module, "cpu", (picture,))
        assert fused is not module
        assert torch.allclose(fused(picture), expected, atol=1e-4)


# ---- FCN --------------------------------------------------------------------------------------

LAYERS = """
    conv1_1 3 64 3, conv1_2 64 64 3, pool, conv2_1 64 128 3, conv2_2 128 128 3, pool,
    conv3_1 128 256 3, conv3_2 256 256 3, conv3_3 256 256 3, pool,
    conv4_1 256 512 3, conv4_2 512 512 3, conv4_3 512 512 3, pool,
    conv5_1 512 512 3, conv5_2 512 512 3, conv5_3 512 512 3, pool,
    fc6 512 4096 7, fc7 4096 4096 1, score_fr 4096 21 1
"""
"""The layers of voc-fcn32s, in order: what each convolution takes and gives, and its side."""


@pytest.mark.slow
def test_layers_are_the_papers() -> None:
    with torch.device("meta"):
        network = PaperFCN(21, 32)
    found = []
    for layer in [*network.backbone.features, *network.head]:
        if isinstance(layer, nn.Conv2d):
            found.append((layer.in_channels, layer.out_channels, layer.kernel_size[0]))
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride, layer.ceil_mode) == (2, 2, True)
            found.append((0, 0, 0))
    expected = [tuple(map(int, layer.split()[1:])) or (0, 0, 0) for layer in LAYERS.split(",")]
    assert found == expected
    assert sum(isinstance(layer, nn.Dropout2d) for layer in network.head) == 2
    assert parameters(network) == IN_VGG16 + 102_764_544 + 16_781_312 + 86_037
    assert parameters(PaperFCN(21, 8)) - parameters(network) == 10_773 + 5_397 + 2 * 21 * 21 * 16


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (50, 70), (97, 64)])
def test_the_papers_network_takes_any_size(stride: Any, size: tuple[int, int]) -> None:
    network = PaperFCN(3, stride, width=8).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


class Means(nn.Module):
    """Means over the pixels that each value of VGG's pools lies over, where the first padding is 100."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps, found = nn.functional.pad(pixels[:, :1], [99] * 4), {}
        for stride in (2, 4, 8, 16, 32):
            maps = nn.functional.avg_pool2d(maps, 2, 2, ceil_mode=True)
            found[str(stride)] = maps
        return found


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "source"), [(32, 32), (16, 32), (16, 16), (8, 32), (8, 16), (8, 8)])
def test_scores_lie_over_their_pixels(stride: Any, source: int) -> None:
    """A ramp stays a ramp, by means and by bilinear enlargement: what is cropped wrongly is shifted."""
    network = PaperFCN(1, stride, width=4).eval()
    network.backbone = Means()  # type: ignore[assignment]
    network.head = nn.Sequential(nn.AvgPool2d(7, 1))
    network._scales = dict.fromkeys(network._scales, 1.0)
    for part in network.skips:
        network.skips[part] = nn.Identity() if int(part) == source else _Nothing()
    if source != 32:
        network.head.append(_Nothing())
    ramp = torch.arange(640.0).expand(1, 3, 512, 640)
    with torch.inference_mode():
        found = network(ramp)[0, 0, 256, 256:384]
    assert torch.allclose(found, torch.arange(256.0, 384), atol=1e-2)


class _Nothing(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return 0 * maps


@pytest.mark.slow
def test_an_fcn_begins_as_the_one_with_a_skip_less() -> None:
    torch.manual_seed(0)
    coarse = FCN(VGG16(), {8: 256, 16: 512, 32: 512}, 3, 32, width=8).eval()
    fine = FCN(VGG16(), {8: 256, 16: 512, 32: 512}, 3, 8, width=8).eval()
    fine.load_state_dict({**fine.state_dict(), **coarse.state_dict()})
    picture = torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        found, below = fine(picture), coarse(picture)
    assert found.shape[2:] == (32, 32)
    for _ in range(2):
        below = interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
    inner = (..., slice(8, -8), slice(8, -8))
    assert torch.allclose(found[inner], below[inner], atol=1e-4)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_a_deconvolution_enlarges_as_interpolation_does(factor: int) -> None:
    scores = torch.randn(1, 3, 6, 7)
    found = FixedDeconvolution(factor)(scores)
    half = factor // 2
    inside = found[..., half:-half, half:-half]
    expected = interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    assert inside.shape == expected.shape
    inner = (..., slice(factor, -factor), slice(factor, -factor))
    assert torch.allclose(inside[inner], expected[inner], atol=1e-5)


def test_the_bilinear_kernel_is_caffes() -> None:
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(bilinear_kernel(2)[0, 0], torch.outer(line, line))


# ---- SegNet -----------------------------------------------------------------------------------


def test_values_return_to_where_their_pool_took_them() -> None:
    maps = torch.randn(2, 3, 8, 10)
    pooled, places = nn.functional.max_pool2d(maps, 2, 2, return_indices=True)
    expected = torch.zeros_like(maps)
    for picture in range(2):
        for channel in range(3):
            for row in range(4):
                for column in range(5):
                    block = maps[picture, channel, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    down, right = divmod(int(block.argmax()), 2)
                    expected[picture, channel, 2 * row + down, 2 * column + right] = block.max()
    assert torch.equal(unpooled(pooled, places, (8, 10)), expected)
    last = maps.to(memory_format=torch.channels_last)
    pooled, places = nn.functional.max_pool2d(last, 2, 2, return_indices=True)
    assert torch.equal(unpooled(pooled, places, (8, 10)), expected)


@pytest.mark.slow
def test_segnet_takes_sizes_that_pools_do_not_divide() -> None:
    with torch.inference_mode():
        assert SegNet(3).eval()(torch.zeros(1, 3, 45, 70)).shape == (1, 3, 45, 70)


# ---- the pyramid ------------------------------------------------------------------------------


@pytest.mark.slow
def test_pyramid_pooling_sees_the_whole_picture() -> None:
    module = build("pyramid_mobilenet_v2")
    assert isinstance(module, PyramidNet)
    maps = torch.randn(1, 320, 12, 15, requires_grad=True)
    module.pooling(maps)[0, :, 0, 0].sum().backward()
    assert maps.grad is not None
    assert bool((maps.grad[0].abs().sum(0) > 0).all())
