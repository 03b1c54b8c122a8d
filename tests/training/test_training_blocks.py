"""What a strategy tunes: the head always, then blocks from the last on; what is frozen stays as it is."""

from __future__ import annotations

from typing import get_args

import pytest
import timm
import torch
import torchvision
from torch import nn

from cnnbatch.config.train import Strategy
from cnnbatch.models import depth
from cnnbatch.models.network import last_layer
from cnnbatch.tasks.recipes import tuned_blocks

FAMILIES = (
    "resnet18",
    "vgg11",
    "mobilenet_v2",
    "densenet121",
    "squeezenet1_1",
    "efficientnet_b0",
    "convnext_tiny",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_blocks_of_a_network_are_all_of_it(name: str) -> None:
    with torch.device("meta"):
        module: nn.Module = torchvision.models.get_model(name, num_classes=5)
    found = [parameter for _, block in depth.blocks(module) for parameter in block.parameters()]
    assert len({id(one) for one in found}) == len(found)
    assert {id(one) for one in found} == {id(one) for one in module.parameters()}
    assert len(list(depth.blocks(module))) > 5


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_a_strategy_tunes_more_than_the_one_before(strategy: Strategy) -> None:
    with torch.device("meta"):
        module: nn.Module = torchvision.models.resnet18(num_classes=5)
    parts = tuned_blocks.split(module, strategy)
    tuned_blocks.freeze(module, parts)
    learned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    expected = {"as_is": 1, "head": 1, "last_blocks": 4, "most_blocks": 9, "all": 11, "scratch": 11}[strategy]
    assert len(parts.tuned) + 1 == expected
    assert {"fc.weight", "fc.bias"} <= learned
    groups = tuned_blocks.parameters(parts, 0.5)
    assert {id(one) for group in groups for one in group.tensors} == {
        id(one) for one in module.parameters() if one.requires_grad
    }
    scales = [group.scale for group in groups]
    assert scales == sorted(scales)
    assert scales[-1] == 1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "levit_128s"])
def test_all_is_all_of_a_transformer_and_of_a_head_with_more_inside(name: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=5)
    for strategy in get_args(Strategy):
        parts = tuned_blocks.split(module, strategy)
        tuned_blocks.freeze(module, parts)
        learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
        grouped = [id(one) for group in tuned_blocks.parameters(parts, 0.5) for one in group.tensors]
        assert sorted(grouped) == sorted(map(id, learned))
        assert (len(learned) == len(list(module.parameters()))) == (strategy in ("all", "scratch"))
    assert len(tuned_blocks.split(module, "last_blocks").tuned) > 1


def test_frozen_normalisations_keep_their_statistics() -> None:
    module = torchvision.models.resnet18(num_classes=3)
    parts = tuned_blocks.split(module, "last_blocks")
    tuned_blocks.freeze(module, parts)
    tuned = tuned_blocks.Tuned(module, parts).train()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    loss = tuned(torch.randn(4, 3, 32, 32))
    loss.sum().backward()
    for name, buffer in module.named_buffers():
        frozen = any(name.startswith(f"{one}.") for one, _ in parts.frozen)
        assert torch.equal(buffer, before[name]) == frozen, name
    assert last_layer(module)[1].weight.grad is not None
    assert module.conv1.weight.grad is None
