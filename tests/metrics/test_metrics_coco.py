"""COCO's numbers against pycocotools', and what it does not have against loops over the same matches."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnbatch.metrics import Evaluated, average_precision, coco
from cnnbatch.metrics.intervals import poisson_weights
from cnnbatch.metrics.iou_types import IOU_TYPES, IouType
from cnnbatch.metrics.objects import image_order
from cnnbatch.output.plan import page_shards, page_table
from cnnbatch.truth import OBJECTS, keypoints_field
from cnnbatch.types import Shard
from tests.sourcing import source

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools' own

BOXES, MASKS, KEYPOINTS = IOU_TYPES["boxes"], IOU_TYPES["masks"], IOU_TYPES["keypoints"]
ORACLES = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
CATEGORIES = {"cat": 1, "ant": 2, "bee": 3}
SIZE = 130

Box = tuple[float, float, float, float]
"""x, y, width and height."""
Points = tuple[tuple[float, float, float | None], ...]


@dataclass(frozen=True)
class Thing:
    """A truth, or a detection where it has a score; its mask is the union of boxes."""

    label: str
    box: Box = (0, 0, 16, 16)
    score: float | None = None
    crowd: bool = False
    area: float | None = None
    mask: tuple[Box, ...] = ()
    points: Points = ()


@dataclass(frozen=True)
class Picture:
    id: int | str
    truths: Sequence[Thing] = ()
    found: Sequence[Thing] | None = ()


# What each side gets of the same pictures


def row(thing: Thing) -> dict[str, Any]:
    x, y, width, height = thing.box
    return {
        "label": thing.label,
        "score": thing.score,
        "box": {"x1": x, "y1": y, "x2": x + width, "y2": y + height},
        "mask": {"size": [SIZE, SIZE], "counts": encoded(thing.mask)["counts"].decode()},
        "keypoints": [{"x": x, "y": y, "visibility": seen} for x, y, seen in thing.points],
        "crowd": thing.crowd if thing.score is None else None,
        "area": thing.area,
    }


def tables(pictures: Sequence[Picture]) -> tuple[pa.Table, pa.Table]:
    keys = [f"{one.id}.jpg" for one in pictures]
    found = [None if one.found is None else [row(thing) for thing in one.found] for one in pictures]
    truths = [[row(thing) for thing in one.truths] for one in pictures]
    ids = pa.array([str(one.id) for one in pictures], pa.string())
    return (
        pa.table({"key": pa.array(keys, pa.string()), "objects": pa.array(found, OBJECTS)}),
        pa.table({"image_id": ids, "objects": pa.array(truths, OBJECTS)}),
    )


@cache
def encoded(boxes: tuple[Box, ...]) -> Any:
    pixels = np.zeros((SIZE, SIZE), np.uint8, order="F")
    for x, y, width, height in boxes:
        pixels[max(0, int(y)) : int(y + height), max(0, int(x)) : int(x + width)] = 1
    return rle.encode(pixels)


def annotation(kind: IouType, image: int | str, thing: Thing) -> dict[str, Any]:
    """Return a truth or a result as COCO's files have it."""
    one: dict[str, Any] = {"image_id": image, "category_id": CATEGORIES[thing.label]}
    if thing.score is not None:
        one["score"] = float(np.float32(thing.score))
    if kind is BOXES or thing.score is None:
        one["bbox"] = list(thing.box)
    if kind is MASKS:
        one["segmentation"] = encoded(thing.mask)
    if kind is KEYPOINTS:
        one["keypoints"] = [value or 0 for point in thing.points for value in point]
        one["num_keypoints"] = sum(bool(seen) for _, _, seen in thing.points)
    if thing.score is None:
        one["iscrowd"] = int(thing.crowd)
        one["area"] = thing.box[2] * thing.box[3] if thing.area is None else thing.area
    return one


def name(category: int) -> str:
    return next(name for name, number in CATEGORIES.items() if number == category)


def dataset(annotations: Sequence[dict[str, Any]], images: Sequence[dict[str, Any]]) -> COCO:
    made = COCO()
    made.dataset = {
        "images": images,
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
        "info": {},
    }
    made.createIndex()
    return made


