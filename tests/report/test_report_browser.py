"""The page in a real browser, on a phone and a wide screen, light and dark: it opens, fits, and filters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from cnnbatch.report import write_report
from cnnbatch.storage import Storage
from tests import tiny_views
from tests.outputs import write_settings
from tests.report.test_report_evaluation import STREET, ZOO, classified, detected
from tests.report.test_report_speed import MEASURED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (390, 1440)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
OUTPUTS = ("labels", "objects", "objects without truth", "three views")
SIDEWAYS = ".scroll, .gallery"

# The ratio by which words stand out from what is behind them, WCAG 2.1; a canvas resolves any colour.
CONTRASTS = """selector => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = element => {
    const found = rgb(getComputedStyle(element).backgroundColor);
    return found[3] === 255 || !element.parentElement ? found : behind(element.parentElement);
  };
  const luminance = colour => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return [...document.querySelectorAll(selector)].map(element => {
    const pair = [luminance(rgb(getComputedStyle(element).color)), luminance(behind(element))];
    return Math.max(...pair) / Math.min(...pair);
  });
}"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    outputs = {
        "labels": classified(folder / "labels", ZOO * 4, parts=2),
        "objects": detected(folder / "objects", STREET * 4),
        "objects without truth": detected(folder / "plain", STREET, with_truth=False),
    }
    outputs["three views"] = tiny_views.output(folder / "three views")
    write_settings(outputs["labels"], "cpu:AVX512 bf16", MEASURED)
    return {name: Path(write_report(str(output), Storage())) for name, output in outputs.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}; Debian's package is chromium")
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield started
        started.close()


def opened(
    browser: Browser, report: Path, width: int = WIDTHS[1], scheme: Literal["light", "dark"] = "light"
) -> Page:
    """Open a report, which asks for nothing and has nothing to complain of."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(report.as_uri())
    asked = [one for one in complaints if not one.startswith("data:") and one != report.as_uri()]
    assert asked == []
    return page


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_opens_and_fits(
    browser: Browser, reports: dict[str, Path], output: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    page = opened(browser, reports[output], width, scheme)
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert (wide <= inner, inner) == (True, width)
    beyond = page.evaluate(
        """sideways => [...document.querySelectorAll("body *")]
            .filter(one => !one.closest(sideways) && !one.closest("svg") && one.checkVisibility())
            .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5)
            .map(one => one.outerHTML.slice(0, 100))""",
        SIDEWAYS,
    )
    assert beyond == []
    drawn = page.evaluate(
        "Promise.all([...document.images].map(one => one.decode().then(() => one.naturalWidth)))"
    )
    assert len(drawn) >= len(STREET)
    assert min(drawn) > 0
    page.context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_each_of_three_views_is_large_enough_to_see(
    browser: Browser, reports: dict[str, Path], width: int
) -> None:
    page = opened(browser, reports["three views"], width)
    widths = page.evaluate("[...document.querySelectorAll('.views-3 img')].map(one => one.clientWidth)")
    assert len(widths) >= 24
    assert min(widths) > 120
    page.context.close()


@pytest.mark.parametrize("output", ["objects", "objects without truth", "labels"])
def test_nothing_that_is_drawn_is_cut_off(browser: Browser, reports: dict[str, Path], output: str) -> None:
    page = opened(browser, reports[output])
    fits = page.evaluate(
        "[...document.querySelectorAll('.gallery img')].map(one => getComputedStyle(one).objectFit)"
    )
    assert {*fits} == ({"cover"} if output == "labels" else {"contain"})
    page.context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_words_can_be_read_on_whatever_is_behind_them(
    browser: Browser, reports: dict[str, Path], scheme: Literal["light", "dark"]
) -> None:
    page = opened(browser, reports["labels"], scheme=scheme)
    selector = "p, dt, dd, td, th, h1, h2, h3, small, .mark, .pills span, .pills b, nav a, summary"
    contrasts = page.evaluate(CONTRASTS, selector)
    assert len(contrasts) > 100
    assert min(contrasts) >= 4.5
    page.context.close()


@pytest.mark.parametrize("output", ["labels", "objects"])
def test_a_filter_shows_the_mistakes_of_its_class(
    browser: Browser, reports: dict[str, Path], output: str
) -> None:
    page = opened(browser, reports[output])
    every = classes_shown(page)
    pills = page.locator(".pills label").all()
    assert len(pills) == 1 + len(set(every))
    for pill in [*pills[1:], pills[0]]:
        label, count = pill.locator("span").inner_text(), int(pill.locator("b").inner_text())
        pill.click()
        shown = classes_shown(page)
        assert shown == (every if label == "all" else [label] * every.count(label))
        assert len(shown) == count
    page.context.close()


def classes_shown(page: Page) -> list[str]:
    """Return the class of every mistake that is to be seen: the true one, or that of the false alarm."""
    words = page.locator(".mistakes .gallery > li:visible").all_inner_texts()
    found = [
        re.search(r"Actual: (\w+)\s+Predicted: \w+ \(|(\w+) \(\d\.\d\d\) is a false positive", each)
        for each in words
    ]
    return [one[1] or one[2] for one in found if one]


def test_the_filter_is_worked_by_keys(browser: Browser, reports: dict[str, Path]) -> None:
    page = opened(browser, reports["labels"])
    page.locator("#only-all").focus()
    every = len(classes_shown(page))
    page.keyboard.press("ArrowRight")
    assert page.locator("#only-1").is_checked()
    assert set(classes_shown(page)) == {page.locator(".pills label span").nth(1).inner_text()}
    page.keyboard.press("ArrowLeft")
    assert len(classes_shown(page)) == every
    page.context.close()
