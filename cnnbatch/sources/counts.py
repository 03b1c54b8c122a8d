"""Counts of a collection in bounded memory: spreads of numbers, named images, and what the ground truth says.

Numbers are counted one by one only while few of them differ, to three digits from then on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import pyarrow as pa

from cnnbatch.images import class_map
from cnnbatch.truth import answer_of, classes_of

MOST_DISTINCT = 1 << 16
EXAMPLES = 5
MOST_DRAWN = 60
SMALL, MEDIUM = 32**2, 96**2
"""COCO's bounds between small, medium and large objects, in square pixels."""

Row = Mapping[str, Any]


@dataclass
class Spread:
    """How often each number came.

    Once `MOST_DISTINCT` differ, new ones are rounded to three digits, and ``exact`` is False.
    """

    counts: Counter[float] = field(default_factory=Counter)
    count: int = 0
    total: float = 0
    least: float = math.inf
    most: float = -math.inf
    exact: bool = True

    def add(self, value: float) -> None:
        """Count one number, 0 or above."""
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        if value not in self.counts and len(self.counts) >= MOST_DISTINCT:
            value, self.exact = float(f"{value:.3g}"), False
        self.counts[value] += 1

    @property
    def mean(self) -> float:
        """The mean, 0 of nothing."""
        return self.total / self.count if self.count else 0.0

    @property
    def median(self) -> float:
        """The middle number, or the mean of the two in the middle; 0 of nothing."""
        values = sorted(self.counts)
        ends = list(accumulate(self.counts[value] for value in values))
        middle = [
            next((value for value, end in zip(values, ends, strict=True) if end > place), 0.0)
            for place in ((self.count - 1) // 2, self.count // 2)
        ]
        return sum(middle) / 2

    def edges(self, bins: int) -> list[float]:
        """Return the edges of ``bins`` bins in equal ratios, from the least number, or 1, to the most."""
        low, high = self._ends()
        return [low * (high / low) ** (n / bins) for n in range(bins + 1)]

    def histogram(self, bins: int) -> list[int]:
        """Return how many numbers lie in each of the bins of `edges`; what is below is in the first."""
        low, high = self._ends()
        width = math.log(high / low) / bins or 1.0
        counts = [0] * bins
        for value, count in self.counts.items():
            counts[min(int(math.log(max(value, low) / low) / width), bins - 1)] += count
        return counts

    def _ends(self) -> tuple[float, float]:
        return max(self.least, 1.0), max(self.most, 1.0)


@dataclass
class Named:
    """How many images, and the first few of them: their keys with what there is to say of each."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, words: str = "") -> None:
        """Count one image."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append((key, words))


@dataclass
class ClassCount:
    """How many images have a class, and how many objects, or pixels of maps, are of it.

    ``shares`` is the sum of its shares of the pixels that count, over all images.
    """

    images: int = 0
    objects: int = 0
    pixels: int = 0
    shares: float = 0.0


@dataclass
class TruthCounts:
    """What the ground truth says: ``known`` are the classes that the source lists, ``classes`` those found.

    ``kind`` is its kind of answer. ``an_image`` spreads objects an image, of images with truth; ``sides`` the
    square roots of objects' areas in pixels, as the truth states them (COCO's are those of masks), else of
    their boxes. ``misfits`` are images whose ground truth can't be used, as one of another size: it counts
    nowhere; ``remarks`` are of others, some of whose truth is left out. ``maps`` counts the images
    with a class for every pixel, in which ``numbers`` stand for the classes; pixels of other numbers are
    ``uncounted``.
    """

    kind: str
    known: tuple[str, ...] = ()
    classes: dict[str, ClassCount] = field(default_factory=dict)
    an_image: Spread = field(default_factory=Spread)
    sides: Spread = field(default_factory=Spread)
    scales: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    empty: Named = field(default_factory=Named)
    absent: Named = field(default_factory=Named)
    misfits: Named = field(default_factory=Named)
    remarks: Named = field(default_factory=Named)
    numbers: Mapping[int, str] = field(default_factory=dict)
    maps: int = 0
    pixels: int = 0
    uncounted: int = 0

    @classmethod
    def of(cls, schema: pa.Schema) -> TruthCounts:
        """Return the counts of a truth of these columns, of which nothing was counted yet."""
        kind, classes = answer_of(schema), classes_of(schema)
        numbers = {int(one.id): one.name for one in classes} if kind == "map" else {}
        names = tuple(
            one.name for one in classes if one.name != str(one.id)
        )  # Of some, numbers are the names.
        return cls(kind, names, numbers=numbers)

    @property
    def objects(self) -> int:
        """How many objects there are."""
        return int(self.an_image.total)

    @property
    def has_classes(self) -> bool:
        """Whether its kind of answer has classes."""
        return self.kind in COUNTED

    @property
    def counted(self) -> CountedAnswer:
        """What is counted of its kind of answer."""
        return COUNTED.get(self.kind, _NOTHING)

    def add(self, key: str, row: Row) -> None:
        """Count the truth of one image, a row as `cnnbatch.truth` has it."""
        answer, problem = row[self.kind], row.get("problem")
        if answer is None:
            (self.misfits if problem else self.absent).add(key, problem or "")
            return
        if problem:
            self.remarks.add(key, problem)
        self.counted.count(self, key, answer)

    def add_objects(self, key: str, objects: Sequence[Row]) -> None:
        """Count the objects of one image."""
        self.an_image.add(len(objects))
        if not objects:
            self.empty.add(key)
        for name in {str(one["label"]) for one in objects}:
            self.of_class(name).images += 1
        for one in objects:
            self.of_class(str(one["label"])).objects += 1
            self.marks.update(mark for mark in ("crowd", "difficult", "ignore") if one.get(mark))
            self._add_area(area(one))

    def add_map(self, data: bytes) -> None:
        """Count the pixels of one image's map."""
        self.maps += 1
        counts = class_map.counts(data)
        known = {name: count for number, count in counts.items() if (name := self.numbers.get(number))}
        total = sum(known.values())
        self.pixels += total
        self.uncounted += sum(counts.values()) - total
        for name, count in known.items():
            one = self.of_class(name)
            one.images, one.pixels, one.shares = (
                one.images + 1,
                one.pixels + count,
                one.shares + count / total,
            )

    def of_class(self, name: str) -> ClassCount:
        """Return the count of a class."""
        return self.classes.setdefault(name, ClassCount())

    def _add_area(self, pixels: float | None) -> None:
        if pixels is not None:
            self.scales["small" if pixels < SMALL else "medium" if pixels < MEDIUM else "large"] += 1
            self.sides.add(math.sqrt(max(pixels, 0.0)))


class CountedAnswer:
    """What is counted of one kind of answer; of one that is not known here, only that there is none."""

    def count(self, counts: TruthCounts, key: str, answer: Any) -> None:
        """Count what is true of one image."""

    def classes(self, answer: Any) -> Sequence[str]:
        """Return the classes of which an image may be shown."""
        return ()

    def shown(self, answer: Any) -> Any:
        """Return what its picture shows."""
        return answer


class _Label(CountedAnswer):
    def count(self, counts: TruthCounts, key: str, answer: Any) -> None:
        counts.of_class(answer).images += 1

    def classes(self, answer: Any) -> Sequence[str]:
        return [answer]


class _Objects(CountedAnswer):
    """Objects: those with a box are drawn, the first `MOST_DRAWN`."""

    def count(self, counts: TruthCounts, key: str, answer: Any) -> None:
        counts.add_objects(key, answer)

    def classes(self, answer: Any) -> Sequence[str]:
        return sorted({str(one["label"]) for one in answer if one["box"]})

    def shown(self, answer: Any) -> Any:
        return tuple(islice((one for one in answer if one["box"]), MOST_DRAWN))


class _Map(CountedAnswer):
    """A class for every pixel."""

    def count(self, counts: TruthCounts, key: str, answer: Any) -> None:
        counts.add_map(answer)


COUNTED: Mapping[str, CountedAnswer] = {"label": _Label(), "objects": _Objects(), "map": _Map()}
"""What is counted of each kind of answer, by the name of its column."""

_NOTHING = CountedAnswer()


def area(one: Row) -> float | None:
    """Return an object's area in square pixels: as stated, else of its box; None without either."""
    stated, box = one.get("area"), one.get("box")
    if stated is not None or box is None:
        return None if stated is None else float(stated)
    return float((box["x2"] - box["x1"]) * (box["y2"] - box["y1"]))
