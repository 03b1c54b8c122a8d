"""S3 Inventory as the listing: the same images as the bucket's own listing gives, without list calls."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cnnbatch
from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob, fingerprint_fields, to_yaml
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef, Source
from tests.conftest import jpeg
from tests.servers import Bucket
from tests.sourcing import read

pytest_plugins = ("tests.s3",)

QUIET = RunOptions(quiet=True)
NAMES = ["photos/b/2.jpg", "photos/a 1+x.jpg", 'photos/é,"q".png', "photos/notes.txt", "other/3.jpg"]
CSV = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
SNAKE = (
    "bucket",
    "key",
    "version_id",
    "is_latest",
    "is_delete_marker",
    "size",
    "last_modified_date",
    "e_tag",
)
Row = tuple[Any, ...]


@dataclass
class Made:
    """An inventory as AWS would write it: ``name`` is the folder of its manifest."""

    bucket: Bucket
    format: str = "Parquet"
    name: str = "2026-11-24T01-00Z"
    files: list[tuple[str, bytes]] = field(default_factory=list)
    columns: int = len(SNAKE)

    def rows(self) -> list[Row]:
        """Return a row an object, in no order."""
        found = self.bucket.client.list_objects_v2(Bucket=self.bucket.name).get("Contents", [])
        kept = [one for one in found if not one["Key"].startswith(("inventory/", "out/"))]
        return [
            (
                self.bucket.name,
                one["Key"],
                "v1",
                True,
                False,
                one["Size"],
                "2026-11-24",
                one["ETag"].strip('"'),
            )
            for one in reversed(kept)
        ]

    def add(self, rows: Sequence[Row]) -> Made:
        """Add a file."""
        rows = [row[: self.columns] for row in rows]
        data = parquet(rows) if self.format == "Parquet" else zipped(rows)
        suffix = "parquet" if self.format == "Parquet" else "csv.gz"
        self.files.append(
            (f"inventory/{self.bucket.name}/all/data/{self.name}-{len(self.files)}.{suffix}", data)
        )
        return self

    def manifest(self, **changes: Any) -> bytes:
        schema = ", ".join(CSV.split(", ")[: self.columns])
        said = {
            "sourceBucket": self.bucket.name,
            "destinationBucket": f"arn:aws:s3:::{self.bucket.name}",
            "version": "2016-11-30",
            "creationTimestamp": "1795482000000",
            "fileFormat": self.format,
            "fileSchema": "message s3.inventory {}" if self.format == "Parquet" else schema,
            "files": [{"key": key, "size": len(data), "MD5checksum": "0"} for key, data in self.files],
        }
        return json.dumps(said | changes).encode()

    def put(self, **changes: Any) -> str:
        """Put it into the bucket; return the manifest's address."""
        for key, data in self.files:
            self.bucket.put(key, data)
        folder = f"inventory/{self.bucket.name}/all/{self.name}"
        return self.bucket.put(f"{folder}/manifest.json", self.manifest(**changes))