def oracle(kind: IouType, pictures: Sequence[Picture], sigmas: Sequence[float] = ()) -> COCOeval:
    """Return pycocotools' evaluation; ``sigmas`` of keypoints, where not COCO's."""
    images = [{"id": one.id, "width": SIZE, "height": SIZE} for one in pictures]
    with redirect_stdout(None):
        truths = [annotation(kind, one.id, thing) for one in pictures for thing in one.truths]
        found = [annotation(kind, one.id, thing) for one in pictures for thing in one.found or ()]
        known = dataset(truths, images)
        return judged(kind, known, known.loadRes(found) if found else dataset([], images), sigmas)


def judged(kind: IouType, truths: COCO, found: COCO, sigmas: Sequence[float] = ()) -> COCOeval:
    with redirect_stdout(None):
        evaluation = COCOeval(truths, found, ORACLES[kind.name])
        if sigmas:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def partial(kind: IouType, pictures: Sequence[Picture], first: int = 0) -> coco.CocoPartial:
    return coco.partial(kind, *tables(pictures), first)


def evaluated(kind: IouType, pictures: Sequence[Picture], intervals: bool = False) -> Evaluated:
    return coco.result(coco.merge(kind, [partial(kind, pictures)]), intervals=intervals)


def numbers(found: Evaluated) -> dict[str, float]:
    return {name: -1 if one.value is None else one.value for name, one in found.metrics.items()}


# Pictures with little variety, so that much in them is equal

SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.5 + 1e-9, 0.9, 0.9 + 1e-9, 1.0])  # Equal in 32 bits: 0.5, 0.9.
SIDES = st.sampled_from([16.0, 32.0, 33.0, 96.0, 0.0, 1.0, 97.0])
CORNERS = st.sampled_from([0.0, 4.0, 8.0, 0.0, 4.0, -20.0, 600.0])
AREAS = st.sampled_from([None, None, None, 1024.0, 9216.0, 0.0, 1023.5, 9216.5, 1e10, 2e10])
POSES = np.random.default_rng(0).integers(0, 60, (4, 17, 2)).astype(float)
SEEN: list[tuple[float | None, ...]] = [
    (2.0,) * 17,
    (0.0,) * 17,
    (None,) * 17,
    (*(2.0, 0.0, 1.0, None) * 4, 0.0),
    (*(0.0,) * 16, 1.0),
]


def poses(seen: Sequence[Sequence[float | None]]) -> st.SearchStrategy[Points]:
    """Return poses in one place, some points near the usual and some far away."""

    def made(pose: int, near: float, moved: int, visible: Sequence[float | None]) -> Points:
        shift = [90_000.0 if number < moved else near for number in range(17)]
        places = zip(POSES[pose], shift, visible, strict=True)
        return tuple((float(x) + by, float(y), one) for (x, y), by, one in places)

    near = st.sampled_from([0.0, 1.0, 3.0, 8.0])
    return st.builds(made, st.integers(0, 3), near, st.sampled_from([0, 0, 1, 4, 9]), st.sampled_from(seen))


def things(kind: IouType, boxes: st.SearchStrategy[Box], detected: bool) -> st.SearchStrategy[list[Thing]]:
    one = st.builds(
        Thing,
        label=st.sampled_from(["cat", "cat", "ant", "bee"]),
        box=boxes,
        score=SCORES if detected else st.none(),
        crowd=st.booleans() if not detected else st.just(False),
        area=AREAS if not detected else st.none(),
        mask=st.lists(boxes, max_size=2).map(tuple) if kind is MASKS else st.just(()),
        points=poses(SEEN[:1] if detected else SEEN) if kind is KEYPOINTS else st.just(()),
    )
    return st.lists(one, max_size=6)


@st.composite
def pictures(draw: st.DrawFn, kind: IouType) -> list[Picture]:
    """Return pictures in which all boxes are out of a few, most of which overlap."""
    some = st.lists(st.tuples(CORNERS, CORNERS, SIDES, SIDES), min_size=1, max_size=5)
    boxes = st.sampled_from(draw(some))
    one = st.builds(
        Picture,
        id=st.integers(0, 1000),
        truths=things(kind, boxes, detected=False),
        found=st.none() | things(kind, boxes, detected=True),
    )
    return draw(st.lists(one, max_size=4, unique_by=lambda picture: picture.id))


