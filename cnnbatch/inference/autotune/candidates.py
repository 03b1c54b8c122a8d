"""Which ways through a network are worth a try on a kind of device, in which order, and at what cost.

Pure: what a device can do is given. A trial costs its loading and one pass over the sample; it is made
only while the budget, a part of the time that the job would take without, has room for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cnnbatch.types import Backend, Decoder, Precision

SHARE = 0.25
"""Part of a job's estimated time that may be spent on measuring how to run it."""
MOST_S = 600.0
LOADING_S: Mapping[Backend, float] = {"eager": 2.0, "openvino": 5.0, "compile": 60.0}
"""What it takes to load a network and make it ready, as measured for networks of usual size."""
PROMISE: Mapping[Precision, float] = {"fp32": 1.0, "bf16": 2.0, "fp16": 2.0}
"""How much faster a precision is about, for estimating what a pass will take."""
PRIOR_FEW = 30
"""The least number of images on which the guard judges the prior's way: of so few none may differ."""
PRIOR_SAMPLE = 32
WORTH = 1.03
"""How much faster a way has to be than a plainer one, to be chosen."""

Verdict = Literal["chosen", "slower", "other results", "not available", "not tried", "reference"]


@dataclass(frozen=True, slots=True)
class TuningCandidate:
    """A way through a network."""

    precision: Precision
    backend: Backend
    tf32: bool = False


@dataclass(frozen=True, slots=True)
class TuningTrial:
    """What came of a candidate: ``rate`` in inputs a second of one worker, where it was measured.

    ``agreement`` is what the guard measured against eager fp32, by name, and ``limits`` what it had to be;
    ``loading_s`` is what it took to make it ready.
    """

    precision: Precision
    backend: Backend
    batch: int
    tf32: bool
    verdict: Verdict
    reason: str = ""
    rate: float | None = None
    loading_s: float | None = None
    agreement: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    decoder: Decoder = "cpu"

    def to_json(self) -> dict[str, Any]:
        """Return the trial as JSON values."""
        return asdict(self)


def candidates(
    device: str, bf16: bool, precisions: Collection[Precision], backends: Collection[Backend]
) -> list[TuningCandidate]:
    """Return the ways to try, the most promising precision first, the cheapest to try first in each.

    ``device`` is ``cpu``, ``cuda`` or ``mps``, which computes in bfloat16 or not; only what is in
    ``precisions`` and ``backends`` is allowed. What a device would only emulate is left out.
    """
    able: dict[str, list[Precision]] = {
        "cpu": ["bf16"] if bf16 else [],
        "cuda": ["bf16", "fp16"] if bf16 else ["fp16"],
        "mps": ["fp16"],
    }
    ways: dict[str, list[Backend]] = {
        "cpu": ["eager", "openvino", "compile"],
        "cuda": ["eager", "compile"],
        "mps": ["eager"],
    }
    return [
        TuningCandidate(precision, backend, tf32=device == "cuda" and precision == "fp32")
        for precision in [*able[device], "fp32"]
        for backend in ways[device]
        if precision in precisions and backend in backends
    ]


@dataclass
class Budget:
    """How long measuring may take: a part of what the job would take at the reference's rate.

    ``images`` are those of the job, ``workers`` how many will share them; ``seconds_each`` is what the
    reference takes for one image.
    """

    images: int
    workers: int
    seconds_each: float
    spent_s: float = 0.0
    refused: list[float] = field(default_factory=list)
    """For how many images a worker what was refused would have been done, of each."""

    @property
    def whole_s(self) -> float:
        """The whole budget."""
        return min(SHARE * self.images * self.seconds_each / max(1, self.workers), MOST_S)

    @property
    def enough(self) -> int | None:
        """For how many images a worker more would have been done; None: for none."""
        return math.ceil(min(self.refused)) if self.refused else None

    def reason_against(self, cost_s: float) -> str:
        """Say why something that takes about ``cost_s`` is not done; nothing where there is room."""
        left = max(0.0, self.whole_s - self.spent_s)
        if cost_s <= left:
            return ""
        if self.spent_s + cost_s <= MOST_S:
            self.refused.append((self.spent_s + cost_s) / (SHARE * self.seconds_each))
        why = "the most for any job" if self.whole_s == MOST_S else f"{SHARE:.0%} of what this job takes"
        return f"would take about {cost_s:.0f} s; {left:.0f} s are left of {self.whole_s:.0f} s, {why}"

    def pays(self, cost_s: float, saved_each_s: float) -> bool:
        """Say whether something that takes about ``cost_s`` saves more, at so many seconds an image."""
        if cost_s * max(1, self.workers) <= self.images * saved_each_s:
            return True
        self.refused.append(cost_s / saved_each_s)
        return False


