"""Panoptic quality against its definition in sets of pixels, and real truth against itself."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.metrics import Evaluated, panoptic
from cnnbatch.metrics.intervals import poisson_weights
from cnnbatch.metrics.panoptic import Segments

IMAGES_READ = 40
CLASSES = {"cat": True, "dog": True, "sky": False}
Pair = tuple[Segments | None, Segments]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """A truth of few segments, some of them crowds, and a prediction that is much like it."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    size = shape[0] * shape[1]
    ids = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    names = st.sampled_from(list(CLASSES))
    listed = {one: draw(names) for one in draw(st.permutations(range(1, 6)))}  # Some without pixels.
    crowd = draw(st.sets(st.sampled_from(list(listed))))
    truth = Segments(np.array(ids, np.uint32).reshape(shape), listed, crowd)
    if draw(st.integers(0, 9)) == 0:
        return None, truth
    changed = draw(st.lists(st.none() | st.integers(0, 5), min_size=size, max_size=size))
    said = [10 * one if new is None else 10 * new for one, new in zip(ids, changed, strict=True)]
    present = sorted(set(said) - {0})
    same = {one: listed[one // 10] if draw(st.booleans()) else draw(names) for one in present}
    return Segments(np.array(said, np.int32).reshape(shape), same), truth


IMAGES = st.lists(pairs(), min_size=1, max_size=6)


def counted(images: Sequence[Pair], first: int = 0) -> panoptic.PanopticPartial:
    keys = [f"{first + number}.png" for number in range(len(images))]
    return panoptic.partial(keys, [one for one, _ in images], [one for _, one in images], CLASSES)


def numbers(found: Evaluated) -> dict[str, float]:
    return {name: nan if value.value is None else value.value for name, value in found.metrics.items()}


def outcomes(found: Evaluated) -> dict[str, int]:
    table = found.tables["outcomes"].to_pydict()
    return dict(zip(table["outcome"], table["images"], strict=True))


def pixels(segments: Segments) -> dict[int, set[tuple[int, ...]]]:
    """Return the pixels of each segment, those of void as 0."""
    of_ids: dict[int, set[tuple[int, ...]]] = {one: set() for one in (0, *segments.classes)}
    for place in np.ndindex(segments.ids.shape):
        of_ids[int(segments.ids[place])].add(place)
    return of_ids


def by_sets(images: Sequence[Pair], classes: Iterable[str] = CLASSES) -> dict[str, list[float]]:
    """Return of each class the sum of IoU, TP, FP and FN, from the paper's definitions alone."""
    sums = {name: [0.0, 0, 0, 0] for name in classes}
    for said, truth in images:
        true, void = pixels(truth), pixels(truth)[0]
        own = pixels(said) if said else {}
        hits = set()
        for one, name in truth.classes.items():
            partners = [
                (other, len(true[one] & own[other]) / len(true[one] | own[other] - void))
                for other in (said.classes if said else ())
                if said and said.classes[other] == name and true[one] | own[other] - void
            ]
            matched = [pair for pair in partners if pair[1] > 0.5 and one not in truth.crowd]
            assert len(matched) <= 1
            for other, iou in matched:
                hits.add(other)
                sums[name][0] += iou
                sums[name][1] += 1
            sums[name][3] += not matched and one not in truth.crowd
        crowds = {name: true[one] for one, name in truth.classes.items() if one in truth.crowd}
        for other, name in said.classes.items() if said else ():
            excused = own[other] & (void | crowds.get(name, set()))
            sums[name][2] += other not in hits and len(excused) <= 0.5 * len(own[other])
    return sums


def by_definition(images: Sequence[Pair]) -> dict[str, float]:
    of_classes: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, (iou, hits, wrong, missed) in by_sets(images).items():
        if hits + wrong + missed:
            size = hits + wrong / 2 + missed / 2
            found = (iou / size, iou / hits if hits else 0.0, hits / size)
            of_classes[""].append(found)
            of_classes["_things" if CLASSES[name] else "_stuff"].append(found)
    return {
        quality + suffix: sum(one[place] for one in of_classes[suffix]) / len(of_classes[suffix])
        if of_classes[suffix]
        else nan
        for suffix in ("", "_things", "_stuff")
        for place, quality in enumerate(("PQ", "SQ", "RQ"))
    }


@settings(max_examples=50)
@given(images=IMAGES)
def test_as_by_sets_of_pixels(images: list[Pair]) -> None:
    found = panoptic.result(counted(images))
    assert numbers(found) == pytest.approx(by_definition(images), rel=1e-12, nan_ok=True)
    table = found.tables["classes"].to_pylist()
    counts = {row["label"]: [row["TP"], row["FP"], row["FN"]] for row in table}
    assert counts == {name: sums[1:] for name, sums in by_sets(images).items()}


@settings(max_examples=30)
@given(images=IMAGES, cuts=st.lists(st.integers(0, 6), max_size=3))
def test_any_split_gives_what_one_piece_gives(images: list[Pair], cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(images)) for cut in cuts), len(images)]
    pieces = [counted(images[a:b], a) for a, b in zip(ends, ends[1:], strict=False)]
    whole, merged = counted(images), panoptic.merge(pickle.loads(pickle.dumps(pieces[::-1])))
    np.testing.assert_array_equal(whole.counts, merged.counts)
    np.testing.assert_allclose(whole.iou, merged.iou, rtol=1e-12)
    assert (whole.images, whole.failed, whole.excluded) == (merged.images, merged.failed, merged.excluded)


