"""Two outputs compared: joined by key, against brute force, with gates, files and mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from cnnbatch import truth
from cnnbatch.cli.app import app
from cnnbatch.config import entries
from cnnbatch.errors import UserError
from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.evaluation.comparison import CompareOptions, Comparison, boxes, compare
from cnnbatch.evaluation.comparison.agreement import Largest
from cnnbatch.evaluation.comparison.differences import (
    MetricDifference,
    PairedOutcomes,
    difference,
    newcombe,
    paired,
    read_images,
)
from cnnbatch.evaluation.comparison.gates import broken, read_gates
from cnnbatch.evaluation.comparison.measure import ImageScore, Measure, floats
from cnnbatch.evaluation.comparison.measures import MEASURES
from cnnbatch.evaluation.comparison.page import save
from cnnbatch.evaluation.comparison.pairing import Joined
from cnnbatch.evaluation.comparison.summary import to_json
from cnnbatch.images import rle
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import poisson_weights, wilson
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.storage import Storage
from cnnbatch.truth import Class
from tests import judged
from tests.outputs import bad, good, write_job, write_output, write_part
from tests.places import CHECKOUT
from tests.servers import Bucket

pytest_plugins = ("tests.s3",)

Row = dict[str, Any]
NAMES = tuple(f"class {number}" for number in range(1, 5))
HOSTILE = '"><script>alert(1)</script>{{ 7 * 7 }}'


@pytest.fixture(scope="module")
def data() -> Row:
    return judged.dataset(60, 4)


@pytest.fixture(scope="module")
def two(data: Row, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write two outputs of detection over the same images, with their truth; some images failed."""
    folder = tmp_path_factory.mktemp("detected")
    found = judged.detections(data), near(judged.detections(data))
    a = judged.write_detected(folder / "a", data, found[0], failed=[3, 4])
    return a, judged.write_detected(folder / "b", data, found[1], parts=4, failed=[4, 5])


