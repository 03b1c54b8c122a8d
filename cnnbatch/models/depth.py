"""A network's features at several depths: one vector a picture after each of some blocks, or a cut there.

Earlier features are general, later ones belong to what the network was trained for (Yosinski et al. 2014,
"How transferable are features in deep neural networks?").
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, fx, nn

from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models.heads import new_layer
from cnnbatch.models.network import Network, last_layer

Layout = Literal["maps", "maps_last", "tokens", "vector"]
"""What a block gives: (N, C, H, W), (N, H, W, C), (N, T, C) or (N, C)."""

CUT = "train.features"
"""The field that says where a network is cut."""
_FLAT: dict[int, Layout] = {2: "vector", 3: "tokens"}
_AXES: dict[Layout, tuple[int, ...]] = {"maps": (2, 3), "maps_last": (1, 2), "tokens": (1,), "vector": ()}


@dataclass(frozen=True, slots=True)
class Tap:
    """A block after which features are taken, by its path; ``width`` is their number."""

    block: str
    width: int
    layout: Layout


def blocks(
    module: nn.Module, prefix: str = "", head: nn.Module | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a network that have parameters, from the input on.

    Sequences are taken apart, and so is what has the ``head`` inside, or more than half of all parameters,
    as a transformer's encoder; parameters of its own, as the positions' embedding, are then in no part.
    """
    yield from _blocks(module, prefix, head, _size(module) / 2)


