"""How a training reads the ground truth of each kind of answer: which images teach, and what classes."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pyarrow as pa

from cnnbatch.config.entries import Entries, as_instance
from cnnbatch.images import class_map
from cnnbatch.truth import answer_of, classes_of


class TrainingTruth:
    """How the ground truth of one kind of answer is read; on its own, as values without classes."""

    has_classes: ClassVar[bool] = False
    """Whether there are classes to learn, which are counted before the training begins."""
    one_class: ClassVar[bool] = False
    """Whether an image has one class, so that it can't teach or validate where that class is left out."""
    spares: ClassVar[bool] = False
    """Whether a class of which nothing trains is left out of the model, and one of one image may stay."""
    checked: ClassVar[bool] = False
    """Whether an image whose ground truth can't be used stops the training before it begins."""
    at_once: ClassVar[int] = 4096
    """Images whose ground truth is held together while they are listed."""
    files: ClassVar[bool] = False
    """Whether it lies in a file an image, which is kept from one epoch to the next where there is room."""

    def known(self, values: pa.ChunkedArray[Any]) -> list[bool]:
        """Say of each image whether its truth is known, from the truth's column ``values``."""
        valid: Any = values.is_valid()
        return [bool(one) for one in valid.to_pylist()]

    def labels(self, values: pa.ChunkedArray[Any]) -> list[str | None]:
        """Return the class of each image; None where images have no class of their own."""
        return [None] * len(values)

    def objects(self, values: pa.ChunkedArray[Any]) -> Counter[str]:
        """Count the classes of what lies in the images; nothing where images have classes themselves."""
        return Counter()

    def pixels(self, truth: pa.Table) -> tuple[Counter[str], Counter[str]]:
        """Count the pixels of each class, and the images that have some; nothing where it is no map."""
        return Counter(), Counter()

    def numbers(self, schema: pa.Schema) -> dict[str, int]:
        """Return what stands for each class in maps; nothing of other answers."""
        return {}

    def learns(self, trained: int, validated: int) -> bool:
        """Say whether a model has a class of the source that so many images train and validate."""
        return True


class TrainingLabels(TrainingTruth):
    """One class an image."""

    has_classes = True
    one_class = True

    def labels(self, values: pa.ChunkedArray[Any]) -> list[str | None]:
        """Return the labels themselves."""
        found: list[str | None] = values.to_pylist()
        return found


class TrainingGroups(TrainingLabels):
    """One class an image, which says what is alike: others than those that train are told apart later."""

    one_class = False
    spares = True

    def learns(self, trained: int, validated: int) -> bool:
        """Say whether an image of the class trains."""
        return trained > 0


class TrainingObjects(TrainingTruth):
    """Objects with classes; crowds and what is to be ignored do not teach."""

    has_classes = True

    def objects(self, values: pa.ChunkedArray[Any]) -> Counter[str]:
        """Count the labels of the objects that teach."""
        rows: list[Any] = values.to_pylist()
        return Counter(one["label"] for row in rows for one in row or () if _is_learned(one))

    def learns(self, trained: int, validated: int) -> bool:
        """Say whether an object is of the class: a file of COCO's lists categories that none is of."""
        return trained + validated > 0


class TrainingMaps(TrainingTruth):
    """A class for every pixel; what is to be ignored does not teach."""

    has_classes = True
    spares = True
    checked = True
    files = True
    at_once = 256

    def pixels(self, truth: pa.Table) -> tuple[Counter[str], Counter[str]]:
        """Count the pixels of each class, and the images that have some."""
        names = {int(one.id): one.name for one in classes_of(truth.schema)}
        pixels, images = Counter[str](), Counter[str]()
        with ThreadPoolExecutor(os.cpu_count() or 1, "maps") as pool:
            for counts in pool.map(class_map.counts, truth["map"].drop_null().to_pylist()):
                known = {names[number]: count for number, count in counts.items() if number in names}
                pixels.update(known)
                images.update(known.keys())
        return pixels, images

    def numbers(self, schema: pa.Schema) -> dict[str, int]:
        """Return the number of each class."""
        return {one.name: int(one.id) for one in classes_of(schema)}

    def learns(self, trained: int, validated: int) -> bool:
        """Say whether a pixel of the class trains; those of other classes do not count in validation."""
        return trained > 0


KINDS: Entries[TrainingTruth | type[TrainingTruth]] = Entries(
    "training", {"label": TrainingLabels, "objects": TrainingObjects, "map": TrainingMaps}, TrainingTruth
)
"""By kind of answer; of another one the values are left to the task's recipe."""


def truth_kind(schema: pa.Schema) -> tuple[str, TrainingTruth]:
    """Return the kind of answer that a ground truth is of, and how it is read."""
    answer = answer_of(schema)
    return answer, as_instance(KINDS.get(answer, TrainingTruth))


def _is_learned(one: dict[str, Any]) -> bool:
    return one["label"] is not None and not one.get("crowd") and not one.get("ignore")
