"""A network as blocks in the order of its layers, and which of them a strategy tunes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cnnbatch.models.network import last_layer
from cnnbatch.training.recipe import Parameters
from cnnbatch.training.spec import Strategy

STAGES = 4
"""Groups of blocks between which the learning rate falls, beside the head."""
TUNED: Mapping[Strategy, float] = {
    "as_is": 0.0,
    "head": 0.0,
    "last_blocks": 1 / 3,
    "all": 1.0,
    "scratch": 1.0,
}
"""The part of the blocks, counted from the last, that a strategy tunes beside the head."""


@dataclass(frozen=True)
class Blocks:
    """What of a network is tuned: ``frozen`` blocks stay as they are, ``tuned`` ones and the head learn."""

    frozen: Sequence[tuple[str, nn.Module]]
    tuned: Sequence[tuple[str, nn.Module]]
    head: tuple[str, nn.Module]


def split(module: nn.Module, strategy: Strategy) -> Blocks:
    """Return which blocks of ``module`` a strategy tunes: the last ones."""
    name, head = last_layer(module)
    body = [(inner, block) for inner, block in blocks(module) if block is not head]
    kept = len(body) - round(TUNED[strategy] * len(body))
    return Blocks(body[:kept], body[kept:], (name, head))


def blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a network that have parameters, from the input on; sequences are taken apart."""
    children = [(name, child) for name, child in module.named_children() if _has_parameters(child)]
    for name, child in children:
        if isinstance(child, nn.Sequential | nn.ModuleList) or len(children) == 1 and _is_wrapper(child):
            yield from blocks(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def freeze(module: nn.Module, parts: Blocks) -> None:
    """Have only the tuned blocks and the head learn."""
    module.requires_grad_(False)
    for _, block in [*parts.tuned, parts.head]:
        block.requires_grad_(True)


def parameters(parts: Blocks, layer_decay: float) -> list[Parameters]:
    """Return what is learned in groups, each at ``layer_decay`` times the rate of the one after it.

    The tuned blocks form up to `STAGES` groups of about as many blocks each; the head comes last, at 1.
    """
    count, groups = len(parts.tuned), list[Parameters]()
    stages = min(STAGES, count)
    for stage in range(stages):
        some = parts.tuned[stage * count // stages : (stage + 1) * count // stages]
        tensors = [tensor for _, block in some for tensor in block.parameters()]
        name = some[0][0] if len(some) == 1 else f"{some[0][0]} to {some[-1][0]}"
        groups.append(Parameters(name, tensors, layer_decay ** (stages - stage)))
    return [*groups, Parameters(parts.head[0], list(parts.head[1].parameters()))]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_wrapper(module: nn.Module) -> bool:
    """Say whether a module has nothing of its own but its children."""
    return any(True for _ in module.children()) and not list(module.parameters(recurse=False))


class Tuned(nn.Module):
    """A network whose frozen blocks also keep their normalisation: they stay in evaluation mode."""

    def __init__(self, network: nn.Module, parts: Blocks) -> None:
        super().__init__()
        self.network = network
        self._frozen = [name for name, _ in parts.frozen]

    def train(self, mode: bool = True) -> Tuned:
        """Set the mode of what learns."""
        super().train(mode)
        for name in self._frozen:
            self.network.get_submodule(name).eval()
        return self

    def forward(self, *inputs: object) -> object:
        """Run the network."""
        return self.network(*inputs)
