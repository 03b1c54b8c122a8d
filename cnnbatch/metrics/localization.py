"""Single-object localisation, as ImageNet's: is the class right, the box, and both in one object?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Metric, Piece, Schemas, Value
from cnnbatch.metrics.intervals import poisson_weights, wilson
from cnnbatch.metrics.objects import iou_xywh
from cnnbatch.metrics.values import added, bootstrapped, ratio
from cnnbatch.truth import BOX, answer_of
from cnnbatch.types import Map

NO_TRUTH = "there is no ground truth"
NO_OBJECT = "the ground truth has no object with a box"
NO_IMAGE = "no image has ground truth with a box"
NO_PREDICTION = "no image has both a prediction and ground truth with a box"
ENOUGH = 0.5
"""The least IoU at which a box is right."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalizationPartial:
    """What some images contribute, for R replicates of the bootstrap, the images as they are first.

    ``right`` is int64 (3, 1 + R): of how many ``images``, int64 (1 + R,), an object is right, the label,
    the box. ``iou`` float64 and ``predicted`` int64 (1 + R,) are the sum of the best IoU and the number of
    those that did not fail. ``excluded`` images, by their reason, are not among ``images``.
    """

    right: NDArray[np.int64]
    images: NDArray[np.int64]
    iou: NDArray[np.float64]
    predicted: NDArray[np.int64]
    excluded: Counter[str]


def partial(predictions: pa.Table, truth: pa.Table) -> LocalizationPartial:
    """Judge some images by the objects of their truth, in the same order.

    ``predictions`` has ``key``, ``error``, ``label`` and ``box`` (`cnnbatch.truth.BOX`), ``truth`` has
    ``objects`` (`cnnbatch.truth.OBJECTS`). Boxes are float64 pixels, x2 - x1 wide. An image whose objects
    are null, or none of which has a box, is excluded. A prediction without an error but without a box, or
    with one that is no number, has an IoU of 0.

    Raises:
        ValueError: the tables differ in length.
    """
    if predictions.num_rows != truth.num_rows:
        raise ValueError(f"{predictions.num_rows} predictions, but the truth of {truth.num_rows} images")
    lists = _whole(truth["objects"])
    unknown = lists.is_null().to_numpy(zero_copy_only=False)
    judged = _judge(_whole(predictions["label"]), _boxes(_whole(predictions["box"])), lists)
    predicted = _whole(predictions["error"]).is_null().to_numpy(zero_copy_only=False)
    counted = judged.known
    keys = _whole(predictions["key"]).filter(pa.array(counted)).to_pylist()
    weights = np.insert(poisson_weights(keys).astype(np.int64), 0, 1, axis=1)  # [counted, 1 + R]
    right = np.stack((judged.localized, judged.labelled, judged.best >= ENOUGH)) & predicted
    return LocalizationPartial(
        right=right[:, counted].astype(np.int64) @ weights,
        images=weights.sum(axis=0),
        iou=(judged.best * predicted)[counted] @ weights,
        predicted=predicted[counted].astype(np.int64) @ weights,
        excluded=+Counter({NO_TRUTH: int(unknown.sum()), NO_OBJECT: int((~unknown & ~counted).sum())}),
    )


def merge(partials: Iterable[LocalizationPartial]) -> LocalizationPartial:
    """Add up one or more partials, each as it comes."""
    return reduce(added, partials)


def result(merged: LocalizationPartial) -> Evaluated:
    """Return the shares of images that are right, the mean IoU, and the table ``outcomes``.

    ``localization_accuracy``: the label is that of an object with whose box the IoU is at least 0.5;
    ``top1``: the label is that of an object; ``box_accuracy``: the IoU with any object's box is at least
    0.5. A failed image is a miss; these intervals are Wilson's. ``mean_IoU`` is that with the best box of
    any class, without failed images.

    1 - ``localization_accuracy`` is the localisation error of one guess in Russakovsky et al.: ImageNet
    large scale visual recognition challenge (2015), section 4.2; its development kit, though, adds a pixel
    to the width and height of boxes.
    """
    names = ("localization_accuracy", "top1", "box_accuracy")
    metrics = {name: _share(right, merged.images) for name, right in zip(names, merged.right, strict=True)}
    return Evaluated({**metrics, "mean_IoU": _mean(merged)}, {"outcomes": _outcomes(merged)})


