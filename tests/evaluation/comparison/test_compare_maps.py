"""Outputs of maps and of segments compared: against loops over pixels, in every encoding and order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.evaluation import evaluate
from cnnbatch.evaluation.comparison import CompareOptions, Comparison, compare
from cnnbatch.evaluation.comparison.pixels import NO_CLASS, OTHER_SIZE
from cnnbatch.storage import Storage
from cnnbatch.truth import Class
from tests.report.test_report import Page, words
from tests.segmented import Maps, Segment, blocks, photograph, write_maps, write_segments

A, B = ("road", "sky", "car"), ("car", "road", "tree", "sky")
CLASSES = [Class("road", 0), Class("sky", 1), Class("car", 2)]
SIZE = (48, 64)
IMAGES = 10

Map = NDArray[np.uint8]


def compared(a: Path, b: Path, **options: Any) -> Comparison:
    return compare(str(a), str(b), CompareOptions(**options))


@pytest.fixture(scope="module")
def maps() -> tuple[list[Map], list[Map]]:
    """Return what A and B say, each by the places of its own classes; 255 is no class."""
    a = [blocks(place, 3, SIZE) for place in range(IMAGES)]
    table = np.array([1, 3, 0], np.uint8)
    b = [table[np.roll(one, place, 1)] for place, one in enumerate(a)]
    b[4][:6] = 2
    a[5][10:20, 10:20] = b[5][12:22, 10:20] = 255
    return a, b


@pytest.fixture(scope="module")
def two(maps: tuple[list[Map], list[Map]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write both with their truth, which is what A says but for a column; an image failed in each."""
    folder = tmp_path_factory.mktemp("maps")
    photos = folder / "photos"
    photos.mkdir()
    for place in range(IMAGES):
        photograph(photos / f"{place:03}.jpg", SIZE, place)
    true = [np.where(np.arange(SIZE[1]) < 3, 255, one).astype(np.uint8) for one in maps[0]]
    said = [
        [None if place == failed else one for place, one in enumerate(some)]
        for failed, some in zip((2, 7), maps, strict=True)
    ]
    a = write_maps(folder / "a", said[0], true, Maps(A, CLASSES, encoding="png", photos=photos, name="fcn"))
    b = write_maps(
        folder / "b", said[1], true, Maps(B, CLASSES, encoding="rle", parts=3, photos=photos, name="unet")
    )
    return a, b


def by_pixels(maps: tuple[list[Map], list[Map]]) -> Counter[tuple[str, str]]:
    """Return how many pixels have each pair of classes, of the images that failed in neither."""
    found = Counter[tuple[str, str]]()
    for place, (one, other) in enumerate(zip(*maps, strict=True)):
        if place not in (2, 7):
            for first, second in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
                found[A[first] if first < 3 else NO_CLASS, B[second] if second < 4 else NO_CLASS] += 1
    return found


def check(found: Comparison, cells: Counter[tuple[str, str]], images: int = IMAGES) -> None:
    equal = sum(pixels for (one, other), pixels in cells.items() if one == other)
    assert found.agreement.value == pytest.approx(equal / (images * SIZE[0] * SIZE[1]))
    assert found.agreement.low is not None
    assert found.agreement.low < (found.agreement.value or 0) < (found.agreement.high or 0)
    changes = {(one.before, one.after): one.count for one in found.label_changes}
    assert changes == {pair: pixels for pair, pixels in cells.items() if pair[0] != pair[1]}
    for one in found.classes:
        first = sum(pixels for (label, _), pixels in cells.items() if label == one.label)
        second = sum(pixels for (_, label), pixels in cells.items() if label == one.label)
        both = cells[one.label, one.label]
        assert (one.count_a, one.count_b) == (first, second)
        assert one.iou == pytest.approx(both / (first + second - both))


def test_maps_as_by_loops_over_pixels(two: tuple[Path, Path], maps: Any) -> None:
    found = compared(*two)
    check(found, by_pixels(maps))
    assert {one.label for one in found.classes} == {"road", "sky", "car", "tree"}
    assert (found.images, found.failed_a.total(), found.failed_b.total()) == (IMAGES, 1, 1)
    assert found.counts["pixels"] == IMAGES * SIZE[0] * SIZE[1]
    assert "the mean IoU of the classes in A and in B is 0." in found.measure.sentence()
    listed = found.disagreements["key"].to_pylist()
    assert set(listed[:2]) == {"002.jpg", "007.jpg"}
    own = [float((A_to_b(one) == other).mean()) for one, other in zip(*maps, strict=True)]
    least = min((place for place in range(IMAGES) if place not in (2, 7)), key=own.__getitem__)
    assert listed[2] == f"{least:03}.jpg"
    assert found.disagreements["agreement"].to_pylist()[2] == pytest.approx(own[least])


def A_to_b(one: Map) -> Map:  # noqa: N802
    table = np.full(256, 255, np.uint8)
    table[:3] = [1, 3, 0]
    return table[one]


def test_the_order_of_the_rows_and_assets_change_nothing(
    two: tuple[Path, Path], maps: Any, tmp_path: Path
) -> None:
    said = [None if place == 7 else one for place, one in enumerate(maps[1])]
    other = write_maps(tmp_path / "b", said, [None] * IMAGES, Maps(B, CLASSES, encoding="asset", parts=2))
    for folder in (other / "predictions", other / "_job" / "truth"):
        first, second = sorted(folder.glob("part-*.parquet"))
        first.rename(folder / "kept")
        second.rename(first)
        (folder / "kept").rename(second)
    found = compared(two[0], other)
    check(found, by_pixels(maps))
    assert found.metrics is None


