"""The learning rate over the steps, as a factor of the highest: pure functions of the step."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

Schedule = Literal["one_cycle", "cosine", "poly", "step", "constant"]

FIRST = 1 / 25
"""Where one-cycle begins (Smith and Topin 2018, as torch's OneCycleLR has it)."""
LAST = FIRST / 1e4
"""Where it ends."""
POWER = 0.9
"""Of ``poly``."""
DROPS = (0.5, 0.75, 0.9)
"""Parts of the steps after which ``step`` goes down to a tenth (He et al. 2015, section 4.2, has two)."""


def factor(schedule: Schedule, step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step, as a part of the highest.

    Steps count from 0; the first ``warmup`` of them rise. ``cosine``: Loshchilov and Hutter 2017, equation 5;
    ``poly``: Chen et al. 2017, "DeepLab", section 4.3.
    """
    last = max(steps - 1, 1)
    risen = warmup * steps - 1
    if schedule == "one_cycle":
        if step <= risen:
            return _between(FIRST, 1.0, step / risen if risen else 1.0)
        return _between(1.0, LAST, (step - risen) / max(last - risen, 1e-9) if risen > 0 else step / last)
    if step < risen:
        return (step + 1) / (risen + 1)
    part = (step - max(risen, 0)) / max(steps - max(risen, 0), 1)
    if schedule == "cosine":
        return _between(1.0, 0.0, part)
    if schedule == "poly":
        return float((1 - part) ** POWER)
    if schedule == "step":
        return float(0.1 ** sum(step >= drop * steps for drop in DROPS))
    return 1.0


def _between(start: float, end: float, part: float) -> float:
    """Return the value at ``part`` of a half cosine from ``start`` to ``end``."""
    return end + (start - end) / 2 * (1 + cos(pi * part))
