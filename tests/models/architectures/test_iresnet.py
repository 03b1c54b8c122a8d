"""ArcFace's IResNet: the names, shapes and numbers of parameters of insightface, and its forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cnnbatch.models.architectures.iresnet import BLOCKS, DIMENSIONS, WIDTHS, IResNet
from tests.models.architectures.test_inception_resnet import randomise

PUBLISHED = {50: 43_590_848, 100: 65_156_160}
"""Parameters, published as 43.59 and 65.16 million."""

TINY = (2, 1, 1, 1), (4, 6, 8, 10)


def published_shapes(depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes as insightface's code makes them, without the counters of training."""
    yield "conv1.weight", (64, 3, 3, 3)
    yield from normalisation("bn1", 64)
    yield "prelu.weight", (64,)
    inputs = 64
    for layer, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True), 1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            yield from normalisation(f"{name}.bn1", inputs)
            yield f"{name}.conv1.weight", (width, inputs, 3, 3)
            yield from normalisation(f"{name}.bn2", width)
            yield f"{name}.prelu.weight", (width,)
            yield f"{name}.conv2.weight", (width, width, 3, 3)
            yield from normalisation(f"{name}.bn3", width)
            if block == 0:
                yield f"{name}.downsample.0.weight", (width, inputs, 1, 1)
                yield from normalisation(f"{name}.downsample.1", width)
            inputs = width
    yield from normalisation("bn2", 512)
    yield from [("fc.weight", (512, 25_088)), ("fc.bias", (512,))]
    yield from normalisation("features", 512)


def normalisation(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)


@pytest.mark.parametrize("depth", [50, 100])
def test_names_shapes_and_parameters_are_insightfaces(depth: int) -> None:
    with torch.device("meta"):
        module = IResNet(BLOCKS[depth])
    state = {name: tuple(one.shape) for name, one in module.state_dict().items()}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert {name: shape for name, shape in state.items() if name not in counters} == dict(
        published_shapes(depth)
    )
    assert sum(one.numel() for one in module.parameters()) == PUBLISHED[depth]
    assert module.fc.out_features == DIMENSIONS


def as_insightface_runs_it(state: Mapping[str, Tensor], blocks: tuple[int, ...], x: Tensor) -> Tensor:
    """Run the network by the names in its state dict, as insightface's code does."""

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    x = F.prelu(normalised(F.conv2d(x, state["conv1.weight"], padding=1), "bn1"), state["prelu.weight"])
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            name, stride = f"layer{layer}.{block}", 1 if block else 2
            y = F.conv2d(normalised(x, f"{name}.bn1"), state[f"{name}.conv1.weight"], padding=1)
            y = F.prelu(normalised(y, f"{name}.bn2"), state[f"{name}.prelu.weight"])
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            if not block:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2)
                x = normalised(x, f"{name}.downsample.1")
            x = normalised(y, f"{name}.bn3") + x
    x = normalised(x, "bn2").flatten(1)
    return normalised(F.linear(x, state["fc.weight"], state["fc.bias"]), "features")


def test_a_small_network_gives_what_insightfaces_code_gives() -> None:
    blocks, widths = TINY
    module = IResNet(blocks, widths, dimensions=7).eval()
    randomise(module)
    chips = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = module(chips)
        expected = as_insightface_runs_it(module.state_dict(), blocks, chips)
    assert ours.shape == (2, 7)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert float((ours[0] - ours[1]).abs().max()) > 1e-3
