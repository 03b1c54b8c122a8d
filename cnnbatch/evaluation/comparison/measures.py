"""How each kind of answer is compared, by its name.

Of several that both outputs have the first counts, unless the options name another.
"""

from __future__ import annotations

from cnnbatch.config.entries import Entries
from cnnbatch.evaluation.comparison.labels import LabelMeasure
from cnnbatch.evaluation.comparison.maps import MapMeasure
from cnnbatch.evaluation.comparison.measure import Measure
from cnnbatch.evaluation.comparison.objects import BoxMeasure, ObjectMeasure

MEASURES: Entries[type[Measure]] = Entries(
    "comparison",
    {"objects": ObjectMeasure, "label": LabelMeasure, "map": MapMeasure, "boxes": BoxMeasure},
    Measure,
)
