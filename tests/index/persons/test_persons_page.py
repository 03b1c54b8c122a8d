"""Persons on the report of an index: who is shown, how many are not, and what corrects what is in doubt."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import cnnbatch
from cnnbatch.index.page import page_html
from cnnbatch.index.persons import correcting, shown
from cnnbatch.index.persons.group import group
from tests import tiny_faces
from tests.embedded import build, people, write_pictures
from tests.index.test_index_page import words
from tests.report.test_report_browser import browser, opened  # noqa: F401 - a fixture
from tests.tasks.test_faces import run_faces

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return an index of eight faces of ann and three of bob, grouped as two persons."""
    pictures = {
        f"{who}{number}.png": [(who, 5 + number, 10, 20 + number)]
        for who, count in (("ann", 8), ("bob", 3))
        for number in range(count)
    }
    run_faces(tiny_faces.write(tmp_path / "photos", pictures), tmp_path / "out")
    build(tmp_path / "out", tmp_path / "index")
    group(str(tmp_path / "index"), 0.99)
    return tmp_path / "index"


def page(place: Path) -> str:
    return page_html(cnnbatch.open(place))


def test_an_index_that_nobody_has_grouped_has_no_persons(tmp_path: Path) -> None:
    build(write_pictures(tmp_path / "out", people(20)), tmp_path / "index")
    assert "Persons" not in words(page(tmp_path / "index"))


def test_persons_are_shown_with_their_faces_and_names(place: Path) -> None:
    correcting.name(str(place), "1", "Bob <b>")
    html = page(place)
    said = words(html)
    assert "Persons 2 1 named" in said
    assert "11 faces of 2 persons, of whom 0 have one face, and 0 unsure faces." in said
    assert "person 0 8 faces, similarity" in said
    assert "Bob <b> person 1, 3 faces, similarity" in said
    people_shown = html.partition("people")[2].partition("</ul>")[0]
    assert people_shown.count("data:image/jpeg") == shown.FACES + 3
    assert "Bob &lt;b&gt;" in people_shown
    assert "more:" not in said
    assert re.search(
        r"person 0 \S+ Bob <b> \S+ mean similarity -?\d\.\d{4} cnnbatch persons \S+ --merge 0 1", said
    )


def test_how_many_are_not_shown_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "LARGEST", 2)
    place = build(write_pictures(tmp_path / "out", people(50, dimensions=64)), tmp_path / "index").output
    group(place, 0.35)
    correcting.name(place, "4", "ann")
    said = words(page(Path(place)))
    assert "2 persons more: cnnbatch persons" in said
    assert "pictures of" in said  # Which can't be shown, and the page says why.
    write_pictures(tmp_path / "more", people(3, seed=7, dimensions=64), name="q")
    build([tmp_path / "out", tmp_path / "more"], place)
    assert "3 faces came since: cnnbatch group takes them in." in words(page(Path(place)))


def test_commands_of_the_page_do_what_they_say(place: Path) -> None:
    """That of the weakest face of a person proposes a cut of this face."""
    html = page(place)
    [command, *_] = [
        unescape(re.sub(r"<[^>]+>", "", one))
        for one in re.findall(r'<code class="command">(.*?)</code>', html)
        if "--split" in one
    ]
    assert re.fullmatch(rf"cnnbatch persons {place} --split [01] --faces '\w+\.png#0'", command.strip())


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits(place: Path, browser: Browser, width: int) -> None:  # noqa: F811
    (place / "report.html").write_text(page(place))
    shows = opened(browser, place / "report.html", width)
    assert shows.evaluate("document.documentElement.scrollWidth") <= width
    assert shows.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