def test_equal_outputs_agree(two: tuple[Path, Path]) -> None:
    found = compared(two[0], two[0])
    assert found.agreement.value == 1
    assert all(one.iou == 1 for one in found.classes)
    assert not found.label_changes
    assert not found.disagreements.num_rows


def test_maps_of_other_sizes_are_counted(two: tuple[Path, Path], maps: Any, tmp_path: Path) -> None:
    said = [one[:-1] if place == 3 else one for place, one in enumerate(maps[0])]
    found = compared(two[0], write_maps(tmp_path / "b", said, [None] * IMAGES, Maps(A, CLASSES)))
    assert f"1 {OTHER_SIZE}" in found.notes
    assert found.agreement.value == 1 - 1 / (IMAGES - 1)  # One failed in A.


def test_by_their_truth(two: tuple[Path, Path]) -> None:
    found = compared(*two)
    assert found.metrics is not None
    for name, side in zip("ab", two, strict=True):
        alone = evaluate(str(side), Storage())
        assert alone is not None
        for metric, value in alone.metrics.items():
            assert getattr(found.metrics[metric], name).value == pytest.approx(value.value)
    shift = found.metrics["mIoU"]
    assert shift.value is not None
    assert shift.low is not None
    assert shift.high is not None
    assert shift.low <= shift.value <= shift.high
    assert found.changes is not None
    assert found.changes.by == "mIoU"
    assert found.changes.better == 1  # The one that failed in A alone.
    assert found.changes.worse == IMAGES - 2
    assert found.changes.other_truths == 0


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_gates_and_what_is_written(two: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(*two, "--to", tmp_path / "to", "--fail-under", "mIoU=-0.01", "--fail-under", "agreement=0.1")
    assert done.exit_code == 1
    assert "B - A of mIoU is -" in done.output
    assert "agreement is" not in done.output
    assert "IoU of A and B" in done.output
    data = json.loads((tmp_path / "to" / "comparison.json").read_text())
    assert data["compared"] == "map"
    assert {one["label"]: one["iou"] for one in data["classes"]}["tree"] == 0
    html = (tmp_path / "to" / "comparison.html").read_text()
    text = words(html)
    assert "IoU of A and B" in text
    assert Page(html).tags["img"] == 3 * (IMAGES - 2 - 1) + 2 * 2  # Image 0 is equal; two failed in one.
    assert "Difference: another class" in text
    assert "% of the pixels have the same class" in text.replace("\u00a0", " ")
    assert all(name in text for name in ("road", "sky", "car", "tree"))
    assert run(*two, "--fail-under", "mIoU=-0.99").exit_code == 0


SEGMENTS = ("CAR", "PERSON", "road", "sky")


def segments(numbers: Map, **more: Any) -> list[Segment]:
    return [
        Segment(name, numbers == place, name.isupper(), **more)
        for place, name in enumerate(SEGMENTS, 1)
        if (numbers == place).any()
    ]


def test_segments_as_by_loops_over_pixels(tmp_path: Path) -> None:
    first = [blocks(place, 5, SIZE) for place in range(IMAGES)]
    second = [np.roll(one, place, 1) for place, one in enumerate(first)]
    said: Sequence[list[Segment]] = [segments(one, score=0.9) for one in first]
    half = np.arange(SIZE[1]) < 20
    said[0][0:1] = [
        Segment(said[0][0].label, said[0][0].inside & side, said[0][0].is_thing, 0.9)
        for side in (half, ~half)
    ]
    true = [segments(one) for one in first]
    a = write_segments(tmp_path / "a", said, true, SEGMENTS)
    b = write_segments(tmp_path / "b", [segments(one, score=0.8) for one in second], true, SEGMENTS)
    found = compared(a, b)
    cells = Counter[tuple[str, str]]()
    names = (NO_CLASS, *SEGMENTS)
    for one, other in zip(first, second, strict=True):
        cells.update((names[x], names[y]) for x, y in zip(one.ravel(), other.ravel(), strict=True))
    check(found, cells)
    assert found.counts["segments_a"] == found.counts["segments_b"] + 1
    assert 0 < found.counts["matched"] < found.counts["segments_b"]
    assert found.metrics is not None
    assert (found.metrics["PQ"].value or 0) < 0
    assert found.changes is not None
    assert found.changes.by == "PQ"


def test_other_true_segments_are_said(tmp_path: Path) -> None:
    said = [segments(blocks(place, 5, SIZE), score=0.9) for place in range(IMAGES)]
    true = [segments(blocks(place, 5, SIZE)) for place in range(IMAGES)]
    a = write_segments(tmp_path / "a", said, true, SEGMENTS)
    b = write_segments(tmp_path / "b", said, [true[0][1:], *true[1:]], SEGMENTS)
    assert list(compared(a, b).notes) == ["1 images have another ground truth in B"]
    assert list(compared(a, a).notes) == []


def test_the_page_of_segments_shows_where_they_differ(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photograph(photos / "000.jpg", SIZE)
    first = blocks(0, 5, SIZE)
    some = [[segments(one, score=0.9)] for one in (first, np.roll(first, 9, 1))]
    outputs = [
        write_segments(tmp_path / name, said, [segments(first)], SEGMENTS, photos, parts=1)
        for name, said in zip("ab", some, strict=True)
    ]
    assert run(*outputs, "--to", tmp_path / "to").exit_code == 0
    html = (tmp_path / "to" / "comparison.html").read_text()
    alike = 100 * (first == np.roll(first, 9, 1)).mean()
    assert f"Difference {alike:.0f} % of the pixels have the same class" in words(html).replace("\u00a0", " ")
    assert Page(html).tags["img"] == 3