def crowded(kind: IouType, seed: int, images: int = 12, detections: int = 150) -> list[Picture]:
    """Return pictures whose detections are near the truths, more than count in an image and class."""
    rng = np.random.default_rng(seed)

    def near(one: Thing, score: float) -> Thing:
        box = np.round(np.array(one.box) * np.exp(rng.normal(0, 0.15, 4)), 1)
        mask = tuple((x + int(rng.integers(-4, 5)), y, w, h) for x, y, w, h in one.mask)
        move = rng.normal(0, 4, (17, 2))
        points = tuple((x + a, y + b, s) for (x, y, s), (a, b) in zip(one.points, move, strict=False))
        return Thing(one.label, exact(tuple(box)), score, mask=mask, points=points)

    def truth(label: str) -> Thing:
        box = exact(tuple(np.round([*rng.uniform(0, 60, 2), *np.exp(rng.uniform(2, 5, 2))], 1)))
        most = rng.choice([1, 3], p=[0.3, 0.7])  # 1: no point is labelled.
        points = [(*rng.uniform(0, 100, 2).tolist(), float(rng.integers(0, most))) for _ in range(17)]
        crowd = bool(rng.random() < 0.15)
        area = float(np.round(box[2] * box[3] * rng.uniform(0.4, 1), 1))
        return Thing(label, box, crowd=crowd, area=area, mask=(box,), points=tuple(points))

    made = []
    for number in rng.permutation(images):
        truths = [truth(str(rng.choice(["cat", "bee"], p=[0.8, 0.2]))) for _ in range(rng.integers(1, 9))]
        scores = np.round(rng.random(detections), 2)
        found = [near(truths[int(rng.integers(len(truths)))], float(score)) for score in scores]
        others = [replace(one, label="ant") for one in found[:5]]  # A class that no truth has.
        made.append(Picture(int(number), truths, [*found, *others]))
    return [*made, Picture(images, made[0].truths, []), Picture(images + 1, [], made[0].found)]


def exact(box: tuple[float, ...]) -> Box:
    """Return the box that x1, y1, x2, y2 give back: sums of floats are rounded."""
    x, y, width, height = map(float, box)
    return x, y, x + width - x, y + height - y


# As pycocotools


def assert_same(found: Evaluated, kind: IouType, theirs: COCOeval) -> None:
    """Compare the headline numbers, those of each class, and the curves."""
    assert list(numbers(found).values()) == pytest.approx(theirs.stats, abs=1e-9)
    precision, recall = theirs.eval["precision"], theirs.eval["recall"]
    classes = {one["label"]: one for one in found.tables[f"{kind.prefix}classes"].to_pylist()}
    curves = found.tables[f"{kind.prefix}pr_curves"].to_pylist()
    for place, number in enumerate(theirs.params.catIds):
        label = name(number)
        for stat in kind.stats:
            values = (recall if stat.recall else precision)[..., place, stat.area, stat.most]
            values = values if stat.threshold is None else values[stat.threshold]
            mine = classes.get(label, {}).get(stat.name)
            assert (-1 if mine is None else mine) == pytest.approx(values.mean(), abs=1e-9)
        for threshold, iou in ((0, 0.5), (5, 0.75)):
            curve = [one for one in curves if one["label"] == label and one["iou"] == iou]
            expected = precision[threshold, :, place, 0, -1]
            assert len(curve) == (101 if expected[0] > -1 else 0)
            if curve:
                scores = theirs.eval["scores"][threshold, :, place, 0, -1]
                columns = np.stack([expected, scores, theirs.params.recThrs], axis=1)
                ours = [[one["precision"], one["score"], one["recall"]] for one in curve]
                np.testing.assert_allclose(ours, columns, rtol=0, atol=1e-9)


@pytest.mark.slow
@settings(max_examples=60)
@given(made=pictures(BOXES))
def test_boxes_as_pycocotools(made: list[Picture]) -> None:
    assert_same(evaluated(BOXES, made), BOXES, oracle(BOXES, made))


@settings(max_examples=40)
@given(made=pictures(MASKS))
def test_masks_as_pycocotools(made: list[Picture]) -> None:
    assert_same(evaluated(MASKS, made), MASKS, oracle(MASKS, made))


@settings(max_examples=40)
@given(made=pictures(KEYPOINTS))
def test_keypoints_as_pycocotools(made: list[Picture]) -> None:
    assert_same(evaluated(KEYPOINTS, made), KEYPOINTS, oracle(KEYPOINTS, made))


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
def test_many_detections_as_pycocotools(kind: IouType) -> None:
    made = crowded(kind, seed=1)
    of_class = Counter((one.id, thing.label) for one in made for thing in one.found or ())
    assert max(of_class.values()) > kind.most[-1]
    assert_same(evaluated(kind, made), kind, oracle(kind, made))


