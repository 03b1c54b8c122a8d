"""What a collection is: every number against a plain count by PIL and numpy, on made sets and real ones."""

from __future__ import annotations

import gc
import io
import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from rich.console import Console
from typer.testing import CliRunner

from cnnbatch import truth
from cnnbatch.cli.app import app
from cnnbatch.cli.describe import read_input
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.humanize import byte_size
from cnnbatch.images.decode import DecodeError, decode
from cnnbatch.images.inspect import inspect
from cnnbatch.report.collection import facts, page_html, pictures, print_collection
from cnnbatch.sources import open_source
from cnnbatch.sources.counts import Spread
from cnnbatch.sources.describe import SHOWN, Description, ImageSample, ShownImage, describe, rank
from cnnbatch.storage import Storage, unique
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source
from tests.conftest import jpeg
from tests.places import CHECKOUT, SHARED
from tests.servers import Bucket

pytest_plugins = ("tests.s3",)
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up")

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "bird"}]
SHARED = SHARED / "data"


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Have the index of a COCO file go here, where its warning is expected, and not in another test."""
    yield
    gc.collect()


def data(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine, which holds real images")
    return folder


def known(url: str | Path, *fields: str) -> Description:
    return describe(opened(url, *fields))


def opened(url: str | Path, *fields: str) -> Source:
    return open_source(read_input(str(url), fields), Storage())


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def turned(width: int, height: int) -> bytes:
    """Return a JPEG of ``width`` x ``height`` that EXIF turns by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (width, height), "navy"), "JPEG", exif=exif)


def boxed(number: int, image: int, category: int, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        **more,
    }


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Fill ``photos`` with whole, damaged, equal and turned images, and write a truth for most of them."""
    files: dict[str, bytes] = {
        "cat.jpg": jpeg(1, 200, 150),
        "copy of cat.jpg": jpeg(1, 200, 150),
        "cut.jpg": jpeg(2, 640, 480)[:3000],
        "dog.png": encoded(Image.new("RGB", (120, 130), "olive"), "PNG"),
        "empty.jpg": b"",
        "nothing to see.webp": encoded(Image.new("RGB", (50, 50), "white"), "WEBP"),
        "stranger.gif": encoded(Image.new("P", (33, 44)), "GIF"),
        "text.jpg": b"no picture at all",
        "turned.jpg": turned(90, 60),
        "wrong size.jpg": jpeg(3, 77, 66),
    }
    (tmp_path / "photos").mkdir()
    for name, file in files.items():
        (tmp_path / "photos" / name).write_bytes(file)
    sizes = {
        "cat.jpg": (200, 150),
        "copy of cat.jpg": (200, 150),
        "cut.jpg": (640, 480),
        "dog.png": (120, 130),
        "nothing to see.webp": (50, 50),
        "turned.jpg": (60, 90),
        "wrong size.jpg": (770, 660),
        "gone.jpg": (10, 10),
    }
    images = [
        {"id": n, "file_name": name, "width": size[0], "height": size[1]}
        for n, (name, size) in enumerate(sizes.items())
    ]
    annotations = [
        boxed(1, 0, 1, (10, 10, 32, 32)),  # 32^2: the least that is medium
        boxed(2, 0, 1, (50, 10, 31, 33)),
        boxed(3, 0, 5, (0, 0, 96, 96)),  # 96^2: the least that is large
        boxed(4, 1, 1, (10, 10, 100, 120), iscrowd=1, area=700.5),
        boxed(5, 2, 5, (300, 200, 250, 200)),
        boxed(6, 3, 5, (20, 30, 90, 95)),
        boxed(7, 5, 1, (0, 0, 60, 90), iscrowd=1),
        boxed(8, 6, 5, (700, 600, 60, 50)),
    ]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return tmp_path


def described(made: Path) -> Description:
    return known(made / "photos", f"truth={made / 'truth.json'}")


def by_pillow(path: Path) -> tuple[int, int] | None:
    """Return the upright (width, height) of a file that Pillow decodes whole."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image).size
    except OSError:
        return None


