"""VOC's and ImageNet-DET's average precision against loops written from the development kits' rules."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.metrics import Evaluated, voc
from cnnbatch.metrics.by_class import DetectionPartial
from cnnbatch.metrics.intervals import poisson_weights
from cnnbatch.sources.voc.xml import parse
from cnnbatch.truth import OBJECTS

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2: x2 - x1 is the width."""


@dataclass(frozen=True)
class Thing:
    """A truth, or a detection where it has a score."""

    label: str
    box: Box
    score: float | None = None
    difficult: bool = False
    crowd: bool = False

    @property
    def counts(self) -> bool:
        return not (self.difficult or self.crowd)


@dataclass(frozen=True)
class Picture:
    id: str
    truths: Sequence[Thing] = ()
    found: Sequence[Thing] | None = ()


def tables(pictures: Sequence[Picture]) -> tuple[pa.Table, pa.Table]:
    def row(one: Thing) -> dict[str, Any]:
        box = dict(zip(("x1", "y1", "x2", "y2"), one.box, strict=True))
        flags = {"difficult": one.difficult, "crowd": one.crowd} if one.score is None else {}
        return {"label": one.label, "box": box, "score": one.score, **flags}

    found = [None if one.found is None else [row(thing) for thing in one.found] for one in pictures]
    truths = [[row(thing) for thing in one.truths] for one in pictures]
    ids = pa.array([one.id for one in pictures], pa.string())
    return (
        pa.table({"key": ids, "objects": pa.array(found, OBJECTS)}),
        pa.table({"image_id": ids, "objects": pa.array(truths, OBJECTS)}),
    )


def partial(pictures: Sequence[Picture], first: int = 0) -> DetectionPartial:
    return voc.partial(*tables(pictures), first)


def evaluated(pictures: Sequence[Picture], intervals: bool = False) -> Evaluated:
    return voc.result(voc.merge([partial(pictures)]), intervals=intervals)


def values(found: Evaluated) -> list[float | None]:
    return [one.value for one in found.metrics.values()]


# The rules, in loops


