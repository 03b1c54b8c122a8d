"""Semantic segmentation against loops over pixels, scikit-learn and the formulas of the papers."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import hypot, nan
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, jaccard_score

from cnnbatch.images import class_map
from cnnbatch.metrics import Evaluated, semantic
from cnnbatch.metrics.intervals import poisson_weights
from cnnbatch.metrics.numbering import Numbering, of_classes
from cnnbatch.metrics.semantic import MapCounts, SemanticPartial
from cnnbatch.truth import Class

CLASSES = 3
VOID = 255
Map = NDArray[Any]
Pair = tuple[Map | None, Map]


def maps(shape: tuple[int, int], values: Sequence[int]) -> st.SearchStrategy[Map]:
    cells = st.lists(st.sampled_from(values), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return cells.map(lambda some: np.array(some, np.uint8).reshape(shape))


def pairs(shape: tuple[int, int]) -> st.SearchStrategy[Pair]:
    return st.tuples(st.none() | maps(shape, [0, 1, 2, 7, VOID]), maps(shape, [0, 1, 2, VOID]))


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5))
IMAGES = st.lists(SHAPES.flatmap(pairs), min_size=1, max_size=6)


def numbered(classes: int, ignore: Collection[int] = ()) -> Numbering:
    names = [str(number) for number in range(classes)]
    return of_classes([Class(name, number) for number, name in enumerate(names)], names, ignore)


def counts_of(images: Sequence[Pair], first: int = 0, ignore: Collection[int] = (VOID,)) -> MapCounts:
    keys = [f"{first + number}.png" for number in range(len(images))]
    said, true = [one for one, _ in images], [one for _, one in images]
    return semantic.count(keys, said, true, numbered(CLASSES, ignore))


def counted(images: Sequence[Pair], first: int = 0, ignore: Collection[int] = (VOID,)) -> SemanticPartial:
    return semantic.partial(counts_of(images, first, ignore))


def evaluated(images: Sequence[Pair], **options: Any) -> Evaluated:
    return semantic.result(counted(images, **options))


def numbers(found: Evaluated) -> dict[str, float]:
    return {name: nan if value.value is None else value.value for name, value in found.metrics.items()}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def by_pixels(images: Sequence[Pair]) -> dict[str, float]:
    """Return the numbers from loops over pixels."""
    confusion = [[0] * (CLASSES + 1) for _ in range(CLASSES)]
    bands = [[0, 0] for _ in range(CLASSES)]
    scores, own = [], []
    for said, true in images:
        if (true == VOID).all():
            continue
        alone = [[0] * (CLASSES + 1) for _ in range(CLASSES)]
        for place in np.ndindex(true.shape):
            if true[place] != VOID:
                guess = CLASSES if said is None or said[place] >= CLASSES else said[place]
                confusion[true[place]][guess] += 1
                alone[true[place]][guess] += 1
        own.append(mean([iou for one, iou in enumerate(ious(alone)) if sum(alone[one])]))
        of_classes = [boundary(said, true, one) for one in range(CLASSES) if (true == one).any()]
        scores.append(sum(of_classes) / len(of_classes))
        for one in range(CLASSES):
            first, second = (band(each, one, true) for each in (said, true))
            bands[one][0] += int((first & second).sum())
            bands[one][1] += int((first | second).sum())
    truth = [sum(row) for row in confusion]
    right = [confusion[one][one] for one in range(CLASSES)]
    iou, total = ious(confusion), sum(truth)
    return {
        "mIoU": mean([one for one in iou if one == one]),
        "mIoU_per_image": mean(own),
        "pixel_accuracy": sum(right) / total if total else nan,
        "mean_accuracy": mean([right[one] / truth[one] for one in range(CLASSES) if truth[one]]),
        "frequency_weighted_IoU": sum(truth[one] / total * iou[one] for one in range(CLASSES) if truth[one])
        if total
        else nan,
        "boundary_F1": mean(scores),
        "boundary_IoU": mean([shared / union for shared, union in bands if union]),
    }


def ious(confusion: Sequence[Sequence[int]]) -> list[float]:
    found = []
    for one in range(CLASSES):
        union = sum(confusion[one]) + sum(row[one] for row in confusion) - confusion[one][one]
        found.append(confusion[one][one] / union if union else nan)
    return found


def band(numbers: Map | None, one: int, true: Map, void: int = VOID) -> NDArray[np.bool_]:
    """Return the inner boundary of a class, by OpenCV's erosions, as the authors of Boundary IoU take it."""
    if numbers is None:
        return np.zeros(true.shape, np.bool_)
    mask = ((numbers == one) & (true != void)).astype(np.uint8)
    times = max(1, round(0.02 * hypot(*mask.shape)))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    eroded = np.asarray(cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=times))
    found: NDArray[np.bool_] = (mask - eroded[1:-1, 1:-1]) > 0
    return found


