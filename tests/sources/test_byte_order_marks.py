"""A byte order mark is no part of a text, whatever is read: each with UTF-8's and UTF-16's, and without."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.job import load_job
from cnnbatch.models.architectures.darknet_cfg import parse_cfg
from cnnbatch.models.trained_files import read_model
from cnnbatch.models.weights.files import read_key_map
from cnnbatch.sources import cifar10
from cnnbatch.sources.datasets import lists as dataset_lists
from cnnbatch.storage import Storage
from cnnbatch.storage.text import LongLine, decoded, encoding_of, text_lines
from cnnbatch.tasks.weighted import read_names
from cnnbatch.truth import classes_of
from cnnbatch.types import Shard, Source
from tests.config.test_plugins import ABOUT
from tests.sourcing import fill, keys, source

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be-marked", "utf-32")
NAME = "Käuzchen 梟"


def encoded(text: str, encoding: str) -> bytes:
    return b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be-marked" else text.encode(encoding)


@pytest.fixture(params=ENCODINGS)
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def labels(found: Source) -> list[str | None]:
    table = found.truth(Shard(0, tuple(found.refs())))
    assert table is not None
    return list(table["label"].to_pylist())


def object_names(found: Source) -> list[list[str]]:
    table = found.truth(Shard(0, tuple(found.refs())))
    assert table is not None
    rows: list[Any] = table["objects"].to_pylist()
    return [[one["label"] for one in objects] for objects in rows]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_lists_of_columns(suffix: str, delimiter: str, encoding: str, tmp_path: Path) -> None:
    rows = [("file", "label"), ("a.jpg", NAME), ("b.jpg", f'"two\n{NAME}"')]
    path = tmp_path / f"list{suffix}"
    path.write_bytes(encoded("\r\n".join(delimiter.join(row) for row in rows), encoding))
    found = source(str(path), label="label")
    assert [ref.uri for ref in found.refs()] == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    assert labels(found) == [NAME, f"two\n{NAME}"]


def test_plain_lists(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(encoded(f"a.jpg\r\n\n{NAME}.jpg\n", encoding))
    assert keys(str(path)) == [f"{tmp_path}/a.jpg", f"{tmp_path}/{NAME}.jpg"]


def test_coco(encoding: str, tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 5, "name": NAME}],
    }
    fill(tmp_path, ["a.jpg"])
    path = tmp_path / "instances.json"
    path.write_bytes(encoded(json.dumps(content, ensure_ascii=False), encoding))
    found = source(str(path))
    assert found.truth_schema is not None
    assert [one.name for one in classes_of(found.truth_schema)] == [NAME]
    assert object_names(found) == [[NAME]]


@pytest.mark.parametrize(
    "declaration", ["", '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-8"?>']
)
def test_xml_and_its_lists(declaration: str, encoding: str, tmp_path: Path) -> None:
    sides = "".join(f"<{side}>{2}</{side}>" for side in ("xmin", "ymin", "xmax", "ymax"))
    xml = f"<annotation><object><name>{NAME}</name><bndbox>{sides}</bndbox></object></annotation>"
    fill(tmp_path, ["JPEGImages/a.jpg", "JPEGImages/b.jpg"])
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Annotations" / "a.xml").write_bytes(encoded(declaration + xml, encoding))
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_bytes(encoded("a\n", encoding))
    found = source(str(tmp_path), split="val")
    assert [ref.key for ref in found.refs()] == ["JPEGImages/a.jpg"]
    assert object_names(found) == [[NAME]]


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_members_of_tars(suffix: str, encoding: str, tmp_path: Path) -> None:
    text = NAME if suffix == "cls" else json.dumps({"label": NAME}, ensure_ascii=False)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, data in (("a.jpg", b"image"), (f"a.{suffix}", encoded(text, encoding))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert labels(source(str(tmp_path / "shard.tar"))) == [NAME]


def test_names_beside_parquet(encoding: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"A", b"B"], "label": [1, 0]}), tmp_path / "images.parquet")
    (tmp_path / "classes.txt").write_bytes(encoded(f"first\n{NAME}\n", encoding))
    assert labels(source(str(tmp_path / "images.parquet"))) == [NAME, "first"]


def test_names_beside_masks(encoding: str, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "masks" / "classes.txt").write_bytes(encoded(NAME, encoding))
    assert labels(source(f"{tmp_path}/images#patches=8", truth=f"{tmp_path}/masks")) == [NAME]


def test_names_beside_cifars_batches(encoding: str, tmp_path: Path) -> None:
    names = [f"{NAME} {number}" for number in range(10)]
    (tmp_path / "batches.meta.txt").write_bytes(encoded("\n".join(names), encoding))
    assert list(cifar10._classes(Storage(), str(tmp_path), binary=True)) == names


def test_names_of_classes(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(encoded(f"{NAME}\r\ndog\n", encoding))
    assert read_names(str(tmp_path / "names.txt")) == (NAME, "dog")


def test_key_maps_and_trained_models(encoding: str, tmp_path: Path) -> None:
    about = {**ABOUT, "classes": [NAME, "dog"]}
    for name, value in (("map.json", {"a": NAME}), ("model.json", about)):
        (tmp_path / name).write_bytes(encoded(json.dumps(value, ensure_ascii=False), encoding))
    assert read_key_map(str(tmp_path / "map.json")) == {"a": NAME}
    assert read_model(str(tmp_path)) == about


def test_jobs(encoding: str, tmp_path: Path) -> None:
    text = f"task: {{name: classify, model: resnet18}}\ninput: {NAME}\noutput: out\n"
    (tmp_path / "job.yaml").write_bytes(encoded(text, encoding))
    job: Any = load_job(str(tmp_path / "job.yaml"))
    assert job.input.url == NAME


def test_lists_of_fetched_sets(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("trainval", "test"):
        (tmp_path / "annotations" / f"{split}.txt").write_bytes(encoded("Abyssinian_100 1 1 1\n", encoding))
    parts = dataset_lists.oxford_iiit_pet(tmp_path)
    assert list(parts["test"]) == [("images/Abyssinian_100.jpg", "Abyssinian")]


def test_a_darknet_cfg() -> None:
    assert parse_cfg("\ufeff[net]\nwidth=32\n", "x.cfg")[0].kind == "net"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_no_utf8_is_told_with_its_line(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(mark + b"file,label\na.jpg,x\nb.jpg,\xe9\n")
    with pytest.raises(UserError, match="line 3: UTF-8 was expected"):
        keys(str(tmp_path / "list.csv"))
    (tmp_path / "half.csv").write_bytes("file,label\na.jpg,x\n".encode("utf-16")[:-1])
    with pytest.raises(UserError, match="save the list as UTF-8"):
        keys(str(tmp_path / "half.csv"))


def test_lines_and_whole_texts(encoding: str) -> None:
    data = encoded(f"one\r\n{NAME}\n\nlast", encoding)
    file = io.BytesIO(data)
    assert list(text_lines(file, 100)) == ["one\r\n", f"{NAME}\n", "\n", "last"]
    assert not file.closed
    assert decoded(data) == f"one\r\n{NAME}\n\nlast"
    assert list(text_lines(io.BytesIO(b""), 100)) == []
    with pytest.raises(LongLine):
        list(text_lines(io.BytesIO(encoded("x" * 200, encoding)), 100))
    assert encoding_of(b"\xff\xfe\0\0") == "utf-32"