def overlap(first: Box, second: Box) -> float:
    """Return the IoU as the development kits have it: corners from 1 on, the last pixel inside."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        (x1 + 1, y1 + 1, x2, y2) for x1, y1, x2, y2 in (first, second)
    )
    width = min(ax2, bx2) - max(ax1, bx1) + 1
    height = min(ay2, by2) - max(ay1, by1) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1)
    return width * height / (areas - width * height)


def least(box: Box) -> float:
    width, height = box[2] - box[0], box[3] - box[1]
    return min(0.5, width * height / ((width + 10) * (height + 10)))


def taken_by_voc(one: Thing, truths: Sequence[Thing], taken: set[int]) -> int | None:
    """Return the truth that a detection stands for, -1 for one that was taken, None for none."""
    best, most = None, 0.0
    for number, truth in enumerate(truths):
        if truth.label == one.label and overlap(one.box, truth.box) > most:
            best, most = number, overlap(one.box, truth.box)
    if best is None or most < 0.5:
        return None
    return -1 if best in taken else best


def taken_by_det(one: Thing, truths: Sequence[Thing], taken: set[int]) -> int | None:
    best, most = None, (False, 0.0)
    for number, truth in enumerate(truths):
        common = overlap(one.box, truth.box)
        if truth.label != one.label or number in taken or common == 0 or common < least(truth.box):
            continue
        if (truth.counts, common) > most:
            best, most = number, (truth.counts, common)
    return best


def curve(pictures: Sequence[Picture], label: str, rule: Any) -> list[tuple[float, float]]:
    """Return recall and precision after each detection of a class that counts."""
    found = [
        (-float(np.float32(thing.score)), number, thing)
        for number, one in enumerate(pictures)
        for thing in one.found or ()
        if thing.label == label and thing.score is not None
    ]
    taken: list[set[int]] = [set() for _ in pictures]
    total = sum(thing.label == label and thing.counts for one in pictures for thing in one.truths)
    right, wrong, points = 0, 0, []
    for _, number, thing in sorted(found, key=lambda one: one[:2]):
        truths = pictures[number].truths
        which = rule(thing, truths, taken[number])
        if which is None or which < 0:
            wrong += 1
        elif truths[which].counts:
            right += 1
            taken[number].add(which)
        else:
            continue
        points.append((right / total if total else 0, right / (right + wrong)))
    return points


def eleven(points: Sequence[tuple[float, float]]) -> float:
    total = 0.0
    for least_recall in np.arange(0, 1.1, 0.1):
        total += max((precision for recall, precision in points if recall >= least_recall), default=0)
    return total / 11


def area(points: Sequence[tuple[float, float]]) -> float:
    recalls = [0, *(recall for recall, _ in points), 1]
    precisions = [0, *(precision for _, precision in points), 0]
    for place in range(len(precisions) - 2, -1, -1):
        precisions[place] = max(precisions[place], precisions[place + 1])
    return sum((recalls[place] - recalls[place - 1]) * precisions[place] for place in range(1, len(recalls)))


def by_loops(pictures: Sequence[Picture]) -> dict[str, list[float]]:
    """Return the three numbers of each class that has truths."""
    labels = sorted({thing.label for one in pictures for thing in one.truths if thing.counts})
    return {
        label: [
            eleven(curve(pictures, label, taken_by_voc)),
            area(curve(pictures, label, taken_by_voc)),
            area(curve(pictures, label, taken_by_det)),
        ]
        for label in labels
    }


def means(by_class: dict[str, list[float]]) -> list[float | None]:
    return [sum(each) / len(each) for each in zip(*by_class.values(), strict=True)] or [None] * 3


# Pictures with little variety, so that much in them is equal

SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.5 + 1e-9, 0.9, 1.0])
PLACES = st.sampled_from([0, 0, 4, 8, 500])
SIDES = st.sampled_from([3, 8, 16, 16, 32, 40])


@st.composite
def pictures(draw: st.DrawFn) -> list[Picture]:
    corners = st.tuples(PLACES, PLACES, SIDES, SIDES)
    boxes = corners.map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    some = st.sampled_from(draw(st.lists(boxes, min_size=1, max_size=5)))
    labels = st.sampled_from(["cat", "cat", "cat", "ant"])
    rarely = st.sampled_from([False, False, False, True])
    truths = st.builds(Thing, labels, some, difficult=rarely, crowd=rarely)
    found = st.builds(Thing, labels, some, SCORES)
    contents = st.tuples(st.lists(truths, max_size=8), st.none() | st.lists(found, max_size=8))
    made = draw(st.lists(contents, max_size=4))
    return [Picture(f"{number}.jpg", *content) for number, content in enumerate(made)]


def many(seed: int, images: int = 8) -> list[Picture]:
    """Return pictures of detections near the truths, whose scores are all different."""
    rng = np.random.default_rng(seed)
    scores = iter(rng.permutation(10_000) / 10_000)

    def near(one: Thing) -> Thing:
        x1, y1, x2, y2 = (int(side) for side in np.array(one.box) + rng.integers(-4, 5, 4))
        return Thing(one.label, (x1, y1, max(x1 + 1, x2), max(y1 + 1, y2)), float(next(scores)))

    def truth() -> Thing:
        x, y, width, height = rng.integers(1, 40, 4).tolist()
        label = str(rng.choice(["cat", "ant", "bee"]))
        return Thing(label, (x, y, x + width, y + height), difficult=bool(rng.random() < 0.2))

    made = []
    for number in range(images):
        truths = [truth() for _ in range(rng.integers(1, 12))]
        found = [near(truths[int(rng.integers(len(truths)))]) for _ in range(30)]
        made.append(Picture(f"{number}.jpg", truths, found))
    return made


# As the rules say


def assert_same(found: Evaluated, expected: dict[str, list[float]]) -> None:
    assert values(found) == pytest.approx(means(expected), abs=1e-12)
    classes = found.tables["voc_classes"].to_pylist()
    assert {one["label"]: [one[name] for name in voc.NAMES] for one in classes} == {
        label: pytest.approx(each, abs=1e-12) for label, each in expected.items()
    }


@pytest.mark.slow
@given(made=pictures())
def test_as_by_loops(made: list[Picture]) -> None:
    assert_same(evaluated(made), by_loops(made))


def test_many_as_by_loops() -> None:
    for seed in range(5):
        made = many(seed)
        found = evaluated(made)
        assert_same(found, by_loops(made))
        counts = {one["label"]: one["truths"] for one in found.tables["voc_classes"].to_pylist()}
        assert sum(counts.values()) == found.metrics["DET_AP"].count
        assert counts["cat"] == sum(one.label == "cat" and one.counts for each in made for one in each.truths)


BOX, FAR = (0, 0, 40, 40), (100, 100, 140, 140)


def test_a_hand_computed_example() -> None:
    truths = [Thing("cat", BOX), Thing("cat", FAR)]
    found = [Thing("cat", BOX, 0.9), Thing("cat", (300, 0, 340, 40), 0.8), Thing("cat", FAR, 0.7)]
    # Precision 1, 1/2, 2/3 at the recalls 1/2, 1/2, 1.
    numbers = values(evaluated([Picture("a", truths, found)]))
    assert numbers == pytest.approx([(6 * 1 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3, 0.5 + 0.5 * 2 / 3])


@pytest.mark.parametrize(
    ("truths", "found", "expected"),
    [
        # The second detection of a truth is wrong: precision 1/2, then 2/3, at the recalls 1/2 and 1.
        ([BOX, FAR], [(BOX, 0.9), (BOX, 0.8), (FAR, 0.7)], [(6 + 5 * 2 / 3) / 11, 5 / 6, 5 / 6]),
        # IoU 0.5 is enough, less is not; ImageNet's is 1600 / 2500, but never above 0.5.
        ([BOX], [((0, 0, 20, 40), 0.9)], [1, 1, 1]),
        ([BOX], [((0, 0, 19, 40), 0.9)], [0, 0, 0]),
        # 100 of 10 x 10 pixels to 400: an IoU of 0.25 is enough for ImageNet.
        ([(0, 0, 10, 10)], [((0, 0, 20, 20), 0.9)], [0, 0, 1]),
        ([(0, 0, 10, 10)], [((0, 0, 20, 21), 0.9)], [0, 0, 0]),
        # Both overlap the left truth more: for VOC the second is wrong, for ImageNet free to go on.
        ([(0, 0, 40, 40), (8, 0, 48, 40)], [((2, 0, 42, 40), 0.9), ((3, 0, 43, 40), 0.8)], [6 / 11, 0.5, 1]),
        # Nothing found, and nothing that could be.
        ([BOX], [], [0, 0, 0]),
        ([], [(BOX, 0.9)], [None, None, None]),
    ],
)
def test_the_rules(truths: list[Box], found: list[tuple[Box, float]], expected: list[float | None]) -> None:
    made = Picture("a", [Thing("cat", box) for box in truths], [Thing("cat", *one) for one in found])
    assert values(evaluated([made])) == pytest.approx(expected)


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_what_is_difficult_neither_counts_nor_is_wrong(flag: str) -> None:
    truths = [Thing("cat", BOX, **{flag: True}), Thing("cat", FAR)]
    found = [Thing("cat", BOX, 0.9), Thing("cat", BOX, 0.8), Thing("cat", FAR, 0.7)]
    assert evaluated([Picture("a", truths, found)]).metrics["VOC2010_AP50"].count == 1
    assert values(evaluated([Picture("a", truths, found)])) == [1, 1, 1]
    assert values(evaluated([Picture("a", truths[:1], found)])) == [None] * 3


def test_the_number_of_detections_has_no_limit() -> None:
    wrong = [Thing("cat", FAR, 0.9) for _ in range(299)]
    made = Picture("a", [Thing("cat", BOX)], [*wrong, Thing("cat", BOX, 0.5)])
    assert values(evaluated([made])) == pytest.approx([1 / 300] * 3)


def test_a_file_of_voc_has_the_pixel_that_the_kits_add() -> None:
    corners = "<xmin>11</xmin><ymin>21</ymin><xmax>20</xmax><ymax>30</ymax>"
    xml = f"<a><object><name>cat</name><bndbox>{corners}</bndbox></object></a>"
    (one,) = parse(xml.encode(), "a.xml")["objects"]
    box = tuple(int(side) for side in one["box"].values())
    assert box == (10, 20, 20, 30)
    assert least((box[0], box[1], box[2], box[3])) == 0.25


# Any split, the intervals, and what is odd


@pytest.mark.slow
@settings(max_examples=20)
@given(seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 8), max_size=4), data=st.data())
def test_any_split_gives_what_one_piece_gives(seed: int, cuts: list[int], data: st.DataObject) -> None:
    made = many(seed)
    ends = [0, *sorted(cuts), len(made)]
    pieces = [partial(made[a:b], a) for a, b in zip(ends, ends[1:], strict=False)]
    pieces = pickle.loads(pickle.dumps(data.draw(st.permutations(pieces))))
    whole = voc.result(voc.merge([partial(made)]))
    split = voc.result(voc.merge(pieces, rows_in_memory=data.draw(st.sampled_from([0, 5, 999]))))
    assert whole.metrics == split.metrics
    assert whole.tables["voc_classes"].equals(split.tables["voc_classes"])


def test_a_replicate_is_the_images_as_often_as_their_weights() -> None:
    made = many(7)
    found = evaluated(made, intervals=True)
    weights = poisson_weights([one.id for one in made])
    for replicate in range(20):
        drawn = [one for one, often in zip(made, weights[:, replicate], strict=True) for _ in range(often)]
        expected = means(by_loops([replace(one, id=str(place)) for place, one in enumerate(drawn)]))
        for value, number in zip(found.metrics.values(), expected, strict=True):
            assert value.replicates is not None
            assert value.replicates[replicate] == pytest.approx(number, abs=1e-12)


def test_a_value_lies_in_its_interval() -> None:
    for seed in range(10):
        for one in evaluated(many(seed), intervals=True).metrics.values():
            assert one.value is not None
            assert one.low is not None
            assert one.high is not None
            assert 0 <= one.low <= one.value <= one.high <= 1


@pytest.mark.parametrize(
    "made",
    [[], [Picture("a")], [Picture("a", found=None)], [Picture("a", (), [Thing("cat", BOX, 0.5)])]],
    ids=["no images", "nothing", "failed", "no truths"],
)
def test_without_truths_there_is_no_value(made: list[Picture]) -> None:
    found = evaluated(made, intervals=True)
    assert list(found.metrics) == ["VOC2007_AP50", "VOC2010_AP50", "DET_AP"]
    for one in found.metrics.values():
        assert (one.value, one.low, one.count, one.reason) == (None, None, 0, "no ground truth that counts")
    assert found.tables["voc_classes"].num_rows == 0


def odd() -> Iterator[tuple[dict[str, Any], str]]:
    box = {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": float("nan")}
    yield {"box": box}, "detections with a box or score that is no number"
    yield {"box": None}, "detections with a box or score that is no number"
    yield {"label": None, "box": None}, "detections of no class"


def test_what_cannot_be_compared_is_counted_and_left_out() -> None:
    predictions, truth = tables([Picture("a", [Thing("cat", BOX)], [Thing("cat", BOX, 0.5)])])
    rows: Any = predictions["objects"].to_pylist()
    for fields, reason in odd():
        objects = [[{**rows[0][0], "score": 0.9, **fields}, *rows[0]]]
        one = voc.partial(predictions.set_column(1, "objects", pa.array(objects, OBJECTS)), truth)
        assert one.excluded == {reason: 1}
        assert values(voc.result(voc.merge([one]))) == [1, 1, 1]


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (5, 5, -5, -5), (5, 5, -5, 9)])
def test_boxes_without_an_inside_overlap_nothing(box: Box) -> None:
    made = Picture("a", [Thing("cat", box)], [Thing("cat", box, 0.5), Thing("cat", (0, 0, 20, 20), 0.4)])
    assert values(evaluated([made], intervals=True)) == [0, 0, 0]
