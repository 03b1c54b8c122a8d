"""The page: self-contained, escaped, bounded, the same for the same rows, readable in both schemes."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cnnbatch.humanize import MEANINGS
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.report import plots, write_report
from cnnbatch.report.tally import LEAST_SURE, SAMPLE
from cnnbatch.results import Result
from cnnbatch.storage import Storage
from cnnbatch.types import Code
from tests.outputs import (
    JOB,
    bad,
    good,
    real_photos,
    write_job,
    write_output,
    write_part,
)

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a browser would make of a page: its elements, addresses and words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.text = ""
        self.heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.heading = tag == "h2"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.heading:
            self.headings.append(data)
        self.heading = False

    def values(self, name: str) -> list[str]:
        return [value for _, given_name, value in self.attributes if given_name == name]


def report(folder: Path) -> str:
    uri = write_report(str(folder), Storage())
    assert uri == str(folder / "report.html")
    return Path(uri).read_text()


def words(html: str) -> str:
    return re.sub(r"\s+", " ", Page(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)).text)


def png(folder: Path, name: str = "a.png", colour: str = "red") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), colour).save(folder / name)
    return folder / name


def many(folder: Path, count: int) -> list[dict[str, Any]]:
    file = png(folder)
    return [good(f"{n:05}.png", file, [(f"label {n % 30}", (n % 97) / 97)]) for n in range(count)]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rows = [good(photo.name, photo, [("thing", 0.5), ("other", 0.25)]) for photo in real_photos()]
    return write_output(tmp_path / "out", [rows[:3], rows[3:]])


def test_the_page_asks_for_nothing(photographs: Path) -> None:
    html = report(photographs)
    page = Page(html)
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", re.sub(r"data:image/jpeg;base64,[^\"]*", "", html))
    assert any("default-src 'none'" in value for value in page.values("content"))
    assert page.tags["img"] == 6
    assert len(html) < 400_000


def test_the_headline_and_every_section(tmp_path: Path) -> None:
    rows = many(tmp_path, 200)
    rows[7] = bad("00007.png", "truncated", "it ends after 12 bytes")
    text = words(report(write_output(tmp_path / "out", [rows[:100], rows[100:]])))
    assert "classify with timm/tf_efficientnet_lite0" in text
    for fact in (
        "Images 200",
        "Failed 1 0.5 %",
        "Images/s 50",
        "Processing time 4 s",
        "Workers 2",
        "Precision fp32",
    ):
        assert fact in text
    assert "Device cuda" in text
    assert "A random sample of 36 of the 200 images." in text
    assert "truncated 1" in text
    assert "00007.png it ends after 12 bytes" in text
    assert "forward 49 % 4.2 s 21 ms" in text
    assert "57934424c5a2cd5ae3ac2c5b9bdf1d8ab3ac3b6b7a1f1f1d11d0a4e6ec0fbb6d" in text
    assert "torchvision 0.27.0" in text
    assert "top_k: 5" in text


def test_no_section_without_data(tmp_path: Path) -> None:
    schema = pa.schema([*ENGINE_COLUMNS, ("embedding", pa.list_(pa.float32()))])
    row = {"key": "a", "uri": str(png(tmp_path)), "vanished": False, "embedding": [1.0]}
    write_part(tmp_path / "out", 0, [row], schema=schema)
    page = Page(report(tmp_path / "out"))
    assert page.headings == ["Predictions", "Time by stage", "Reproducibility"]
    write_job(tmp_path / "empty")
    assert Page(report(tmp_path / "empty")).headings == ["Reproducibility"]


def test_hostile_names_and_labels_stay_text(tmp_path: Path) -> None:
    rows = [
        good(HOSTILE, png(tmp_path), [(HOSTILE, 0.5), (HOSTILE, 0.2)]),
        bad(HOSTILE + "2", "empty", HOSTILE),
    ]
    out = write_output(tmp_path / "out", [rows])
    job = JOB.replace("classify", "'</pre><script>alert(3)</script>'")
    write_job(out, text=job)
    html = report(out)
    page = Page(html)
    assert page.tags["script"] == 0
    assert page.tags["img"] == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_secrets_in_addresses_are_not_shown(tmp_path: Path) -> None:
    out = write_output(tmp_path / "out", [[good("a", png(tmp_path), [("cat", 0.5)])]])
    write_job(out, "'https://user:word@host/list.csv?X-Amz-Signature=5ec3e7'")
    html = report(out)
    assert "host/list.csv" in html
    assert "5ec3e7" not in html
    assert "word@" not in html


def test_pictures_that_are_gone_leave_a_placeholder(tmp_path: Path) -> None:
    text_file = tmp_path / "text.jpg"
    text_file.write_text("no picture")
    rows = [
        good("gone.jpg", tmp_path / "gone.jpg", [("cat", 0.5)]),
        good("text.jpg", text_file, [("cat", 0.5)]),
    ]
    text = words(report(write_output(tmp_path / "out", [rows])))
    assert "No preview: no longer where it was" in text
    assert "No preview: can't be decoded" in text


def test_pictures_are_few_and_chosen_alike_each_time(tmp_path: Path) -> None:
    rows = many(tmp_path, 500)
    first = report(write_output(tmp_path / "one", [rows]))
    again = report(tmp_path / "one")
    other = report(write_output(tmp_path / "four", [rows[:100], rows[100:150], rows[150:], []]))
    assert first == again
    assert Page(first).tags["img"] == SAMPLE + LEAST_SURE == 48
    assert keys_shown(first) == keys_shown(other)
    assert "00000.png" in keys_shown(first)  # its score is 0


def keys_shown(html: str) -> list[str]:
    return re.findall(r'<p class="key" title="([^"]*)"', html)


def test_scores_that_are_no_probabilities_have_no_histogram(tmp_path: Path) -> None:
    rows = [good(f"{n}", png(tmp_path), [("cat", 3.5 * n)]) for n in range(100)]
    headings = Page(report(write_output(tmp_path / "out", [rows]))).headings
    assert "Labels" in headings
    assert "Confidence distribution" not in headings
    assert "Least confident images" not in headings


def test_every_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(get_args(Code))


def luminance(colour: str) -> float:
    hexed = colour.lstrip("#")
    hexed = hexed if len(hexed) == 6 else "".join(2 * digit for digit in hexed)
    parts = [int(hexed[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_have_the_contrast_of_wcag_aa_in_both_schemes() -> None:
    css = Path(plots.__file__).with_name("page.css").read_text()
    schemes = [
        dict(re.findall(r"--(\w+): (#\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for word in ("ink", "soft", "accent", "bad"):
            for ground in ("paper", "card"):
                light, dark = sorted((luminance(scheme[word]), luminance(scheme[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (word, ground)


def test_every_picture_and_plot_has_words_and_headings_nest(tmp_path: Path) -> None:
    rows = many(tmp_path, 60)
    rows[3] = bad("00003.png", "empty", "zero bytes")
    html = report(write_output(tmp_path / "out", [rows[:30], rows[30:]]))
    page = Page(html)
    assert len(page.values("alt")) == page.tags["img"]
    assert all(page.values("alt"))
    assert all(page.values("aria-label"))
    assert html.count("<svg") == html.count('aria-hidden="true"><path') + html.count(
        'aria-hidden="true"><rect'
    )
    assert page.tags["h1"] == 1
    assert page.values("lang") == ["en"]
    assert set(page.values("aria-labelledby")) <= set(page.values("id"))
    assert {href[1:] for href in page.values("href")} <= set(page.values("id"))


def test_the_result_and_the_page_agree(photographs: Path) -> None:
    assert f"Images {len(Result(str(photographs), Storage()))} " in words(report(photographs))


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}")
def test_a_browser_opens_it(tmp_path: Path) -> None:
    file = png(tmp_path, colour="#ff0000")
    report(write_output(tmp_path / "out", [[good(f"{n}", file, [("red", 0.9)]) for n in range(4)]]))
    shot = tmp_path / "shot.png"
    options = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    options += ["disable-background-networking", "disable-component-update", "disable-dev-shm-usage"]
    options += ["hide-scrollbars"]
    options += [f"user-data-dir={tmp_path / 'profile'}", f"screenshot={shot}", "window-size=1280,1000"]
    command = [
        str(CHROMIUM),
        *(f"--{option}" for option in options),
        f"file://{tmp_path / 'out' / 'report.html'}",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 240) & (pixels[..., 1] < 20) & (pixels[..., 2] < 20)
    assert red.mean() > 0.08  # four cards, whose pictures fill a good tenth of the window
