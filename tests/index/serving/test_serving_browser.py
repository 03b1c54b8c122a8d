"""The page in a real browser, on a phone and a wide screen: a person drops a photo and sees matches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cnnbatch.config import plugins
from cnnbatch.index.serving.app import build_app
from cnnbatch.index.serving.gate import Limits
from cnnbatch.index.serving.server import listening, running, url_of
from cnnbatch.index.serving.service import InThisProcess, Service, ServiceOptions
from cnnbatch.index.serving.token import Token
from tests.index.serving.served import ANN, BOTH, CODE, built, photo

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (390, 1440)
TOKEN = "a-token-of-sufficient-length"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_given", {*CODE})
        made = Service(ServiceOptions(str(built(tmp_path_factory.mktemp("browser"))), refresh_s=3600))
    yield made
    made.close()


def answering(service: Service, token: Token | None = None) -> Iterator[str]:
    with (
        listening("127.0.0.1", 0) as listener,
        running(build_app(InThisProcess(service), Limits(per_second=0), token), listener),
    ):
        yield url_of(listener)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    yield from answering(service)


@pytest.fixture(scope="module")
def guarded(service: Service) -> Iterator[str]:
    yield from answering(service, Token.of(TOKEN, "test"))


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


def opened(browser: Browser, url: str, width: int = WIDTHS[1]) -> tuple[Page, list[str]]:
    """Open the page; the list gets what it complains of, and what it asks others for."""
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((url, "blob:", "data:")) else complaints.append(request.url)
        ),
    )
    page.goto(url)
    return page, complaints


def give(page: Page, data: bytes, name: str = "photo.png") -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def require_fits(page: Page, width: int) -> None:
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert (wide <= inner, inner) == (True, width)
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(one => one.checkVisibility())
            .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5)
            .map(one => one.outerHTML.slice(0, 100))"""
    )
    assert beyond == []


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_photo_gives_matches_with_crops_that_fit(browser: Browser, url: str, width: int) -> None:
    page, complaints = opened(browser, url, width)
    page.locator("#about", has_text="48 faces by tests.tiny_faces:mean_colour").wait_for()
    require_fits(page, width)
    give(page, BOTH)
    page.wait_for_selector("#matches li:nth-child(10) img")
    page.locator(".crop img").nth(9).wait_for()
    assert page.locator("#matches li").count() == 10
    drawn = page.evaluate("[...document.querySelectorAll('.crop img')].map(one => one.naturalWidth)")
    assert min(drawn) > 0
    assert page.locator("#status").inner_text() == "2 faces, 10 matches."
    assert page.locator("#decision").inner_text().startswith("No decision: ")
    assert {*page.locator(".mark").all_inner_texts()} == {"undecided"}
    require_fits(page, width)
    box, shown = page.locator("#boxes button").nth(1).bounding_box(), page.locator("#shown").bounding_box()
    assert box is not None
    assert shown is not None
    # ann's face begins at 50 of 100 pixels, and is 30 wide.
    assert (box["x"] - shown["x"]) / shown["width"] == pytest.approx(0.5, abs=0.02)
    assert box["width"] / shown["width"] == pytest.approx(0.3, abs=0.02)
    assert complaints == []
    page.context.close()


@pytest.mark.slow
def test_it_is_worked_by_keys(browser: Browser, url: str) -> None:
    page, _ = opened(browser, url)
    page.locator("#about", has_text="48 faces").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    give(page, BOTH)
    page.wait_for_selector("#matches li")
    first = page.locator("#matches .key").first.inner_text()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Face 2 of 2":
            break
    page.keyboard.press("Enter")
    assert page.locator("#boxes button").nth(1).get_attribute("aria-pressed") == "true"
    assert page.locator("#matches .key").first.inner_text() != first
    page.context.close()


@pytest.mark.slow
def test_it_says_why_there_is_nothing(browser: Browser, url: str) -> None:
    page, _ = opened(browser, url)
    give(page, photo())
    page.locator("#status", has_text="No matches.").wait_for()
    assert page.locator("#decision").inner_text() == "Nothing was searched for: no face was found"
    give(page, b"text", "broken.png")
    page.locator("#status.bad").wait_for()
    assert "broken.png" in page.locator("#status").inner_text()
    assert page.locator("#found").is_hidden()
    page.context.close()


@pytest.mark.slow
def test_it_asks_for_the_token_and_then_shows_pictures_too(browser: Browser, guarded: str) -> None:
    page, _ = opened(browser, guarded)
    page.wait_for_selector("#token-row", state="visible")
    page.locator("#token").fill("wrong")
    page.keyboard.press("Enter")
    page.locator("#status.bad", has_text="expected the header").wait_for()
    page.locator("#token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-row", state="hidden")
    give(page, ANN)
    page.wait_for_selector(".crop img")
    assert TOKEN not in page.url
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_the_api_fits(browser: Browser, url: str, width: int) -> None:
    page, complaints = opened(browser, url, width)
    page.goto(f"{url}/docs")
    require_fits(page, width)
    assert "POST /verify" in page.locator("main").inner_text()
    assert complaints == []
    page.context.close()
