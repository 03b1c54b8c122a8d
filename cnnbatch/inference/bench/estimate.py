"""What a run costs, by arithmetic on what was counted and measured: pure functions, tried by hand.

The time is a bound, not a forecast: the rate at which the machine's slowest part could go on without a
pause, as `cnnbatch bench` measures it. Runs come to some nine tenths of it, start-up apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat

from cnnbatch.inference.bench.listing import ListingCount
from cnnbatch.inference.bench.machine import Machine
from cnnbatch.output import plan
from cnnbatch.output.plan import SmallEnds
from cnnbatch.types import ImageRef

LISTED_AT_ONCE = 1000  # objects in one answer of a store to a listing


@dataclass(frozen=True, slots=True)
class Measured:
    """What the sample showed: how many ``images`` were tried, and ``failed``.

    ``seconds`` are those an image takes by stage: of a processor, but ``read`` and, on an accelerator,
    ``forward``; none where no image could be predicted. ``reading`` is the processor's part of ``read``.
    ``mean_bytes`` is of the images that could be read.
    """

    images: int
    failed: int
    mean_bytes: float
    seconds: Mapping[str, float]
    memory_bytes: int
    reading: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run costs; ``at_least`` where the listing went on after the time that was allowed.

    ``requests`` are counts by purpose, ``rates`` the most images a second by what bounds them, with what
    of the ``machine`` has work.
    """

    images: int
    at_least: bool
    read_bytes: float
    requests: Mapping[str, int]
    parts: int
    machine: Machine
    rates: Mapping[str, float]
    memory_bytes: int

    @property
    def slowest(self) -> str | None:
        """What bounds the speed; None where the sample doesn't tell."""
        return min(self.rates, key=lambda name: self.rates[name], default=None)

    @property
    def seconds(self) -> float | None:
        """The least time, without start-up; None where the sample doesn't tell."""
        return self.images / self.rates[self.slowest] if self.slowest else None

    def money(self, price_per_hour: float) -> float | None:
        """Return what the time costs."""
        return None if self.seconds is None else self.seconds / 3600 * price_per_hour


def estimate(
    counted: ListingCount, measured: Measured, machine: Machine, size: int | SmallEnds, has_truth: bool
) -> Estimate:
    """Return what a run costs on ``machine`` in shards of ``size``."""
    parts, pages = plan_size(counted.images, size)
    requests = {
        "list": math.ceil(counted.objects / LISTED_AT_ONCE),
        "read": counted.images,
        "parts": parts,
        "truth": parts if has_truth else 0,
        "plan": 2 * pages,
    }
    many = max(counted.objects, counted.images) > LISTED_AT_ONCE  # a single answer says little of their pace
    listing_s = counted.seconds / counted.images if many and counted.images else 0
    return Estimate(
        images=counted.images,
        at_least=not counted.complete,
        read_bytes=counted.sized_bytes + (counted.images - counted.sized) * measured.mean_bytes,
        requests=requests,
        parts=parts,
        machine=machine.busy(parts),
        rates=rates(measured.seconds, machine.busy(parts), listing_s, measured.reading),
        memory_bytes=measured.memory_bytes,
    )


def plan_size(images: int, size: int | SmallEnds) -> tuple[int, int]:
    """Return how many parts and plan pages so many images make."""
    refs = repeat(ImageRef("", ""), images)
    parts = pages = 0
    for page in plan.pages(plan.shards(refs, size)):
        parts += len(page)
        pages += 1
    return parts, pages


def rates(
    seconds: Mapping[str, float], machine: Machine, listing_s: float = 0.0, reading: float = 0.0
) -> dict[str, float]:
    """Return the most images a second by what bounds them, from the seconds an image takes by stage.

    On a CPU the stages share the cores, of which reading takes ``reading`` seconds; with accelerators each
    has its own threads, or the device.
    """
    if not seconds:
        return {}
    if machine.devices:
        costs = {
            "decoding": (seconds["decode"] + seconds["prepare"]) / machine.cores,
            "the network": seconds["forward"] / machine.devices,
            "rows": seconds["rows"] / machine.workers,
            "writing": seconds["write"] / machine.workers,
        }
    else:
        costs = {"the processor": (sum(seconds.values()) - seconds["read"] + reading) / machine.cores}
    costs |= {"reading": seconds["read"] / machine.readers, "listing": listing_s}
    return {name: 1 / cost for name, cost in costs.items() if cost > 0}