@pytest.fixture(scope="module")
def untold(two: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Copy both without their truth."""
    folder = tmp_path_factory.mktemp("untold")
    ignored = shutil.ignore_patterns("truth")
    a, b = (Path(shutil.copytree(one, folder / one.name, ignore=ignored)) for one in two)
    return a, b


@pytest.fixture(scope="module")
def both(two: tuple[Path, Path]) -> Comparison:
    return compared(*two)


def near(found: Sequence[Row], seed: int = 3) -> list[Row]:
    """Return detections moved a little, some with another label, some left out."""
    random = np.random.default_rng(seed)
    kept = [one for one in found if random.random() > 0.2]
    moved = [np.round(np.array(one["bbox"]) * np.exp(random.normal(0, 0.05, 4)), 2).tolist() for one in kept]
    labels = [int(random.integers(1, 5)) if random.random() < 0.2 else one["category_id"] for one in kept]
    return [
        {**one, "bbox": box, "category_id": label}
        for one, box, label in zip(kept, moved, labels, strict=True)
    ]


def guesses(images: int, seed: int) -> list[Row]:
    """Return rows of a classifier."""
    random = np.random.default_rng(seed)
    scores = random.uniform(0.3, 1, images).round(3).tolist()
    labels = random.integers(0, 4, images).tolist()
    return [
        good(f"{number:03}.png", f"/{number:03}.png", [(NAMES[label], score)])
        for number, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]


def classified(folder: Path, rows: Sequence[Row], size: int, labels: Mapping[str, str] | None = None) -> Path:
    """Write an output of classification in parts of ``size``, with the truth by key where it is given."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    write_output(folder, parts)
    for index, part in enumerate(parts if labels else []):
        write_truth(folder, index, [labels.get(row["key"]) for row in part] if labels else [])
    return folder


def write_truth(folder: Path, index: int, labels: Sequence[str | None]) -> None:
    path = folder / "_job" / "truth" / f"part-{index:08}.parquet"
    path.parent.mkdir(exist_ok=True)
    schema = truth.with_classes(truth.LABEL_SCHEMA, [Class(name, name) for name in NAMES])
    pq.write_table(truth.table([{"image_id": str(index), "label": label} for label in labels], schema), path)


def compared(a: Path, b: Path, **options: Any) -> Comparison:
    return compare(str(a), str(b), CompareOptions(**options))


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


# ---- the join -----------------------------------------------------------------------------------


def batches(keys: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(keys), size):
        some = keys[start : start + size]
        yield pa.RecordBatch.from_pylist([{"key": key, "value": f"of {key}"} for key in some])


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_one_key_meet(seed: int) -> None:
    random = np.random.default_rng(seed)
    keys = [f"ключ {number}" for number in range(40)]
    a = random.permutation(keys)[: random.integers(1, 41)].tolist() if seed % 2 else keys
    b = random.permutation(keys)[: random.integers(1, 41)].tolist() if seed > 1 else keys[:30]
    joined = Joined(batches(a, 7), batches(b, 1 + seed))
    found = [
        pair for first, second in joined for pair in zip(first.to_pylist(), second.to_pylist(), strict=True)
    ]
    assert all(one == other == {"key": one["key"], "value": f"of {one['key']}"} for one, other in found)
    assert [one["key"] for one, _ in found] == [key for key in a if key in b]
    assert (joined.only_a, joined.only_b) == (len(set(a) - set(b)), len(set(b) - set(a)))


def test_what_weighs_most_is_kept() -> None:
    random = np.random.default_rng(0)
    rows: list[Row] = [
        {"key": f"{number:04}", "weight": int(random.integers(0, 20))} for number in range(300)
    ]
    largest = Largest(25)
    for start in range(0, 300, 70):
        largest.add(pa.Table.from_pylist(rows[start : start + 70]))
    assert largest.rows is not None
    assert largest.rows.to_pylist() == sorted(rows, key=lambda row: (-row["weight"], row["key"]))[:25]


# ---- agreement ----------------------------------------------------------------------------------


def test_labels_against_brute_force(tmp_path: Path) -> None:
    rows_a, rows_b = guesses(200, 1), guesses(200, 2)
    a, b = classified(tmp_path / "a", rows_a, 64), classified(tmp_path / "b", rows_b, 64)
    found = compared(a, b)
    pairs = list(zip(rows_a, rows_b, strict=True))
    equal = sum(one["label"] == other["label"] for one, other in pairs)
    assert (found.agreement.value, found.agreement.count) == (equal / 200, 200)
    assert (found.agreement.low, found.agreement.high) == wilson(equal, 200)
    changes = Counter(
        (one["label"], other["label"]) for one, other in pairs if one["label"] != other["label"]
    )
    assert {(one.before, one.after): one.count for one in found.label_changes} == changes
    counts = [one.count for one in found.label_changes]
    assert counts == sorted(counts, reverse=True)
    for one in found.classes:
        scores = [row["score"] for row in rows_b if row["label"] == one.label]
        assert one.count_b == len(scores)
        assert one.score_b == pytest.approx(np.mean(scores), abs=1e-6)
    weights: dict[str, float] = {
        one["key"]: float(np.float32(min(one["score"], other["score"])))
        for one, other in pairs
        if one["label"] != other["label"]
    }
    expected = sorted(weights, key=lambda key: (-weights[key], str(key)))
    assert found.disagreements["key"].to_pylist() == expected
    assert found.metrics is None


def iou(one: Row, other: Row) -> float:
    a, b = one["box"], other["box"]
    width = min(a["x2"], b["x2"]) - max(a["x1"], b["x1"])
    height = min(a["y2"], b["y2"]) - max(a["y1"], b["y1"])
    areas = sum((box["x2"] - box["x1"]) * (box["y2"] - box["y1"]) for box in (a, b))
    return width * height / (areas - width * height) if width > 0 and height > 0 else 0.0


def greedy(a: list[Row], b: list[Row], least: float, same: bool) -> list[tuple[Row, Row]]:
    """Match as `boxes.match` says, one box after the other; what is matched leaves the lists."""
    found = []
    for one in sorted(a, key=lambda one: -one["score"]):
        near = [
            other for other in b if iou(one, other) >= least and (not same or one["label"] == other["label"])
        ]
        if near:
            best = max(near, key=lambda other: iou(one, other))
            found.append((one, best))
            a.remove(one)
            b.remove(best)
    return found


def objects_of(folder: Path, least: float) -> dict[str, list[Row] | None]:
    rows = [row for path in sorted(folder.glob("predictions/*")) for row in pq.read_table(path).to_pylist()]
    return {
        row["key"]: None
        if row["error"]
        else [one for one in row["objects"] if np.float32(one["score"]) >= np.float32(least)]
        for row in rows
    }


@pytest.mark.parametrize(("least", "score"), [(0.5, 0.5), (0.8, 0.2), (0.3, 0.0)])
def test_boxes_against_brute_force(
    untold: tuple[Path, Path], least: float, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxes, "_AT_ONCE", 11)
    found = compared(*untold, iou=least, score_threshold=score)
    sides = [objects_of(folder, score) for folder in untold]
    changes, sums, weights, own = Counter[tuple[str, str]](), {}, {}, {}
    for key in sides[0]:
        a, b = (list(side[key] or []) for side in sides)
        count = len(a) + len(b)
        matched = len(greedy(a, b, least, same=True))
        sums[key], own[key] = (2 * matched, count), 2 * matched / count if count else 1.0
        weights[key] = sum(one["score"] for one in a + b)
        changes.update((one["label"], other["label"]) for one, other in greedy(a, b, least, same=False))
    totals = np.array(list(sums.values()))
    assert found.agreement.value == pytest.approx(totals[:, 0].sum() / totals[:, 1].sum())
    replicates = poisson_weights(sums).T.astype(float) @ totals
    interval = np.percentile(replicates[:, 0] / replicates[:, 1], (2.5, 97.5))
    assert (found.agreement.low, found.agreement.high) == pytest.approx(interval)
    assert {(one.before, one.after): one.count for one in found.label_changes} == changes
    for row in found.disagreements.to_pylist():
        assert row["weight"] == pytest.approx(weights[row["key"]])
        if row["code_a"] is None and row["code_b"] is None:
            assert row["agreement"] == pytest.approx(own[row["key"]])
    for one in found.classes:
        scores = [
            each["score"] for some in sides[0].values() for each in some or [] if each["label"] == one.label
        ]
        assert one.count_a == len(scores)
        assert one.score_a == pytest.approx(np.mean(scores))


def masked(folder: Path, seed: int) -> Path:
    """Write an output of objects with masks, all of which have the same box."""
    random, rows = np.random.default_rng(seed), []
    box = {"x1": 0.0, "y1": 0.0, "x2": 24.0, "y2": 16.0}
    for number in range(12):
        objects = []
        for _ in range(int(random.integers(0, 6))):
            mask = np.zeros((16, 24), np.uint8, order="F")
            x, y, side = (int(one) for one in random.integers((0, 0, 4), (12, 8, 12)))
            mask[y : y + side, x : x + side] = 1
            runs = {"size": [16, 24], "counts": coco_mask.encode(mask)["counts"].decode()}
            score = float(np.float32(random.uniform(0.5, 1)))
            objects.append({"label": NAMES[random.integers(2)], "score": score, "box": box, "mask": runs})
        rows.append({**good(f"{number:02}", f"/{number}", [("cat", 1.0)]), "objects": objects})
    struct: Any = judged.FOUND.value_type
    fields = pa.list_(pa.struct([*struct, pa.field("mask", truth.MASK)]))
    write_job(folder)
    write_part(folder, 0, rows, schema=pa.schema([*ENGINE_COLUMNS, ("objects", fields)]))
    return folder


def test_objects_with_masks_are_matched_by_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All boxes are the same, so that these would match wherever there are enough."""
    two = masked(tmp_path / "a", 1), masked(tmp_path / "b", 2)

    def overlap(one: Row, other: Row) -> float:
        a, b = (rle.pixels(each["mask"]) for each in (one, other))
        assert a is not None
        assert b is not None
        return float((a & b).sum() / (a | b).sum())

    monkeypatch.setitem(globals(), "iou", overlap)
    monkeypatch.setattr(boxes, "_AT_ONCE", 5)
    found = compared(*two, iou=0.4)
    sides = [objects_of(folder, 0.5) for folder in two]
    changes, matched = Counter[tuple[str, str]](), 0
    for key in sides[0]:
        a, b = (list(side[key] or []) for side in sides)
        matched += len(greedy(a, b, 0.4, same=True))
        changes.update((one["label"], other["label"]) for one, other in greedy(a, b, 0.4, same=False))
    count = [sum(len(some or []) for some in side.values()) for side in sides]
    assert 0 < matched < min(count)
    assert found.agreement.value == pytest.approx(2 * matched / sum(count))
    assert [found.counts[name] for name in ("matched", "objects_a", "objects_b")] == [matched, *count]
    assert {(one.before, one.after): one.count for one in found.label_changes} == changes
    assert compared(two[0], two[0]).agreement.value == 1


def test_objects_without_a_score_count(tmp_path: Path) -> None:
    box = {"x1": 0.0, "y1": 0.0, "x2": 10.0, "y2": 10.0}
    objects = [{"label": "cat", "score": None, "box": box}, {"label": "dog", "score": 0.9, "box": None}]
    row = {**good("a", "/a", [("cat", 1.0)]), "objects": objects}
    for name in ("a", "b"):
        write_job(tmp_path / name)
        write_part(tmp_path / name, 0, [row], schema=judged.DETECTED)
    found = compared(tmp_path / "a", tmp_path / "b")
    assert (found.agreement.value, found.counts["boxes_a"], found.counts["matched"]) == (1.0, 1, 1)
    assert list(found.notes) == [
        "1 boxes of A with a box or score that is no number",
        "1 boxes of B with a box or score that is no number",
    ]


def test_an_output_agrees_with_itself(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = compared(two[0], two[0], score_threshold=0.0)
    assert (found.agreement.value, found.agreement.low, found.agreement.high) == (1.0, 1.0, 1.0)
    assert (found.disagreements.num_rows, found.label_changes, found.notes) == (0, [], [])
    assert found.metrics is not None
    assert {(one.value, one.low, one.high) for one in found.metrics.values()} == {(0.0, 0.0, 0.0)}
    assert found.changes is not None
    assert (found.changes.better, found.changes.worse) == (0, 0)
    rows = guesses(50, 1)
    labels = classified(tmp_path / "a", rows, 50, {row["key"]: NAMES[0] for row in rows})
    found = compared(labels, labels)
    assert found.agreement.value == 1.0
    assert found.metrics is not None
    assert {one.value for one in found.metrics.values()} <= {0.0, None}


def test_the_order_and_the_size_of_parts_change_nothing(
    data: Row, two: tuple[Path, Path], both: Comparison, tmp_path: Path
) -> None:
    shuffled = {**data, "images": np.random.default_rng(0).permutation(data["images"]).tolist()}
    found = near(judged.detections(data))
    other = judged.write_detected(two[1].parent / "shuffled", shuffled, found, parts=7, failed=[4, 5])
    zipped, by_key = (json.loads(to_json(one)) for one in (both, compared(two[0], other)))
    assert_alike(zipped, {**by_key, "b": zipped["b"]})
    rows_a, rows_b = guesses(90, 1), guesses(90, 2)
    a = classified(tmp_path / "labels", rows_a, 30)
    ways = [
        classified(tmp_path / name, rows, size)
        for name, rows, size in (("x", rows_b, 30), ("y", rows_b[::-1], 11))
    ]
    one, other_way = (json.loads(to_json(compared(a, b))) for b in ways)
    assert_alike(one, {**other_way, "b": one["b"]})


def assert_alike(one: Any, other: Any) -> None:
    """Insist that two JSON values are equal, sums of floats to their rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_alike(first, second)
    else:
        assert other == (pytest.approx(one, abs=1e-9) if isinstance(one, float) else one)


def test_what_failed_in_only_one_is_told_and_disagrees(tmp_path: Path) -> None:
    rows_a, rows_b = guesses(20, 1), guesses(20, 1)
    for number, code in ((2, "truncated"), (3, "truncated"), (4, "empty")):
        rows_a[number] = bad(f"{number:03}.png", code, "made so")
    for number in (4, 5):
        rows_b[number] = bad(f"{number:03}.png", "crash", "made so")
    found = compared(classified(tmp_path / "a", rows_a, 20), classified(tmp_path / "b", rows_b, 7))
    assert (found.failed_a, found.failed_b, found.failed_in_both) == ({"truncated": 2}, {"crash": 1}, 1)
    assert (found.agreement.value, found.agreement.count) == (16 / 19, 19)
    listed = {row["key"]: (row["code_a"], row["code_b"]) for row in found.disagreements.to_pylist()}
    assert listed == {
        "002.png": ("truncated", None),
        "003.png": ("truncated", None),
        "005.png": (None, "crash"),
    }


# ---- by their truth -----------------------------------------------------------------------------


def test_only_common_images_with_a_truth_are_judged(data: Row, tmp_path: Path) -> None:
    """The numbers are those of outputs that have no other images."""
    found = judged.detections(data), near(judged.detections(data))
    images = data["images"]
    shared = {**data, "images": images[10:50]}
    a = judged.write_detected(tmp_path / "a", {**data, "images": images[:50]}, found[0])
    b = judged.write_detected(tmp_path / "b", {**data, "images": images[10:]}, found[1], parts=2)
    result = compared(a, b)
    assert (result.images, result.only_a, result.only_b) == (40, 10, 10)
    assert result.metrics is not None
    evaluations = [
        evaluate(str(judged.write_detected(tmp_path / f"only {name}", shared, some)), Storage())
        for name, some in zip("ab", found, strict=True)
    ]
    assert evaluations[0] is not None
    assert evaluations[1] is not None
    assert list(result.metrics) == list(evaluations[0].metrics)
    for name, one in result.metrics.items():
        assert (one.a, one.b) == (evaluations[0].metrics[name], evaluations[1].metrics[name])
        assert one == difference(evaluations[0].metrics[name], evaluations[1].metrics[name])
        assert one.value is not None
        assert one.low is not None
        assert one.high is not None
        assert one.low <= one.value <= one.high
    tables = [pq.read_table(tmp_path / f"only {name}" / "evaluation" / "images.parquet") for name in "ab"]
    change = np.array(tables[1]["AP"], float) - np.array(tables[0]["AP"], float)
    assert result.changes is not None
    assert (result.changes.better, result.changes.worse) == ((change > 1e-9).sum(), (change < -1e-9).sum())
    worst = result.changes.most_worse.to_pylist()[0]
    assert worst["b"] - worst["a"] == pytest.approx(np.nanmin(change))
    assert not (a / "evaluation.json").exists()


def test_a_paired_interval_is_that_of_the_replicates() -> None:
    """A mean's, counted again: the weights follow from the keys, so both have the same ones."""
    random = np.random.default_rng(0)
    a = random.normal(0.5, 0.2, 400)
    b = a + random.normal(0.02, 0.05, 400)
    weights = poisson_weights(f"{number}" for number in range(400)).astype(float)
    replicates = [values @ weights / weights.sum(axis=0) for values in (a, b)]
    observed = float(b.mean() - a.mean())
    low, high = paired(observed, *replicates)
    shifts = (b - a) @ weights / weights.sum(axis=0)
    bias = shifts.mean() - observed
    assert (low, high) == pytest.approx(np.percentile(shifts, (2.5, 97.5)) - bias)
    assert low is not None
    assert high is not None
    half = 1.96 * (b - a).std() / 20
    assert (low, high) == pytest.approx((observed - half, observed + half), abs=0.3 * half)
    unpaired = difference(Value(float(a.mean())), Value(float(b.mean())))
    assert (unpaired.value, unpaired.low) == (observed, None)
    few = paired(observed, replicates[0][:50], replicates[1])
    assert few == paired(observed, replicates[0][:50], replicates[1][:50])


def test_the_interval_of_paired_shares_is_newcombe_s() -> None:
    """His method 10 gives 0.0569 to 0.3404 for (36, 12, 2, 0), of the first share less the second."""
    low, high = newcombe(PairedOutcomes(36, 2, 12, 0))
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert newcombe(PairedOutcomes(0, 0, 0, 0)) == (None, None)
    random = np.random.default_rng(0)
    shares, covered = np.array([0.6, 0.06, 0.12, 0.22]), 0
    for table in random.multinomial(150, shares, 1500):
        low, high = newcombe(PairedOutcomes(*table.tolist()))
        assert low is not None
        assert high is not None
        covered += low <= shares[2] - shares[1] <= high
    assert 0.935 < covered / 1500 < 0.975


def test_classification_by_its_truth(tmp_path: Path) -> None:
    rows_a, rows_b = guesses(300, 1), guesses(300, 2)
    labels = {row["key"]: NAMES[number % 4] for number, row in enumerate(rows_a)}
    for number, row in enumerate(rows_b):
        if number % 3 == 0:
            row["label"] = row["top"][0]["label"] = labels[row["key"]]
    a = classified(tmp_path / "a", rows_a, 100, labels)
    b = classified(tmp_path / "b", rows_b[::-1], 77, labels)
    found = compared(a, b)
    right = [{row["key"]: row["label"] == labels[row["key"]] for row in rows} for rows in (rows_a, rows_b)]
    pairs = Counter((right[0][key], right[1][key]) for key in labels)
    order = [(True, True), (True, False), (False, True), (False, False)]
    assert found.metrics is not None
    top1 = found.metrics["top1"]
    assert top1.value == pytest.approx((pairs[False, True] - pairs[True, False]) / 300)
    assert (top1.low, top1.high) == newcombe(PairedOutcomes(*(pairs[one] for one in order)))
    assert found.changes is not None
    assert (found.changes.better, found.changes.worse) == (pairs[False, True], pairs[True, False])
    best = found.changes.most_better.to_pylist()[0]
    assert best["b"] == best["truth"] == labels[best["key"]] != best["a"]


def test_a_truth_in_only_one_does_not_count(tmp_path: Path) -> None:
    rows = guesses(30, 1)
    labels = {row["key"]: row["label"] for row in rows}
    some = {key: NAMES[0] if key == "007.png" else label for key, label in labels.items() if key != "003.png"}
    a = classified(tmp_path / "a", rows, 30, labels)
    b = classified(tmp_path / "b", rows, 30, some)
    found = compared(a, b)
    assert found.metrics is not None
    assert found.metrics["top1"].a.count == found.metrics["top1"].b.count == 29
    assert list(found.notes) == [
        "1 images have ground truth in only one of the outputs; they are not evaluated",
        "1 images have another ground truth in B",
    ]
    without = classified(tmp_path / "c", rows, 30)
    assert compared(a, without).metrics is None


def test_the_truth_of_the_last_evaluation_counts(two: tuple[Path, Path], tmp_path: Path) -> None:
    """It lies below ``evaluation/`` where an output was judged by another truth than its job's."""
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in two]
    before = compared(*copies).metrics
    for folder in copies:
        (folder / "evaluation").mkdir()
        (folder / "_job" / "truth").rename(folder / "evaluation" / "truth")
    assert compared(*copies).metrics is None
    for folder in copies:
        (folder / "evaluation.json").write_text('{"truth": "s3://elsewhere/evaluation/truth"}')
    assert compared(*copies).metrics == before


