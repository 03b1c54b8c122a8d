"""What several metrics have in common: adding partials up, dividing sums, giving a number its interval."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import percentiles

Partial = TypeVar("Partial")


def added(one: Partial, other: Partial) -> Partial:
    """Return the sum of two partials of one dataclass, field by field."""
    names = [field.name for field in fields(one)]  # type: ignore[arg-type]
    return type(one)(**{name: getattr(one, name) + getattr(other, name) for name in names})


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``part / whole``, NaN where that is 0 / 0."""
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return found


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last dimension of those that are numbers, NaN where there are none."""
    return ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


def weighted(weights: NDArray[np.uint8], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of images' counts (N, ...), each as often as its ``weights`` (N, R) say, (R, ...).

    It counts in float64, which is exact and much faster, since sums of pixels are far below 2 ** 53.
    """
    sums = weights.T.astype(np.float64) @ counts.reshape(len(counts), int(np.prod(counts.shape[1:])))
    whole: NDArray[np.int64] = sums.astype(np.int64).reshape(weights.shape[1], *counts.shape[1:])
    return whole


def bootstrapped(numbers: NDArray[np.float64], count: int) -> Value:
    """Return the first of ``numbers`` (1 + R,), with the percentiles of the others, its replicates."""
    low, high = percentiles(numbers[1:])
    return Value(float(numbers[0]), low, high, count, replicates=numbers[1:])
