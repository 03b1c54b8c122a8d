"""Maps and segments as other tools have them: what is written is read back to the same pixels."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.images.class_map import colours
from cnnbatch.metrics import panoptic
from cnnbatch.metrics.segments import Segments
from cnnbatch.output.export import ExportOptions, ExportSummary, export
from cnnbatch.report.painter import painter
from cnnbatch.truth import Class
from tests.segmented import Maps, Segment, blocks, photograph, write_maps, write_segments

MODEL = ("background", "car", "road", "", "sky")
CLASSES = [Class("sky", 10), Class("road", 3), Class("car", 26)]
SIZE = (48, 64)
IMAGES = 5

Map = NDArray[np.uint8]


@pytest.fixture(scope="module")
def maps() -> list[Map]:
    made = [blocks(place, len(MODEL), SIZE) for place in range(IMAGES)]
    made[1][3:9, 4:8] = 255
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for place in range(IMAGES):
        photograph(folder / f"{place:03}.jpg", SIZE, place)
    return folder


def written(out: Path, format: str, to: Path, **options: Any) -> ExportSummary:
    return export(str(out), format, str(to), ExportOptions(**options, paint=painter))


def output(folder: Path, maps: Sequence[Map], **how: Any) -> Path:
    said = [None if place == 2 else one for place, one in enumerate(maps)]
    return write_maps(folder, said, [None] * len(said), Maps(MODEL, CLASSES, **how))


@pytest.mark.parametrize("encoding", ["png", "rle", "asset"])
def test_coco_has_a_mask_for_each_class(tmp_path: Path, maps: Sequence[Map], encoding: str) -> None:
    summary = written(output(tmp_path / "out", maps, encoding=encoding), "coco", tmp_path / "to")
    assert (summary.counts.images, summary.counts.failed) == (IMAGES - 1, {"truncated": 1})
    known = COCO(str(tmp_path / "to" / "results.images.json"))
    found = known.loadRes(str(tmp_path / "to" / "results.json"))
    names = {one["id"]: one["name"] for one in known.loadCats(known.getCatIds())}
    assert set(names.values()) == set(MODEL) - {""}
    assert {name: number for number, name in names.items()}["sky"] == 10  # As the truth numbers it.
    for place, image in enumerate(known.loadImgs(known.getImgIds())):
        here = found.loadAnns(found.getAnnIds(imgIds=image["id"]))
        if place == 2:
            assert image["error"] == "truncated"
            assert not here
            continue
        masks = {names[one["category_id"]]: decoded(one["segmentation"]) for one in here}
        assert set(masks) == {MODEL[number] for number in np.unique(maps[place]) if number < 255} - {""}
        for name, mask in masks.items():
            assert np.array_equal(mask, maps[place] == MODEL.index(name))


def decoded(mask: Any) -> NDArray[np.bool_]:
    """Return the pixels of COCO's compressed run lengths, by pycocotools."""
    height, width = mask["size"]
    found = np.zeros((height, width), np.bool_)
    for y in range(height):
        row = np.zeros((height, width), np.uint8)
        row[y] = 1
        shared = coco_mask.merge([mask, coco_mask.encode(np.asfortranarray(row))], intersect=True)
        found[y] = coco_mask.area(shared) > 0
    return found & by_runs(mask)


def by_runs(mask: Any) -> NDArray[np.bool_]:
    """Return the same by the published layout: runs down the columns, outside and inside in turns."""
    text = mask["counts"] if isinstance(mask["counts"], str) else mask["counts"].decode()
    runs: list[int] = []
    place = 0
    while place < len(text):
        number = shift = 0
        more = True
        while more:
            bits = ord(text[place]) - 48
            number |= (bits & 0x1F) << 5 * shift
            more = bool(bits & 0x20)
            place, shift = place + 1, shift + 1
            if not more and bits & 0x10:
                number |= -1 << 5 * shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    inside = np.concatenate([np.full(run, turn % 2 == 1) for turn, run in enumerate(runs)])
    height, width = mask["size"]
    return inside.reshape(width, height).T


