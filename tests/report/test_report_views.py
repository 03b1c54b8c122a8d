"""The page of rows with several answers that are drawn: beside each other, the truth of each below."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnbatch
from cnnbatch.report import palette
from cnnbatch.report.answers import answers_among
from cnnbatch.report.answers.entry import AboutTruth
from cnnbatch.report.answers.map import NONE, MapReport
from cnnbatch.report.answers.objects import ObjectsReport
from cnnbatch.report.template import template
from cnnbatch.truth import OBJECTS_SCHEMA
from tests import tiny_instances as tiny
from tests import tiny_views
from tests.report.test_report import Page, report, words

SIZE, CLASSES = tiny_views.SIZE, tiny_views.CLASSES


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output of three views."""
    return tiny_views.output(tmp_path_factory.mktemp("views"))


def test_each_view_has_its_picture_and_its_truth_below(output: Path) -> None:
    html = report(output)
    page, text = Page(html), words(html)
    titles = ["Detection", "Semantic segmentation", "Instance segmentation"]
    said = re.findall(r'<p class="said"><span>([^<:]+):?</span>', html)
    cards = [said[first : first + 6] for first in range(0, len(said), 6)]
    assert cards
    assert all(card == [*titles, "Actual", "Actual", "Actual"] for card in cards)
    assert page.tags["img"] == len(said)
    assert 'class="two views-3"' in html
    assert "By boxes" in text
    assert "By pixels" in text
    assert all(f"{name} " in text for name in ("AP", "mIoU", "mask_AP"))


def test_the_legend_has_the_classes_of_the_map_and_no_difference(output: Path) -> None:
    swatches = re.findall(
        r'<li><i style="background:(#\w{6})" aria-hidden="true"></i>([^<]+)</li>', report(output)
    )
    paints = dict(zip(CLASSES, map(palette.css, palette.colours(CLASSES)), strict=True))
    assert {(paints[name], name) for name in ("bar", "disc")} == set(swatches)


def test_classes_of_all_ways_of_judging_have_their_tables(output: Path) -> None:
    html = report(output)
    assert all(f"by {how}" in html for how in ("boxes", "masks", "pixels"))
    assert "each cell is the share of the row's pixels" in words(html)


def test_pictures_beside_each_other_in_a_notebook(output: Path) -> None:
    picture = cnnbatch.open(output).show("000.png")
    assert picture.image is not None
    assert picture.image.size == (3 * SIZE[1], SIZE[0])


def one(label: str, mask: Any, is_thing: bool | None = None) -> dict[str, Any]:
    box = {"x1": 0.0, "y1": 0.0, "x2": 2.0, "y2": 2.0}
    return {"label": label, "score": None, "box": box, "mask": mask, "is_thing": is_thing}


def row(*objects: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": "1", "objects": list(objects), "width": 3, "height": 2}


def test_what_is_true_of_each_view_by_objects() -> None:
    pixels = [[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 1, 0]]]
    masks = [tiny.run_lengths(np.array(mask, np.bool_)) for mask in pixels]
    about = AboutTruth(OBJECTS_SCHEMA, {"cat": "kitty"}, ("kitty", "sky"), {"keypoints", "is_thing"})
    entries = answers_among(["boxes", "map", "objects"])
    whole = row(one("cat", masks[0], True), one("sky", masks[1], False))
    boxes = entries["boxes"].truth_of_objects(whole, about)
    assert boxes is not None
    assert [(found["label"], "mask" in found) for found in boxes] == [("kitty", False)]
    objects = ObjectsReport().truth(whole["objects"], about)
    assert [(found["label"], found["mask"]) for found in objects] == [("kitty", masks[0])]
    shown = MapReport().truth_of_objects(whole, about)
    assert shown is not None
    assert shown.numbers().tolist() == [[0, 1, NONE], [NONE, 1, NONE]]
    assert MapReport().truth_of_objects(row(one("cat", None)), about) is None
    assert MapReport().truth_of_objects({**row(), "width": None}, about) is None
    assert entries["objects"].truth_of_objects(whole, about) is None


def test_true_objects_that_are_left_out_are_not_shown() -> None:
    """So the pictures, and how many objects they say were found, are what is judged."""
    about = AboutTruth(OBJECTS_SCHEMA, {"cat": None, "dog": "hound"})
    shown = ObjectsReport().truth(row(one("cat", None), one("dog", None), one("cow", None))["objects"], about)
    assert [found["label"] for found in shown] == ["hound", "cow"]


def test_few_pictures_are_large() -> None:
    """Many stand in more columns; what is not drawn on has small pictures at any number."""
    macros: Any = template("gallery.html.j2").module
    single, double = (
        {"is_drawn": True, "views": [{}] * count, "prediction": {"views": []}} for count in (1, 2)
    )
    plain = {**single, "is_drawn": False}
    found = [
        macros.width_of([card] * count).strip() for card in (single, double, plain) for count in (12, 13)
    ]
    assert found == ["wide", "", "widest", "wide", "", ""]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "nothing"),
        (["face"], "face"),
        (["face", "face"], "2 faces"),
        (["dog", "person", "person"], "2 × person, dog"),
        (["defect_01"] * 1200, "1,200 × defect_01"),
    ],
)
def test_objects_are_counted_in_words(labels: list[str], said: str) -> None:
    assert ObjectsReport().words({"label": label} for label in labels) == said


def test_under_a_picture_stands_how_good_its_largest_face_is() -> None:
    turned = {"size": 68.4, "blur": 0.314, "yaw": -12.4, "pitch": 3.0, "roll": -0.2}
    flat = {"size": 24.0, "blur": None, "yaw": None, "pitch": None, "roll": None}
    small, large = ({"label": "face", "quality": quality} for quality in (flat, turned))
    said = ObjectsReport().caption
    assert said([small], {}) == "face: 24 pixels"
    assert said([small, large], {}) == (
        "2 faces; the largest: 68 pixels, blur 0.31, yaw -12°, pitch +3°, roll +0°"
    )
    assert said([{"label": "dog"}], {}) == "dog"
    assert said([], {}) == "nothing"