@pytest.mark.parametrize("crowd", [False, True])
def test_equal_overlaps_as_pycocotools(crowd: bool) -> None:
    """The first detection overlaps both truths alike; the second can be right if that took the last."""
    left, middle, right = ((float(x), 0.0, 16.0, 16.0) for x in (0, 4, 8))
    found = [Thing("cat", middle, 0.9), Thing("cat", left, 0.5), Thing("cat", right, 0.4)]
    for boxes in ((left, right), (right, left)):
        made = [Picture(1, [Thing("cat", box, crowd=crowd) for box in boxes] + [Thing("cat", left)], found)]
        assert_same(evaluated(BOXES, made), BOXES, oracle(BOXES, made))


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
def test_equal_scores_are_ordered_by_the_images_ids(kind: IouType) -> None:
    """Numbers as pycocotools orders them; other names by place, which pycocotools orders by text."""
    made = [replace(one, found=[replace(two, score=0.5) for two in one.found or ()]) for one in few(kind)]
    assert_same(evaluated(kind, made), kind, oracle(kind, made))
    named = [replace(one, id=f"image {number:02}") for number, one in enumerate(made)]
    assert_same(evaluated(kind, named), kind, oracle(kind, named))
    order = image_order(pa.chunked_array([["b", "7", None, "-1", "12345678901234567890", "a"]]), 5)
    assert order.argsort().tolist() == [3, 1, 0, 2, 4, 5]


def few(kind: IouType, seed: int = 4) -> list[Picture]:
    """Return pictures that by default have truths of all sizes."""
    return crowded(kind, seed, images=9, detections=12)


@pytest.mark.slow
def test_the_sample_as_pycocotools(shared: Path) -> None:
    """Real truths; detections made of them: moved, some of another class, masks their own or their boxes'."""
    path = shared / "data" / "coco-sample" / "annotations" / "instances.json"
    if not path.is_file():
        pytest.skip("no COCO sample beside the checkout")
    with redirect_stdout(None):
        known = COCO(str(path))
    truth = truth_of(path)
    names = {one["id"]: one["name"] for one in known.cats.values()}
    results = list(moved(known, np.random.default_rng(0)))
    predictions = predicted(truth, results, names)
    for kind, left_out in ((BOXES, "segmentation"), (MASKS, "bbox")):
        theirs = [{name: each for name, each in one.items() if name != left_out} for one in results]
        with redirect_stdout(None):
            expected = judged(kind, known, known.loadRes(theirs))
        ours = coco.result(coco.merge(kind, [coco.partial(kind, predictions, truth)]), intervals=False)
        assert list(numbers(ours).values()) == pytest.approx(expected.stats, abs=1e-9)
        assert expected.stats[0] > 0.1


def truth_of(path: Path) -> pa.Table:
    found = source(str(path))
    (shard,) = page_shards(page_table([Shard(0, tuple(found.refs()))], found.columns))
    truth = found.truth(shard)
    assert truth is not None
    return truth