def boundary(said: Map | None, true: Map, one: int) -> float:
    """Return the boundary F1 of a class that the truth has, by the distances of all pairs."""
    tolerance = 0.0075 * hypot(*true.shape)
    first = [] if said is None else edge((said == one) & (true != VOID))
    second = edge(true == one)

    def share(some: list[Any], others: list[Any]) -> float:
        near = [any(hypot(y - v, x - u) < tolerance for v, u in others) for y, x in some]
        return sum(near) / len(near) if near else 0.0

    precision, recall = share(first, second), share(second, first)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def edge(inside: NDArray[np.bool_]) -> list[tuple[int, int]]:
    height, width = inside.shape

    def outside(y: int, x: int) -> bool:
        return not (0 <= y < height and 0 <= x < width and inside[y, x])

    around = ((0, 1), (0, -1), (1, 0), (-1, 0))
    return [
        (y, x)
        for y, x in zip(*np.nonzero(inside), strict=True)
        if any(outside(y + down, x + right) for down, right in around)
    ]


@pytest.mark.slow
@given(images=IMAGES)
def test_as_by_loops_over_pixels(images: list[Pair]) -> None:
    assert numbers(evaluated(images)) == pytest.approx(by_pixels(images), rel=1e-12, nan_ok=True)


@settings(max_examples=20)
@given(images=IMAGES)
def test_the_rows_of_images_are_each_image_alone(images: list[Pair]) -> None:
    rows = semantic.image_rows(counts_of(images)).to_pylist()
    for image, row in zip(images, rows, strict=True):
        alone = by_pixels([image])
        if row["pixels"] is None:
            assert alone["mIoU_per_image"] != alone["mIoU_per_image"]
            assert set(row.values()) == {row["key"], None}
            continue
        assert row["mIoU"] == pytest.approx(alone["mIoU_per_image"])
        assert row["boundary_F1"] == pytest.approx(alone["boundary_F1"])
        assert row["pixel_accuracy"] == pytest.approx(alone["pixel_accuracy"])
        assert (row["missed"] is None) == (alone["pixel_accuracy"] == 1)


@settings(max_examples=30)
@given(images=IMAGES, cuts=st.lists(st.integers(0, 6), max_size=3))
def test_any_split_gives_what_one_piece_gives(images: list[Pair], cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(images)) for cut in cuts), len(images)]
    pieces = [counted(images[a:b], a) for a, b in zip(ends, ends[1:], strict=False)]
    whole, merged = counted(images), semantic.merge(pickle.loads(pickle.dumps(pieces[::-1])))
    for name in ("pixels", "confusion", "images", "class_images"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(merged, name))
    for name in ("scores", "class_boundary"):
        np.testing.assert_allclose(getattr(whole, name), getattr(merged, name), rtol=1e-12)
    assert (whole.names, whole.left_out) == (merged.names, merged.left_out)


