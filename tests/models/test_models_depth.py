"""Features at several depths: what each block gives, a network cut there, its way through files and jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models import Choice, Network, Preprocessing, build_classifier
from cnnbatch.models.depth import Tap, WithDepths, can_be_cut, shortened, tap, taps
from cnnbatch.models.runtime.fusion import fuse
from tests import tiny

SIDE = 64
HOW = Preprocessing(resize=SIDE, crop=(SIDE, SIDE))
CLASSES = ("a", "b", "c")


def network(name: str, **arguments: Any) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = torchvision.models.get_model(name, num_classes=3, **arguments)
    return Network(module.eval(), HOW, CLASSES)


def pictures() -> Tensor:
    return torch.randn((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1))


def outputs(module: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return what some blocks give for `pictures`, by hooks."""
    given: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: given.__setitem__(name, output.clone())
        )
        for name in names
    ]
    module(pictures())
    for hook in hooks:
        hook.remove()
    return given


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "layouts"),
    [
        ("resnet18", {}, {"maps"}),
        ("mobilenet_v2", {}, {"maps"}),
        ("squeezenet1_1", {}, {"maps"}),
        ("alexnet", {}, {"maps", "vector"}),
        ("vit_b_16", {"image_size": SIDE}, {"maps", "tokens"}),
        ("swin_t", {}, {"maps", "maps_last"}),
    ],
)
def test_taps_tell_what_blocks_give(name: str, arguments: dict[str, Any], layouts: set[str]) -> None:
    made = network(name, **arguments)
    found = taps(made, 12)
    assert 6 <= len(found) <= 12
    assert {one.layout for one in found} <= layouts
    order = [block for block, _ in made.module.named_modules()]
    places = [order.index(one.block) for one in found]
    assert places == sorted(places)
    with torch.no_grad():
        given = outputs(made.module, [one.block for one in found])
        logits = made.module(pictures())
        expected = torch.cat([_vector(given[one.block], one) for one in found], 1)
        again, joined = WithDepths(made.module, found)(pictures())
    assert torch.equal(again, logits)
    assert torch.equal(joined, expected)
    assert joined.shape[1] == sum(one.width for one in found)


def _vector(output: Tensor, found: Tap) -> Tensor:
    """Return the mean over all axes but the first and that of the features."""
    features = {"maps": 1}.get(found.layout, output.ndim - 1)
    axes = [axis for axis in range(1, output.ndim) if axis != features]
    return output.mean(axes) if axes else output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("mobilenet_v2", ["features.0.0", "features.0.1", "features.5", "features.18.0"]),
        ("alexnet", ["features.0", "features.6", "classifier.1"]),
    ],
)
def test_features_at_depths_stay_the_same_when_layers_are_fused(name: str, names: list[str]) -> None:
    made = network(name)
    with torch.no_grad():
        for module in made.module.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
        found = [tap(made, block, "task.embedding") for block in names]
        expected = WithDepths(made.module, found).eval()
        plain = expected(pictures())
        fused = fuse(expected, "cpu", (pictures(),), torch.float32)(pictures())
    for one, other in zip(plain, fused, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("mobilenet_v2", "features.4"),
        ("mobilenet_v2", "features.0.1"),
        ("efficientnet_b0", "features.2.0"),
        ("resnet18", "layer2.0"),
        ("alexnet", "classifier.1"),
        ("swin_t", "features.1.1"),
    ],
)
def test_a_network_is_cut_after_a_block(name: str, block: str) -> None:
    whole = network(name)
    with torch.no_grad():
        given = outputs(whole.module, [block])[block]
    before = {one: tensor.clone() for one, tensor in whole.module.state_dict().items()}
    cut = shortened(whole, block, ("x", "y"), seed=3)
    where = tap(whole, block, "")
    with torch.no_grad():
        head: Any = cut.module.get_submodule("head")
        assert torch.allclose(cut.module(pictures()), head(_vector(given, where)), atol=1e-6)
    assert cut.classes == ("x", "y")
    state = cut.module.state_dict()
    kept = {one.removeprefix("body."): tensor for one, tensor in state.items() if one.startswith("body.")}
    assert 0 < len(kept) < len(before)
    assert all(torch.equal(before[one], tensor) for one, tensor in kept.items())
    again = shortened(network(name), block, ("x", "y"), seed=3)
    assert torch.equal(again.module.get_submodule("head").weight, head.weight)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_cut_network_is_built_again_from_its_file(tmp_path: Path) -> None:
    choice = Choice("resnet18", weights="random:5", preprocessing={"resize": SIDE, "crop": (SIDE, SIDE)})
    cut = shortened(build_classifier(choice), "layer2.1", CLASSES)
    save_file(cut.module.state_dict(), tmp_path / "cut.safetensors")
    from_file = replace(
        choice, weights=str(tmp_path / "cut.safetensors"), classes=CLASSES, features="layer2.1"
    )
    with torch.no_grad():
        assert torch.equal(build_classifier(from_file).module(pictures()), cut.module(pictures()))
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        build_classifier(replace(from_file, features="layer2.0"))


def test_a_network_of_another_package_is_cut_as_well() -> None:
    found = build_classifier(Choice("tests.tiny:build", "random:0", features="0.0", classes=CLASSES))
    assert [name for name, _ in found.module.named_parameters()] == [
        "body.0.0.weight",
        "head.weight",
        "head.bias",
    ]
    assert found.module(torch.zeros((2, 3, tiny.SIDE, tiny.SIDE))).shape == (2, 3)


def test_what_can_not_be_cut_is_said() -> None:
    made = network("resnet18")
    with pytest.raises(UserError, match=r"(?s)train\.features: the network has no block 'layer7'.*layer2\.0"):
        shortened(made, "layer7", CLASSES)
    with pytest.raises(UserError, match=r"task\.embedding: .*no block"):
        tap(made, "layer", "task.embedding")
    branching = Network(_Branching(), HOW, CLASSES)
    assert can_be_cut(branching, "first")
    assert not can_be_cut(branching, "second")
    with pytest.raises(UserError, match=r"train\.features: the network can't be cut after 'second'"):
        shortened(branching, "second", CLASSES)


class _Branching(nn.Module):
    """A network that no tracer can follow beyond its first block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.last = nn.Linear(4, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.first(pixels)
        if found.sum() > 0:
            found = -found
        logits: Tensor = self.last(self.second(found).mean((2, 3)))
        return logits
