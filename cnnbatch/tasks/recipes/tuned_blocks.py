"""A network as blocks in the order of its layers, and which of them a strategy tunes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cnnbatch.config.train import Strategy
from cnnbatch.models.depth import blocks
from cnnbatch.models.network import last_layer
from cnnbatch.tasks.recipes.recipe import Parameters

STAGES = 4
"""Groups of blocks between which the learning rate falls, beside the head."""
TUNED: Mapping[Strategy, float] = {
    "as_is": 0.0,
    "head": 0.0,
    "last_blocks": 1 / 3,
    "most_blocks": 5 / 6,
    "all": 1.0,
    "scratch": 1.0,
}
"""The part of the blocks, counted from the last, that a strategy tunes beside the head."""


@dataclass(frozen=True)
class Blocks:
    """What of a network is tuned: ``frozen`` blocks stay as they are, ``tuned`` ones and the head learn.

    ``loose`` parameters, which are in no block, learn where all blocks do.
    """

    frozen: Sequence[tuple[str, nn.Module]]
    tuned: Sequence[tuple[str, nn.Module]]
    head: tuple[str, nn.Module]
    loose: Sequence[nn.Parameter] = ()


def split(module: nn.Module, strategy: Strategy) -> Blocks:
    """Return which blocks of ``module`` a strategy tunes: the last ones."""
    name, head = last_layer(module)
    body = [(inner, block) for inner, block in blocks(module, head=head) if block is not head]
    kept = len(body) - round(TUNED[strategy] * len(body))
    inside = {id(one) for _, block in [*body, (name, head)] for one in block.parameters()}
    loose = [one for one in module.parameters() if id(one) not in inside]
    return Blocks(body[:kept], body[kept:], (name, head), loose)


def split_before(body: Sequence[tuple[str, nn.Module]], module: nn.Module, strategy: Strategy) -> Blocks:
    """Return which blocks of a ``body`` a strategy tunes, the last; all else in ``module`` is the head."""
    kept = len(body) - round(TUNED[strategy] * len(body))
    of_body = {id(tensor) for _, block in body for tensor in block.parameters()}
    rest = nn.ParameterList(tensor for tensor in module.parameters() if id(tensor) not in of_body)
    return Blocks(body[:kept], body[kept:], ("heads", rest))


def freeze(module: nn.Module, parts: Blocks) -> None:
    """Have only the tuned blocks and the head learn."""
    module.requires_grad_(False)
    for _, block in [*parts.tuned, parts.head]:
        block.requires_grad_(True)
    for parameter in parts.loose:
        parameter.requires_grad_(not parts.frozen)


def parameters(parts: Blocks, layer_decay: float, rate: float = 1.0) -> list[Parameters]:
    """Return what is learned in groups, each at ``layer_decay`` times the rate of the one after it.

    The tuned blocks form up to `STAGES` groups of about as many blocks each, at ``rate`` times what they
    would have; the head comes last, at 1. What several blocks share is in the first of their groups.
    """
    count, groups, grouped = len(parts.tuned), list[Parameters](), set[int]()
    stages = min(STAGES, count)
    for stage in range(stages):
        some = parts.tuned[stage * count // stages : (stage + 1) * count // stages]
        tensors = [tensor for _, block in some for tensor in block.parameters()]
        tensors += parts.loose if not (stage or parts.frozen) else []
        tensors = [one for one in dict.fromkeys(tensors) if id(one) not in grouped]
        grouped |= set(map(id, tensors))
        name = some[0][0] if len(some) == 1 else f"{some[0][0]} to {some[-1][0]}"
        groups.append(Parameters(name, tensors, rate * layer_decay ** (stages - stage)))
    return [*groups, Parameters(parts.head[0], list(parts.head[1].parameters()))]


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
