"""What an evaluation leaves out, or counts in a way that one may not expect: each kind with its number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.metrics.objects import Labels, flatten
from cnnbatch.truth import ModelClasses

NO_TRUTH = "images without truth"
OTHER_SIZE = "images whose truth was made for another size"
UNKNOWN = "images of a class that the model does not know, which count as mistakes"
NO_AREA = "truths of no area, which count as missed"
OUTSIDE = "truths that reach beyond their image, which count as they are"

_NEAR = 1.0  # Pixels that a box may reach beyond its image: they are rounded in many ways.


def without_truth(truth: pa.Table) -> Counter[str]:
    """Count images that can't be judged, by what their rows of the truth say."""
    problem = truth["problem"].is_valid().to_numpy() if "problem" in truth.schema.names else np.zeros(0)
    other = int(problem.sum())
    return Counter({OTHER_SIZE: other, NO_TRUTH: truth.num_rows - other}) + Counter()


def oddities(predictions: pa.Table, truth: pa.Table, classes: ModelClasses | None) -> Counter[str]:
    """Count what is odd in the truth of images that are judged; ``predictions`` have their sizes."""
    if "objects" not in truth.schema.names:
        return Counter({UNKNOWN: _unknown(truth["label"], classes)}) + Counter()
    objects = flatten(truth["objects"], Labels())
    boxes = objects.boxes_xywh
    ends = np.stack([_side(predictions, name)[objects.image] for name in ("width", "height")], axis=1)
    outside = (boxes[:, :2] < -_NEAR) | (boxes[:, :2] + boxes[:, 2:] > ends + _NEAR)
    counts = {NO_AREA: (boxes[:, 2:] <= 0).any(axis=1), OUTSIDE: outside.any(axis=1)}
    return Counter({reason: int(flags.sum()) for reason, flags in counts.items()}) + Counter()


def unknown_labels(truth: pa.Table, classes: ModelClasses | None) -> list[str]:
    """Return the labels of images that the model does not know, each once."""
    if classes is None or "objects" in truth.schema.names:
        return []
    known = set(classes.names)
    return [str(label) for label in truth["label"].unique().drop_null().to_pylist() if label not in known]


def _unknown(labels: pa.ChunkedArray[Any], classes: ModelClasses | None) -> int:
    if classes is None:
        return 0
    known: Any = pc.is_in(labels, pa.array(classes.names, pa.string()))
    return int((~known.to_numpy()).sum())


def _side(predictions: pa.Table, name: str) -> NDArray[np.float64]:
    """Return the images' widths or heights; of one that could not be read, none is exceeded."""
    side: Any = predictions[name].cast(pa.float64())
    side = pc.fill_null(side, np.inf)
    values: NDArray[np.float64] = side.to_numpy()
    return values