def moved(known: COCO, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for one in known.dataset["annotations"]:
        box = np.round(np.array(one["bbox"]) + rng.normal(0, 4, 4), 2)
        box[2:] = np.abs(box[2:])
        mask = known.annToRLE(one)
        mask = mask if rng.random() < 0.5 else rle.frPyObjects(box[None], *mask["size"])[0]
        yield {
            "image_id": one["image_id"],
            "category_id": one["category_id"] if rng.random() < 0.9 else int(rng.choice(list(known.cats))),
            "score": float(np.float32(np.round(rng.random(), 2))),
            "bbox": box.tolist(),
            "segmentation": mask,
        }


def predicted(truth: pa.Table, results: Sequence[dict[str, Any]], names: dict[int, str]) -> pa.Table:
    objects: dict[str, list[dict[str, Any]]] = {str(image): [] for image in truth["image_id"].to_pylist()}
    for one in results:
        x, y, width, height = one["bbox"]
        size, counts = one["segmentation"]["size"], one["segmentation"]["counts"].decode()
        box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
        label, mask = names[one["category_id"]], {"size": size, "counts": counts}
        objects[str(one["image_id"])].append(
            {"label": label, "score": one["score"], "box": box, "mask": mask}
        )
    return pa.table({"key": list(objects), "objects": pa.array(objects.values(), OBJECTS)})


# Any split, on disk or not


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
@settings(max_examples=6)
@given(cuts=st.lists(st.integers(0, 11), max_size=4), seed=st.integers(0, 99), data=st.data())
def test_any_split_gives_what_one_piece_gives(
    kind: IouType, cuts: list[int], seed: int, data: st.DataObject
) -> None:
    made = few(kind, seed)
    named = [replace(one, id=f"image {one.id}") if data.draw(st.booleans()) else one for one in made]
    ends = [0, *sorted(cuts), len(named)]
    pieces = [partial(kind, named[a:b], a) for a, b in zip(ends, ends[1:], strict=False)]
    pieces = pickle.loads(pickle.dumps(data.draw(st.permutations(pieces))))
    whole = partial(kind, named)
    split = coco.merge(kind, pieces, rows_in_memory=data.draw(st.sampled_from([0, 5, 99])))
    one, other = coco.result(coco.merge(kind, [whole])), coco.result(split)
    assert one.metrics == other.metrics
    assert all(one.tables[name].equals(other.tables[name]) for name in one.tables)
    assert whole.excluded == split.excluded
    images = pa.concat_tables(piece.images for piece in pieces).sort_by("key").to_pylist()
    assert images == [pytest.approx(each) for each in whole.images.sort_by("key").to_pylist()]


# The intervals


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
def test_a_replicate_is_the_images_as_often_as_their_weights(kind: IouType) -> None:
    made = [replace(one, id=number) for number, one in enumerate(distinct(few(kind)))]
    found = evaluated(kind, made, intervals=True).metrics
    weights = poisson_weights([f"{one.id}.jpg" for one in made])
    for replicate in range(12):
        drawn = [one for one, often in zip(made, weights[:, replicate], strict=True) for _ in range(often)]
        expected = numbers(evaluated(kind, [replace(one, id=place) for place, one in enumerate(drawn)]))
        for name, value in found.items():
            assert value.replicates is not None
            ours = np.nan_to_num(value.replicates[replicate], nan=-1)
            assert ours == pytest.approx(expected[name], abs=1e-9)


def test_replicates_are_fewer_where_there_is_much_and_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = few(BOXES)
    found = evaluated(BOXES, made, intervals=True).metrics
    monkeypatch.setattr(average_precision, "_CELLS", 1000)
    for most, count in ((1_000_000, 200), (5, 50)):
        monkeypatch.setattr(average_precision, "MANY", most)
        for name, one in evaluated(BOXES, made, intervals=True).metrics.items():
            expected = np.asarray(found[name].replicates)[:count]
            np.testing.assert_allclose(np.asarray(one.replicates), expected, rtol=0, atol=1e-12)


def distinct(made: Sequence[Picture]) -> Iterator[Picture]:
    """Yield pictures with scores that are all different: copies of an image are ordered as images are."""
    scores = iter(np.random.default_rng(0).permutation(1000) / 1000)
    for one in made:
        yield replace(one, found=[replace(thing, score=float(next(scores))) for thing in one.found or ()])


@pytest.mark.parametrize("truths", [1, 7, 20, 29, 50, 100, 700, 99_991, 700_000])
def test_recalls_are_reached_as_by_a_search(truths: int) -> None:
    right, totals = np.arange(truths + 1)[:, None], np.array([truths])
    for recalls in (average_precision.RECALLS, np.linspace(0, 1, 11)):
        expected = np.searchsorted(recalls, right / totals, side="right")
        np.testing.assert_array_equal(average_precision.reached(right, totals, recalls), expected)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 30))
def test_a_value_lies_in_its_interval(seed: int, images: int) -> None:
    found = evaluated(BOXES, crowded(BOXES, seed, images, 20), intervals=True)
    for one in found.metrics.values():
        if one.low is not None:
            assert one.value is not None
            assert one.high is not None
            assert 0 <= one.low <= one.value <= one.high <= 1


