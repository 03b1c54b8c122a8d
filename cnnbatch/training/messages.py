"""What the workers of a training are given, and the messages that they send to the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnbatch.config.train import Strategy
from cnnbatch.job import TrainJob
from cnnbatch.output.folder import Output
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.training.data.splits import Parts


@dataclass(frozen=True, slots=True)
class Decision:
    """How much of the network is tuned, by what was measured: ``figures``, and in words ``why``."""

    strategy: Strategy
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)
    strong: bool = False
    """Whether pictures are changed more than the job's defaults have it."""
    features: str | None = None
    """The block that the new head reads; None for the last."""
    depths: Sequence[Mapping[str, Any]] = ()
    """How good features at several depths are: ``block``, ``probe`` and ``evidence`` of each."""


@dataclass(frozen=True)
class TrainingOrder:
    """A training, all settled: the same for each of its workers."""

    job: TrainJob
    output: Output
    parts: Parts
    data: TrainingData
    decision: Decision
    epochs: int
    digest: str


@dataclass(frozen=True, slots=True)
class TrainingMessage:
    """What the first worker sends to the driver while it trains; ``kind`` is step, epoch, device or end.

    Of an ``end`` the row holds ``broken``, the words for a training that can't go on, where that is so.
    """

    kind: str
    row: Mapping[str, Any]


Send = Callable[[TrainingMessage], object]
"""How the first worker sends a message to the driver; must not wait."""


@dataclass(frozen=True, slots=True)
class Position:
    """The next step to take, of the epoch that it is in; both count from 0."""

    epoch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """Return it as text that sorts as positions do."""
        return f"{self.epoch:06}-{self.step:09}"