@settings(max_examples=20)
@given(images=IMAGES)
def test_a_replicate_is_the_images_as_often_as_their_weights(images: list[Pair]) -> None:
    found = counted(images)
    weights = poisson_weights([f"{number}.png" for number in range(len(images))])
    for replicate in range(3):
        often = weights[:, replicate]
        drawn = [image for image, times in zip(images, often, strict=True) for _ in range(times)]
        once = replace(found, iou=found.iou[[replicate + 1]], counts=found.counts[[replicate + 1]])
        expected = by_definition(drawn)
        assert numbers(panoptic.result(once)) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def one_row(ids: Sequence[int], classes: dict[int, str], crowd: Sequence[int] = ()) -> Segments:
    return Segments(np.array([ids]), classes, crowd)


def test_a_hand_computed_example() -> None:
    truth = one_row([1, 1, 1, 1, 2, 2, 0, 0, 3, 3, 3, 3], {1: "cat", 2: "dog", 3: "sky"})
    said = one_row([5, 5, 5, 0, 6, 7, 7, 7, 8, 8, 8, 9], {5: "cat", 6: "dog", 7: "cat", 8: "sky", 9: "sky"})
    # cat: 5 takes 1 at 3/4, 7 is two thirds void. dog: 6 has just half of 2. sky: 8 takes 3 at 3/4, not 9.
    found = panoptic.result(counted([(said, truth)]))
    assert found.tables["classes"].to_pylist() == [
        {"label": "cat", "thing": True, "PQ": 0.75, "SQ": 0.75, "RQ": 1.0, "TP": 1, "FP": 0, "FN": 0},
        {"label": "dog", "thing": True, "PQ": 0.0, "SQ": 0.0, "RQ": 0.0, "TP": 0, "FP": 1, "FN": 1},
        {"label": "sky", "thing": False, "PQ": 0.5, "SQ": 0.75, "RQ": 2 / 3, "TP": 1, "FP": 1, "FN": 0},
    ]
    assert numbers(found) == pytest.approx(
        {
            "PQ": 1.25 / 3,
            "SQ": 0.5,
            "RQ": (1 + 2 / 3) / 3,
            "PQ_things": 0.375,
            "SQ_things": 0.375,
            "RQ_things": 0.5,
            "PQ_stuff": 0.5,
            "SQ_stuff": 0.75,
            "RQ_stuff": 2 / 3,
        }
    )


def test_void_is_no_part_of_the_union() -> None:
    truth, said = one_row([1, 1, 0, 0, 0], {1: "cat"}), one_row([7, 7, 7, 7, 7], {7: "cat"})
    iou, counts = panoptic.match(said, truth, CLASSES)
    assert iou.tolist() == [1, 0, 0]
    assert counts[:, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("name", "wrong"), [("cat", 0), ("dog", 1)])
def test_a_crowd_excuses_its_own_class(name: str, wrong: int) -> None:
    truth = one_row([1, 1, 1, 2], {1: "cat", 2: "sky"}, crowd=[1])
    _, counts = panoptic.match(one_row([7, 7, 8, 8], {7: name, 8: "sky"}), truth, CLASSES)
    assert counts[1].sum() == wrong + 1  # 8 has half of 2: that is no match.
    assert counts[2].tolist() == [0, 0, 1]


