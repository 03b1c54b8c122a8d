"""Single-object localisation against loops over images and objects."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.metrics import Evaluated, localization
from cnnbatch.metrics.intervals import percentiles, poisson_weights, wilson
from cnnbatch.truth import BOX, OBJECTS

ERROR = pa.struct([(name, pa.string()) for name in ("stage", "code", "message")])
PREDICTED = pa.schema([("key", pa.string()), ("error", ERROR), ("label", pa.string()), ("box", BOX)])
TRUTH = pa.schema([("objects", OBJECTS)])
FAILED = {"stage": "decode", "code": "truncated", "message": "it ends too early"}
Row = dict[str, Any]

SIDES = st.integers(0, 6).map(float) | st.sampled_from([0.5, float("nan"), float("inf"), None])
BOXES = st.none() | st.fixed_dictionaries({side.name: SIDES for side in BOX})
LABELS = st.sampled_from(["cat", "dog", None])
OBJECT = st.fixed_dictionaries({"label": LABELS, "box": BOXES})
IMAGES = st.lists(
    st.fixed_dictionaries(
        {
            "error": st.sampled_from([None, None, None, FAILED]),
            "label": LABELS,
            "box": BOXES,
            "objects": st.none() | st.lists(OBJECT, max_size=3),
        }
    ),
    max_size=12,
)


def tables(rows: Sequence[Row], first: int = 0) -> tuple[pa.Table, pa.Table]:
    said = [
        {"key": f"{first + number}.jpg", "error": None, "label": None, "box": None}
        | ({"error": FAILED} if row.get("error") else {name: row.get(name) for name in ("label", "box")})
        for number, row in enumerate(rows)
    ]
    objects = [{"objects": row["objects"]} for row in rows]
    return pa.Table.from_pylist(said, PREDICTED), pa.Table.from_pylist(objects, TRUTH)


def evaluated(rows: Sequence[Row]) -> Evaluated:
    return localization.result(localization.partial(*tables(rows)))


def box(x1: float, y1: float, x2: float, y2: float) -> dict[str, float]:
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}


def known(one: Row | None) -> bool:
    return one is not None and all(side is not None and np.isfinite(side) for side in one.values())


def overlap(one: Row | None, other: Row | None) -> float:
    """Return the IoU of two boxes; 0 where one is none."""
    if one is None or other is None or not (known(one) and known(other)):
        return 0.0

    def area(some: Row) -> float:
        sides = some["x2"] - some["x1"], some["y2"] - some["y1"]
        return float(max(0, sides[0]) * max(0, sides[1]))

    highest = {side: max(one[side], other[side]) for side in ("x1", "y1")}
    shared = area({**highest, **{side: min(one[side], other[side]) for side in ("x2", "y2")}})
    union = area(one) + area(other) - shared
    return shared / union if union > 0 else 0.0


def by_loops(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return of each image that counts whether it is right, in three senses, and its best IoU."""
    names = ("keys", "fine", "localized", "top1", "boxed", "best")
    found: dict[str, list[float]] = {name: [] for name in names}
    for number, row in enumerate(rows):
        objects = [(one["label"], one["box"]) for one in row["objects"] or ()]
        if not any(known(of) for _, of in objects):
            continue
        fine = not row.get("error")
        same = [fine and label is not None and label == row["label"] for label, _ in objects]
        near = [overlap(row["box"], of) if fine else 0.0 for _, of in objects]
        found["localized"].append(any(s and n >= 0.5 for s, n in zip(same, near, strict=True)))
        found["top1"].append(any(same))
        found["boxed"].append(max(near) >= 0.5)
        found["best"].append(max(near))
        found["keys"].append(number)
        found["fine"].append(fine)
    return found


@settings(max_examples=80)
@given(rows=IMAGES)
def test_as_by_loops_over_images_and_objects(rows: list[Row]) -> None:
    found, expected = evaluated(rows), by_loops(rows)
    count = len(expected["top1"])
    names = {"localization_accuracy": "localized", "top1": "top1", "box_accuracy": "boxed"}
    for name, of in names.items():
        value, right = found.metrics[name], int(sum(expected[of]))
        assert (value.value, value.count) == (right / count if count else None, count)
        assert (value.low, value.high) == wilson(right, count)
    best, value = np.array(expected["best"])[np.array(expected["fine"], bool)], found.metrics["mean_IoU"]
    assert value.count == len(best)
    assert value.value == (pytest.approx(best.mean(), rel=1e-12) if len(best) else None)


