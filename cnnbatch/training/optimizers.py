"""Optimisers over a recipe's parameters; torch's own but for Muon on convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnbatch.config.train import Train
from cnnbatch.tasks.recipes.recipe import Parameters

RATES = {"sgd": 0.02, "adadelta": 1.0, "adamw": 2e-3, "muon": 0.02}
"""The highest learning rate where the job does not say."""
SCRATCH = {"sgd": 5.0, "adadelta": 1.0, "adamw": 1.0, "muon": 1.0}
"""How much higher it is for a network without trained weights."""
ALL = 0.5
"""How much lower it is where all of a trained network is tuned: early layers lose what they know at more."""

FEATURES = 5.0
"""How much higher it is for a head on earlier features: they are fewer than the last, so that a step of each
weight changes the logits less (Yang et al. 2021, "Tensor programs V", table 3: an output layer's rate falls
with its inputs)."""


def learning_rate(spec: Train) -> float:
    """Return the highest learning rate: the job's, else what suits the optimiser and the strategy."""
    if spec.learning_rate != "auto":
        return spec.learning_rate
    if spec.features is not None:
        return RATES[spec.optimizer] * FEATURES
    factors = {"scratch": SCRATCH[spec.optimizer], "all": ALL}
    return RATES[spec.optimizer] * factors.get(spec.strategy, 1.0)


def optimizer(groups: Sequence[Parameters], spec: Train, rate: float) -> torch.optim.Optimizer:
    """Return the optimiser; each of its groups keeps its ``scale`` of the learning rate.

    Weights decay, what has fewer than two dimensions (biases, normalisations) never does.
    """
    sections = [
        {
            "params": tensors,
            "scale": group.scale,
            "lr": rate * group.scale,
            "weight_decay": spec.weight_decay if decays else 0.0,
        }
        for group in groups
        for decays, tensors in _by_kind(group)
        if tensors
    ]
    # In one pass over each tensor; every worker takes the whole step.
    fused = all(tensor.device.type in ("cpu", "cuda") for group in groups for tensor in group.tensors)
    if spec.optimizer == "sgd":
        nesterov = spec.nesterov and spec.momentum > 0
        return torch.optim.SGD(sections, lr=rate, momentum=spec.momentum, nesterov=nesterov, fused=fused)
    if spec.optimizer == "adadelta":
        return torch.optim.Adadelta(sections, lr=rate)
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(sections, lr=rate, fused=fused)
    return Muon(sections, lr=rate, momentum=spec.momentum, nesterov=spec.nesterov)


def _by_kind(group: Parameters) -> list[tuple[bool, list[torch.nn.Parameter]]]:
    wide = [tensor for tensor in group.tensors if tensor.ndim > 1]
    flat = [tensor for tensor in group.tensors if tensor.ndim <= 1]
    return [(group.decay, wide), (False, flat)]


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal for weights of two dimensions and more; the rest by AdamW.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Convolutions are taken as
    matrices (out, in * height * width). A step is scaled by sqrt(max(1, rows / columns)), as there.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95, nesterov: bool = True
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not supported."""
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._move(tensor, group)

    def _move(self, tensor: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[tensor], tensor.grad
        assert gradient is not None
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        if tensor.ndim < 2:
            tensor.sub_(_adam(state, gradient), alpha=group["lr"] * ADAM_SCALE)
            return
        momentum = state.setdefault("momentum", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        matrix = orthogonal(direction.flatten(1))
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        tensor.sub_(matrix.view_as(tensor), alpha=group["lr"] * scale)


ADAM_SCALE = 0.1
"""The learning rate of AdamW's part, as a part of Muon's."""


def _adam(state: dict[str, Any], gradient: Tensor) -> Tensor:
    """Return the direction of Adam (Kingma and Ba 2015, algorithm 1), decays 0.9 and 0.999."""
    step = state["step"] = state.get("step", 0) + 1
    mean = state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 0.1)
    square = state.setdefault("square", torch.zeros_like(gradient)).lerp_(gradient.square(), 0.001)
    found: Tensor = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return found


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest matrix with singular values near 1, by a quintic Newton-Schulz iteration.

    The coefficients are those of Jordan et al. 2024; singular values end between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = found @ found.T
        found = a * found + (b * square + c * square @ square) @ found
    nearest: Tensor = found.T if matrix.shape[0] > matrix.shape[1] else found
    return nearest