@pytest.mark.parametrize("encoding", ["png", "rle", "asset"])
def test_voc_has_the_numbers_as_values_of_a_palette(
    tmp_path: Path, maps: Sequence[Map], encoding: str
) -> None:
    written(output(tmp_path / "out", maps, encoding=encoding), "voc", tmp_path / "to")
    listed = (tmp_path / "to" / "ImageSets" / "Segmentation" / "predicted.txt").read_text().split()
    assert listed == [f"{place:03}" for place in range(IMAGES) if place != 2]
    assert (tmp_path / "to" / "classes.txt").read_text().split("\n") == [*MODEL, ""]
    for name in listed:
        with Image.open(tmp_path / "to" / "SegmentationClass" / f"{name}.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), maps[int(name)])
            palette = np.array(image.getpalette()).reshape(-1, 3)
            assert np.array_equal(palette[: len(MODEL)], colours(len(MODEL)))


def test_voc_refuses_more_classes_than_its_files_hold(tmp_path: Path) -> None:
    model = [f"class {number}" for number in range(300)]
    numbers = np.array([[0, 299]], np.uint16)
    out = write_maps(tmp_path / "out", [numbers], [None], Maps(model, [], parts=1))
    with pytest.raises(UserError, match="at most 255 classes"):
        written(out, "voc", tmp_path / "to")
    written(out, "coco", tmp_path / "to")
    found = json.loads((tmp_path / "to" / "results.json").read_text())
    assert [one["category_id"] for one in found] == [1, 300]


SEGMENTS = ("CAR", "PERSON", "road", "sky")


def segments(numbers: Map, **more: Any) -> list[Segment]:
    """Return a segment for each number of a map but 0, two of the cars; names in capitals are things."""
    found = [
        Segment(name, numbers == place, name.isupper(), **more)
        for place, name in enumerate(SEGMENTS, 1)
        if (numbers == place).any()
    ]
    left = np.arange(numbers.shape[1]) < 30
    cars = [one for one in found if one.label == "CAR"]
    parts = [one.inside & side for one in cars for side in (left, ~left)]
    return [*(Segment("CAR", part, True, **more) for part in parts if part.any()), *(set_aside(found, cars))]


def set_aside(found: Sequence[Segment], some: Sequence[Segment]) -> list[Segment]:
    return [one for one in found if one not in some]


@pytest.fixture
def panoptic_output(tmp_path: Path, photos: Path) -> tuple[Path, list[list[Segment] | None]]:
    said: list[list[Segment] | None] = [
        segments(blocks(place, 5, SIZE), score=0.7) for place in range(IMAGES)
    ]
    said[3] = None
    true = [segments(blocks(place, 5, SIZE)) for place in range(IMAGES)]
    return write_segments(tmp_path / "out", said, true, SEGMENTS, photos), said


def read_panoptic(folder: Path) -> dict[str, tuple[NDArray[np.int64], list[dict[str, Any]]]]:
    """Return the ids of the pixels and the segments of each image, as COCO's format has them."""
    data = json.loads((folder / "panoptic.json").read_text())
    names = {one["id"]: one for one in data["categories"]}
    files = {one["id"]: one["file_name"] for one in data["images"]}
    found = {}
    for one in data["annotations"]:
        with Image.open(folder / "panoptic" / one["file_name"]) as image:
            assert image.mode == "RGB"
            red, green, blue = np.moveaxis(np.asarray(image).astype(np.int64), 2, 0)
        infos = [{**info, **names[info["category_id"]], "id": info["id"]} for info in one["segments_info"]]
        found[files[one["image_id"]]] = (red + 256 * green + 256**2 * blue, infos)
    return found


def test_panoptic_is_read_back_to_the_same_segments(
    tmp_path: Path, panoptic_output: tuple[Path, list[list[Segment] | None]]
) -> None:
    out, said = panoptic_output
    summary = written(out, "panoptic", tmp_path / "to")
    found = read_panoptic(tmp_path / "to")
    assert set(found) == {f"{place:03}.jpg" for place in range(IMAGES) if place != 3}
    assert summary.counts.objects == sum(len(one or []) for one in said)
    for key, (ids, infos) in found.items():
        some = said[int(key[:3])]
        assert some is not None
        assert set(np.unique(ids).tolist()) - {0} == {info["id"] for info in infos}
        assert len({info["id"] for info in infos}) == len(infos) == len(some)
        for one, info in zip(some, infos, strict=True):
            inside = ids == info["id"]
            assert np.array_equal(inside, one.inside)
            assert (info["name"], bool(info["isthing"])) == (one.label, one.is_thing)
            assert (info["area"], info["iscrowd"]) == (inside.sum(), 0)
            assert info["bbox"] == list(map(int, box_of(inside)))
        pairs = [quality_input(ids, infos), quality_input_of(some)]
        counts = panoptic.partial(panoptic.count(["a"], pairs[:1], pairs[1:]))
        assert panoptic.result(counts).metrics["PQ"].value == 1


def box_of(inside: NDArray[np.bool_]) -> Sequence[float]:
    box: Sequence[float] = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(inside, np.uint8)))
    return box