def scales(areas: np.ndarray) -> dict[str, int]:
    names = ("small", "medium", "large")
    return {name: int((np.digitize(areas, [32**2, 96**2]) == n).sum()) for n, name in enumerate(names)}


# Images


def test_the_images_of_a_made_set_are_counted_as_pillow_counts_them(made: Path) -> None:
    found = described(made)
    paths = sorted((made / "photos").iterdir())
    sizes = [size for path in paths if (size := by_pillow(path))]
    assert found.images == len(paths) + 1 == 11
    assert found.file_bytes.total == sum(path.stat().st_size for path in paths)
    assert found.file_bytes.median == np.median([path.stat().st_size for path in paths])
    for spread, side in ((found.widths, 0), (found.heights, 1)):
        sides = [size[side] for size in sizes]
        assert (spread.count, spread.least, spread.most) == (len(sides), min(sides), max(sides))
        assert spread.median == np.median(sides)
        assert spread.exact
    assert found.formats == {"JPEG": 5, "PNG": 1, "WEBP": 1, "GIF": 1, "unknown": 2}
    assert found.shapes == {"wide": 3, "tall": 3, "square": 1}
    assert found.turned == 1


def test_unreadable_images_are_named_by_code(made: Path) -> None:
    failed = described(made).failed
    assert {code: (named.count, named.examples[0][0]) for code, named in failed.items()} == {
        "truncated": (1, "cut.jpg"),
        "empty": (1, "empty.jpg"),
        "undecodable": (1, "text.jpg"),
        "not_found": (1, "gone.jpg"),
    }
    assert described(made).unreadable == 4


def test_equal_bytes_under_other_names_are_found(made: Path) -> None:
    for name in ("x.png", "y.png"):
        (made / "photos" / name).write_bytes((made / "photos" / "dog.png").read_bytes())
    copies = described(made).copies
    assert (copies.images, copies.groups) == (3, 2)
    assert copies.examples == (("cat.jpg", "copy of cat.jpg"), ("dog.png", "x.png", "y.png"))


def test_headers_alone_give_sizes_but_no_damage(made: Path) -> None:
    fast = describe(opened(made / "photos"), fast=True)
    assert fast.widths.counts == described(made).widths.counts + Counter({640: 1})
    assert set(fast.failed) == {"empty", "undecodable"}
    assert "headers only were read" in [fact.note for fact in facts(fast)]


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True])
def test_what_is_refused_is_what_the_decoder_refuses(fast: bool) -> None:
    paths = [path for path in sorted(data("hostile").rglob("*")) if path.is_file() and path.suffix != ".csv"]
    assert len(paths) > 50
    for path in paths:
        content = path.read_bytes()
        with warnings.catch_warnings():
            try:
                expected: object = decode(content)[1][::-1]
            except DecodeError as error:
                expected = error.code
        look = inspect(content, fast)
        if fast and isinstance(expected, str) and look.failure is None:
            continue  # the damage lies behind the header
        assert (look.failure.code if look.failure else look.size) == expected, path.name


# Truth


def test_the_truth_of_a_made_set_is_counted(made: Path) -> None:
    truths = described(made).truths
    assert truths is not None
    assert truths.known == ("cat", "dog", "bird")
    counts = {name: (count.images, count.objects) for name, count in truths.classes.items()}
    assert counts == {"cat": (3, 4), "dog": (3, 3)}
    assert truths.objects == 7
    areas = np.array([32 * 32, 31 * 33, 96 * 96, 700.5, 250 * 200, 90 * 95, 60 * 90])
    assert truths.scales == scales(areas) == {"small": 2, "medium": 3, "large": 2}
    assert truths.sides.median == pytest.approx(np.median(np.sqrt(areas)))
    assert truths.marks == {"crowd": 2}
    an_image = [3, 1, 1, 1, 0, 1, 0]  # gone.jpg has truth and no objects; wrong size.jpg does not count
    assert (truths.an_image.count, truths.an_image.mean) == (7, sum(an_image) / 7)
    assert [key for key, _ in truths.empty.examples] == ["nothing to see.webp", "gone.jpg"]
    assert [key for key, _ in truths.absent.examples] == ["empty.jpg", "stranger.gif", "text.jpg"]
    [(key, words)] = truths.misfits.examples
    assert key == "wrong size.jpg"
    assert "770 x 660" in words