def _blocks(
    module: nn.Module, prefix: str, head: nn.Module | None, most: float
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        is_sequence = isinstance(child, nn.Sequential | nn.ModuleList)
        has_head = child is not head and any(inner is head for inner in child.modules())
        if is_sequence or has_head or (_size(child) > most and any(map(_size, child.children()))):
            yield from _blocks(child, f"{prefix}{name}.", head, most)
        elif _size(child):
            yield f"{prefix}{name}", child


def _size(module: nn.Module) -> int:
    """Return how many parameters there are."""
    return sum(parameter.numel() for parameter in module.parameters())


def taps(network: Network, count: int) -> list[Tap]:
    """Return up to ``count`` blocks at even distances, the last before the head among them.

    Blocks that don't give one tensor a picture are left out; so are all of a network that calls none of its
    modules, as Keras' functional ones do.
    """
    _, head = last_layer(network.module)
    body = [name for name, block in blocks(network.module, head=head) if block is not head]
    count = min(count, len(body))
    return _tapped(network, [body[-(-(place + 1) * len(body) // count) - 1] for place in range(count)])


def tap(network: Network, block: str, asked: str) -> Tap:
    """Return the block ``block`` as a tap; ``asked`` is the field that names it.

    Raises:
        UserError: the network has none of that name, or its output is no vector, map or tokens.
    """
    names = [name for name, _ in network.module.named_modules() if name]
    if block not in names:
        some = [name for name, _ in blocks(network.module)]
        raise UserError(
            f"{asked}: the network has no block {block!r}{meant(block, names)}\n"
            f"  its blocks: {', '.join(some)}"
        )
    found = _tapped(network, [block])
    if not found:
        raise UserError(
            f"{asked}: the block {block!r} gives no features\n"
            "  what to do: name one that gives maps, tokens or a vector"
        )
    return found[0]


def _tapped(network: Network, names: Sequence[str]) -> list[Tap]:
    """Run a black picture through the network, and return which of its blocks give features."""
    given: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            given[name] = output

    hooks = [network.module.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    with torch.no_grad():
        network.module(torch.zeros((1, 3, *network.preprocessing.crop)))
    for handle in hooks:
        handle.remove()
    found = []
    for name in names:
        layout = _layout(given[name].shape, network.preprocessing.crop) if name in given else None
        if layout is not None:
            found.append(Tap(name, given[name].shape[1 if layout == "maps" else -1], layout))
    return found


def _layout(shape: torch.Size, crop: tuple[int, int]) -> Layout | None:
    """Return how the output of a block lies, for inputs of ``crop``; None where that can't be told."""
    if len(shape) == 4 and _is_smaller(crop, shape[2:]):
        return "maps"
    if len(shape) == 4 and _is_smaller(crop, shape[1:3]):
        return "maps_last"
    return _FLAT.get(len(shape))


def _is_smaller(crop: tuple[int, int], size: Sequence[int]) -> bool:
    """Say whether a map's ``size`` may be that of a picture, in steps of the same stride both ways."""
    strides = [whole / part for whole, part in zip(crop, size, strict=True)]
    return min(strides) >= 1 and max(strides) < 1.5 * min(strides)


class WithDepths(nn.Module):
    """A classifier that also gives its features at ``taps``, joined, (N, sum of their widths)."""

    def __init__(self, module: nn.Module, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.module = module
        self._kept = [_Kept(module.get_submodule(tap.block), tap.layout) for tap in taps]
        for tap, kept in zip(taps, self._kept, strict=True):
            parent, _, own = tap.block.rpartition(".")
            setattr(module.get_submodule(parent), own, kept)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, C) and the features."""
        logits: Tensor = self.module(pixels)
        return logits, torch.cat([kept.features for kept in self._kept], 1)


class _Kept(nn.Module):
    """A block whose features are kept; part of the graph, so that tracers and compilers see it.

    They are taken at once: what comes after may change the block's output in place.
    """

    features: Tensor

    def __init__(self, block: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.block = block
        self._layout: Layout = layout

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.block(inputs)
        self.features = pooled(output, self._layout)
        return output


class _Reached(Exception):
    """The block is traced; nothing after it matters."""


class _Until(fx.Tracer):
    """Traces a network in evaluation mode until ``block``, which stays a module, has its output."""

    def __init__(self, block: str) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))
        self._block = block

    def graph_module(self, module: nn.Module) -> fx.GraphModule:
        """Return what of ``module`` leads to the block's output; its modules are the same ones."""
        with contextlib.suppress(_Reached):
            self.trace(module)
            raise fx.proxy.TraceError(f"it does not call {self._block}")
        self.graph.lint()
        found = fx.GraphModule(module, self.graph)
        found.graph.eliminate_dead_code()
        found.recompile()
        return found

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self._block or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        found = super().call_module(m, forward, args, kwargs)
        if self.path_of_module(m) == self._block:
            self.graph.output(self.create_arg(found))
            raise _Reached
        return found


class Shortened(nn.Module):
    """A network up to one of its blocks, and a linear layer on what that gives."""

    def __init__(self, body: nn.Module, tap: Tap, head: nn.Module) -> None:
        super().__init__()
        self._layout = tap.layout
        self.body = body
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (N, C)."""
        logits: Tensor = self.head(self.features(pixels))
        return logits

    def features(self, pixels: Tensor) -> Tensor:
        """Return what the head reads, (N, width)."""
        return pooled(self.body(pixels), self._layout)


def pooled(output: Tensor, layout: Layout) -> Tensor:
    """Return a block's output as one new vector a picture: its mean over places."""
    axes = _AXES[layout]
    return output.mean(axes) if axes else output.clone()


def can_be_cut(network: Network, block: str) -> bool:
    """Say whether `shortened` can cut the network after ``block``."""
    try:
        shortened(network, block, network.classes)
    except UserError:
        return False
    return True


def shortened(network: Network, block: str, classes: Sequence[str], seed: int = 0) -> Network:
    """Return the network up to ``block`` with a new head for ``classes``; what comes after is left out.

    Raises:
        UserError: there is no such block, it gives no features, or the network can't be traced.
    """
    instead = "leave it out, and the head reads the last features"
    module, width = cut_after(network, block, CUT, instead)
    module.head = new_layer(nn.Linear(width, 1), len(classes), seed)
    return replace(network, module=module.eval(), classes=tuple(classes))


def cut_after(network: Network, block: str, asked: str, instead: str) -> tuple[Shortened, int]:
    """Return the network up to ``block`` without a head, and the width of the features that it gives.

    ``asked`` is the field that names the block, ``instead`` what to do where the network can't be cut.

    Raises:
        UserError: there is no such block, it gives no features, or the network can't be traced.
    """
    where = tap(network, block, asked)
    try:
        body = _Until(block).graph_module(network.module)
    except (fx.proxy.TraceError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{asked}: the network can't be cut after {block!r}, since torch.fx can't trace it: {error}\n"
            f"  what to do: {instead}"
        ) from error
    return Shortened(body, where, nn.Identity()), where.width