def test_an_interval_is_the_percentiles_less_their_bias() -> None:
    replicates = np.linspace(0.42, 0.62, 201)  # Mean 0.52, all but a tenth above the value.
    value = average_precision.mean_over_classes(
        [0.3, 0.58, np.nan], [replicates, replicates, replicates * np.nan], 9, ""
    )
    assert [value.value, value.low, value.high, value.count] == pytest.approx([0.44, 0.345, 0.535, 9])
    high = average_precision.mean_over_classes([0.99], [np.linspace(0.8, 1, 201)], 9, "")
    assert [high.low, high.high] == pytest.approx([0.895, 1])


# What pycocotools does not have


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
def test_the_operating_point_has_the_best_f1(kind: IouType) -> None:
    made = few(kind)
    found = evaluated(kind, made)
    for one in found.tables[f"{kind.prefix}classes"].to_pylist():
        points = [(score, right) for score, right in scored(kind, made, one["label"]) if right is not None]
        best = (0.0, 0.0, 0.0, max(score for score, _ in points))
        for threshold in {score for score, _ in points}:
            taken = [right for score, right in points if score >= threshold]
            f1 = 2 * sum(taken) / (one["truths"] + len(taken))
            best = max(best, (f1, sum(taken) / len(taken), sum(taken) / one["truths"], threshold))
        assert best == pytest.approx((one["f1"], one["precision"], one["recall"], one["threshold"]))


def scored(kind: IouType, made: Sequence[Picture], label: str) -> Iterator[tuple[float, bool | None]]:
    """Yield the score of each detection of a class and whether it is right at IoU 0.5; None: ignored."""
    for one in images_of(oracle(kind, made)):
        if one["category_id"] == CATEGORIES[label]:
            for score, matched, ignored in at_half(one):
                yield score, None if ignored else matched


def at_half(one: dict[str, Any]) -> Iterator[tuple[float, bool, bool]]:
    """Yield of each detection of an image and class: its score, is it matched at IoU 0.5, is it ignored."""
    for score, matched, ignored in zip(one["dtScores"], one["dtMatches"][0], one["dtIgnore"][0], strict=True):
        yield score, bool(matched), bool(ignored)


def images_of(theirs: COCOeval) -> list[dict[str, Any]]:
    """Return what was matched in each image and class, over all areas."""
    return [one for one in theirs.evalImgs if one and one["aRng"] == theirs.params.areaRng[0]]


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
def test_each_image_has_its_own_precision(kind: IouType) -> None:
    made = few(kind)
    theirs = images_of(oracle(kind, made))
    for picture, one in zip(made, partial(kind, made).images.to_pylist(), strict=True):
        classes = [each for each in theirs if each["image_id"] == picture.id]
        right = [(each["dtMatches"] > 0) & ~each["dtIgnore"] for each in classes]
        wrong = [
            (score, name(each["category_id"]))
            for each in classes
            for score, matched, ignored in at_half(each)
            if not matched and not ignored
        ]
        precisions = [
            [precision(each, threshold) for threshold in range(10)]
            for each in classes
            if not all(each["gtIgnore"])
        ]
        best = min(wrong, key=lambda each: (-each[0], each[1]), default=(None, None))
        assert one == {
            "key": f"{picture.id}.jpg",
            "truths": sum(int((each["gtIgnore"] == 0).sum()) for each in classes),
            "detections": sum(len(each["dtIds"]) for each in classes),
            "found": sum(int(each[0].sum()) for each in right),
            "AP": pytest.approx(np.mean(precisions)) if precisions else None,
            "AP50": pytest.approx(np.mean([each[0] for each in precisions])) if precisions else None,
            "mistake": best[1],
            "mistake_score": best[0],
        }


def precision(one: dict[str, Any], threshold: int) -> float:
    """Return the mean over an image's truths of one class of the precision where each was found."""
    total, right, counted = 0.0, 0, 0
    for matched, ignored in zip(one["dtMatches"][threshold], one["dtIgnore"][threshold], strict=True):
        if not ignored:
            counted += 1
            if matched > 0:
                right += 1
                total += right / counted
    return total / int((one["gtIgnore"] == 0).sum())


