"""Panoptic quality against its definition in sets of pixels, and real truth against itself."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from cnnbatch.metrics import Evaluated, panoptic
from cnnbatch.metrics.intervals import poisson_weights
from cnnbatch.metrics.panoptic import PanopticPartial, SegmentCounts
from cnnbatch.metrics.segments import Segments

IMAGES_READ = 40
CLASSES = {"cat": True, "dog": True, "sky": False}


@dataclass(frozen=True)
class Drawn:
    """The segments of an image as a map of their ids, 0 for void, with the class of each."""

    ids: NDArray[Any]
    classes: Mapping[int, str]
    crowd: Sequence[int] = ()

    def segments(self, things: Mapping[str, bool] = CLASSES) -> Segments:
        masks = [rle.encode(np.asfortranarray(self.ids == one, np.uint8)) for one in self.classes]
        labels = list(self.classes.values())
        kinds = [things.get(label) for label in labels]
        return Segments(labels, masks, kinds, [one in self.crowd for one in self.classes])


Pair = tuple[Drawn | None, Drawn]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """A truth of few segments, some of them crowds, and a prediction that is much like it."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    size = shape[0] * shape[1]
    ids = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    names = st.sampled_from(list(CLASSES))
    listed = {one: draw(names) for one in draw(st.permutations(range(1, 6)))}  # Some without pixels.
    crowd = draw(st.sets(st.sampled_from(list(listed))))
    truth = Drawn(np.array(ids, np.uint32).reshape(shape), listed, sorted(crowd))
    if draw(st.integers(0, 9)) == 0:
        return None, truth
    changed = draw(st.lists(st.none() | st.integers(0, 5), min_size=size, max_size=size))
    said = [10 * one if new is None else 10 * new for one, new in zip(ids, changed, strict=True)]
    present = sorted(set(said) - {0})
    same = {one: listed[one // 10] if draw(st.booleans()) else draw(names) for one in present}
    return Drawn(np.array(said, np.int32).reshape(shape), same), truth


IMAGES = st.lists(pairs(), min_size=1, max_size=6)


def counts_of(images: Sequence[Pair], first: int = 0, things: Mapping[str, bool] = CLASSES) -> SegmentCounts:
    keys = [f"{first + number}.png" for number in range(len(images))]
    said = [None if one is None else one.segments(things) for one, _ in images]
    return panoptic.count(keys, said, [one.segments(things) for _, one in images])


def counted(images: Sequence[Pair], first: int = 0) -> PanopticPartial:
    return panoptic.partial(counts_of(images, first))


def numbers(found: Evaluated) -> dict[str, float]:
    return {name: nan if value.value is None else value.value for name, value in found.metrics.items()}


def classes(found: Evaluated) -> dict[str, list[int]]:
    """Return TP, FP and FN of each class that has some."""
    names = ("true_positives", "false_positives", "false_negatives")
    rows = found.tables["panoptic_classes"].to_pylist()
    return {row["label"]: [row[name] for name in names] for row in rows if any(row[name] for name in names)}


def pixels(drawn: Drawn) -> dict[int, set[tuple[int, ...]]]:
    """Return the pixels of each segment, those of void as 0."""
    of_ids: dict[int, set[tuple[int, ...]]] = {one: set() for one in (0, *drawn.classes)}
    for place in np.ndindex(drawn.ids.shape):
        of_ids[int(drawn.ids[place])].add(place)
    return of_ids


def by_sets(images: Sequence[Pair]) -> dict[str, list[float]]:
    """Return of each class the sum of IoU, TP, FP and FN, from the paper's definitions alone."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
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
    return {name: found for name, found in sums.items() if any(found)}


def by_definition(images: Sequence[Pair]) -> dict[str, float]:
    of_classes: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, (iou, hits, wrong, missed) in by_sets(images).items():
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
    assert classes(found) == {name: sums[1:] for name, sums in by_sets(images).items()}


@settings(max_examples=20)
@given(images=IMAGES)
def test_the_rows_of_images_are_each_image_alone(images: list[Pair]) -> None:
    for image, row in zip(images, panoptic.image_rows(counts_of(images)).to_pylist(), strict=True):
        alone = by_definition([image])["PQ"]
        assert (nan if row["PQ"] is None else row["PQ"]) == pytest.approx(alone, nan_ok=True)
        sums = by_sets([image]).values()
        assert row["segments_found"] == sum(one[1] for one in sums)
        assert row["segments"] == sum(one[1] + one[3] for one in sums)
        assert (row["segment_missed"] is None) == (row["segments"] == row["segments_found"])


@settings(max_examples=30)
@given(images=IMAGES, cuts=st.lists(st.integers(0, 6), max_size=3))
def test_any_split_gives_what_one_piece_gives(images: list[Pair], cuts: list[int]) -> None:
    ends = [0, *sorted(min(cut, len(images)) for cut in cuts), len(images)]
    pieces = [counted(images[a:b], a) for a, b in zip(ends, ends[1:], strict=False)]
    whole, merged = counted(images), panoptic.merge(pickle.loads(pickle.dumps(pieces[::-1])))
    assert whole.names == merged.names
    np.testing.assert_array_equal(whole.counts, merged.counts)
    np.testing.assert_array_equal(whole.kinds, merged.kinds)
    np.testing.assert_allclose(whole.iou, merged.iou, rtol=1e-12)
    assert (whole.images, whole.left_out) == (merged.images, merged.left_out)


@settings(max_examples=30)
@given(images=IMAGES, chosen=st.sets(st.integers(0, 5)))
def test_some_of_the_images_are_as_if_they_were_all(images: list[Pair], chosen: set[int]) -> None:
    rows = np.array(sorted(chosen & set(range(len(images)))), np.int64)
    some = panoptic.result(panoptic.partial(counts_of(images), rows))
    expected = by_definition([images[row] for row in rows])
    assert numbers(some) == pytest.approx(expected, rel=1e-12, nan_ok=True)


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


def one_row(ids: Sequence[int], classes: dict[int, str], crowd: Sequence[int] = ()) -> Drawn:
    return Drawn(np.array([ids]), classes, crowd)


def test_a_hand_computed_example() -> None:
    truth = one_row([1, 1, 1, 1, 2, 2, 0, 0, 3, 3, 3, 3], {1: "cat", 2: "dog", 3: "sky"})
    said = one_row([5, 5, 5, 0, 6, 7, 7, 7, 8, 8, 8, 9], {5: "cat", 6: "dog", 7: "cat", 8: "sky", 9: "sky"})
    # cat: 5 takes 1 at 3/4, 7 is two thirds void. dog: 6 has just half of 2. sky: 8 takes 3 at 3/4, not 9.
    found = panoptic.result(counted([(said, truth)]))
    names = ["label", "is_thing", "PQ", "SQ", "RQ", "truths", "detections"]
    rows = found.tables["panoptic_classes"].select(names).to_pylist()
    assert [list(row.values()) for row in rows] == [
        ["cat", True, 0.75, 0.75, 1.0, 1, 1],
        ["dog", True, 0.0, 0.0, 0.0, 1, 1],
        ["sky", False, 0.5, 0.75, 2 / 3, 1, 2],
    ]
    assert classes(found) == {"cat": [1, 0, 0], "dog": [0, 1, 1], "sky": [1, 1, 0]}
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
    assert numbers(panoptic.result(counted([(said, truth)])))["PQ"] == 1


@pytest.mark.parametrize(("name", "wrong"), [("cat", 0), ("dog", 1)])
def test_a_crowd_excuses_its_own_class(name: str, wrong: int) -> None:
    truth = one_row([1, 1, 1, 2], {1: "cat", 2: "sky"}, crowd=[1])
    said = one_row([7, 7, 8, 8], {7: name, 8: "sky"})
    found = classes(panoptic.result(counted([(said, truth)])))
    assert found.get(name, [0, 0, 0]) == [0, wrong, 0]
    assert found["sky"] == [0, 1, 1]  # 8 has half of 2: that is no match.


def test_of_segments_that_overlap_a_pixel_belongs_to_the_first() -> None:
    def masks(*rows: Sequence[int]) -> list[Any]:
        return [rle.encode(np.asfortranarray([row], np.uint8)) for row in rows]

    said = Segments(["cat", "sky"], masks([1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]), [True, False])
    true = Segments(["cat", "sky"], masks([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]), [True, False])
    assert numbers(panoptic.result(panoptic.partial(panoptic.count(["a"], [said], [true]))))["PQ"] == 1


def test_the_truth_says_what_a_thing_is() -> None:
    truth, said = (
        one_row([1, 1, 2, 0], {1: "cat", 2: "sky"}),
        one_row([1, 1, 2, 3], {1: "cat", 2: "sky", 3: "dog"}),
    )
    opposite = {name: not thing for name, thing in CLASSES.items()}
    counts = panoptic.count(["a"], [said.segments(opposite)], [truth.segments()])
    table = panoptic.result(panoptic.partial(counts)).tables["panoptic_classes"]
    found = dict(zip(table["label"].to_pylist(), table["is_thing"].to_pylist(), strict=True))
    assert found == {"cat": True, "sky": False, "dog": False}  # Of a dog only the prediction says something.


def test_a_failed_image_is_all_misses() -> None:
    truth = one_row([1, 1, 2, 3], {1: "cat", 2: "cat", 3: "dog"}, crowd=[3])
    said = replace(truth, crowd=(), ids=np.array([[1, 1, 2, 0]]), classes={1: "cat", 2: "cat"})
    found = panoptic.result(counted([(said, truth), (None, truth)]))
    assert found.metrics["RQ"].value == 2 / 3
    assert found.metrics["PQ_stuff"].value is None
    assert found.metrics["PQ_stuff"].reason == panoptic.NO_SEGMENT


def test_a_predicted_segment_without_pixels_is_left_out_and_counted() -> None:
    truth = one_row([1, 1], {1: "cat"})
    counts = counts_of([(one_row([1, 1], {1: "cat", 2: "dog"}), truth)])
    assert panoptic.result(panoptic.partial(counts)).metrics["PQ"].value == 1
    assert counts.left_out == {panoptic.EMPTY: 1}


def test_masks_of_different_sizes_are_left_out_and_counted() -> None:
    fine = one_row([1, 2], {1: "cat", 2: "sky"})
    counts = counts_of([(fine, fine), (fine, one_row([1], {1: "cat"}))])
    found = panoptic.result(panoptic.partial(counts))
    assert found.metrics["PQ"].value == 1.0
    assert found.metrics["PQ"].count == 1
    assert counts.left_out == {panoptic.OTHER_SIZE: 1}
    assert panoptic.image_rows(counts)["PQ"].to_pylist() == [1.0, None]


def test_nothing_to_count_says_why() -> None:
    found = panoptic.result(counted([]))
    assert all(value.value is None and value.reason for value in found.metrics.values())


@pytest.fixture(scope="module")
def coco(shared: Path) -> tuple[dict[str, bool], list[Drawn]]:
    """Return the classes and the segments of real truth."""
    folder = shared / "data" / "coco-sample" / "annotations"
    if not (folder / "panoptic.json").is_file():
        pytest.skip("no COCO sample with panoptic truth beside the checkout")
    content = json.loads((folder / "panoptic.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    found = [drawn(folder / "panoptic", one, names) for one in content["annotations"][:IMAGES_READ]]
    return {one["name"]: bool(one["isthing"]) for one in content["categories"]}, found


def drawn(folder: Path, annotation: dict[str, Any], names: dict[int, str]) -> Drawn:
    with Image.open(folder / annotation["file_name"]) as image:
        colours: NDArray[Any] = np.asarray(image.convert("RGB"), np.uint32)
    listed = annotation["segments_info"]
    classes = {one["id"]: names[one["category_id"]] for one in listed}
    crowd = [one["id"] for one in listed if one["iscrowd"]]
    return Drawn(colours @ np.array([1, 256, 65536], np.uint32), classes, crowd)


def test_real_truth_against_itself_is_perfect(coco: tuple[dict[str, bool], list[Drawn]]) -> None:
    things, truth = coco
    found = panoptic.result(panoptic.partial(counts_of([(one, one) for one in truth], things=things)))
    assert numbers(found) == dict.fromkeys(found.metrics, 1.0)
    assert {(value.low, value.high) for value in found.metrics.values()} == {(1.0, 1.0)}
    counts = found.tables["panoptic_classes"].to_pydict()
    listed = sum(len(one.classes) - len(one.crowd) for one in truth)
    sums = [sum(counts[name]) for name in ("true_positives", "false_positives", "false_negatives")]
    assert sums == [listed, 0, 0]


def test_real_truth_moved_is_as_by_sets_of_pixels(coco: tuple[dict[str, bool], list[Drawn]]) -> None:
    things, truth = coco
    with_crowds = [one for one in truth if one.crowd][:3]
    assert with_crowds
    for one in with_crowds:
        small = replace(one, ids=one.ids[::8, ::8])
        ids = np.roll(small.ids, 2, axis=1)
        said = Drawn(ids, {number: one.classes[number] for number in np.unique(ids).tolist() if number})
        found = panoptic.partial(counts_of([(said, small)], things=things))
        expected = by_sets([(said, small)])
        for place, name in enumerate(found.names):
            sums = [found.iou[0, place], *found.counts[0, :, place]]
            assert sums == pytest.approx(expected.get(name, [0, 0, 0, 0]))