@settings(max_examples=40)
@given(rows=IMAGES)
def test_a_replicate_is_the_images_as_often_as_their_weights(rows: list[Row]) -> None:
    found, expected = evaluated(rows), by_loops(rows)
    weights = poisson_weights(f"{number}.jpg" for number in expected["keys"]).astype(float)
    fine = np.array(expected["fine"], bool)
    ways = {"localization_accuracy": "localized", "top1": "top1", "box_accuracy": "boxed", "mean_IoU": "best"}
    for name, of in ways.items():
        own = weights[fine] if of == "best" else weights
        numbers = np.array(expected[of], float)[fine] if of == "best" else np.array(expected[of], float)
        drawn = own.sum(axis=0)
        means = np.divide(numbers @ own, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
        value = found.metrics[name]
        if value.replicates is None:
            assert not len(numbers)
            continue
        np.testing.assert_allclose(value.replicates, means, rtol=1e-12)
        assert name != "mean_IoU" or (value.low, value.high) == pytest.approx(percentiles(means))


@settings(max_examples=30)
@given(rows=IMAGES, cuts=st.lists(st.integers(0, 12), max_size=3), chunk=st.integers(1, 4))
def test_any_split_gives_what_one_piece_gives(rows: list[Row], cuts: list[int], chunk: int) -> None:
    """Pieces of a table are slices of it, and its columns may come in chunks."""
    said, truth = tables(rows)
    whole = localization.partial(said, truth)
    truth = pa.Table.from_batches(truth.to_batches(max_chunksize=chunk), TRUTH)
    ends = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    pieces = [
        localization.partial(said.slice(a, b - a), truth.slice(a, b - a))
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    merged = localization.merge(pickle.loads(pickle.dumps(pieces[::-1])))
    assert whole.excluded == merged.excluded
    for name in ("right", "images", "predicted"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(merged, name))
    np.testing.assert_allclose(whole.iou, merged.iou, rtol=1e-12)


def test_a_hand_computed_example() -> None:
    cat = {"label": "cat", "box": box(0, 0, 10, 10)}
    dog = {"label": "dog", "box": box(20, 0, 30, 10)}
    rows: list[Row] = [
        {"label": "cat", "box": box(0, 0, 10, 5), "objects": [cat, dog]},  # All right, at just 0.5.
        {"label": "dog", "box": box(0, 0, 10, 10), "objects": [cat, dog]},  # The other object's box.
        {"label": "cow", "box": box(0, 0, 10, 8), "objects": [cat]},  # The box alone.
        {"label": "cat", "box": box(5, 0, 15, 10), "objects": [cat]},  # The class alone, IoU 1/3.
        {"error": FAILED, "objects": [cat]},
        {"label": "cat", "box": None, "objects": [dog]},
        {"label": "cat", "box": box(0, 0, 10, 10), "objects": None},
        {"label": "cat", "box": box(0, 0, 10, 10), "objects": []},
        {"label": "cat", "box": box(0, 0, 10, 10), "objects": [{"label": "cat"}]},
    ]
    found = evaluated(rows)
    assert {name: (value.value, value.count) for name, value in found.metrics.items()} == {
        "localization_accuracy": (1 / 6, 6),
        "top1": (3 / 6, 6),
        "box_accuracy": (3 / 6, 6),
        "mean_IoU": (pytest.approx((0.5 + 1 + 0.8 + 1 / 3 + 0) / 5), 5),
    }
    assert found.tables["outcomes"].to_pylist() == [
        {"outcome": "predicted", "images": 5},
        {"outcome": "failed", "images": 1},
        {"outcome": localization.NO_OBJECT, "images": 2},
        {"outcome": localization.NO_TRUTH, "images": 1},
    ]


def test_nothing_to_count_says_why() -> None:
    found = evaluated([])
    assert all(value.value is None and value.reason for value in found.metrics.values())
    failed = evaluated([{"error": FAILED, "objects": [{"label": "cat", "box": box(0, 0, 1, 1)}]}])
    assert failed.metrics["top1"].value == 0.0
    assert failed.metrics["mean_IoU"].value is None
    assert failed.metrics["mean_IoU"].reason


def test_tables_of_different_length_are_refused() -> None:
    said, truth = tables([{"objects": None}] * 2)
    with pytest.raises(ValueError, match="2 predictions, but the truth of 1 images"):
        localization.partial(said, truth.slice(1))
