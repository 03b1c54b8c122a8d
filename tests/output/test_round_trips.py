"""One collection with truth, written in four formats, gives one truth; and what a user sees of bad input."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.types import Shard
from tests.conftest import jpeg
from tests.inference.test_run import job
from tests.sourcing import source

SIZE = (64, 48)
Found = list[tuple[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Picture:
    """An image of 64 x 48 pixels and its objects: the class and (x, y, width, height) of each."""

    name: str
    data: bytes
    objects: Sequence[tuple[str, tuple[int, int, int, int]]]


PICTURES = [
    Picture("b.jpg", jpeg(1), [("dog", (0, 0, 64, 48)), ("cat", (3, 4, 10, 1))]),
    Picture("a.b.jpg", jpeg(2), []),
    Picture("a.jpg", jpeg(3), [("sea lion", (60, 40, 4, 8))]),
    Picture("a-b.jpg", jpeg(4), [("cat", (1, 2, 3, 4)), ("cat", (1, 2, 3, 4)), ("dog", (5, 6, 7, 8))]),
]
CLASSES = ["sea lion", "cat", "dog"]


def corners(box: tuple[int, int, int, int]) -> dict[str, int]:
    x, y, width, height = box
    return {"x1": x, "y1": y, "x2": x + width, "y2": y + height}


def as_coco(root: Path) -> str:
    images = [
        {"id": number, "file_name": one.name, "width": SIZE[0], "height": SIZE[1]}
        for number, one in enumerate(PICTURES)
    ]
    annotations = [
        {"id": number, "image_id": number, "category_id": CLASSES.index(label), "bbox": box}
        for number, one in enumerate(PICTURES)
        for label, box in one.objects
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for one in PICTURES:
        (root / one.name).write_bytes(one.data)
    (root / "all.json").write_text(json.dumps(content))
    return str(root / "all.json")


def as_voc(root: Path) -> str:
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir()
    for one in PICTURES:
        (root / "JPEGImages" / one.name).write_bytes(one.data)
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
            for label, (x, y, width, height) in one.objects
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (root / "Annotations" / f"{one.name.removesuffix('.jpg')}.xml").write_text(text)
    return str(root)


def as_tar(root: Path) -> str:
    with tarfile.open(root / "all.tar", "w") as tar:
        for number, one in enumerate(PICTURES):  # WebDataset's names end at their first dot
            objects = [{"label": label, "box": corners(box)} for label, box in one.objects]
            sample = {"objects": objects, "width": SIZE[0], "height": SIZE[1]}
            for suffix, data in (("jpg", one.data), ("json", json.dumps(sample).encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(root / "all.tar")


def as_parquet(root: Path) -> str:
    objects = [[{"label": label, "bbox": list(box)} for label, box in one.objects] for one in PICTURES]
    kind = pa.list_(pa.struct([("label", pa.string()), ("bbox", pa.list_(pa.float64()))]))
    columns = {
        "image": [one.data for one in PICTURES],
        "objects": pa.array(objects, kind),
        "width": [SIZE[0]] * len(PICTURES),
        "height": [SIZE[1]] * len(PICTURES),
    }
    pq.write_table(pa.table(columns), root / "all.parquet")
    return str(root / "all.parquet")


FORMATS = [as_coco, as_voc, as_tar, as_parquet]


def name_of(key: str) -> str:
    """Return the name of the picture with this key: a tar's and a table's tell its number."""
    last = key.rpartition("/")[2]
    number = last.rpartition("#")[2].removesuffix(".jpg")
    return PICTURES[int(number)].name if number.isdigit() else last


def shown(keys: Sequence[str], truth: pa.Table) -> dict[str, tuple[Found, Any, Any]]:
    """Return the objects and the size of each picture by its name."""
    rows = {}
    for key, row in zip(keys, truth.to_pylist(), strict=True):
        objects = [(one["label"], tuple(one["box"].values())) for one in row["objects"]]
        rows[name_of(key)] = objects, row["width"], row["height"]
    return rows


EXPECTED = {
    one.name: ([(label, tuple(corners(box).values())) for label, box in one.objects], *SIZE)
    for one in PICTURES
}


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_truth(write: Callable[[Path], str], tmp_path: Path) -> None:
    found = source(write(tmp_path))
    refs = tuple(found.refs())
    truth = found.truth(Shard(0, refs))
    assert truth is not None
    assert shown([ref.key for ref in refs], truth) == EXPECTED
    assert truth.schema == source(as_coco(tmp_path)).truth_schema
    contents = {
        name_of(ref.key): reader() for ref, reader in zip(refs, found.read(Shard(0, refs)), strict=True)
    }
    assert contents == {one.name: one.data for one in PICTURES}


def test_a_run_leaves_the_same_truth_and_rows_for_every_format(tmp_path: Path) -> None:
    outputs = []
    for write in FORMATS:
        root = tmp_path / write.__name__
        root.mkdir()
        out = root / "out"
        chosen = {"url": write(root), "shard_size": 3}
        assert run(job(root, out, input=chosen), RunOptions(quiet=True)).exit_status == 0
        rows = cnnbatch.open(str(out)).arrow().select(["key", "label", "width", "bytes"]).to_pylist()
        parts = sorted((out / "_job" / "truth").iterdir())
        assert len(parts) == 2
        truth = pa.concat_tables([pq.read_table(part) for part in parts])
        assert truth["problem"].null_count == len(PICTURES)
        assert shown([row["key"] for row in rows], truth) == EXPECTED
        outputs.append({name_of(row.pop("key")): row for row in rows})
    assert outputs[0].keys() == EXPECTED.keys()
    assert outputs == [outputs[0]] * len(FORMATS)


def test_truth_for_another_size_is_said_and_left_out(tmp_path: Path) -> None:
    text = (
        Path(as_coco(tmp_path))
        .read_text()
        .replace('"file_name": "a.jpg", "width": 64', '"file_name": "a.jpg", "width": 65')
    )
    (tmp_path / "all.json").write_text(text)
    run(job(tmp_path, tmp_path / "out", input={"url": f"{tmp_path}/all.json"}), RunOptions(quiet=True))
    rows = pq.read_table(tmp_path / "out/_job/truth/part-00000000.parquet").to_pylist()
    assert [row["objects"] is None for row in rows] == [False, False, True, False]
    assert rows[2]["problem"].startswith("its ground truth is for 65 x 48 pixels, the image has 64 x 48")


# What a user sees

JOB = "task: {{name: 'tests.toy:Toy'}}\ninput: {{url: '{url}'}}\noutput: '{out}'\ncompute: {{pool: inline}}\n"


def command(tmp_path: Path, url: str, *changes: str) -> Any:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(url=url, out=tmp_path / "out"))
    return CliRunner().invoke(app, ["run", str(path), "--quiet", *changes])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def truncate(root: Path) -> tuple[str, str]:
    path = Path(as_coco(root))
    path.write_text(path.read_text()[:-30])
    return str(path), "all.json is not a whole JSON object"


def forget_categories(root: Path) -> tuple[str, str]:
    path = Path(as_coco(root))
    path.write_text(path.read_text().replace('"categories"', '"classes"'))
    return str(path), "all.json holds no `categories`"


def break_xml(root: Path) -> tuple[str, str]:
    url = as_voc(root)
    (root / "Annotations/a.xml").write_text("<annotation>")
    return url, "Annotations/a.xml is no whole XML"


def break_box(root: Path) -> tuple[str, str]:
    url = as_voc(root)
    path = root / "Annotations/b.xml"
    path.write_text(path.read_text().replace("<xmin>1<", "<xmin>one<"))
    return url, "b.xml has an object whose xmin is no number of pixels"


BROKEN = [truncate, forget_categories, break_xml, break_box]


@pytest.mark.parametrize("damage", BROKEN)
def test_a_mistake_in_the_truth_is_one_clear_text(
    damage: Callable[[Path], tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    url, expected = damage(tmp_path / "in")
    done = command(tmp_path, url)
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert "what to do" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in done.output
    assert not (tmp_path / "out" / "predictions").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", BROKEN)
def test_a_mistake_in_the_truth_costs_nothing_that_is_there(
    damage: Callable[[Path], tuple[str, str]], tmp_path: Path
) -> None:
    root = tmp_path / "in"
    write = as_voc if damage in (break_xml, break_box) else as_coco
    url = write(emptied(root))
    assert command(tmp_path, url, "input.limit=2").exit_code == 0
    before = contents(tmp_path / "out")
    parts = [name for name in before if "/predictions/" in name or "/_job/truth/" in name]
    assert len(parts) == 2
    damage(emptied(root))
    assert command(tmp_path, url).exit_code == 2
    assert {name: contents(tmp_path / "out")[name] for name in parts} == {
        name: before[name] for name in parts
    }
    write(emptied(root))
    assert command(tmp_path, url).exit_code == 0
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in parts} == {name: before[name] for name in parts}
    assert cnnbatch.open(str(tmp_path / "out")).arrow().num_rows == len(PICTURES)


def emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("input.split=val", "input.split: "),
        ("input.label=([", "input.label: '([' is no regular expression"),
        ("input.format=voc", "has no Annotations, where a tree of the format voc has it"),
        ("input.format=folders", "input.format=folders: expected a class in the images' keys"),
        ("input.truth=none.json", "none.json cannot be read"),
    ],
)
def test_a_mistake_in_the_input_is_one_clear_text(change: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(1))
    done = command(tmp_path, f"{tmp_path}/photos", change)
    assert (done.exit_code, message in done.stderr) == (2, True), done.output
    assert "what to do" in done.stderr
    assert not (tmp_path / "out" / "predictions").exists()
