"""The report of an index: what it says before and after it was calibrated, and how it looks."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.index.by_size import AtSize, Found, Missed
from cnnbatch.index.calibrate import Known, calibrate
from cnnbatch.index.calibrated import put_calibrated, read_calibrated
from cnnbatch.index.calibration import Threshold
from cnnbatch.index.charts import odds
from cnnbatch.index.page import page_html, write_index_report
from cnnbatch.index.search import Index
from cnnbatch.index.shown_pairs import shown_pairs
from cnnbatch.launch import report
from cnnbatch.storage import Storage
from tests import tiny_faces
from tests.embedded import build, people, write_pictures
from tests.report.test_report_browser import browser, opened  # noqa: F401 - a fixture
from tests.tasks.test_faces import run_faces

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CODE = ["tests.tiny_faces:squares", "tests.tiny_faces:mean_colour"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of twelve pictures of ann and twelve of bob, calibrated with pictures of cat."""
    folder = tmp_path_factory.mktemp("page")
    pictures = {
        f"{who}/{number}.png": [(who, 5 + number, 10, 20 + number)]
        for who in ("ann", "bob")
        for number in range(12)
    }
    run_faces(tiny_faces.write(folder / "photos", pictures), folder / "out")
    build(folder / "out", folder / "index", index={"people": "folder"})
    cats = {f"cat{one}/1.png": [("cat", one, 10, 15)] for one in range(12)}
    known = Known(absent=str(tiny_faces.write(folder / "strangers", cats)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_given", {*CODE})
        calibrate(cnnbatch.open(folder / "index"), known)
    return folder / "index"


@pytest.fixture
def place(measured: Path, tmp_path: Path) -> Path:
    return Path(copytree(measured, tmp_path / "index"))


def words(page: str) -> str:
    """Return what a page says, without its tags and styles."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def test_a_build_reports_what_the_index_holds_and_that_nothing_is_calibrated(tmp_path: Path) -> None:
    out = write_pictures(tmp_path / "out", people(600))
    build(out, tmp_path / "index")
    said = words((tmp_path / "index" / "report.html").read_text())
    manifest = cnnbatch.open(tmp_path / "index").manifest
    assert "600 embeddings" in said
    assert f"{manifest.recall.at_10:.4f} {manifest.recall.probes} probes" in said
    assert "recall@1 " in said
    assert f"Weights {'0' * 64}" in said
    assert "What a similarity means has not been measured: cnnbatch calibrate" in said
    assert "Two faces" not in said
    before = (tmp_path / "index" / "report.html").read_bytes()
    more = write_pictures(tmp_path / "more", people(9, seed=4), name="m")
    build([out, more], tmp_path / "index")  # Which measures nothing again.
    assert (tmp_path / "index" / "report.html").read_bytes() == before


def test_a_calibration_is_reported_with_its_thresholds_and_with_what_was_refused(measured: Path) -> None:
    page = (measured / "report.html").read_text()
    said = words(page)
    index: Index = cnnbatch.open(measured)
    found = read_calibrated(index.uri, index.storage, index.manifest.space)
    assert found is not None
    assert found.known_by == "folder"  # Which the index names.
    assert (found.strangers, found.stranger_people) == (12, 12)
    [first, *_] = found.pairs.thresholds
    assert f"0.01 {first.similarity:.4f} {first.low:.4f} to {first.high:.4f}" in said
    assert "144 pairs of two people can't resolve a rate of 1e-3: 1,000 are needed" in said
    assert "12 absent probes can't resolve a rate of 1e-2: 100 are needed" in said
    assert "132 pairs of one person and 144 of two, by folder, when the index had 24 embeddings" in said
    assert "Where at most 1 in 10 strangers may be found and 1 in 10 people missed, the embedder is" in said
    assert (
        "up to what size the embedder is fit for search is not known: 12 absent probes can't resolve" in said
    )
    assert page.count("data:image/jpeg") == 2 * 16  # All pairs are shown.
    assert "not shown" not in said


def test_what_is_extrapolated_is_marked(place: Path) -> None:
    index: Index = cnnbatch.open(place)
    found = read_calibrated(index.uri, index.storage, index.manifest.space)
    assert found is not None
    larger = AtSize(
        4_800, Threshold(0.1, 0.9876, 0.98, 0.99), Missed(0.2, 0.1, 0.4, 24), 400, Found(0.3, 0.2, 0.4), True
    )
    put_calibrated(index.uri, index.storage, replace(found, sizes=(*found.sizes, larger)))
    page = page_html(index)
    [row] = re.findall(r'<tr class="extrapolated">.*?</tr>', page, re.DOTALL)
    assert words(row).strip().startswith("4,800 400 0.9876 0.9800 to 0.9900 20 % 10 % to 40 %")
    assert "measured up to 24 (dotted), extrapolated beyond (dashed)" in page
    assert 'class="line-0 beyond"' in page


def test_an_index_that_has_outgrown_its_calibration_says_so(place: Path, tmp_path: Path) -> None:
    cats = {f"cat/{one}.png": [("cat", one, 10, 15)] for one in range(3)}
    run_faces(tiny_faces.write(tmp_path / "more", cats), tmp_path / "out")
    build(tmp_path / "out", place)
    said = CliRunner().invoke(app, ["run", "index", f"input={tmp_path / 'out'}", f"output={place}"]).output
    assert (
        "error rates were measured with 24 embeddings, and now there are 27: give cnnbatch calibrate" in said
    )
    assert "and now there are 27" in CliRunner().invoke(app, ["index", "info", str(place)]).output
    written = Path(report(str(place), Storage()))
    assert "were measured with 24 embeddings, and now there are 27: give cnnbatch" in words(
        written.read_text()
    )


def test_pairs_of_rows_that_are_gone_are_not_shown(place: Path) -> None:
    index: Index = cnnbatch.open(place)
    found = read_calibrated(index.uri, index.storage, index.manifest.space)
    assert found is not None
    assert found.figures is not None
    pair = found.figures.hardest[0]
    gone = replace(pair, a="somebody/1.png#0")
    assert len(shown_pairs(index, [pair, gone]).pairs) == 1


def test_pictures_that_can_not_be_read_are_left_out_with_the_reason(place: Path, tmp_path: Path) -> None:
    index: Index = cnnbatch.open(place)
    outputs = index.manifest.outputs[0].model_copy(update={"url": str(tmp_path / "nowhere")})
    index.manifest = index.manifest.model_copy(update={"outputs": (outputs,)})
    said = words(page_html(index))
    assert "pictures of " in said
    assert "expected an output of a job" in said
    assert said.count("not shown") >= 2 * 16


def test_a_report_of_a_damaged_calibration_is_refused(place: Path) -> None:
    (place / "calibration.json").write_text("{")
    with pytest.raises(UserError, match=r"calibration.json .*damaged"):
        write_index_report(cnnbatch.open(place))


def test_odds_are_in_words() -> None:
    assert [odds(ratio) for ratio in (0.0, 2.3026, -2.3026 * 3, 2.3026 * 9)] == [
        "1 : 1",
        "10 : 1",
        "1 : 1,000",
        "10⁹ : 1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_its_pictures_are_loaded(measured: Path, browser: Browser, width: int) -> None:  # noqa: F811
    page = opened(browser, measured / "report.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
