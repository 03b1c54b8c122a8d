"""Semantic segmentation against loops over pixels, scikit-learn and the formulas of the papers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from math import hypot, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, jaccard_score

from cnnbatch.metrics import Evaluated, semantic
from cnnbatch.metrics.intervals import poisson_weights

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


def counted(
    images: Sequence[Pair], first: int = 0, ignore: Sequence[int] = (VOID,)
) -> semantic.SemanticPartial:
    keys = [f"{first + number}.png" for number in range(len(images))]
    said, true = [one for one, _ in images], [one for _, one in images]
    return semantic.partial(keys, said, true, CLASSES, ignore)


def evaluated(images: Sequence[Pair], **options: Any) -> Evaluated:
    return semantic.result(counted(images, **options))


def numbers(found: Evaluated) -> dict[str, float]:
    return {name: nan if value.value is None else value.value for name, value in found.metrics.items()}


def outcomes(found: Evaluated) -> dict[str, int]:
    table = found.tables["outcomes"].to_pydict()
    return dict(zip(table["outcome"], table["images"], strict=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def by_pixels(images: Sequence[Pair]) -> dict[str, float]:
    """Return the numbers from loops over pixels."""
    confusion = [[0] * (CLASSES + 1) for _ in range(CLASSES)]
    scores = []
    for said, true in images:
        if (true == VOID).all():
            continue
        for place in np.ndindex(true.shape):
            if true[place] != VOID:
                guess = CLASSES if said is None or said[place] >= CLASSES else said[place]
                confusion[true[place]][guess] += 1
        of_classes = [boundary(said, true, one) for one in range(CLASSES) if (true == one).any()]
        scores.append(sum(of_classes) / len(of_classes))
    truth = [sum(row) for row in confusion]
    said_ = [sum(row[one] for row in confusion) for one in range(CLASSES)]
    right = [confusion[one][one] for one in range(CLASSES)]
    union = [truth[one] + said_[one] - right[one] for one in range(CLASSES)]
    total = sum(truth)
    return {
        "pixel_accuracy": sum(right) / total if total else nan,
        "mean_accuracy": mean([right[one] / truth[one] for one in range(CLASSES) if truth[one]]),
        "mIoU": mean([right[one] / union[one] for one in range(CLASSES) if union[one]]),
        "frequency_weighted_IoU": sum(
            truth[one] / total * right[one] / union[one] for one in range(CLASSES) if truth[one]
        )
        if total
        else nan,
        "boundary_F1": mean(scores),
    }


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


@given(images=IMAGES)
def test_as_by_loops_over_pixels(images: list[Pair]) -> None:
    assert numbers(evaluated(images)) == pytest.approx(by_pixels(images), rel=1e-12, nan_ok=True)


@settings(max_examples=30)
@given(images=IMAGES, cuts=st.lists(st.integers(0, 6), max_size=3))
def test_any_split_gives_what_one_piece_gives(images: list[Pair], cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(images)) for cut in cuts), len(images)]
    pieces = [counted(images[a:b], a) for a, b in zip(ends, ends[1:], strict=False)]
    whole, merged = counted(images), semantic.merge(pickle.loads(pickle.dumps(pieces[::-1])))
    for name in ("pixels", "confusion", "images", "class_images"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(merged, name))
    for name in ("boundary", "class_boundary"):
        np.testing.assert_allclose(getattr(whole, name), getattr(merged, name), rtol=1e-12)
    assert (whole.failed, whole.excluded) == (merged.failed, merged.excluded)


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
            **{name: getattr(found, name)[[replicate + 1]] for name in ("pixels", "boundary", "images")},
        )
        expected = by_pixels(drawn)
        assert numbers(semantic.result(once)) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_as_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (5, 40, 30))
    said = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape))
    found = semantic.result(semantic.partial([*"abcde"], said, truth, 4))
    matrix = confusion_matrix(truth.ravel(), said.ravel())
    table = found.tables["confusion"]
    assert table["pixels"].to_numpy().reshape(4, 5)[:, :4].tolist() == matrix.tolist()
    iou = jaccard_score(truth.ravel(), said.ravel(), average=None)
    assert found.tables["classes"]["IoU"].to_pylist() == pytest.approx(iou)
    assert found.metrics["mIoU"].value == pytest.approx(iou.mean())
    weighted = jaccard_score(truth.ravel(), said.ravel(), average="weighted")
    assert found.metrics["frequency_weighted_IoU"].value == pytest.approx(weighted)


def test_a_hand_computed_example() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, VOID]])
    said = np.array([[0, 0, 0, 1], [0, 2, 1, 1]])
    # Class 0: 3 right, 4 true, 4 said. Class 1: 2 right, 3 true, 2 said. Class 2: none true, 1 said.
    # All pixels are boundary and the tolerance is below a pixel: F1 is 3/4 and 2 · 1 · 2/3 / (5/3).
    found = evaluated([(said, truth)])
    assert numbers(found) == pytest.approx(
        {
            "pixel_accuracy": 5 / 7,
            "mean_accuracy": (3 / 4 + 2 / 3) / 2,
            "mIoU": (3 / 5 + 2 / 3 + 0) / 3,
            "frequency_weighted_IoU": (4 * 3 / 5 + 3 * 2 / 3) / 7,
            "boundary_F1": (3 / 4 + 4 / 5) / 2,
        }
    )
    assert found.tables["classes"].to_pylist() == [
        {
            "class": number,
            "IoU": pytest.approx(iou),
            "accuracy": accuracy,
            "boundary_F1": score,
            "truth_pixels": true,
            "predicted_pixels": guessed,
            "images": images,
        }
        for number, iou, accuracy, score, true, guessed, images in (
            (0, 3 / 5, pytest.approx(3 / 4), pytest.approx(3 / 4), 4, 4, 1),
            (1, 2 / 3, pytest.approx(2 / 3), pytest.approx(4 / 5), 3, 2, 1),
            (2, 0, None, None, 0, 1, 0),
        )
    ]
    assert outcomes(found) == {"predicted": 1, "failed": 0}


def test_a_class_that_is_nowhere_is_in_no_mean() -> None:
    found = evaluated([(np.zeros((2, 2), int), np.zeros((2, 2), int))])
    assert numbers(found) == dict.fromkeys(found.metrics, 1.0)
    assert found.tables["classes"]["IoU"].to_pylist() == [1.0, None, None]


def test_an_ignored_class_is_in_no_mean() -> None:
    truth, said = np.array([[0, 1, 2, 2]]), np.array([[0, 2, 2, 1]])
    found = evaluated([(said, truth)], ignore=[2])
    assert found.metrics["mIoU"].value == 0.5
    assert found.tables["classes"]["IoU"].to_pylist() == [1.0, 0.0, None]


def test_a_failed_image_is_all_misses() -> None:
    truth = np.array([[0, 1]])
    found = evaluated([(truth, truth), (None, truth)])
    assert numbers(found) == dict.fromkeys(found.metrics, 0.5)
    assert outcomes(found) == {"predicted": 1, "failed": 1}
    missed = [row for row in found.tables["confusion"].to_pylist() if row["predicted"] is None]
    assert [row["pixels"] for row in missed] == [1, 1, 0]


def test_what_cannot_be_compared_is_counted_by_its_reason() -> None:
    fine = np.array([[0, 1]])
    others = [(fine.T, fine), (fine, np.array([[0, 9]])), (None, np.full((1, 2), VOID))]
    found = evaluated([(fine, fine), *others, (fine, np.zeros((0, 2), int)), (fine[..., None], fine)])
    assert numbers(found) == dict.fromkeys(found.metrics, 1.0)
    assert {value.count for value in found.metrics.values()} == {1}
    assert outcomes(found) == {
        "predicted": 1,
        "failed": 0,
        semantic.ALL_IGNORED: 1,
        semantic.OTHER_SIZE: 3,
        semantic.UNKNOWN_CLASS: 1,
    }


def test_nothing_to_count_says_why() -> None:
    found = semantic.result(semantic.partial([], [], [], CLASSES))
    assert all(value.value is None and value.reason for value in found.metrics.values())


def test_numbers_of_any_width() -> None:
    truth = np.array([[0, 1]], np.uint8)
    found = semantic.result(semantic.partial(["a"], [truth.astype(np.uint64)], [truth], 1000, [-1, 2000]))
    assert found.metrics["mIoU"].value == 1.0


def test_what_does_not_fit_together_is_refused() -> None:
    truth = np.array([[0, 1]])
    with pytest.raises(ValueError, match="shorter"):
        semantic.partial(["a", "b"], [truth, truth], [truth], 2)
    with pytest.raises(ValueError, match="of 2 and of 3 classes"):
        semantic.merge([semantic.partial([], [], [], 2), semantic.partial([], [], [], 3)])
    with pytest.raises(TypeError, match="same_kind"):
        semantic.partial(["a"], [truth], [truth / 2], 2)


def test_intervals_hold_the_value_and_narrow_with_images() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, CLASSES, (200, 6, 6))
    said = np.where(rng.random(truth.shape) < rng.random((200, 1, 1)), truth, 0)
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


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), coarse=st.integers(2, 9))
def test_boundaries_as_by_distances_of_all_pairs(seed: int, coarse: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 40)), int(rng.integers(200, 600)))  # A tolerance of 1.5 to 4.5 pixels.
    said, true = (blocks(rng, shape, coarse) for _ in range(2))
    true = np.where(rng.random(shape) < 0.97, np.roll(said, rng.integers(0, 6), 1), true)
    found = semantic.boundary_f1(said, true, CLASSES)
    assert found.tolist() == pytest.approx(
        [by_distance(said, true, one) for one in range(CLASSES)], nan_ok=True
    )


def blocks(rng: np.random.Generator, shape: tuple[int, int], coarse: int) -> Map:
    small = rng.integers(-1, CLASSES + 1, (coarse, coarse))
    rows, columns = (np.arange(size) * coarse // size for size in shape)
    made: Map = small[np.ix_(rows, columns)]
    return made


def by_distance(said: Map, true: Map, one: int) -> float:
    """Return the boundary F1 of a class by the distances of all pairs of boundary pixels."""
    first, second = (np.argwhere(outline(each == one)) for each in (said, true))
    if not len(first) or not len(second):
        return 0.0 if len(second) else nan
    apart = np.hypot(*np.moveaxis(first[:, None] - second, -1, 0))
    near = apart < 0.0075 * hypot(*true.shape)
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(inside, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~surrounded


def test_the_tolerance_is_strict() -> None:
    truth = np.zeros((1200, 1600), np.uint8)  # 2000 pixels across: less than 15.
    said, near = truth.copy(), truth.copy()
    truth[600, 800] = said[600, 815] = near[609, 811] = 1  # At 15 pixels; at the root of 202.
    assert semantic.boundary_f1(said, truth, 2)[1] == 0
    assert semantic.boundary_f1(near, truth, 2)[1] == 1


def test_a_boundary_is_not_near_what_lies_beyond_an_edge() -> None:
    """The next row's first pixel is not beside this row's last, nor is the next class's first row below."""
    truth, said = np.full((300, 500), 2), np.full((300, 500), 2)  # A tolerance of 4.4 pixels.
    truth[50, 499], truth[299, 100], truth[0, 300] = 0, 0, 1
    said[51, 0], said[0, 100], said[299, 300] = 0, 1, 0
    assert semantic.boundary_f1(said, truth, 2).tolist() == [0, 0]