def quality_input(ids: NDArray[np.int64], infos: Sequence[dict[str, Any]]) -> Segments:
    masks = [coco_mask.encode(np.asfortranarray(ids == info["id"], np.uint8)) for info in infos]
    return Segments([info["name"] for info in infos], masks, [bool(info["isthing"]) for info in infos])


def quality_input_of(some: Sequence[Segment]) -> Segments:
    masks = [coco_mask.encode(np.asfortranarray(one.inside, np.uint8)) for one in some]
    return Segments([one.label for one in some], masks, [one.is_thing for one in some])


def test_panoptic_says_which_images_failed_and_gives_a_pixel_to_the_first(tmp_path: Path) -> None:
    inside = np.zeros(SIZE, np.bool_)
    inside[:20] = True
    lower = np.zeros(SIZE, np.bool_)
    lower[10:30] = True
    said = [
        [
            Segment("CAR", inside, True, 0.9),
            Segment("sky", lower, False, None),
            Segment("CAR", np.zeros(SIZE, np.bool_), True, 0.8),
        ],
        None,
    ]
    out = write_segments(tmp_path / "out", said, [[], []], SEGMENTS, parts=1)
    summary = written(out, "panoptic", tmp_path / "to")
    ((ids, infos),) = read_panoptic(tmp_path / "to").values()
    assert [info["name"] for info in infos] == ["CAR", "sky"]
    assert [int((ids == info["id"]).sum()) for info in infos] == [20 * 64, 10 * 64]
    assert (summary.counts.objects, summary.counts.hidden, summary.counts.bad_masks) == (2, 1, 0)
    assert "  empty, or covered by others: 1 segment; left out" in summary.lines()
    images = json.loads((tmp_path / "to" / "panoptic.json").read_text())["images"]
    assert images[1]["error"] == "truncated"


@pytest.mark.parametrize(
    ("format", "objects", "what"),
    [
        ("panoptic", 2, "left out"),
        ("voc", 3, "left out"),
        ("yolo", 3, "written as their boxes"),
        ("pictures", 4, "not drawn, and their cut-outs are the whole box"),
    ],
)
def test_masks_that_cannot_be_read_are_counted(
    tmp_path: Path, photos: Path, format: str, objects: int, what: str
) -> None:
    left, right = (np.tile(side, (SIZE[0], 1)) for side in (np.arange(64) < 30, np.arange(64) >= 30))
    good = Segment("CAR", left, True, 0.9)
    smaller = Segment("CAR", np.ones((10, 64), np.bool_), True, 0.8)  # Of another size than its image.
    damaged = Segment("PERSON", right, True, 0.7, runs="3")  # Runs that do not fill the mask.
    said = [[good, smaller, damaged, Segment("sky", right, False, 0.6)]]
    out = write_segments(tmp_path / "out", said, [[]], SEGMENTS, photos, parts=1)
    summary = written(out, format, tmp_path / "to")
    assert (summary.counts.objects, summary.counts.bad_masks) == (objects, 2)
    assert f"  damaged, or of another size than the image: 2 masks; {what}" in summary.lines()


def test_panoptic_is_for_segments_alone(tmp_path: Path, maps: Sequence[Map]) -> None:
    out = output(tmp_path / "out", maps)
    with pytest.raises(UserError, match="panoptic is for objects"):
        written(out, "panoptic", tmp_path / "to")
    with pytest.raises(UserError, match="give --format coco or voc or csv or pictures"):
        written(out, "yolo", tmp_path / "to")


def test_other_formats_have_the_things_and_count_the_stuff(
    tmp_path: Path, panoptic_output: tuple[Path, list[list[Segment] | None]]
) -> None:
    out, said = panoptic_output
    things = [one for some in said for one in some or [] if one.is_thing]
    stuff = sum(len(some or []) for some in said) - len(things)
    for format in ("coco", "voc", "yolo"):
        counts = written(out, format, tmp_path / format).counts
        assert (counts.objects, counts.stuff) == (len(things), stuff)
    results = json.loads((tmp_path / "coco" / "results.json").read_text())
    assert len(results) == len(things)
    assert all(
        np.array_equal(decoded(one["segmentation"]), thing.inside)
        for one, thing in zip(results, things, strict=True)
    )
    lines = written(out, "coco", tmp_path / "again").lines()
    assert any("of stuff, not of things" in line for line in lines)