# ---- a kind of answer that a package brings ------------------------------------------------------


class NumberMeasure(Measure):
    """One number an image: the share of images whose numbers differ by at most 0.5."""

    columns = {"number": pa.float64()}
    image_scores = (ImageScore("error", less_is_better=True),)

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        first, second = floats(a["number"]), floats(b["number"])
        apart = np.abs(first - second)
        differs = ~(apart <= 0.5)
        self.count_images(differs, failed)
        numbers = {"number_a": a["number"], "number_b": b["number"]}
        return pa.table({"differs": differs, "weight": np.nan_to_num(apart), **numbers})


@pytest.fixture
def with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an installed package bring `NumberMeasure`."""
    point = EntryPoint("comparison.number", f"{__name__}:NumberMeasure", entries.GROUP)
    monkeypatch.setattr(entries, "points", lambda: (point,))
    monkeypatch.setattr(MEASURES, "_brought", None)
    monkeypatch.setattr(MEASURES, "_loaded", {})


def numbered(folder: Path, numbers: Sequence[float | None]) -> Path:
    """Write an output with one number an image; an image without one failed."""
    schema = pa.schema([*ENGINE_COLUMNS, ("number", pa.float64())])
    rows = [
        bad(f"{place}.png", "empty", "made so")
        if number is None
        else {"key": f"{place}.png", "uri": f"/{place}.png", "vanished": False, "number": number}
        for place, number in enumerate(numbers)
    ]
    write_job(folder)
    write_part(folder, 0, rows, schema=schema)
    return folder


@pytest.mark.usefixtures("with_numbers")
def test_a_kind_that_a_package_brings_is_compared(tmp_path: Path) -> None:
    a = numbered(tmp_path / "a", [1.0, 2.0, 3.0, None, None])
    b = numbered(tmp_path / "b", [1.4, 2.75, 7.5, 4.0, None])
    result = run(a, b, "--to", tmp_path / "to")
    assert result.exit_code == 0, result.stderr
    assert "Agreement 0.2500" in result.stdout
    assert "1 of 4 images are alike" in result.stdout
    found = json.loads((tmp_path / "to" / "comparison.json").read_text())
    assert (found["compared"], found["counts"]) == ("number", {"compared": 4, "equal": 1})
    assert (found["iou"], found["classes"], found["metrics"]) == (None, [], None)
    listed = pq.read_table(tmp_path / "to" / "disagreements.parquet").to_pylist()
    assert [(row["key"], row["number_a"], row["number_b"]) for row in listed] == [
        ("3.png", None, 4.0),
        ("2.png", 3.0, 7.5),
        ("1.png", 2.0, 2.75),
    ]
    html = (tmp_path / "to" / "comparison.html").read_text()
    assert "<dd>7.5</dd>" in html
    assert "<dd>empty: made so</dd>" in html
    assert ">Agreement</h2>" in html


def test_an_image_gets_better_where_less_is_better(tmp_path: Path) -> None:
    for name, errors in (("a", [0.5, 0.1, 0.3]), ("b", [0.2, 0.4, 0.3])):
        pq.write_table(pa.table({"key": ["x", "y", "z"], "error": errors}), tmp_path / name)
    measure = NumberMeasure("number", CompareOptions())
    images = read_images(tmp_path / "a", tmp_path / "b", measure)
    assert images is not None
    changes = images.changes()
    assert changes is not None
    assert (changes.by, changes.better, changes.worse, changes.same) == ("error", 1, 1, 1)
    assert changes.most_better.to_pylist() == [{"key": "x", "a": 0.5, "b": 0.2, "weight": 0.3}]


# ---- notes and mistakes -------------------------------------------------------------------------


def test_the_aliases_of_the_last_evaluation_count(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = (Path(shutil.copytree(one, tmp_path / one.name)) for one in two)
    evaluate(str(a), Storage(), Terms(aliases={"class 2": None}))
    metrics = compared(a, b).metrics
    assert metrics is not None
    assert metrics["AP"].a.count < metrics["AP"].b.count


def test_another_input_and_changed_pictures_are_noted(tmp_path: Path) -> None:
    rows = guesses(10, 1)
    a = classified(tmp_path / "a", rows, 10)
    rows[3] = {**rows[3], "etag": "another"}
    rows[4] = {**rows[4], "etag": None}
    b = classified(tmp_path / "b", rows, 10)
    write_job(b, "s3://user:word@bucket/photos")
    assert list(compared(a, b).notes) == [
        "A has read photos, B s3://bucket/photos",
        "1 images have another etag in B: the picture has changed between the two",
    ]


def test_outputs_that_can_t_be_compared_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    labels = classified(tmp_path / "labels", guesses(10, 1), 10)
    with pytest.raises(
        UserError, match=r"outputs of one task(.|\n)*labels has key.*label(.|\n)*a has .*objects"
    ):
        compared(labels, two[0])
    others = [{**row, "key": f"other/{row['key']}"} for row in guesses(10, 1)]
    with pytest.raises(UserError, match=r"no image in common(.|\n)*'000.png' and 'other/000.png'"):
        compared(labels, classified(tmp_path / "others", others, 10))
    with pytest.raises(UserError, match="expected an output of a job"):
        compared(labels, tmp_path / "nothing")
    for options, words in (({"iou": 0}, "--iou"), ({"score_threshold": 1.5}, "--score-threshold")):
        with pytest.raises(UserError, match=words):
            CompareOptions(**options)
    result = run(labels, tmp_path / "others", "--iou", "1.5")
    assert result.exit_code == 2
    assert "--iou: expected a number above 0 and at most 1, got 1.5" in result.stderr


# ---- gates --------------------------------------------------------------------------------------


def test_gates_break_by_what_was_observed(two: tuple[Path, Path], both: Comparison) -> None:
    assert both.metrics is not None
    shift, agreed = both.metrics["AP50"].value, both.agreement.value
    assert shift is not None
    assert agreed is not None
    gates = read_gates([f"AP50={shift}", f"agreement={agreed}"])
    assert replace(both, options=CompareOptions(gates=gates)).broken() == []
    result = run(*two, "--fail-under", f"AP50={shift + 0.001}", "--fail-under", f"agreement={agreed - 0.1}")
    assert result.exit_code == 1
    assert result.stderr == f"failed: B - A of AP50 is {shift:.4f}, below {shift + 0.001:g}\n"
    assert "Agreement" in result.stdout


def test_a_gate_of_the_agreement_needs_no_truth(untold: tuple[Path, Path], both: Comparison) -> None:
    result = run(*untold, "--fail-under", "agreement=0.999")
    words = f"failed: agreement is {both.agreement.value:.4f}, below 0.999\n"
    assert (result.exit_code, result.stderr) == (1, words)


def test_a_gate_of_what_is_better_when_lower_bounds_its_rise() -> None:
    worse = {"log_loss": MetricDifference(Value(0.5), Value(0.7), 0.2, None, None)}
    gates = read_gates(["log_loss=-0.1"])
    said = "failed: A - B of log_loss is -0.2000, below -0.1"
    assert list(broken(gates, Value(1.0), worse)) == [said]
    better = {"log_loss": MetricDifference(Value(0.7), Value(0.5), -0.2, None, None)}
    assert not list(broken(gates, Value(1.0), better))


def test_a_gate_is_not_broken_by_a_rounding(tmp_path: Path) -> None:
    """0.85 - 0.86 is a little less than -0.01."""
    rows = guesses(100, 1)
    labels = {row["key"]: NAMES[(NAMES.index(row["label"]) + (n >= 86)) % 4] for n, row in enumerate(rows)}
    worse = [dict(row) for row in rows]
    worse[0]["label"] = next(name for name in NAMES if name != rows[0]["label"])
    a, b = classified(tmp_path / "a", rows, 100, labels), classified(tmp_path / "b", worse, 100, labels)
    found = compared(a, b)
    for text, count in (("top1=-0.01", 0), ("top1=-0.0099", 1)):
        assert len(replace(found, options=CompareOptions(gates=read_gates([text]))).broken()) == count


def test_mistakes_in_gates_are_told(both: Comparison, tmp_path: Path) -> None:
    for text in ("AP", "=0.5", "AP=half", "AP=nan"):
        with pytest.raises(UserError, match=r"expected METRIC=NUMBER, as in AP=-0.01 or agreement=0.98; got"):
            read_gates([text])
    with pytest.raises(UserError, match="there is no metric 'ap5'; did you mean AP"):
        replace(both, options=CompareOptions(gates=read_gates(["ap5=0"]))).broken()
    labels = classified(tmp_path / "labels", guesses(10, 1), 10)
    result = run(labels, labels, "--fail-under", "top1=0")
    assert result.exit_code == 2
    assert "--fail-under top1: both outputs need ground truth of the same images" in result.stderr
    rows = guesses(10, 1)
    known = classified(tmp_path / "known", rows, 10, {row["key"]: NAMES[0] for row in rows})
    result = run(known, known, "--fail-under", "top5=0")
    assert result.exit_code == 2
    assert "--fail-under top5: there is no such number: `top` has fewer than five classes" in result.stderr


# ---- what is written ----------------------------------------------------------------------------


def test_the_command_prints_and_writes(two: tuple[Path, Path], both: Comparison, tmp_path: Path) -> None:
    result = run(*two, "--to", tmp_path / "to")
    assert result.exit_code == 0, result.stderr
    assert "60 images in both, 0 only in A, 0 only in B" in result.stdout
    assert "failed only in A: 1 (truncated 1); only in B: 1 (truncated 1); in both: 1" in result.stdout
    assert "AP75" in result.stdout
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "comparison.html",
        "comparison.json",
        "disagreements.parquet",
    ]
    written = json.loads((tmp_path / "to" / "comparison.json").read_text())
    assert written == json.loads(to_json(both))
    assert both.metrics is not None
    assert written["metrics"]["AP"]["difference"] == both.metrics["AP"].value
    assert pq.read_table(tmp_path / "to" / "disagreements.parquet").equals(both.disagreements)
    html = (tmp_path / "to" / "comparison.html").read_text()
    for heading in (
        "Largest disagreements",
        "Metrics",
        "Labels that changed",
        "Worse in B",
        "Failures",
    ):
        assert f">{heading}</h2>" in html


def test_the_page_has_pictures_and_asks_for_nothing(data: Row, tmp_path: Path) -> None:
    a, b = (
        judged.write_detected(tmp_path / name, data, found)
        for name, found in (("a", judged.detections(data)), ("b", near(judged.detections(data))))
    )
    picture = tmp_path / "picture.png"
    Image.new("RGB", (judged.SIDE, judged.SIDE), "white").save(picture)
    for path in [*a.glob("predictions/*"), *b.glob("predictions/*")]:
        table = pq.read_table(path)
        uris = pa.array([str(picture)] * table.num_rows)
        pq.write_table(table.set_column(table.schema.get_field_index("uri"), "uri", uris), path)
    shutil.rmtree(a / "_job" / "truth")
    save(compared(a, b), str(tmp_path / "to"), Storage())
    html = (tmp_path / "to" / "comparison.html").read_text()
    assert html.count("<img ") == html.count('src="data:image/jpeg;base64,') == 48
    assert html.count("<figure>") == 24
    assert "default-src 'none'" in html
    assert not any(tag in html for tag in ("<script", "<link", "<iframe", "http:", "https:"))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 48), "red").save(picture)
    a = classified(tmp_path / "a", [good(HOSTILE, picture, [(HOSTILE, 0.9)]), bad("b", "crash", HOSTILE)], 2)
    b = classified(
        tmp_path / "b", [good(HOSTILE, picture, [("cat", 0.9)]), good("b", picture, [("cat", 1.0)])], 2
    )
    save(compared(a, b), str(tmp_path / "to"), Storage())
    html = (tmp_path / "to" / "comparison.html").read_text()
    assert "<script" not in html
    assert "{{ 7 * 7 }}" in html
    assert html.count("<img ") == 2


@pytest.mark.slow
def test_from_bucket_to_bucket(bucket: Bucket, two: tuple[Path, Path], both: Comparison) -> None:
    for folder in two:
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{folder.name}/{path.relative_to(folder)}"
                bucket.client.put_object(Bucket=bucket.name, Key=key, Body=path.read_bytes())
    storage = Storage(bucket.options)
    found = compare(f"{bucket.url}/a", f"{bucket.url}/b", CompareOptions(), storage)
    save(found, f"{bucket.url}/to", storage)
    here = json.loads(to_json(both))
    there = json.loads(storage.read(f"{bucket.url}/to/comparison.json"))
    assert {**there, "a": "", "b": ""} == {**here, "a": "", "b": ""}


@pytest.mark.slow
def test_neither_torch_nor_ray_is_imported(two: tuple[Path, Path], tmp_path: Path) -> None:
    code = (
        "import sys; from cnnbatch.evaluation.comparison import compare;"
        "from cnnbatch.evaluation.comparison.page import save;"
        "from cnnbatch.storage import Storage;"
        "found = compare(*sys.argv[1:3]); assert found.metrics; save(found, sys.argv[3], Storage());"
        "heavy = {'torch', 'torchvision', 'timm', 'ray'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-W", "error", "-c", code, *map(str, two), str(tmp_path / "to")]
    subprocess.run(command, check=True, cwd=CHECKOUT)
