"""How good predictions are: one pure file a metric, ``partial(...)``, ``merge(...)``, ``result(...)``.

A partial comes from any piece of the images, merging is associative, and any split gives what one
piece gives: counts exactly, sums of floats to their rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LESS_IS_BETTER = ("log_loss", "ECE", "EER", "FNIR@")
"""How the names of those numbers begin that fall as predictions get better."""


@dataclass(frozen=True, slots=True)
class Value:
    """One number: its 95 % interval from ``low`` to ``high``, and the ``count`` that it stands on.

    ``value`` is None where there is no such number; ``reason`` then says why. ``low`` and ``high`` are
    None where no interval is known. ``replicates`` are the bootstrap's values, float64 (R,): those of two
    outputs over the same images are paired, since an image's weights follow from its key.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    reason: str | None = None
    replicates: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a metric gives: headline numbers, in the order to show them, and tables by name."""

    metrics: Mapping[str, Value]
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
