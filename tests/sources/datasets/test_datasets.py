"""Data sets by name: found in a folder of copies or in the cache, and read as what lies there."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.config.input import Input
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference import fingerprint as identity
from cnnbatch.inference.run import run
from cnnbatch.job import to_yaml
from cnnbatch.sources.cifar10 import CLASSES
from cnnbatch.sources.datasets import find, named, resolve
from cnnbatch.sources.datasets.table import DATASETS
from cnnbatch.storage import Storage, is_local, normalize, parent, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.truth import answer_of, classes_of, ignored_of
from cnnbatch.types import Failure, Shard
from tests.conftest import jpeg
from tests.inference.test_run import QUIET, job, table
from tests.jobs import load_job, parse_job
from tests.places import SHARED
from tests.servers import Bucket
from tests.sourcing import keys, read, source

pytest_plugins = ("tests.s3", "tests.published")
pytestmark = pytest.mark.usefixtures("nothing_here")

DATA = SHARED / "data"
NAMES = [
    "pets_sample",
    "blood_cells",
    "raccoon",
    "coco_sample",
    "coco_sample_panoptic",
    "imagenet_sample",
    "lfw",
    "balloon",
    "camvid",
]
XML = """<annotation><filename>{0}.jpg</filename>
<size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>raccoon</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name the folder of real images beside the checkout, or skip."""
    if not DATA.is_dir():
        pytest.skip(f"there is no {DATA}, which holds real data sets")
    monkeypatch.setenv("CNNBATCH_DATA", str(DATA))
    return DATA


def cifar10(root: Path, counts: tuple[int, int] = (5, 3)) -> Path:
    """Write a tiny CIFAR-10 as Parquet, in a folder of its name below ``root``."""
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    for part, count in zip(("train", "test"), counts, strict=True):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
        labels = pa.array(np.arange(count) % 10, pa.int8())
        rows = pa.table({"image": [png(one) for one in pixels], "label": labels})
        pq.write_table(rows, folder / f"{part}-00000-of-00001.parquet")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def raccoons(count: int = 2) -> dict[str, bytes]:
    """Return the files of a tiny tree with boxes by their paths."""
    files = {f"JPEGImages/r-{number}.jpg": jpeg(number) for number in range(count)}
    return files | {
        f"Annotations/r-{number}.xml": XML.format(f"r-{number}").encode() for number in range(count)
    }


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def told(url: str | Sequence[str], **fields: Any) -> str:
    """Return what is said of an input that is wrong."""
    with pytest.raises(UserError) as caught:
        list(source(url, **fields).refs())
    return str(caught.value)


def test_a_set_is_found_in_the_folder_of_copies_and_then_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, cache = tmp_path / "share", tmp_path / "cache" / "data"
    cifar10(cache, (1, 1))
    assert len(keys("dataset:cifar10")) == 2
    cifar10(share)
    monkeypatch.setenv("CNNBATCH_DATA", str(share))
    test, train = "test-00000-of-00001.parquet", "train-00000-of-00001.parquet"
    assert keys("dataset:cifar10", split="train") == [f"{train}#{row}" for row in range(5)]
    assert keys("dataset:cifar10", split="test") == [f"{test}#{row}" for row in range(3)]
    assert len(keys("dataset:cifar10")) == 8
    found = source("dataset:cifar10", split="test")
    refs = tuple(found.refs())
    labels = found.truth(Shard(0, refs))
    assert labels is not None
    assert labels["label"].to_pylist() == list(CLASSES[:3])
    assert found.truth_schema is not None
    assert [one.name for one in classes_of(found.truth_schema)] == list(CLASSES)
    assert all(isinstance(one, bytes) for one in read(found, refs))


def test_a_job_says_the_same_wherever_the_copy_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for place in ("here", "there"):
        cifar10(tmp_path / place)
        monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path / place))
        loaded = load_job("classify", ["input=dataset:cifar10", "input.split=test", "output=out"])
        said.append((keys("dataset:cifar10"), identity.of_job(loaded), to_yaml(loaded)))
        assert loaded.input.url == "dataset:cifar10"
        assert parse_job(to_yaml(loaded), "job").input == loaded.input
    assert said[0] == said[1]
    assert said[0][1]["input.url"] == "dataset:cifar10"


@pytest.mark.parametrize(
    "address", ["dataset:cifar10", "dataset:blood_cells#objects", "dataset:camvid#patches=32"]
)
def test_a_name_is_no_path(address: str) -> None:
    assert (normalize(address), redact(address), is_local(address)) == (address, address, False)
    assert parent(address) == ""


def test_a_name_stands_for_an_input_only() -> None:
    with pytest.raises(UserError, match="whole input of a job"):
        Storage().read("dataset:cifar10")


def test_an_absent_set_says_where_it_was_looked_for_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told("dataset:cifar10")
    assert said.startswith("input.url: the data set cifar10 (CIFAR-10: ")
    assert f"looked at: {tmp_path}/cache/data/cifar10, where there is nothing" in said
    assert "CNNBATCH_DATA is not set" in said
    assert "what to do: cnnbatch data fetch cifar10   (170 MB; licence: none stated; for research)" in said
    assert "or: set CNNBATCH_DATA=DIR, where DIR has a folder cifar10 with" in said
    assert "train-*.parquet" in said
    assert not (tmp_path / "cache").exists()  # nothing was fetched, or made
    put(tmp_path / "share" / "blood-cells", {"readme.txt": b"see there"})
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path / "share"))
    said = told("dataset:blood_cells#objects")
    assert f"{tmp_path}/share/blood_cells, where there is nothing" in said
    assert f"{tmp_path}/share/blood-cells, which holds something else than is described below" in said
    assert "what to do: set CNNBATCH_DATA=DIR, where DIR has a folder blood-cells or blood_cells with" in said
    assert "JPEGImages/, Annotations/ and ImageSets/Main/ (train, val, test), as PASCAL VOC has it" in said
    assert "it comes from https://github.com/Shenggan/BCCD_Dataset" in said
    assert "data fetch" not in said
    assert "is not set" not in said


def test_mistakes_in_names_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(tmp_path)
    put(tmp_path / "raccoon", raccoons())
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    assert "no data set 'cifar01'; did you mean cifar10?\n  known names: balloon, blood" in told(
        "dataset:cifar01"
    )
    assert "has the parts train, test, got 'tset'; did you mean test?" in told(
        "dataset:cifar10", split="tset"
    )
    assert "is not divided, got 'train'" in told("dataset:raccoon", split="train")
    assert "a data set is a whole input, got 2" in told(["dataset:cifar10", str(tmp_path)])


def test_what_the_job_says_counts_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "raccoon", raccoons())
    put(tmp_path / "pets", {"images/Bengal_1.jpg": jpeg(1), "images/Siamese_2.jpg": jpeg(2)})
    truth = {
        "images": [{"id": 1, "file_name": "Bengal_1.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    assert keys("dataset:raccoon", format="files") == ["JPEGImages/r-0.jpg", "JPEGImages/r-1.jpg"]
    assert source("dataset:raccoon", format="files").truth_schema is None
    labels = {
        label: source("dataset:pets_sample", label=label).truth(
            Shard(0, tuple(source("dataset:pets_sample").refs()))
        )
        for label in (None, "([A-Z])")
    }
    assert [table["label"].to_pylist() for table in labels.values() if table is not None] == [
        ["Bengal", "Siamese"],
        ["B", "S"],
    ]
    boxes = source("dataset:pets_sample", truth=str(tmp_path / "truth.json"))
    assert [one.name for one in classes_of(boxes.truth_schema or pa.schema([]))] == ["cat"]
    assert keys("dataset:raccoon#objects") == ["JPEGImages/r-0.jpg#0", "JPEGImages/r-1.jpg#0"]


def test_copies_in_a_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, data in raccoons().items():
        bucket.put(f"sets/raccoon/{name}", data)
    monkeypatch.setenv("CNNBATCH_DATA", f"{bucket.url}/sets")
    storage = Storage(bucket.options)
    assert keys("dataset:raccoon", storage) == ["JPEGImages/r-0.jpg", "JPEGImages/r-1.jpg"]
    assert find(named("blood_cells"), storage) is None


def test_a_job_over_a_set_runs_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(tmp_path)
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    out = tmp_path / "out"
    task = {
        "name": "classify",
        "model": "squeezenet1_1",
        "weights": "random",
        "classes": list(CLASSES),
        "preprocessing": {"resize": 32, "crop": 32},
    }
    given = {"url": "dataset:cifar10", "split": "test"}
    said = job(tmp_path, out, task, input=given, compute={"precision": "fp32"})
    summary = run(said, QUIET)
    assert (summary.images, summary.exit_status) == (3, 0)
    assert table(out)["key"].to_pylist() == [f"test-00000-of-00001.parquet#{row}" for row in range(3)]
    assert set(table(out)["label"].to_pylist()) <= set(CLASSES)
    assert json.loads((out / "evaluation.json").read_text())["images"] == 3
    assert "dataset:cifar10" in (out / "_job" / "job.yaml").read_text()
    with Screen(quiet=True) as screen:
        assert evaluate_again(str(out), ["split=test"], screen).images == 3
    (out / "predictions" / "part-00000000.parquet").unlink()
    (tmp_path / "cifar10").rename(tmp_path / "share")
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path / "moved"))
    cifar10(tmp_path / "moved")
    with pytest.raises(
        EnvironmentFault, match=f"planned with dataset:cifar10 in {tmp_path}/cifar10, which is now"
    ):
        run(said, QUIET)
    (tmp_path / "share").rename(tmp_path / "cifar10")
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    assert run(said, QUIET).images == 3


def test_a_machine_without_the_copy_is_at_fault_and_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(
        tmp_path / "imagenet-sample",
        {"images/a.jpg": jpeg(1), "labels.csv": b"file,category\nimages/a.jpg,tench"},
    )
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    found = source("dataset:imagenet_sample")
    refs = tuple(found.refs())
    assert [(ref.key, ref.columns["label"]) for ref in refs] == [("images/a.jpg", "tench")]
    travelled = pickle.loads(pickle.dumps(found))
    assert isinstance(read(travelled, refs)[0], bytes)
    (tmp_path / "imagenet-sample").rename(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFault, match="does not have\n  what to do: mount it under the same path"):
        read(travelled, refs)


def test_describe_takes_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(tmp_path)
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    result = CliRunner().invoke(app, ["describe", "dataset:cifar10", "split=train"])
    assert result.exit_code == 0
    assert "dataset:cifar10" in result.output
    assert re.search(r"Images +5 .*\nFormats +PNG 5\n", result.output)
    assert "airplane" in result.output


@pytest.mark.parametrize("name", NAMES)
def test_a_real_set_is_read_with_its_truth(name: str, real: Path) -> None:
    found = source(f"dataset:{name}")
    refs = tuple(islice(found.refs(), 3))
    assert len(refs) == 3
    assert not any(isinstance(one, Failure) for one in read(found, refs))
    truths = found.truth(Shard(0, refs))
    assert truths is not None
    assert None not in truths[answer_of(truths.schema)].to_pylist()
    assert not any(ref.key.startswith("/") for ref in refs)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("pets_sample", {None: 500}),
        ("blood_cells", {None: 328, "train": 205, "val": 87, "test": 36}),
        ("camvid", {None: 367, "train": 367, "val": 51, "test": 117}),
        ("imagenet_sample", {None: 250}),
        ("coco_sample", {None: 80}),
        ("coco_sample_panoptic", {None: 80}),
        ("raccoon", {None: 160}),
        ("balloon", {None: 13}),
        ("lfw", {None: 1_046}),
    ],
)
def test_the_parts_of_real_sets(name: str, counts: dict[str | None, int], real: Path) -> None:
    assert {split: len(keys(f"dataset:{name}", split=split)) for split in counts} == counts
    assert DATASETS[name].splits == [split for split in counts if split]
    parts = [count for split, count in counts.items() if split]
    assert DATASETS[name].images == (sum(parts) or counts[None])


def test_real_pictures_of_32_pixels(real: Path) -> None:
    found = source("dataset:cifar10", split="test")
    refs = tuple(islice(found.refs(), 3))
    assert refs[0].key == "test-00000-of-00002.parquet#0"
    labels = found.truth(Shard(0, refs))
    assert labels is not None
    assert set(labels["label"].to_pylist()) <= set(CLASSES)
    located = resolve(Input(url="dataset:cifar10"), Storage())
    assert located is not None
    assert (located.input.url, located.folder) == (f"{real}/cifar10", f"{real}/cifar10")


def test_maps_of_real_sets(real: Path) -> None:
    roads = source("dataset:camvid", split="val")
    assert roads.truth_schema is not None
    assert answer_of(roads.truth_schema) == "map"
    assert ignored_of(roads.truth_schema) == {11, 255}
    assert len(classes_of(roads.truth_schema)) == 11
    every = source("dataset:camvid", ignore=(254,))
    assert every.truth_schema is not None
    assert len(classes_of(every.truth_schema)) == 12
    things = source("dataset:coco_sample_panoptic")
    assert things.truth_schema is not None
    assert answer_of(things.truth_schema) == "objects"
    maps = source("dataset:coco_sample_panoptic", format="coco_maps")
    assert maps.truth_schema is not None
    assert (answer_of(maps.truth_schema), len(classes_of(maps.truth_schema))) == ("map", 133)


def test_a_set_s_pictures_have_labels_by_a_pattern_all_the_same(real: Path) -> None:
    found = source("dataset:camvid", label="([^_]+)_")
    assert found.truth_schema is not None
    assert answer_of(found.truth_schema) == "label"


def test_coco_2017_as_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "isthing": 1}],
    }
    for part in ("train", "val"):
        put(
            tmp_path / "coco",
            {
                f"{part}2017/1.jpg": jpeg(1),
                f"annotations/panoptic_{part}2017.json": json.dumps(content).encode(),
            },
        )
    assert keys("dataset:coco_panoptic", split="val") == ["1.jpg"]
    (ref,) = source("dataset:coco_panoptic").refs()
    assert ref.uri.endswith("train2017/1.jpg")


def test_objects_and_patches_of_real_sets(real: Path) -> None:
    cells = source("dataset:blood_cells#objects", split="val")
    assert [one.key for one in islice(cells.refs(), 2)] == [
        "JPEGImages/BloodImage_00000.jpg#0",
        "JPEGImages/BloodImage_00000.jpg#1",
    ]
    roads = source("dataset:camvid#patches=32", split="val")
    assert "bicyclist" in [one.name for one in classes_of(roads.truth_schema or pa.schema([]))]


def test_parts_that_lie_together_are_read_together(real: Path) -> None:
    objects = {split: _count("dataset:blood_cells#objects", split) for split in ("val", "test")}
    assert _count("dataset:blood_cells#objects", ["val", "test"]) == sum(objects.values())
    with pytest.raises(UserError, match=r"the parts of dataset:camvid in .* lie apart, got val and test"):
        _count("dataset:camvid#patches=32", ["val", "test"])


def _count(url: str, split: str | list[str]) -> int:
    return sum(1 for _ in source(url, split=split).refs())