def test_voc_has_masks_as_classes_and_objects(
    tmp_path: Path, panoptic_output: tuple[Path, list[list[Segment] | None]]
) -> None:
    out, said = panoptic_output
    written(out, "voc", tmp_path / "to")
    names = (tmp_path / "to" / "classes.txt").read_text().split("\n")
    assert names == ["background", *SEGMENTS, ""]
    some = [one for one in said[0] or [] if one.is_thing]
    for folder, values in (("SegmentationClass", None), ("SegmentationObject", range(1, 99))):
        expected = np.zeros(SIZE, int)
        for place, one in enumerate(some):
            expected[one.inside] = names.index(one.label) if values is None else values[place]
        with Image.open(tmp_path / "to" / folder / "000.png") as image:
            assert np.array_equal(np.asarray(image), expected)
    assert "<segmented>1</segmented>" in (tmp_path / "to" / "Annotations" / "000.xml").read_text()
    assert (tmp_path / "to" / "ImageSets" / "Main" / "predicted.txt").read_text().split()[0] == "000"


def test_csv_has_the_stuff_too_without_scores_that_are_none(tmp_path: Path) -> None:
    inside = np.ones(SIZE, np.bool_)
    out = write_segments(tmp_path / "out", [[Segment("sky", inside, False, None)]], [[]], SEGMENTS, parts=1)
    assert written(out, "csv", tmp_path / "to.csv").counts.objects == 1
    (row,) = csv.DictReader((tmp_path / "to.csv").read_text().splitlines())
    assert (row["label"], row["score"], row["is_thing"]) == ("sky", "", "false")


def test_csv_leaves_the_maps_where_they_are(tmp_path: Path, maps: Sequence[Map]) -> None:
    written(output(tmp_path / "out", maps), "csv", tmp_path / "to.csv")
    lines = (tmp_path / "to.csv").read_text().splitlines()
    assert ",map," not in lines[0]
    assert "map_classes" in lines[0]
    assert '""label"": ""road""' in lines[1]


def test_pictures_are_overlays_and_cut_outs(
    tmp_path: Path, photos: Path, panoptic_output: tuple[Path, list[list[Segment] | None]]
) -> None:
    out, said = panoptic_output
    (photos / "004.jpg").rename(tmp_path / "kept")
    try:
        summary = written(out, "pictures", tmp_path / "to")
    finally:
        (tmp_path / "kept").rename(photos / "004.jpg")
    assert summary.counts.unread == 1
    names = sorted(path.name for path in (tmp_path / "to" / "overlays").iterdir())
    assert names == ["000.jpg", "001.jpg", "002.jpg"]
    with (
        Image.open(tmp_path / "to" / "overlays" / "000.jpg") as overlay,
        Image.open(photos / "000.jpg") as photo,
    ):
        assert overlay.size == photo.size
        plain = np.asarray(photo.convert("RGB"))
        assert (np.abs(np.asarray(overlay).astype(int) - plain).max(axis=2) > 8).mean() > 0.5
    cuts = sorted((tmp_path / "to" / "cutouts" / "000").iterdir())
    things = [(place, one) for place, one in enumerate(said[0] or []) if one.is_thing]
    assert [path.name for path in cuts] == [f"{place:03} {one.label}.png" for place, one in things]
    for path, (_, one) in zip(cuts, things, strict=True):
        x, y, width, height = map(int, box_of(one.inside))
        with Image.open(path) as cut:
            pixels = np.asarray(cut)
        assert pixels.shape == (height, width, 4)
        assert np.array_equal(pixels[..., 3] == 255, one.inside[y : y + height, x : x + width])
        assert np.array_equal(pixels[..., :3], plain[y : y + height, x : x + width])


def test_pictures_of_maps_and_what_scores_too_low(tmp_path: Path, photos: Path, maps: Sequence[Map]) -> None:
    out = output(tmp_path / "out", maps, photos=photos)
    done = CliRunner().invoke(app, ["export", str(out), "--format", "pictures", "--to", str(tmp_path / "to")])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["overlays"]
    assert len(list((tmp_path / "to" / "overlays").iterdir())) == IMAGES - 1
    said = [[Segment("CAR", maps[0] == 1, True, 0.3), Segment("CAR", maps[0] == 2, True, 0.6)]]
    low = write_segments(tmp_path / "low", said, [[]], SEGMENTS, photos, parts=1)
    assert written(low, "pictures", tmp_path / "some").counts.low == 1
    assert len(list((tmp_path / "some" / "cutouts" / "000").iterdir())) == 1
    assert written(low, "pictures", tmp_path / "all", score_threshold=0.0).counts.objects == 2


def test_pictures_need_what_reads_the_images(tmp_path: Path, maps: Sequence[Map]) -> None:
    out = output(tmp_path / "out", maps)
    with pytest.raises(UserError, match="needs what reads the images again"):
        export(str(out), "pictures", str(tmp_path / "to"))
