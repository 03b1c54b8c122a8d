"""A classifier of every family gets another head, gradients everywhere, and learns from one step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from cnnbatch.cli.models import listing
from cnnbatch.models.building import find
from cnnbatch.models.libraries.keras_table import MODELS
from cnnbatch.models.network import last_layer
from cnnbatch.tasks.recipes import tuned_blocks
from tests.families import KERAS, TIMM, TORCHVISION

CLASSES = 3
LABELS = torch.tensor([0, 1, 2, 0])
GAINS = (4e-3, 4e-4, 4e-5)
"""Parts of the loss that a step would take away if the loss were linear; one of them has to be small enough,
since the loss falls along its negative gradient for every step that is."""

LONG = {"maxvit", "nasnet", "inception_resnet_v2", "vgg19", "xception", "vision_transformer"}
"""Families whose smallest member takes its time."""
QUICK = {"convnext", "efficientnet", "ghostnet", "lcnetv2", "nfnet", "regnet", "resnet", "shvit"}
"""Of timm's families those that need seconds together; each of the others needs some."""


@contextmanager
def same_noise(module: nn.Module) -> Iterator[None]:
    """Let dropout and the like drop the same every time."""
    counters = []
    for part in module.modules():  # Keras counts how often it drew, in variables that are no weights.
        [inside] = getattr(part, "_inside", (None,))
        if inside is not None:
            weights = {id(one) for one in inside.weights}
            counters += [one.value for one in inside.variables if id(one) not in weights]
    before = [one.clone() for one in counters]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    with torch.no_grad():
        for counter, value in zip(counters, before, strict=True):
            counter.copy_(value)


def loss(module: nn.Module, pixels: Tensor) -> Tensor:
    with same_noise(module):
        return nn.functional.cross_entropy(module(pixels), LABELS)


@torch.no_grad()
def loss_after_step(module: nn.Module, before: list[Tensor], lr: float, pixels: Tensor) -> float:
    """Take a step of gradient descent from the parameters `before`, and return the loss behind it."""
    for parameter, value in zip(module.parameters(), before, strict=True):
        parameter.copy_(value)
    torch.optim.SGD(module.parameters(), lr=lr).step()
    return float(loss(module, pixels))


def learns(model: str, side: int) -> None:
    """Give a model another head, and take one step of gradient descent on four pictures."""
    torch.manual_seed(0)
    module = find(model).make(CLASSES, {}, (side, side)).train()
    assert len(last_layer(module)[1].weight) == CLASSES
    pixels = torch.randn(4, 3, side, side)
    first = loss(module, pixels)
    first.backward()  # type: ignore[no-untyped-call]
    parameters = dict(module.named_parameters())
    groups = tuned_blocks.parameters(tuned_blocks.split(module, "all"), 1.0)
    assert Counter(id(one) for group in groups for one in group.tensors) == Counter(
        map(id, parameters.values())
    )
    assert not [name for name, one in parameters.items() if one.grad is None and one.requires_grad]
    gradients = [one.grad for one in parameters.values() if one.grad is not None]
    squared = sum(float(gradient.square().sum()) for gradient in gradients)
    before = [one.detach().clone() for one in module.parameters()]
    assert any(
        loss_after_step(module, before, gain * float(first.detach()) / squared, pixels)
        < float(first.detach())
        for gain in GAINS
    )


def marked(families: dict[str, tuple[str, int]], long: set[str], prefix: str = "") -> list[object]:
    return [
        pytest.param(prefix + name, side, id=family, marks=[pytest.mark.long] if family in long else [])
        for family, (name, side) in families.items()
    ]


def families(pattern: str) -> set[str]:
    return {row.family for row in listing(pattern, task="classify")}


def test_every_family_is_tried() -> None:
    own = {row.family for row in listing(task="classify") if row.library == "torchvision"}
    assert set(TORCHVISION) == own
    assert set(KERAS) == families("keras/*")
    assert set(TIMM) == families("timm/*")
    assert all(MODELS[name].family == family for family, (name, _) in KERAS.items())


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), marked(TORCHVISION, LONG))
def test_torchvisions_families_learn(model: str, side: int) -> None:
    learns(model, side)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("keras"), reason="Keras is not installed: pip install 'cnnbatch[keras]'")
@pytest.mark.parametrize(("model", "side"), marked(KERAS, LONG, "keras/"))
def test_keras_families_learn(model: str, side: int) -> None:
    learns(model, side)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), marked(TIMM, set(TIMM) - QUICK, "timm/"))
def test_timms_families_learn(model: str, side: int) -> None:
    learns(model, side)