def test_the_coco_sample_is_counted_as_its_file_says() -> None:
    folder = data("coco-sample")
    content = json.loads((folder / "annotations" / "instances.json").read_text())
    found = known(folder / "annotations" / "instances.json")
    truths = found.truths
    assert truths is not None
    assert (found.images, truths.objects, found.unreadable) == (80, 639, 0)
    names = {one["id"]: one["name"] for one in content["categories"]}
    objects = Counter(names[one["category_id"]] for one in content["annotations"])
    pairs = {(names[one["category_id"]], one["image_id"]) for one in content["annotations"]}
    assert {name: count.objects for name, count in truths.classes.items()} == objects
    images = Counter(name for name, _ in pairs)
    assert {name: count.images for name, count in truths.classes.items()} == images
    areas = np.array([one["area"] for one in content["annotations"]])
    assert truths.scales == scales(areas)
    assert truths.sides.median == pytest.approx(np.sqrt(np.sort(areas)[len(areas) // 2]))
    assert truths.marks["crowd"] == sum(one["iscrowd"] for one in content["annotations"])
    an_image = Counter(one["image_id"] for one in content["annotations"])
    assert truths.an_image.median == np.median([an_image[image["id"]] for image in content["images"]])
    assert truths.empty.count == 80 - len(an_image)
    assert found.widths.median == np.median([image["width"] for image in content["images"]])
    html = page_html("COCO", found, [])
    assert "<summary>All classes</summary>" in html
    assert html.count('class="chart') == 4
    assert all(f'<th scope="row">{name}</th>' in html for name in objects)


def test_the_raccoons_are_counted_as_their_files_say() -> None:
    folder = data("raccoon")
    found = known(folder)
    trees = [ElementTree.parse(path) for path in (folder / "Annotations").iterdir()]
    objects = [len(tree.findall("object")) for tree in trees]
    digests = Counter(blake2b(path.read_bytes()).digest() for path in (folder / "JPEGImages").iterdir())
    truths = found.truths
    assert truths is not None
    assert (found.images, truths.objects) == (len(trees), sum(objects))
    assert truths.an_image.counts == Counter(objects)
    assert {name: count.images for name, count in truths.classes.items()} == {"raccoon": len(trees)}
    assert found.copies.images == sum(digests.values()) - len(digests)
    assert found.copies.groups == sum(count > 1 for count in digests.values())


def test_pixels_of_maps_are_counted(tmp_path: Path) -> None:
    masks = {"a": np.zeros((4, 5)), "b": np.eye(4, 5), "c": np.full((4, 5), 2), "d": np.full((4, 5), 9)}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, values in masks.items():
        Image.new("RGB", (5, 4)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "e.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "masks" / "e.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\nvoid\nbike\n")
    found = known(tmp_path / "images", f"truth={tmp_path}/masks", "ignore=[void]")
    truths = found.truths
    assert truths is not None
    counts = {name: (one.images, one.pixels, one.shares) for name, one in truths.classes.items()}
    assert counts == {"sky": (2, 36, 1.8), "road": (1, 4, 0.2)}
    assert (truths.maps, truths.pixels, truths.uncounted) == (3, 40, 20)
    assert [key for key, _ in truths.misfits.examples] == ["d.png", "e.png"]
    sink = io.StringIO()
    print_collection("maps", found, Console(file=sink, width=120))
    said = sink.getvalue()
    assert re.search(r"Classes +2 · 3 named in the ground truth", said)
    assert re.search(r"Pixels +40\n", said)
    assert re.search(r"Not counted +20 · 33 % of all", said)
    assert re.search(r"Class +Images +Pixels +Share +Mean share of an image", said)
    assert re.search(r"sky +2 +36 +90 % +60 %", said)
    assert "unusable: 2. Their masks can't be used." in said
    assert "By pixels." in page_html("maps", found, [])


def test_labels_are_counted_by_images(made: Path) -> None:
    for name in ("cats/1.jpg", "cats/2.jpg", "dogs/3.jpg", "4.jpg"):
        path = made / "classes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(len(name)))
    truths = known(made / "classes", "format=folders").truths
    assert truths is not None
    assert {name: count.images for name, count in truths.classes.items()} == {"cats": 2, "dogs": 1}
    assert (truths.objects, truths.absent.count) == (0, 1)


# What has no file


@dataclass(frozen=True)
class Pixels:
    """A picture that a source gives as pixels of one colour."""

    colour: int

    @property
    def size_bytes(self) -> int:
        return 3

    def decode(self, least: Callable[[tuple[int, int]], object]) -> tuple[torch.Tensor, tuple[int, int]]:
        if self.colour < 0:
            raise DecodeError("undecodable", "no colour")
        return torch.full((3, 20, 30), self.colour, dtype=torch.uint8), (20, 30)


@dataclass(frozen=True)
class Made:
    """A source of given contents, with a label each."""

    contents: tuple[Content | Exception, ...]
    truth_schema: pa.Schema | None = truth.LABEL_SCHEMA

    @property
    def columns(self) -> pa.Schema:
        return pa.schema([])

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        return (ImageRef(f"{n}", f"made:{n}") for n in range(len(self.contents)))

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        for ref in shard.refs:
            yield partial(self._content, ref)

    def _content(self, ref: ImageRef) -> Content:
        content = self.contents[int(ref.key)]
        if isinstance(content, Exception):
            raise content
        return content

    def truth(self, shard: Shard) -> pa.Table | None:
        return truth.table([{"label": "colour"} for _ in shard.refs], truth.LABEL_SCHEMA)


def test_pictures_without_a_file_decode_themselves_and_are_compared_by_pixels() -> None:
    source = Made((Pixels(1), Pixels(2), Pixels(1), Pixels(-1)))
    found = describe(source)
    assert (found.images, found.formats, found.widths.counts) == (4, {"raw pixels": 4}, {30: 3})
    assert found.copies.examples == (("0", "2"),)
    assert found.failed["undecodable"].examples == [("3", "no colour")]
    shown = pictures(source, found)
    assert [picture.image.size for picture in shown if picture.image] == [(30, 20)] * 3


@pytest.mark.parametrize("fault", [EnvironmentFault("no network", "wait"), UserError("no such place")])
def test_a_fault_that_is_no_images_own_passes_up(fault: Exception) -> None:
    with pytest.raises(type(fault), match="no "):
        describe(Made((Pixels(1), fault, *(Pixels(n) for n in range(100)))))


# Counting in bounded memory


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=80))
def test_a_spread_is_what_numpy_says(values: list[int]) -> None:
    spread = Spread()
    for value in values:
        spread.add(value)
    assert spread.median == np.median(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert (spread.least, spread.most, spread.count) == (min(values), max(values), len(values))
    assert sum(spread.histogram(7)) == len(values)
    edges = spread.edges(7)
    assert edges[0] == max(min(values), 1)
    assert edges[-1] == pytest.approx(max(*values, 1))


def test_a_spread_bins_as_numpy_does() -> None:
    values = np.random.default_rng(0).lognormal(4, 1, 500)
    spread = Spread()
    for value in values:
        spread.add(float(value))
    expected, _ = np.histogram(np.maximum(values, 1), spread.edges(12))
    assert np.abs(np.array(spread.histogram(12)) - expected).sum() <= 2  # but for rounding at edges


def test_a_spread_of_many_numbers_is_rounded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.sources.counts.MOST_DISTINCT", 50)
    values = np.random.default_rng(0).integers(1, 10**6, 20_000).tolist()
    spread = Spread()
    for value in values:
        spread.add(value)
    assert not spread.exact
    assert len(spread.counts) < 50 + 6 * 900
    assert spread.median == pytest.approx(np.median(values), rel=0.006)


@given(st.lists(st.binary(max_size=1), max_size=60), st.sampled_from([24, 24 * 3, 24 * 512]))
def test_every_group_of_equals_is_found(values: list[bytes], buffer: int) -> None:
    by_value: dict[bytes, list[str]] = {}
    with pytest.MonkeyPatch.context() as patch, unique.contents() as known:
        patch.setattr(unique, "_BUFFER", buffer)
        for number, value in enumerate(values):
            known.add(f"key\n{number}", blake2b(value, digest_size=16).digest())
            by_value.setdefault(value, []).append(f"key\n{number}")
        copies = known.copies()
    groups = [keys for keys in by_value.values() if len(keys) > 1]
    assert copies.images == sum(len(keys) - 1 for keys in groups)
    assert copies.groups == len(groups)
    assert copies.examples == tuple(tuple(keys[:5]) for keys in groups[:5])


def candidate(key: str) -> ShownImage:
    return ShownImage(rank(key), ImageRef(key, key), (1, 1))


@given(st.permutations(range(60)))
def test_the_images_shown_follow_from_their_keys_and_cover_the_classes(order: list[int]) -> None:
    classes = {n: ["rare"] if n < 2 else [f"class {n % 3}"] for n in range(60)}
    sample = ImageSample()
    for number in order:
        sample.add(candidate(f"{number}"), classes[number])
    chosen = [one.ref.key for one in sample.chosen()]
    assert len(chosen) == len(set(chosen)) == SHOWN
    assert {"0", "1"} < set(chosen)
    ranked = sorted((key for key in map(str, range(2, 60)) if int(key) % 3 == 0), key=rank)
    assert set(ranked[:6]) < set(chosen)
    counted = Counter(classes[int(key)][0] for key in chosen)
    assert min(counted[f"class {n}"] for n in range(3)) >= 6


# Text and page


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["describe", *map(str, arguments)])


def test_the_command_prints_plain_text(made: Path) -> None:
    result = run(made / "photos", f"truth={made / 'truth.json'}")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [re.sub(r" {2,}", "  ", line.rstrip()) for line in result.stdout.splitlines()]
    for line in (
        "Unreadable  4: empty 1, not_found 1, truncated 1, undecodable 1",
        "Copies  1 image repeating another byte for byte · in 1 group",
        "Width  33 to 200, median 77 · pixels",
        "Shape  3 wide, 3 tall, 1 square · 1 JPEG turned by EXIF",
        "Objects  7 · crowd 2",
        "Object size  small 2 (29 %), medium 3 (43 %), large 2 (29 %) · by area: below 32², below 96², above",
        "cat  3  4",
        "this set  11  2  7  1.0",
        "ImageNet-DET  200  1.1",
        "PASCAL VOC  20  2.4",
        "COCO  120,000  80  900,000  7.5",
        "  cat.jpg: again as copy of cat.jpg",
    ):
        assert line in lines
    assert "\x1b" not in result.stdout
    assert any(line.startswith("No ground truth  ") for line in lines)


def test_a_page_has_pictures_and_asks_for_nothing(made: Path) -> None:
    result = run(made / "photos", f"truth={made / 'truth.json'}", "--page", made / "page.html")
    assert result.exit_code == 0, result.output
    html = (made / "page.html").read_text()
    assert len(re.findall(r'src="data:image/jpeg;base64,', html)) == 7
    bare = re.sub(r"data:image/jpeg;base64,[^\"]*", "", html)
    assert not re.search(r"https?:|url\(|@import|<script|<link", bare)
    assert re.findall(r'href="([^"]*)"', bare) == ["#troubles"]
    assert all(words in bare for words in ("copy of cat.jpg", "COCO", "truncated", "<svg", "PASCAL VOC"))


def test_boxes_are_drawn_where_the_truth_has_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (800, 400), "white"), "PNG"))
    image = {"id": 1, "file_name": "a.png", "width": 800, "height": 400}
    content = {
        "images": [image],
        "annotations": [boxed(1, 1, 1, (200, 100, 400, 200))],
        "categories": CATEGORIES,
    }
    (tmp_path / "t.json").write_text(json.dumps(content))
    source = opened(tmp_path / "t.json")
    [picture] = pictures(source, describe(source))
    assert picture.image is not None
    small = np.asarray(picture.image).astype(int)
    assert small.shape == (200, 400, 3)
    marked = (small != 255).any(axis=2)
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (50, 150, 100, 300)
    assert [guess.label for guess in picture.prediction.ranked] == ["cat"]


