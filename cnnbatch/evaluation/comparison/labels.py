"""One label an image, compared: the share that is equal, with Wilson's interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.measure import ImageScore, Measure, floats


@dataclass(frozen=True, slots=True)
class Rightness(ImageScore):
    """Images that are just right or wrong: they are listed by their labels, those of high scores first."""

    @property
    def lead(self) -> str:
        """The sentence over the list of images that changed."""
        return "Right in only one of them, the highest scores first."

    def listed(
        self, a: pa.RecordBatch, b: pa.RecordBatch, was: NDArray[np.float64], now: NDArray[np.float64]
    ) -> dict[str, Any]:
        """Return the true label and both outputs' labels; ``weight`` is the sum of both scores."""
        weight = np.nan_to_num(floats(a["score"])) + np.nan_to_num(floats(b["score"]))
        return {"truth": a["label"], "a": a["predicted"], "b": b["predicted"], "weight": weight}

    def sentence(self, better: str, worse: str, same: str) -> str:
        """Return how many images changed, from these numbers as words."""
        return f"{better} images are right only in B, {worse} only in A; {same} are both right or both wrong"


class LabelMeasure(Measure):
    """One label an image: the share that is equal, with Wilson's interval.

    What weighs most are two different labels of high scores: ``weight`` is the lower of the two.
    """

    columns = {"label": pa.string(), "score": pa.float32()}
    shares = {"top1": "right", "top5": "right_in_5"}
    image_scores = (Rightness("right", "label", more=("predicted", "score")),)

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        """Count images; see `Measure`."""
        first, second = (self.labels.numbers(batch["label"]) for batch in (a, b))
        scores = [floats(batch["score"]) for batch in (a, b)]
        for counts, numbers, score in zip(self.classes, (first, second), scores, strict=True):
            counts.add(numbers[numbers >= 0], score[numbers >= 0])
        differs = first != second
        changed = differs & (first >= 0) & (second >= 0)
        self.count_changes(first[changed], second[changed])
        self.count_images(differs, failed)
        weight = np.nan_to_num(np.minimum(*scores))
        said = {
            f"{name}_{side}": batch[name] for side, batch in (("a", a), ("b", b)) for name in self.columns
        }
        return pa.table({"differs": pa.array(differs), "weight": pa.array(weight), **said})

    def sentence(self) -> str:
        """Return what the agreement stands on, in words."""
        return f"{self.alike:,} of {self.images:,} labels are equal"