def test_a_failed_image_is_all_misses() -> None:
    truth = one_row([1, 1, 2, 3], {1: "cat", 2: "cat", 3: "dog"}, crowd=[3])
    said = replace(truth, crowd=(), ids=np.array([[1, 1, 2, 0]]), classes={1: "cat", 2: "cat"})
    found = panoptic.result(counted([(said, truth), (None, truth)]))
    assert found.metrics["RQ"].value == 2 / 3
    assert found.metrics["PQ_stuff"].value is None
    assert found.metrics["PQ_stuff"].reason == "there is no segment of these classes"
    assert outcomes(found) == {"predicted": 1, "failed": 1}


def test_what_cannot_be_compared_is_counted_by_its_reason() -> None:
    fine = one_row([1, 2], {1: "cat", 2: "sky"})
    bad = [one_row([1, 3], {1: "cat"}), one_row([1, 1], {1: "cow"})]
    found = panoptic.result(
        counted([(fine, fine), (fine, one_row([1], {1: "cat"})), *((fine, one) for one in bad)])
    )
    assert found.metrics["PQ"].value == 1.0
    assert found.metrics["PQ"].count == 1
    assert outcomes(found) == {
        "predicted": 1,
        "failed": 0,
        panoptic.OTHER_SIZE: 1,
        panoptic.UNKNOWN_SEGMENT: 2,
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (one_row([1, 3], {1: "cat"}), "prediction of 0.png: the map has segment 3, which has no class"),
        (one_row([1, -1], {1: "cat"}), "has segment -1"),
        (one_row([1, 1], {1: "cat", 2: "dog"}), "segment 2 has no pixel"),
        (one_row([1, 1], {1: "cow"}), "class 'cow', which is none of the classes"),
    ],
)
def test_a_prediction_that_contradicts_itself_is_refused(said: Segments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counted([(said, one_row([1, 1], {1: "cat"}))])


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="begin at 1"):
        one_row([0], {0: "cat"})
    with pytest.raises(ValueError, match="different classes"):
        panoptic.merge([counted([]), panoptic.partial([], [], [], {"cat": False})])


def test_nothing_to_count_says_why() -> None:
    found = panoptic.result(counted([]))
    assert all(value.value is None and value.reason for value in found.metrics.values())


@pytest.fixture(scope="module")
def coco(shared: Path) -> tuple[dict[str, bool], list[Segments]]:
    """Return the classes and the segments of real truth."""
    folder = shared / "data" / "coco-sample" / "annotations"
    if not (folder / "panoptic.json").is_file():
        pytest.skip("no COCO sample with panoptic truth beside the checkout")
    content = json.loads((folder / "panoptic.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    found = [segments(folder / "panoptic", one, names) for one in content["annotations"][:IMAGES_READ]]
    return {one["name"]: bool(one["isthing"]) for one in content["categories"]}, found


def segments(folder: Path, annotation: dict[str, Any], names: dict[int, str]) -> Segments:
    with Image.open(folder / annotation["file_name"]) as image:
        colours: NDArray[Any] = np.asarray(image.convert("RGB"), np.uint32)
    listed = annotation["segments_info"]
    classes = {one["id"]: names[one["category_id"]] for one in listed}
    crowd = [one["id"] for one in listed if one["iscrowd"]]
    return Segments(colours @ np.array([1, 256, 65536], np.uint32), classes, crowd)


def test_real_truth_against_itself_is_perfect(coco: tuple[dict[str, bool], list[Segments]]) -> None:
    classes, truth = coco
    keys = [str(number) for number in range(len(truth))]
    found = panoptic.result(panoptic.partial(keys, truth, truth, classes))
    assert numbers(found) == dict.fromkeys(found.metrics, 1.0)
    assert {(value.low, value.high) for value in found.metrics.values()} == {(1.0, 1.0)}
    counts = found.tables["classes"].to_pydict()
    listed = sum(len(one.classes) - len(one.crowd) for one in truth)
    assert (sum(counts["TP"]), sum(counts["FP"]), sum(counts["FN"])) == (listed, 0, 0)


def test_real_truth_moved_is_as_by_sets_of_pixels(coco: tuple[dict[str, bool], list[Segments]]) -> None:
    classes, truth = coco
    with_crowds = [one for one in truth if one.crowd][:3]
    assert with_crowds
    for one in with_crowds:
        small = replace(one, ids=one.ids[::8, ::8])
        ids = np.roll(small.ids, 2, axis=1)
        said = Segments(ids, {number: one.classes[number] for number in np.unique(ids).tolist() if number})
        iou, counts = panoptic.match(said, small, classes)
        found = dict(zip(classes, np.vstack([iou, counts]).T.tolist(), strict=True))
        assert found == {
            name: pytest.approx(sums) for name, sums in by_sets([(said, small)], classes).items()
        }