def test_hostile_keys_stay_text(tmp_path: Path) -> None:
    name = "[red]<script>alert(1)<.jpg"
    (tmp_path / name).write_bytes(b"no picture")
    (tmp_path / f"2{name}").write_bytes(jpeg(1))
    result = run(tmp_path, "--page", tmp_path / "page.html")
    assert name in result.stdout
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_a_set_without_truth_or_pictures_has_a_page() -> None:
    found = describe(Made((b"", b"text"), truth_schema=None))
    html = page_html("nowhere", found, [])
    assert "Problems" in html
    assert "The truth" not in html


def test_only_so_many_images_are_read(made: Path) -> None:
    assert "Images           3 " in run(made / "photos", "--limit", "3").stdout
    assert "Images           2 " in run(made / "photos", "limit=2").stdout


def test_mistakes_in_fields_are_told_at_once(made: Path) -> None:
    result = run(made / "photos", "fromat=coco", "input.format=cooc", "storage.endpont=x", "nonsense")
    assert result.exit_code == 2
    assert "4 mistakes" in result.stderr
    for words in (
        "did you mean format?",
        "did you mean coco?",
        "did you mean storage.endpoint?",
        "key=value",
    ):
        assert words in result.stderr
    assert run(made / "nowhere").exit_code == 2
    assert result.stdout == ""


