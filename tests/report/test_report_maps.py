"""The page of an output of maps, or of segments: laid over the pictures, beside the truth, with a legend."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from cnnbatch.evaluation import evaluate
from cnnbatch.images import class_map
from cnnbatch.report import layers, palette
from cnnbatch.report.answers.entry import AboutOutput, AboutTruth
from cnnbatch.report.answers.map import NONE, MapReport
from cnnbatch.report.answers.objects import ObjectsReport
from cnnbatch.report.lines import result_lines
from cnnbatch.report.marked import marked
from cnnbatch.results import Result
from cnnbatch.storage import Storage
from cnnbatch.truth import MAP_SCHEMA, Class, with_classes, with_ignored
from tests.report.test_report import Page, report, words
from tests.segmented import Maps, Segment, asset, blocks, photograph, write_maps, write_segments

MODEL = ("background", "car", "road", "sky")
CLASSES = [Class("sky", 10), Class("road", 3), Class("car", 26)]
SIZE = (48, 64)
IMAGES = 6


def photos(folder: Path) -> Path:
    folder.mkdir()
    for place in range(IMAGES):
        photograph(folder / f"{place:03}.jpg", SIZE, place)
    return folder


def maps() -> list[NDArray[np.uint8]]:
    return [blocks(place, len(MODEL), SIZE) for place in range(IMAGES)]


def true_maps() -> list[NDArray[np.uint8]]:
    table = np.array([255, 26, 3, 10], np.uint8)
    return [table[np.roll(one, 2 * place, 1)] for place, one in enumerate(maps())]


def judged(folder: Path, **how: Any) -> Path:
    made = Maps(MODEL, CLASSES, photos=photos(folder.parent / f"{folder.name}-photos"), **how)
    write_maps(folder, maps(), true_maps(), made)
    assert evaluate(str(folder), Storage()) is not None
    return folder


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_the_page_of_maps(tmp_path: Path) -> None:
    html = report(judged(tmp_path / "out"))
    text, page = words(html), Page(html)
    assert "mIoU mean over the classes of the IoU of their pixels" in text
    assert "Worst images" in page.headings
    assert "The images with the lowest mIoU of their own, the worst first" in text
    assert "By class that most pixels are missed of" in text
    assert "Difference: mIoU 1.00, pixel accuracy 1.00" in text
    assert "Difference: wrong class not evaluated" in text
    swatches = re.findall(r"<li><i style=\"background:(#\w{6})\" aria-hidden=\"true\"></i>([^<]+)</li>", html)
    names = [name for _, name in swatches[: len(swatches) // 2]]
    assert (sorted(names[:3]), names[3:]) == (["car", "road", "sky"], ["wrong class", "not evaluated"])
    assert dict((name, colour) for colour, name in swatches)["sky"] == palette.css(palette.colours(MODEL)[3])
    assert "each cell is the share of the row's pixels" in text
    assert page.tags["img"] == 3 * (IMAGES + IMAGES - 1)  # One image is right all over.
    assert len(pictures(html)) == page.tags["img"]
    assert "By pixels." in text
    assert "Images by their mean confidence." in text
    assert all(one in text for one in ("Boundary F1", "Boundary IoU", "Class by class"))


def test_every_encoding_shows_the_same(tmp_path: Path) -> None:
    shown = []
    for encoding in ("png", "rle", "asset"):
        html = report(judged(tmp_path / encoding, encoding=encoding))
        shown.append(re.findall(r'src="([^"]+)"', html))
    assert shown[0] == shown[1] == shown[2]


def test_the_least_certain_regions_are_a_view_of_their_own(tmp_path: Path) -> None:
    box = {"x1": 10.0, "y1": 5.0, "x2": 40.0, "y2": 30.0}
    uncertain = {place: [{"score": 0.5, "box": box}] for place in range(IMAGES)}
    html = report(judged(tmp_path / "out", uncertain=uncertain))
    assert words(html).count("Uncertainty") == IMAGES + IMAGES - 1
    assert "views-4" in html


def test_a_page_without_truth_has_one_picture_each(tmp_path: Path) -> None:
    how = Maps(MODEL, CLASSES, photos=photos(tmp_path / "photos"))
    folder = write_maps(tmp_path / "out", [None, *maps()[1:]], [None] * IMAGES, how)
    html = report(folder)
    assert Page(html).tags["img"] == IMAGES - 1
    assert "truncated" in words(html)


def test_maps_that_are_gone_leave_placeholders(tmp_path: Path) -> None:
    folder = judged(tmp_path / "out", encoding="asset")
    asset(folder, 2).unlink()
    asset(folder, 3).write_bytes(b"\x89PNG")
    text = words(report(folder))
    assert text.count("No preview: its map can't be read") >= 2


def test_an_image_and_the_lines_of_a_terminal(tmp_path: Path) -> None:
    folder = judged(tmp_path / "out", encoding="asset")
    result = Result(str(folder), Storage())
    shown = result.show("001.jpg")
    assert shown.image is not None
    assert shown.image.size == SIZE[::-1]
    assert re.match(r"(\w+ \d+ %(, )?){3}", shown.prediction.caption)
    lines = list(result_lines(str(folder), Storage()))
    assert re.fullmatch(r"  000\.jpg: (\w+ \d+ %(, )?){3}", lines[0])
    assert "%" in result._repr_html_()


def opened(numbers: NDArray[np.uint8], **row: Any) -> Any:
    row = {"height": numbers.shape[0], "width": numbers.shape[1], **row}
    return MapReport().opened(class_map.png(numbers), row, AboutOutput(MODEL))


def truth_of(numbers: NDArray[np.uint8], classes: Sequence[Class], ignored: Sequence[int] = (255,)) -> Any:
    schema = with_ignored(with_classes(MAP_SCHEMA, classes), ignored)
    about = AboutTruth(schema, {one.name: one.name for one in classes if one.name in MODEL}, MODEL)
    return MapReport().truth(class_map.png(numbers), about)


def test_truth_is_shown_by_the_places_of_the_models_classes() -> None:
    shown = truth_of(np.array([[10, 3, 26, 255, 40]], np.uint8), [*CLASSES, Class("fence", 40)])
    assert shown.names == (*MODEL, "fence")
    assert shown.numbers().tolist() == [[3, 2, 1, NONE, 4]]
    assert MapReport().words(shown) == "car 25 %, road 25 %, sky 25 %"
    assert shown.pixels() == dict.fromkeys(("sky", "road", "car", "fence"), 1)


def test_small_shares_are_not_put_into_words() -> None:
    numbers = np.full((10, 100), 2, np.uint8)
    numbers[0, :4] = 3
    assert MapReport().words(opened(numbers)) == "road > 99 %"
    assert MapReport().words(truth_of(np.full((2, 2), 255, np.uint8), CLASSES)) == "nothing"


def test_the_difference_is_red_where_it_is_wrong_and_dark_where_nothing_counts() -> None:
    said = opened(np.array([[2, 2, 2, 1]], np.uint8).repeat(2, 0))
    true = truth_of(np.array([[3, 26, 255, 26]], np.uint8).repeat(2, 0), CLASSES)
    (view,) = MapReport().more_views(Image.new("RGB", (4, 2), "white"), said, true)
    pixels = np.asarray(view.image)[0].astype(int)
    red, gray = pixels[:, 0] - pixels[:, 1] > 100, pixels.max(axis=1) < 120
    assert red.tolist() == [False, True, False, False]
    assert gray.tolist() == [False, False, True, False]
    assert view.text == "mIoU 0.50, pixel accuracy 0.67"
    assert [one.name for one in view.legend] == ["wrong class", "not evaluated"]


def test_what_the_model_does_not_know_does_not_count_and_is_in_the_legend() -> None:
    said = opened(np.array([[2, 2, 3, 3]], np.uint8).repeat(2, 0))
    true = truth_of(np.array([[3, 7, 7, 10]], np.uint8).repeat(2, 0), [*CLASSES, Class("tree", 7)])
    (view,) = MapReport().more_views(Image.new("RGB", (4, 2), "white"), said, true)
    dark = np.asarray(view.image)[0].max(axis=1) < 120
    assert dark.tolist() == [False, True, True, False]
    assert view.text == "mIoU 1.00, pixel accuracy 1.00"
    names = [one.name for one in MapReport().legend([said, true], Counter({"sky": 9, "road": 5}))]
    assert names == ["sky", "road", "tree"]


def test_what_is_background_leaves_the_picture_as_it_is() -> None:
    numbers = np.zeros((8, 8), np.uint16)
    numbers[:4] = 1
    numbers[:, :2] = NONE
    colours = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    found = np.asarray(layers.overlaid(image, numbers, colours, np.array([True, False])))
    changed = (found != (10, 20, 30)).any(axis=2)
    assert np.array_equal(changed, numbers == 1)
    classes = [{"label": name, "share": share} for name, share in (("__background__", 0.9), ("car", 0.1))]
    assert MapReport().caption(None, {"map_classes": classes}) == "background 90 %, car 10 %"


def test_heat_is_where_the_regions_are_even_beyond_the_edge() -> None:
    regions = [
        {"score": 0.1, "box": {"x1": -5.0, "y1": 0.0, "x2": 20.0, "y2": 10.0}},
        {"score": 0.9, "box": {"x1": 90.0, "y1": 45.0, "x2": 130.0, "y2": 60.0}},
    ]
    image = Image.new("RGB", (50, 25), (90, 90, 90))
    found = np.asarray(layers.heat(image, (50, 100), regions)).astype(int)
    warm = np.ptp(found, axis=2) > 20
    expected = np.zeros((25, 50), bool)
    expected[:5, :10] = expected[22:, 45:] = True
    assert np.array_equal(warm, expected)
    assert found[2, 5].sum() > found[24, 49].sum()


@pytest.mark.parametrize("count", [1, 11, 21, 150, 400])
def test_colours_of_classes_differ_and_stay(count: int) -> None:
    names = [f"class {number}" for number in range(count)]
    found = palette.colours(names)
    assert len(np.unique(found, axis=0)) == count
    assert np.array_equal(found, palette.colours(names))
    assert np.array_equal(found[: count // 2], palette.colours(names[: count // 2]))


def test_known_classes_have_the_colours_that_people_know() -> None:
    some = palette.colours(["thing", "Sky", "sky-other-merged", "traffic sign", "SignSymbol"])
    assert np.array_equal(some[1], some[2])
    assert np.array_equal(some[3], some[4])
    assert palette.conventional("thing") is None
    assert palette.colour_of("thing") == palette.colour_of("thing")
    assert palette.is_background("__background__")
    assert not palette.is_background("road")


SEGMENTS = ("CAR", "PERSON", "road", "sky")


def segments(numbers: NDArray[np.uint8], **more: Any) -> list[Segment]:
    return [
        Segment(name, numbers == place, name.isupper(), **more)
        for place, name in enumerate(SEGMENTS, 1)
        if (numbers == place).any()
    ]


def test_the_page_of_segments(tmp_path: Path) -> None:
    made = [blocks(place, 5, SIZE) for place in range(IMAGES)]
    said = [segments(np.roll(one, 4 * place, 1), score=0.9) for place, one in enumerate(made)]
    folder = write_segments(
        tmp_path / "out", said, [segments(one) for one in made], SEGMENTS, photos(tmp_path / "photos")
    )
    assert evaluate(str(folder), Storage()) is not None
    html = report(folder)
    text = words(html)
    assert "PQ panoptic quality: SQ times RQ, mean over the classes" in text
    assert text.index("PQ_stuff") < text.index("By masks") < text.index("By boxes")
    assert "The images with the lowest panoptic quality of their own, the worst first" in text
    assert "Class by class, by segments" in text
    assert "Difference: wrong class right class, but the segments do not match" in text
    assert "Difference: PQ 1.00, " in text
    assert Page(html).tags["img"] % 3 == 0


def rows_of(*some: Segment) -> list[dict[str, Any]]:
    return [one.row() for one in some]


def halves(size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    left = np.zeros(size, np.bool_)
    left[:, : size[1] // 2] = True
    return left, ~left


def test_the_difference_of_segments_shows_classes_and_matches() -> None:
    left, right = halves((10, 40))
    columns = np.arange(40)
    true = [Segment("CAR", left, True), Segment("sky", right & (columns < 30), False)]
    said = [
        Segment("CAR", left & (columns < 15), True, 0.9),  # 15 of 20 columns: the match.
        Segment("CAR", left & (columns >= 15), True, 0.8),
        Segment("road", right & (columns < 25), False),
        Segment("sky", right & (columns >= 25), False),  # Void is left out of its union: 5 of 10 columns.
    ]
    image = Image.new("RGB", (40, 10), "white")
    view = ObjectsReport().difference(image, rows_of(*said), rows_of(*true))
    assert view is not None
    colours = {one.colour: one.name.split(",")[0] for one in view.legend}
    shown = np.asarray(view.image)[5].astype(int)
    near = [
        next((name for one, name in colours.items() if np.abs(each - ImageColor.getrgb(one)).max() < 55), "")
        for each in shown
    ]
    expected = ["", "right class", "wrong class", "right class", "not evaluated"]
    assert near == np.repeat(expected, [15, 5, 5, 5, 10]).tolist()
    assert view.text == "PQ 0.17, 1 of 2 segments found"  # CAR: 0.75 / 1.5; sky and road: 0.


def test_segments_that_cannot_be_compared_have_no_difference() -> None:
    left, right = halves((10, 40))
    image, entry = Image.new("RGB", (40, 10), "white"), ObjectsReport()
    true = rows_of(Segment("CAR", left, True))
    assert entry.difference(image, rows_of(Segment("CAR", left[:5], True)), true) is None
    assert entry.difference(image, [], []) is None
    plain = rows_of(Segment("CAR", left, None))
    assert entry.difference(image, plain, plain) is None  # Objects, which are judged one by one.
    damaged = rows_of(Segment("CAR", right, True, runs="3"))
    view = entry.difference(image, damaged, true)
    assert view is not None
    assert view.text == "PQ 0.00, 0 of 1 segments found"


def test_two_outputs_disagree_where_their_classes_differ() -> None:
    left, right = halves((10, 40))
    image = Image.new("RGB", (40, 10), "white")
    first, second = rows_of(Segment("CAR", left, True)), rows_of(Segment("CAR", right, True))
    view = ObjectsReport().disagreement(image, first, [*second, *rows_of(Segment("CAR", left, True))])
    assert view is not None
    assert view.text == "50 % of the pixels have the same class"
    assert (np.asarray(view.image)[5, :, 1] < 100).tolist() == right[5].tolist()
    a, b = (opened(np.array([[1, 2, 3, 255]], np.uint8)), opened(np.array([[1, 2, 2, 1]], np.uint8)))
    shown = MapReport().disagreement(image.resize((4, 1)), a, b)
    assert shown.text == "50 % of the pixels have the same class"
    assert (np.asarray(shown.image)[0, :, 1] < 100).tolist() == [False, False, True, True]
    assert (
        MapReport().disagreement(image, a, opened(np.ones((2, 2), np.uint8))).text == "of another size in B"
    )


def test_segments_are_marked_all_over_with_their_labels_inside() -> None:
    inside = np.zeros((120, 160), np.bool_)
    inside[:, :80] = True
    rows = [Segment("sky", inside, False).row(), Segment("CAR", ~inside, True).row()]
    image = Image.new("RGB", (160, 120), (120, 120, 120))
    found = np.asarray(marked(image.copy(), (160, 120), rows)).astype(int)
    assert (np.abs(found - 120).max(axis=2) > 5).all()
    sky = np.array(palette.colour_of("sky"))
    assert (found[5, 5] == (0.45 * 120 + 0.55 * sky).astype(int)).all()  # No label in the corner.
    assert (found[55:65, 10:70] == sky).all(axis=2).any()