def parquet(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    columns = {name: [row[place] for row in rows] for place, name in enumerate(SNAKE[: len(rows[0])])}
    pq.write_table(pa.table(columns), sink, row_group_size=2)
    return sink.getvalue()


def zipped(rows: Sequence[Row]) -> bytes:
    """Return rows as AWS writes them: all quoted, keys encoded, no names, gzip."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for bucket, key, *rest in rows:
        cells = [str(one).lower() if isinstance(one, bool) else one for one in rest]
        writer.writerow([bucket, quote_plus(key, safe="/"), *cells])
    return gzip.compress(text.getvalue().encode())


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    for name in NAMES:
        bucket.put(name, name.encode())
    return bucket


def source(bucket: Bucket, inventory: str, url: str = "photos", **fields: Any) -> Source:
    chosen = Input(url=f"{bucket.url}/{url}", inventory=inventory, **fields)
    return open_source(chosen, Storage(bucket.options))


def facts(refs: Sequence[ImageRef]) -> set[tuple[str, str, str | None]]:
    return {(ref.key, ref.uri, ref.etag) for ref in refs}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["Parquet", "CSV"])
@pytest.mark.parametrize("url", ["photos", "photos/**/*.jpg", "", "photos/*.png"])
def test_an_inventory_gives_what_the_listing_gives(
    filled: Bucket, format: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = list(open_source(Input(url=f"{filled.url}/{url}"), Storage(filled.options)).refs())
    made = Made(filled, format)
    rows = made.rows()
    inventory = made.add(rows[:2]).add(rows[2:]).put()
    monkeypatch.setattr(Storage, "list", lambda *_: pytest.fail("the bucket was listed"))
    found = source(filled, inventory, url)
    refs = list(found.refs())
    assert len(refs) == len(listed) > 0
    assert facts(refs) == facts(listed)
    assert all(
        content == ref.uri.removeprefix(f"{filled.url}/").encode()
        for content, ref in zip(read(found), refs, strict=True)
    )


@pytest.mark.parametrize("format", ["Parquet", "CSV"])
def test_the_order_is_the_files_and_goes_on_behind_any_image(filled: Bucket, format: str) -> None:
    for number in (7, 3, 5):
        filled.put(f"photos/{number}.jpg")
    made = Made(filled, format)
    rows = made.rows()
    made.add(rows[4:]).add(rows[:1]).add(rows[1:4])
    found = source(filled, made.put())
    refs = list(found.refs())
    wanted = [row[1].removeprefix("photos/") for row in rows[4:] + rows[:4] if row[1] != "photos/notes.txt"]
    assert [ref.key for ref in refs] == [key for key in wanted if not key.startswith("other")]
    again = pickle.loads(pickle.dumps(found))
    for place, ref in enumerate(refs):
        assert list(again.refs(after=ref)) == refs[place + 1 :]


@pytest.mark.parametrize("format", ["Parquet", "CSV"])
def test_only_the_latest_version_counts(filled: Bucket, format: str) -> None:
    made = Made(filled, format)
    name = filled.name
    rows: list[Row] = [
        (name, "photos/kept.jpg", "v2", True, False, 3, "2026", "new"),
        (name, "photos/kept.jpg", "v1", False, False, 3, "2025", "old"),
        (name, "photos/gone.jpg", "v2", True, True, None, "2026", None),
        (name, "photos/gone.jpg", "v1", False, False, 3, "2025", "old"),
        (name, "photos/folder.jpg/", "v1", True, False, 0, "2025", "none"),
        (name, "photos/.hidden.jpg", "v1", True, False, 3, "2025", "none"),
    ]
    if format == "CSV":
        rows = [tuple("" if cell is None else cell for cell in row) for row in rows]
    refs = list(source(filled, made.add(rows).put()).refs())
    assert [(ref.key, ref.etag) for ref in refs] == [("kept.jpg", '"new"')]


def test_files_beside_a_copied_manifest(filled: Bucket, tmp_path: Path) -> None:
    made = Made(filled, "CSV")
    made.add(made.rows())
    wanted = facts(list(source(filled, made.put()).refs()))
    key, data = made.files[0]
    for place in ("../data", "data", "."):
        here = tmp_path / f"copy-{len(place)}" / "2026"
        (here / place).mkdir(parents=True, exist_ok=True)
        (here / "manifest.json").write_bytes(made.manifest())
        with pytest.raises(UserError, match="copy the files there"):
            source(filled, str(here / "manifest.json"))
        (here / place / Path(key).name).write_bytes(data)
        assert facts(list(source(filled, str(here / "manifest.json")).refs())) == wanted


def test_plain_csv_is_read_and_folders_name_classes(filled: Bucket) -> None:
    made = Made(filled, "CSV")
    made.add(made.rows())
    made.files[0] = (made.files[0][0], gzip.decompress(made.files[0][1]))
    found = source(filled, made.put(), format="folders")
    assert {ref.key for ref in found.refs()} == {name.removeprefix("photos/") for name in NAMES[:3]}
    assert found.truth_schema is not None


MISTAKES: list[tuple[Callable[[Made], str], str]] = [
    (lambda made: made.put(fileFormat="ORC"), "is in ORC, expected Parquet or CSV"),
    (lambda made: made.put(sourceBucket="another"), "is of s3://another, and input.url is s3://"),
    (lambda made: made.put(files="none"), "is no manifest of an inventory: files"),
    (lambda made: made.bucket.put("x/manifest.json", b"<xml>"), "it is not JSON"),
    (lambda made: made.bucket.put("x/manifest.json", b"[]"), "is no manifest of an inventory"),
    (lambda made: f"{made.bucket.url}/no.json", "cannot be read: .*does not exist"),
    (
        lambda made: made.put(destinationBucket=made.bucket.name, files=[{"key": "no"}]),
        "the list s3.*no cannot",
    ),
]


@pytest.mark.parametrize(("put", "said"), MISTAKES)
def test_what_is_no_inventory_of_the_input_is_told(
    filled: Bucket, put: Callable[[Made], str], said: str
) -> None:
    made = Made(filled)
    with pytest.raises(UserError, match=said) as caught:
        source(filled, put(made.add(made.rows())))
    assert "what to do: " in str(caught.value)


@pytest.mark.parametrize("format", ["Parquet", "CSV"])
def test_a_missing_column_is_told(filled: Bucket, format: str) -> None:
    made = Made(filled, format, columns=6)
    with pytest.raises(UserError, match="expected the columns Key and ETag, ETag is missing; its columns: "):
        source(filled, made.add(made.rows()).put())


def test_a_damaged_file_is_told(filled: Bucket) -> None:
    made = Made(filled, "CSV")
    made.add(made.rows())
    whole = made.files[0][1]
    for damaged, said in ((whole[:-20], "is damaged"), (zipped([("only", "two")]), "8 cells were expected")):
        made.files[0] = (made.files[0][0], damaged)
        with pytest.raises(UserError, match=said):
            list(source(filled, made.put()).refs())


def test_nothing_below_the_input_and_no_use_for_it(filled: Bucket) -> None:
    made = Made(filled)
    url = made.add(made.rows()).put()
    with pytest.raises(UserError, match="lists nothing below"):
        list(source(filled, url, "elsewhere").refs())
    with pytest.raises(UserError, match=r"input\.inventory: .* is read as tar, which has no use for it"):
        source(filled, url, format="tar")


def test_an_interrupted_listing_goes_on_with_its_own_inventory_only(filled: Bucket) -> None:
    made = Made(filled)
    first = source(filled, made.add(made.rows()).put())
    plain = open_source(Input(url=f"{filled.url}/photos"), Storage(filled.options))
    later = Made(filled, name="2026-11-25T01-00Z")
    second = source(filled, later.add(later.rows()).put())
    for begun, other in ((first, second), (first, plain), (plain, first)):
        ref = next(begun.refs())
        with pytest.raises(UserError, match="give the one it began with"):
            list(other.refs(after=ref))
        assert list(begun.refs(after=ref))


def job(bucket: Bucket, inventory: str | None) -> MapJob:
    storage = bucket.options.model_dump()
    return MapJob.model_validate(
        {
            "task": {"name": "tests.toy:Toy"},
            "input": {
                "url": f"{bucket.url}/photos",
                "inventory": inventory,
                "shard_size": 3,
                "storage": storage,
            },
            "output": {"url": f"{bucket.url}/out", "storage": storage},
            "compute": {"pool": "inline", "batch": 4, "cpus_per_worker": 1},
        }
    )


@pytest.mark.slow
def test_a_newer_inventory_adds_what_is_new(bucket: Bucket) -> None:
    for number in range(4):
        bucket.put(f"photos/{number}.jpg", jpeg(number))
    made = Made(bucket, "CSV")
    first = job(bucket, made.add(made.rows()).put())
    assert run(first, QUIET).images == 4
    bucket.put("photos/1.jpg", jpeg(9))
    bucket.put("photos/00.jpg", jpeg(10))
    later = Made(bucket, name="2026-11-25T01-00Z")
    second = job(bucket, later.add(later.rows()).put())
    assert fingerprint_fields(second) == fingerprint_fields(first)
    assert run(second, QUIET).images == 0
    new = RunOptions(new=True, quiet=True)
    assert run(second, new).images == 2
    rows = cnnbatch.open(f"{bucket.url}/out", Storage(bucket.options)).arrow().to_pylist()
    assert [row["key"] for row in rows] == ["3.jpg", "2.jpg", "1.jpg", "0.jpg", "00.jpg"]
    assert not any(row["error"] for row in rows)
    assert run(job(bucket, None), new).images == 0  # its etags are those of a listing


def test_a_written_job_names_a_local_inventory_from_anywhere(bucket: Bucket) -> None:
    written = to_yaml(job(bucket, "copy/manifest.json"))
    assert f"inventory: {Path.cwd()}/copy/manifest.json" in written
    assert "inventory: null" in to_yaml(job(bucket, None))
