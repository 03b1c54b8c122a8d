"""A fused network computes what the plain one does, in fewer passes, or it stays as it is."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from cnnbatch.models.runtime.backends import noise
from cnnbatch.models.runtime.fusion import FusedConvolution, fuse

SIDE = 64
NORMS_THAT_STAY = {"densenet121"}  # It normalises before it convolves.


def settled(module: nn.Module) -> nn.Module:
    """Give every normalisation statistics and scales of its own, so that leaving one out would show."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                assert values is not None
                values.data = 0.8 + 0.4 * torch.rand(values.shape, generator=generator)
    return module.eval()


def kinds(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in module.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "mobilenet_v3_small", "resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet"]
    + ["efficientnet_b0", "densenet121", "vgg11_bn", "regnet_y_400mf"],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # cuda: what would be moved there, computed here.
def test_every_kind_of_network_computes_the_same(name: str, device: str) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    plain = settled(models.get_model(name, weights=None, **extra))
    pictures = torch.rand((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = plain(pictures)
        fused = fuse(plain, device, noise((SIDE, SIDE)))
        found = fused(pictures.contiguous(memory_format=torch.channels_last))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert fused is not plain
    if name not in NORMS_THAT_STAY:
        assert kinds(fused, nn.BatchNorm2d) == 0
    if device == "cuda":
        assert kinds(fused, FusedConvolution) == 0


@pytest.mark.slow
def test_activations_go_into_the_convolution_where_onednn_is() -> None:
    if not torch._C._has_mkldnn or platform.machine() != "x86_64":
        pytest.skip("oneDNN's fused convolutions are used on x86-64 only")
    fused = fuse(settled(models.mobilenet_v2()), "cpu", noise((SIDE, SIDE)))
    assert kinds(fused, FusedConvolution) == 35
    assert kinds(fused, nn.ReLU6) == 0


class Hooked(nn.Module):
    """Two convolutions; what goes into the second is looked at from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
        self.act = nn.ReLU()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return five numbers a picture."""
        maps: Tensor = self.act(self.second(self.act(self.norm(self.first(pixels)))))
        return maps.mean((2, 3))


def test_a_convolution_with_a_hook_keeps_it() -> None:
    plain, seen = settled(Hooked()), []
    assert isinstance(plain.second, nn.Conv2d)
    plain.second.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].shape))
    fused = fuse(plain, "cpu", noise((8, 8)))
    seen.clear()
    fused(torch.rand(2, 3, 8, 8))
    assert seen == [(2, 4, 6, 6)]
    assert kinds(fused, nn.BatchNorm2d) == 0


class Towers(nn.Module):
    """The same layers over several maps, as detectors' heads have them."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            Conv2dNormActivation(3, 4, norm_layer=FrozenBatchNorm2d),
            Conv2dNormActivation(4, 5, activation_layer=nn.LeakyReLU),
        )

    def forward(self, maps: list[Tensor], extra: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """Return five maps for each map."""
        return {"maps": [self.tower(one) for one in maps], "extra": [self.tower(extra["last"])]}


def test_lists_of_maps_and_frozen_normalisation_are_folded() -> None:
    torch.manual_seed(0)
    plain = Towers()
    for layer in plain.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            for values in layer.buffers():
                values.copy_(0.8 + 0.4 * torch.rand(len(values)))
    settled(plain)
    sides = (8, 4)
    example = ([torch.randn(2, 3, side, side) for side in sides], {"last": torch.randn(2, 3, 2, 2)})
    fused = fuse(plain, "cpu", example)
    assert kinds(fused, nn.BatchNorm2d) == kinds(fused, FrozenBatchNorm2d) == 0
    maps, extra = [torch.randn(3, 3, side, side + 1) for side in sides], {"last": torch.randn(3, 3, 1, 1)}
    found, expected = fused(maps, extra), plain(maps, extra)
    for name, values in expected.items():
        for one, other in zip(found[name], values, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class SharedConvolution(Hooked):
    """The result of the first convolution is needed before and after its normalisation."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return four numbers a picture."""
        maps: Tensor = self.first(pixels)
        return torch.mean(maps + self.norm(maps), (2, 3))


class TwiceUsed(Hooked):
    """One convolution serves two places, of which only one is normalised."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return four numbers a picture."""
        return torch.mean(self.norm(self.first(pixels)), (2, 3)) + torch.mean(self.first(pixels), (2, 3))


@pytest.mark.parametrize("kind", [SharedConvolution, TwiceUsed])
def test_what_others_need_stays(kind: type[Hooked]) -> None:
    plain = settled(kind())
    pictures = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(fuse(plain, "cpu", noise((8, 8)))(pictures), plain(pictures))


class Branching(Hooked):
    """What it does depends on the picture."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return five numbers a picture."""
        return super().forward(pixels) if pixels.mean() > 0 else pixels.mean((2, 3))


class Deceived(Hooked):
    """A trace takes the wrong one of its ways."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return five numbers a picture."""
        found = super().forward(pixels)
        return found * 2 if type(pixels) is Tensor else found


@pytest.mark.parametrize("kind", [Branching, Deceived])
def test_a_network_that_can_not_be_traced_stays_as_it_is(kind: type[Hooked]) -> None:
    plain = settled(kind())
    assert fuse(plain, "cpu", noise((8, 8))) is plain


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_compute_on_every_processor(dtype: torch.dtype) -> None:
    plain = settled(models.mobilenet_v2())
    pictures = torch.rand((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = plain(pictures)
        fused = fuse(plain, "cpu", noise((SIDE, SIDE)), dtype).to(dtype)
        found = fused(pictures.to(dtype).contiguous(memory_format=torch.channels_last)).float()
    assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