@settings(max_examples=30)
@given(images=IMAGES, chosen=st.sets(st.integers(0, 5)))
def test_some_of_the_images_are_as_if_they_were_all(images: list[Pair], chosen: set[int]) -> None:
    rows = np.array(sorted(chosen & set(range(len(images)))), np.int64)
    keys = [f"{row}.png" for row in rows]
    alone = semantic.count(
        keys, [images[row][0] for row in rows], [images[row][1] for row in rows], numbered(CLASSES, [VOID])
    )
    some, expected = (
        semantic.result(one).metrics
        for one in (semantic.partial(counts_of(images), rows), semantic.partial(alone))
    )
    assert some == expected


@settings(max_examples=20)
@given(images=IMAGES)
def test_a_replicate_is_the_images_as_often_as_their_weights(images: list[Pair]) -> None:
    found = counted(images)
    weights = poisson_weights([f"{number}.png" for number in range(len(images))])
    for replicate in range(3):
        often = weights[:, replicate]
        drawn = [image for image, times in zip(images, often, strict=True) for _ in range(times)]
        once = replace(
            found,
            **{name: getattr(found, name)[[replicate + 1]] for name in ("pixels", "scores", "images")},
        )
        expected = by_pixels(drawn)
        assert numbers(semantic.result(once)) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def cells(found: Evaluated, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix as pixels (C, C + 1), the last column for no class."""
    made = np.zeros((classes, classes + 1), np.int64)
    for row in found.tables["confusion"].to_pylist():
        made[int(row["truth"]), classes if row["predicted"] is None else int(row["predicted"])] += row[
            "count"
        ]
    return made


def test_as_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (5, 40, 30), np.uint8)
    said = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape, np.uint8))
    found = semantic.result(semantic.partial(semantic.count([*"abcde"], said, truth, numbered(4))))
    matrix = confusion_matrix(truth.ravel(), said.ravel())
    assert cells(found, 4)[:, :4].tolist() == matrix.tolist()
    iou = jaccard_score(truth.ravel(), said.ravel(), average=None)
    assert found.tables["classes"]["IoU"].to_pylist() == pytest.approx(iou)
    assert found.metrics["mIoU"].value == pytest.approx(iou.mean())
    weighted = jaccard_score(truth.ravel(), said.ravel(), average="weighted")
    assert found.metrics["frequency_weighted_IoU"].value == pytest.approx(weighted)
    each = [
        jaccard_score(*(one.ravel() for one in pair), average="macro")
        for pair in zip(truth, said, strict=True)
    ]
    assert found.metrics["mIoU_per_image"].value == pytest.approx(np.mean(each))


def test_real_maps_are_as_by_scikit_learn_and_the_authors_of_boundary_iou(shared: Path) -> None:
    files = sorted((shared / "data" / "camvid").glob("valannot/*.png"))[::10]
    if not files:
        pytest.skip("no CamVid beside the checkout")
    true = [class_map.from_png(file.read_bytes()) for file in files]
    said = [np.roll(one, (place, 3), (0, 1)) for place, one in enumerate(true)]
    names = [str(number) for number in range(11)]
    known = of_classes([Class(name, place) for place, name in enumerate(names)], names, [11])
    counts = semantic.count([file.name for file in files], said, true, known)
    found = semantic.result(semantic.partial(counts))
    kept = np.concatenate([one.ravel() < 11 for one in true])
    pixels = [np.concatenate([one.ravel() for one in some])[kept] for some in (true, said)]
    iou = jaccard_score(*pixels, average=None, labels=range(11))
    assert found.tables["classes"]["IoU"].to_pylist() == pytest.approx(iou.tolist())
    bands = []
    for one in range(11):
        masks = [(band(a, one, b, 11), band(b, one, b, 11)) for a, b in zip(said, true, strict=True)]
        shared_, union = (
            sum(int(each.sum()) for each in some)
            for some in ([a & b for a, b in masks], [a | b for a, b in masks])
        )
        bands.append(shared_ / union)
    assert found.tables["classes"]["boundary_IoU"].to_pylist() == pytest.approx(bands)


def test_a_hand_computed_example() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, VOID]], np.uint8)
    said = np.array([[0, 0, 0, 1], [0, 2, 1, 1]], np.uint8)
    # Class 0: 3 right, 4 true, 4 said. Class 1: 2 right, 3 true, 2 said. Class 2: none true, 1 said.
    # All pixels are boundary and the tolerance is below a pixel: F1 is 3/4 and 2 · 1 · 2/3 / (5/3).
    found = evaluated([(said, truth)])
    assert numbers(found) == pytest.approx(
        {
            "mIoU": (3 / 5 + 2 / 3 + 0) / 3,
            "mIoU_per_image": (3 / 5 + 2 / 3) / 2,
            "pixel_accuracy": 5 / 7,
            "mean_accuracy": (3 / 4 + 2 / 3) / 2,
            "frequency_weighted_IoU": (4 * 3 / 5 + 3 * 2 / 3) / 7,
            "boundary_F1": (3 / 4 + 4 / 5) / 2,
            "boundary_IoU": (3 / 5 + 2 / 3 + 0) / 3,
        }
    )
    assert found.tables["classes"].to_pylist() == [
        {
            "label": str(number),
            "truths": true,
            "predicted": guessed,
            "images": images,
            "IoU": pytest.approx(iou),
            "accuracy": accuracy,
            "boundary_F1": score,
            "boundary_IoU": pytest.approx(iou),
        }
        for number, iou, accuracy, score, true, guessed, images in (
            (0, 3 / 5, pytest.approx(3 / 4), pytest.approx(3 / 4), 4, 4, 1),
            (1, 2 / 3, pytest.approx(2 / 3), pytest.approx(4 / 5), 3, 2, 1),
            (2, 0, None, None, 0, 1, 0),
        )
    ]
    assert found.tables["confusion"].to_pylist() == [
        {"truth": true, "predicted": said, "failed": False, "count": count}
        for true, said, count in (("0", "0", 3), ("0", "2", 1), ("1", "0", 1), ("1", "1", 2))
    ]
    (row,) = semantic.image_rows(counts_of([(said, truth)])).to_pylist()
    assert (row["pixels"], row["missed"], row["missed_share"]) == (7, "0", 1 / 7)


def test_a_class_that_is_nowhere_is_in_no_mean() -> None:
    found = evaluated([(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))])
    assert numbers(found) == dict.fromkeys(found.metrics, 1.0)
    assert found.tables["classes"]["IoU"].to_pylist() == [1.0, None, None]


def test_an_ignored_class_is_in_no_mean() -> None:
    truth, said = np.array([[0, 1, 2, 2]], np.uint8), np.array([[0, 2, 2, 1]], np.uint8)
    found = evaluated([(said, truth)], ignore=[2])
    assert found.metrics["mIoU"].value == 0.5
    assert dict(
        zip(*(found.tables["classes"][name].to_pylist() for name in ("label", "IoU")), strict=True)
    ) == {
        "0": 1.0,
        "1": 0.0,
    }


def test_a_failed_image_is_all_misses() -> None:
    truth = np.array([[0, 1]], np.uint8)
    found = evaluated([(truth, truth), (None, truth)])
    assert numbers(found) == dict.fromkeys(found.metrics, 0.5)
    missed = [row for row in found.tables["confusion"].to_pylist() if row["failed"]]
    assert [(row["truth"], row["predicted"], row["count"]) for row in missed] == [
        ("0", None, 1),
        ("1", None, 1),
    ]


def test_what_cannot_be_compared_is_counted_by_its_reason() -> None:
    fine = np.array([[0, 1]], np.uint8)
    others = [(fine.T, fine), (fine, np.array([[0, 9]], np.uint8)), (None, np.full((1, 2), VOID, np.uint8))]
    images = [(fine, fine), *others, (fine, np.zeros((0, 2), np.uint8)), (fine[..., None], fine)]
    found = counted(images)
    metrics = semantic.result(found).metrics
    assert {value.value for value in metrics.values()} == {1.0}
    assert {value.count for value in metrics.values()} == {1}
    assert found.left_out == {
        semantic.NOTHING_COUNTS: 1,
        semantic.OTHER_SIZE: 3,
        semantic.UNKNOWN_NUMBER: 1,
    }


def test_ignored_pixels_and_unknown_classes_are_counted() -> None:
    truth = [Class("road", 7), Class("sky", 3), Class("fence", 4), Class("pole", 300)]
    known = of_classes(truth, ["person", "sky", "road"], [VOID])
    assert (known.names, known.unknown) == (("sky", "road"), ("fence", "pole"))
    true = np.array([[7, 7, 3, 3, 4, 300, 300, VOID]], np.uint16)
    said = np.array([[2, 1, 1, 0, 2, 2, 2, 2]], np.uint8)
    found = semantic.partial(semantic.count(["a"], [said], [true], known))
    assert found.left_out == {
        semantic.IGNORED: 1,
        semantic.UNKNOWN_CLASS.format("fence"): 1,
        semantic.UNKNOWN_CLASS.format("pole"): 2,
    }
    assert found.confusion.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]  # A person is no judged class.
    assert semantic.result(found).metrics["mIoU"].value == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_numbers_of_two_names_of_one_class_are_that_class() -> None:
    known = of_classes([Class("vehicle", 1), Class("vehicle", 2), Class("road", 0)], ["road", "vehicle"], [])
    truth, said = np.array([[0, 1, 2]], np.uint8), np.array([[0, 1, 1]], np.uint8)
    found = semantic.result(semantic.partial(semantic.count(["a"], [said], [truth], known)))
    assert found.metrics["mIoU"].value == 1.0


def test_without_the_models_classes_its_numbers_are_those_of_the_truth() -> None:
    known = of_classes([Class("road", 7), Class("sky", 3)], None, [VOID])
    true = np.array([[7, 3, VOID]], np.uint8)
    assert semantic.partial(semantic.count(["a"], [true], [true], known)).confusion.tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
    ]


def test_nothing_to_count_says_why() -> None:
    found = semantic.result(semantic.partial(semantic.count([], [], [], numbered(CLASSES))))
    assert all(value.value is None and value.reason for value in found.metrics.values())


def test_a_large_map_is_as_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    said, true = (rng.integers(0, CLASSES, (50, 40), np.uint8) for _ in range(2))
    whole = semantic.pairs(said, true, numbered(CLASSES))
    monkeypatch.setattr(semantic, "_PIXELS", 130)
    assert np.array_equal(semantic.pairs(said, true, numbered(CLASSES)), whole)
    assert np.array_equal(
        semantic.pairs(None, true, numbered(CLASSES))[:CLASSES, CLASSES], whole[:CLASSES].sum(1)
    )


def test_maps_of_sixteen_bits() -> None:
    truth = np.array([[0, 999]], np.uint16)
    found = semantic.partial(semantic.count(["a"], [truth], [truth], numbered(1000, [2000])))
    assert semantic.result(found).metrics["mIoU"].value == 1.0


def test_what_does_not_fit_together_is_refused() -> None:
    truth = np.array([[0, 1]], np.uint8)
    with pytest.raises(ValueError, match="shorter"):
        semantic.count(["a", "b"], [truth, truth], [truth], numbered(2))
    with pytest.raises(ValueError, match="of the classes 0, 1 and 0, 1, 2"):
        semantic.merge([semantic.partial(semantic.count([], [], [], numbered(size))) for size in (2, 3)])


def test_intervals_hold_the_value_and_narrow_with_images() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, CLASSES, (200, 6, 6), np.uint8)
    said = np.where(rng.random(truth.shape) < rng.random((200, 1, 1)), truth, np.uint8(0))
    few, many = (evaluated(list(zip(said[:n], truth[:n], strict=True))) for n in (20, 200))
    for name, value in many.metrics.items():
        wide = few.metrics[name]
        assert value.low is not None
        assert value.high is not None
        assert value.value is not None
        assert wide.low is not None
        assert wide.high is not None
        assert value.low < value.value < value.high
        assert value.high - value.low < wide.high - wide.low