# Weird inputs


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
@pytest.mark.parametrize(
    "made",
    [
        [],
        [Picture(1)],
        [Picture(1, found=None)],
        [Picture(1, (), few(BOXES)[0].found)],
        [Picture(1, [Thing("cat", crowd=True)])],
    ],
    ids=["no images", "nothing", "failed", "no truths", "a crowd"],
)
def test_without_truths_there_is_no_value(kind: IouType, made: list[Picture]) -> None:
    made = [replace(one, truths=[replace(two, points=one_pose()) for two in one.truths]) for one in made]
    found = evaluated(kind, made, intervals=True)
    for one in found.metrics.values():
        assert (one.value, one.low, one.high, one.count) == (None, None, None, 0)
        assert one.reason == "no object of this size in the ground truth"
    assert len(found.metrics) == len(kind.stats)
    assert found.tables[f"{kind.prefix}pr_curves"].num_rows == 0
    assert coco.result(coco.merge(kind, [])).metrics == found.metrics


def one_pose() -> Points:
    return tuple((float(x), float(y), 2.0) for x, y in POSES[0])


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
def test_without_detections_the_numbers_are_zero(kind: IouType) -> None:
    made = [Picture(1, [Thing("cat", points=one_pose())]), Picture(2, [], None)]
    found = evaluated(kind, made, intervals=True)
    assert_same(found, kind, oracle(kind, made))
    for one in found.metrics.values():
        assert (one.value, one.low, one.high, one.count) in [(0, 0, 0, 1), (None, None, None, 0)]
    (of_class,) = found.tables[f"{kind.prefix}classes"].to_pylist()
    assert (of_class["label"], of_class["truths"], of_class["threshold"]) == ("cat", 1, None)


@pytest.mark.parametrize("kind", IOU_TYPES.values(), ids=IOU_TYPES)
def test_what_cannot_be_compared_is_counted_and_left_out(kind: IouType) -> None:
    made = few(kind)
    predictions, truth = tables(made)
    rows: Any = predictions["objects"].to_pylist()
    rows[0][0]["box"]["x1"] = float("nan")
    rows[0][1]["box"] = None
    rows[0][2]["score"] = float("inf")
    rows[0][3]["label"] = None
    rows[0][4] |= {"label": None, "box": None, "mask": None, "keypoints": None}
    rows[0][5] |= {"mask": None, "keypoints": rows[0][5]["keypoints"][:3]}
    true: Any = truth["objects"].to_pylist()
    true[1].append({**true[1][0], "label": None})
    predictions = predictions.set_column(1, "objects", pa.array(rows, OBJECTS))
    one = coco.partial(kind, predictions, truth.set_column(1, "objects", pa.array(true, OBJECTS)))
    lacking = {MASKS: {"detections without a mask": 1}, KEYPOINTS: {"detections without 17 keypoints": 1}}
    assert one.excluded == {
        "detections of no class": 2,
        "detections with a box or score that is no number": 3,
        "true objects of no class": 1,
        **lacking.get(kind, {}),
    }
    left = [replace(made[0], found=(made[0].found or ())[5 if kind is BOXES else 6 :]), *made[1:]]
    assert coco.result(coco.merge(kind, [one])).metrics == evaluated(kind, left, intervals=True).metrics


@pytest.mark.parametrize("seed", range(3))
def test_keypoints_of_another_number_are_judged_by_their_own_sigmas(seed: int) -> None:
    sigmas = (0.02, 0.05, 0.1, 0.1, 0.3)
    shown = [
        replace(
            one,
            truths=[replace(thing, points=thing.points[:5]) for thing in one.truths],
            found=[replace(thing, points=thing.points[:5]) for thing in one.found or ()],
        )
        for one in crowded(KEYPOINTS, seed)
    ]
    expected = oracle(KEYPOINTS, shown, sigmas).stats
    found, truth = tables(shown)
    for told in ((_with_sigmas(found, sigmas), truth), (found, _with_sigmas(truth, sigmas))):
        values = coco.result(coco.merge(KEYPOINTS, [coco.partial(KEYPOINTS, *told)]), intervals=False)
        assert list(numbers(values).values()) == pytest.approx(expected, abs=1e-12)
    without = coco.partial(KEYPOINTS, found, truth)
    assert without.excluded["true objects without 17 keypoints"] > 0


def _with_sigmas(table: pa.Table, sigmas: Sequence[float]) -> pa.Table:
    objects: Any = table.schema.field("objects").type
    fields = [keypoints_field(sigmas) if one.name == "keypoints" else one for one in objects.value_type]
    column = table["objects"].cast(pa.list_(pa.struct(fields)))
    place = table.schema.get_field_index("objects")
    return table.set_column(place, pa.field("objects", pa.list_(pa.struct(fields))), column)