class LocalizationMetric(Metric):
    """One label and one box an image, judged by objects."""

    answer = "objects"

    def applies(self, schemas: Schemas) -> bool:
        """Say whether there is one box an image, and objects to compare it with."""
        return answer_of(schemas.truth) == self.answer and {"label", "box"} <= set(schemas.predictions.names)

    def columns(self, predictions: pa.Schema) -> list[str]:
        """Return the two columns."""
        return ["label", "box"]

    def partial(self, piece: Piece) -> LocalizationPartial:
        """Judge some images."""
        return partial(piece.predictions, piece.truth)

    def merge(self, partials: Sequence[LocalizationPartial]) -> LocalizationPartial:
        """Add up partials."""
        return merge(partials)

    def result(self, merged: LocalizationPartial, apply: Map) -> Evaluated:
        """Return the numbers of all images."""
        return result(merged)

    def notes(self, partial: LocalizationPartial) -> Counter[str]:
        """Return how many images were left out, by reason."""
        return partial.excluded


class _Judged(NamedTuple):
    """Of each image, (N,): is there an object with a box, one with the label, one with both; the best IoU."""

    known: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    localized: NDArray[np.bool_]
    best: NDArray[np.float64]


def _judge(labels: Any, boxes: NDArray[np.float64], lists: Any) -> _Judged:
    """Compare each image's label and box with all its objects."""
    objects, images = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
    of_objects = _boxes(pc.struct_field(objects, "box"))
    alike = pc.equal(labels.take(pa.array(images)), pc.struct_field(objects, "label"))
    same = pc.fill_null(alike, False).to_numpy(zero_copy_only=False)
    overlap = iou_xywh(boxes[images], of_objects)
    known, labelled, localized = (
        np.bincount(images[flags], minlength=len(lists)) > 0
        for flags in (~np.isnan(of_objects).any(axis=1), same, same & (overlap >= ENOUGH))
    )
    best = np.zeros(len(lists))
    np.maximum.at(best, images, overlap)
    return _Judged(known, labelled, localized, best)


def _whole(column: pa.ChunkedArray[Any]) -> Any:
    return column.combine_chunks()


def _boxes(struct: Any) -> NDArray[np.float64]:
    """Return boxes as x1, y1, width, height, float64 (n, 4); NaN what is null or infinite."""
    sides = [pc.struct_field(struct, side.name).cast(pa.float64()) for side in BOX]
    corners = np.stack([pc.fill_null(side, np.nan).to_numpy() for side in sides], axis=1)
    corners[~np.isfinite(corners)] = np.nan
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _share(right: NDArray[np.int64], images: NDArray[np.int64]) -> Value:
    count, shares = int(images[0]), ratio(right, images)
    if not count:
        return Value(None, reason=NO_IMAGE)
    low, high = wilson(int(right[0]), count)
    return Value(float(shares[0]), low, high, count, replicates=shares[1:])


def _mean(merged: LocalizationPartial) -> Value:
    count, means = int(merged.predicted[0]), ratio(merged.iou, merged.predicted)
    if not count:
        return Value(None, reason=NO_PREDICTION)
    return bootstrapped(means, count)


def _outcomes(merged: LocalizationPartial) -> pa.Table:
    images, predicted = int(merged.images[0]), int(merged.predicted[0])
    counts = {"predicted": predicted, "failed": images - predicted, **dict(sorted(merged.excluded.items()))}
    return pa.table({"outcome": list(counts), "images": pa.array(counts.values(), pa.int64())})