def test_a_bucket_is_described(bucket: Bucket) -> None:
    for number in range(3):
        bucket.put(f"photos/{number}.jpg", jpeg(number // 2))
    storage = (f"storage.endpoint={bucket.options.endpoint}", "storage.region=us-east-1")
    result = run(f"{bucket.url}/photos", *storage, "--page", f"{bucket.url}/page.html")
    assert result.exit_code == 0, result.output
    assert "Copies           1 image repeating" in result.stdout
    page = bucket.client.get_object(Bucket=bucket.name, Key="page.html")["Body"].read()
    assert page.count(b"data:image/jpeg;base64") == 3


def test_sizes_in_bytes() -> None:
    sizes = [byte_size(count) for count in (0, 999, 1000, 1_234_567, 5e9, 2e12, 3e15)]
    assert sizes == ["0 B", "999 B", "1 kB", "1.23 MB", "5 GB", "2 TB", "3,000 TB"]


@pytest.mark.slow
def test_the_command_does_not_import_ray(made: Path) -> None:
    code = (
        "import sys; from cnnbatch.cli.app import app; from typer.testing import CliRunner;"
        "result = CliRunner().invoke(app, ['describe', sys.argv[1]]); assert result.exit_code == 0;"
        "sys.exit('imported ray' if 'ray' in sys.modules else 0)"
    )
    command = [sys.executable, "-c", code, str(made / "photos")]
    subprocess.run(command, check=True, cwd=CHECKOUT)
