"""Another classification layer on a network that is trained already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from cnnbatch.models.network import Network, last_layer, seeded

_DEVIATION = 0.01


def with_new_head(network: Network, classes: Sequence[str], seed: int = 0) -> Network:
    """Return the network with a new last layer for ``classes``, small random weights; changes its module."""
    name, old = last_layer(network.module)
    new = new_layer(old, len(classes), seed)
    return replace(network, module=_replaced(network.module, name, new), classes=tuple(classes))


def new_layer(old: nn.Linear | nn.Conv2d, outputs: int, seed: int) -> nn.Linear | nn.Conv2d:
    """Return a layer as ``old`` with so many outputs and small random weights."""
    with seeded(seed):
        new = like(old, outputs)
        nn.init.normal_(new.weight, std=_DEVIATION)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
    return new


def with_rows(network: Network, classes: Sequence[str]) -> Network:
    """Return the network with the outputs of ``classes`` alone, some of its own; changes its module."""
    name, old = last_layer(network.module)
    rows = [network.classes.index(one) for one in classes]
    new = like(old, len(rows))
    with torch.no_grad():
        new.weight.copy_(old.weight[rows])
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias[rows])
    return replace(network, module=_replaced(network.module, name, new), classes=tuple(classes))


def like(old: nn.Linear | nn.Conv2d, outputs: int) -> nn.Linear | nn.Conv2d:
    """Return a layer as ``old``, but for its number of outputs."""
    has_bias = old.bias is not None
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, outputs, has_bias)
    (height, width), (down, right) = old.kernel_size, old.stride
    return nn.Conv2d(old.in_channels, outputs, (height, width), (down, right), bias=has_bias)


def _replaced(module: nn.Module, name: str, new: nn.Module) -> nn.Module:
    if not name:
        return new
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, new)
    return module