def cost_s(candidate: TuningCandidate, seconds_each: float, images: int) -> float:
    """Return about how long a trial takes, where the reference takes ``seconds_each`` an image."""
    return LOADING_S[candidate.backend] + images * seconds_each / PROMISE[candidate.precision]


def prior(ways: Sequence[TuningCandidate], backend: Backend) -> TuningCandidate | None:
    """Return the one of ``ways`` that is taken where measuring them all would not pay.

    That is the narrowest precision in which the device computes, by the ``backend`` that runs already: of all
    that could be tried it is the likeliest to be faster, and soonest ready. None: eager fp32 it is.
    """
    return next((one for one in ways if one.backend == backend and PROMISE[one.precision] > 1), None)


def decided_already(candidate: TuningCandidate, passed: Sequence[TuningTrial], reference_rate: float) -> str:
    """Say why a candidate need not be tried: a narrower precision by the same backend is faster already.

    Where that one gave other results, by another backend it may have passed and be the slower.
    """
    for trial in passed:
        narrower = PROMISE[trial.precision] > PROMISE[candidate.precision]
        faster = trial.rate is not None and trial.rate > WORTH * reference_rate
        if narrower and faster and trial.backend == candidate.backend:
            return f"{trial.precision} is faster already"
        if (
            trial.precision != candidate.precision
            and PROMISE[trial.precision] == PROMISE[candidate.precision]
        ):
            return f"{trial.precision} gives the same results already"
    return ""


def best(trials: Sequence[TuningTrial]) -> TuningTrial:
    """Return the fastest, or one earlier in the list, where the plainer are, that is nearly as fast."""
    chosen = trials[0]
    for trial in trials[1:]:
        if trial.rate is not None and (chosen.rate is None or trial.rate > WORTH * chosen.rate):
            chosen = trial
    return chosen


@dataclass(frozen=True, slots=True)
class Pace:
    """What a worker's two stages take beside each other, in seconds an image.

    ``ahead_s`` is reading, decoding and preparing by all its threads, ``forward_s`` the network.
    """

    ahead_s: float
    forward_s: float

    @property
    def rate(self) -> float:
        """Images a second of both: the slower one's."""
        return 1 / max(self.ahead_s, self.forward_s)

    def reason_against_device(self) -> str:
        """Say why decoding on the device need not be tried; nothing where the network waits for decoding."""
        if self.ahead_s > self.forward_s:
            return ""
        return (
            f"decoding keeps up: {1 / self.ahead_s:.0f} images a second, the network {1 / self.forward_s:.0f}"
        )

    def reason_for_device(self, device: Pace) -> str:
        """Say how much faster it is with decoding on the device; nothing where it is not clearly so."""
        if device.rate <= WORTH * self.rate:
            return ""
        return f"with decoding on the device {device.rate:.0f} images a second, else {self.rate:.0f}"


def batches(device: str, batch: int) -> Iterator[int]:
    """Yield other numbers of inputs in a forward pass that may be faster, the likeliest first."""
    yield from (2 * batch, 4 * batch) if device == "cuda" else (2 * batch, batch // 2) if batch > 1 else (2,)
