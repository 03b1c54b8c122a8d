"""What a comparison finds, as one value: the page, the words on the terminal and the JSON are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cnnbatch.evaluation.comparison.differences import ImageChanges, MetricDifference
from cnnbatch.evaluation.comparison.gates import broken
from cnnbatch.evaluation.comparison.measure import ClassShift, LabelChange, Measure
from cnnbatch.evaluation.comparison.options import CompareOptions
from cnnbatch.evaluation.comparison.pairing import Side
from cnnbatch.metrics import Value


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between the outputs ``a`` and ``b``.

    ``images`` are those of both, ``only_a`` and ``only_b`` the others; ``failed_a`` counts by code what
    failed in A alone. ``measure`` is how they were compared, ``counts`` what the ``agreement`` stands on.
    ``metrics`` and ``changes`` are None without a truth in both. ``disagreements`` are the images to look at,
    in order.
    """

    a: Side
    b: Side
    options: CompareOptions
    measure: Measure
    images: int
    only_a: int
    only_b: int
    failed_a: Counter[str]
    failed_b: Counter[str]
    failed_in_both: int
    agreement: Value
    counts: Mapping[str, int]
    classes: Sequence[ClassShift]
    label_changes: Sequence[LabelChange]
    metrics: Mapping[str, MetricDifference] | None
    changes: ImageChanges | None
    disagreements: pa.Table
    notes: Sequence[str]

    def broken(self) -> list[str]:
        """Return a sentence for each gate that is not reached.

        Raises UserError for one of an unknown metric, or of one without a value.
        """
        return list(broken(self.options.gates, self.agreement, self.metrics))
