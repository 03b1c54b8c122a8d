from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cnnbatch.errors import UserError
from cnnbatch.sources import labelled
from cnnbatch.storage import Storage
from cnnbatch.truth import LABEL_SCHEMA
from cnnbatch.types import Shard, Source
from tests.servers import Bucket
from tests.sourcing import failure, fill, keys, read, source

pytest_plugins = ("tests.s3",)


def labels(found: Source) -> dict[str, str | None]:
    refs = tuple(found.refs())
    truth = pickle.loads(pickle.dumps(found)).truth(Shard(0, refs))
    assert truth is not None
    assert truth.schema == LABEL_SCHEMA
    assert truth["image_id"].to_pylist() == [ref.key for ref in refs]
    return {row["image_id"]: row["label"] for row in truth.to_pylist()}


def test_folders_named_by_class(tmp_path: Path) -> None:
    fill(
        tmp_path, ["cat/1.jpg", "cat/deep/2.jpg", "sea lion/1.jpg", "loose.jpg", "Ä b/x.png", "cat/notes.txt"]
    )
    found = source(str(tmp_path), format="folders")
    assert labels(found) == {
        "cat/1.jpg": "cat",
        "cat/deep/2.jpg": "cat",
        "loose.jpg": None,
        "sea lion/1.jpg": "sea lion",
        "Ä b/x.png": "Ä b",
    }
    refs = list(found.refs())
    assert (found.columns, found.truth_schema) == (pa.schema([]), LABEL_SCHEMA)
    assert read(found) == [ref.key.encode() for ref in refs]
    for number, ref in enumerate(refs):
        assert list(found.refs(after=ref)) == refs[number + 1 :]
    (tmp_path / "cat/1.jpg").unlink()
    assert failure(read(found, refs)[0]) == ("read", "not_found")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"(.+)_\d+\.jpg", ["Abyssinian", None, "big cat", "x/y/dog"]),
        (r"[A-Z][a-z]+", ["Abyssinian", "Zebra", None, None]),
        (r"(?:.*/)?(\w+?)_?\d*\.jpg", ["Abyssinian", "Zebra", None, "dog"]),
        (r"(?P<class>[a-z ]*)(_\d+)?", [None, None, "big cat", "x"]),
        (r"(\D+_1)|.+", ["Abyssinian_1", None, None, None]),
        (r"(.+)/[^/]+", [None, None, None, "x/y"]),
    ],
)
def test_labels_by_a_pattern(tmp_path: Path, pattern: str, expected: list[str | None]) -> None:
    fill(tmp_path, ["Abyssinian_1.jpg", "Zebra.jpg", "big cat_22.jpg", "x/y/dog_3.jpg"])
    assert list(labels(source(str(tmp_path), label=pattern)).values()) == expected


def test_patterns_of_several_addresses_and_one_file(tmp_path: Path) -> None:
    fill(tmp_path, ["a/cat_1.jpg", "b/dog_1.jpg"])
    found = source([f"{tmp_path}/a", f"{tmp_path}/b"], label=r".*/([a-z]+)_")
    assert list(labels(found).values()) == ["cat", "dog"]
    assert list(labels(source(f"{tmp_path}/a/cat_1.jpg", label="[a-z]+")).values()) == ["cat"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"label": r"(\d+)_"},
            r"input\.label: .* none of the first 3 has one, as '1\.jpg'\n  what to do: give inp",
        ),
        ({"format": "folders"}, r"input\.format=folders: .* none of the first 3 has one, as '1\.jpg'"),
        ({"label": "(["}, r"input\.label: '\(\[' is no regular expression: unterminated .*\n  what to do"),
        (
            {"format": "folders", "label": "x"},
            r"input\.label: .* is read as folders, which has no use for it",
        ),
    ],
)
def test_mistakes(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    fill(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    with pytest.raises(UserError, match=message):
        keys(str(tmp_path), **fields)


def test_several_addresses_of_folders_named_by_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="below one address, got 2"):
        source([str(tmp_path), str(tmp_path)], format="folders")


def test_a_pattern_that_matches_no_image_ends_the_listing_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "_TRIED", 3)
    fill(tmp_path, [f"{number}.jpg" for number in range(5)])
    listing = source(str(tmp_path), label="x").refs()
    assert [next(listing).key, next(listing).key] == ["0.jpg", "1.jpg"]
    with pytest.raises(UserError, match="none of the first 3 has one"):
        next(listing)
    late = source(str(tmp_path), label="[24]")
    assert list(labels(late).values()) == [None, None, "2", None, "4"]
    refs = list(late.refs())
    assert list(source(str(tmp_path), label="x").refs(after=refs[0])) == refs[1:]  # it began with labels


def test_a_bucket_gives_what_the_folder_gives(tmp_path: Path, bucket: Bucket) -> None:
    names = ["cat/1.jpg", "cat/deep/ü.jpg", "dog/1.jpg", "loose.jpg"]
    fill(tmp_path, names)
    for name in names:
        bucket.put(f"photos/{name}", name.encode())
    ways: list[dict[str, Any]] = [{"format": "folders"}, {"label": r"(.+)/[^/]+"}]
    for fields in ways:
        here = source(str(tmp_path), **fields)
        there = source(f"{bucket.url}/photos", Storage(bucket.options), **fields)
        assert labels(there) == labels(here)
        assert read(there) == read(here)
