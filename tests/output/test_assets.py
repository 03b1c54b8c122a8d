"""Assets: written once, before the part that names them, and replaced with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.inference.worker import worker as worker_module
from cnnbatch.job import MapJob
from cnnbatch.output.assets import AssetSink, as_asset, as_stored
from cnnbatch.output.folder import Output
from cnnbatch.output.maps import map_of
from cnnbatch.storage import Storage
from tests import tiny_segmenter
from tests.servers import Bucket

pytest_plugins = ("tests.s3",)
QUIET, NEW = RunOptions(quiet=True), RunOptions(quiet=True, new=True)


def job(photos: Path | str, out: Path | str, **fields: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {"name": "segment", "model": "tests.tiny_segmenter:colours", "map": "asset"},
            "input": {"url": str(photos), "shard_size": 3},
            "output": str(out),
            "compute": {"pool": "inline", "batch": 1},
            **fields,
        }
    )


def files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in (out / "assets").rglob("*") if path.is_file())


def addresses(out: Path) -> list[str | None]:
    found: list[str | None] = cnnbatch.open(str(out)).arrow(["map"])["map"].to_pylist()
    return found


def assert_maps(out: Path, expected: list[np.ndarray]) -> None:
    for address, classes in zip(addresses(out), expected, strict=True):
        assert address is not None
        assert np.array_equal(map_of(address, Storage(), str(out)), classes)


@pytest.fixture
def scenes(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Return a folder of pictures, and their maps."""
    return tmp_path / "photos", list(tiny_segmenter.scenes(tmp_path / "photos", 5))


def test_a_row_has_the_address_of_its_asset(scenes: Any, tmp_path: Path) -> None:
    photos, classes = scenes
    run(job(photos, tmp_path / "out"), QUIET)
    found = addresses(tmp_path / "out")
    assert files(tmp_path / "out") == sorted(map(str, found))
    assert str(found[0]).startswith("assets/map/part-00000000/00000000-")
    assert str(found[4]).startswith("assets/map/part-00000001/00000001-")
    assert_maps(tmp_path / "out", classes)


def test_a_run_that_is_killed_before_its_part_writes_nothing_twice(
    scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, classes = scenes
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(worker_module.Worker, "_put_part", _stop)
        with pytest.raises(KeyboardInterrupt):
            run(job(photos, out), QUIET)
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert len(before) == 3
    assert not list(out.glob("predictions/*"))
    run(job(photos, out), QUIET)
    assert len(files(out)) == 5
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert_maps(out, classes)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_changed_image_has_its_asset_replaced(scenes: Any, tmp_path: Path) -> None:
    photos, classes = scenes
    out = tmp_path / "out"
    run(job(photos, out), QUIET)
    before = addresses(out)
    (photos / "001.png").write_bytes((photos / "004.png").read_bytes())
    os.utime(photos / "001.png", ns=(1, 1))
    assert run(job(photos, out), NEW).images == 1
    after = addresses(out)
    assert [place for place in range(5) if before[place] != after[place]] == [1]
    assert files(out) == sorted(map(str, after))
    classes[1] = classes[4]
    assert_maps(out, classes)


def test_an_image_that_failed_gets_its_asset_when_it_is_tried_again(scenes: Any, tmp_path: Path) -> None:
    photos, classes = scenes
    out, gone = tmp_path / "out", (photos / "001.png").read_bytes()
    names = [str(path) for path in sorted(photos.glob("*.png"))]
    (photos / "list.txt").write_text("\n".join(names))
    (photos / "001.png").unlink()
    run(job(photos / "list.txt", out, max_failed=1.0), QUIET)
    assert addresses(out)[1] is None
    assert len(files(out)) == 4
    (photos / "001.png").write_bytes(gone)
    summary = run(job(photos / "list.txt", out, max_failed=1.0), RunOptions(quiet=True, retry_failed=True))
    assert summary.images == 1
    assert len(files(out)) == 5
    assert_maps(out, classes)


def test_another_workers_part_stands_with_its_own_assets(scenes: Any, tmp_path: Path) -> None:
    schema = pa.schema([pa.field("key", pa.string()), as_asset(pa.field("map", pa.large_binary()), "png")])
    sink = AssetSink(Output(str(tmp_path), Storage()), schema)
    rows = [
        pa.RecordBatch.from_pydict({"key": ["a", "b"], "map": [data, None]}, schema=schema)
        for data in (b"one", b"two")
    ]
    first, second, again = (sink.stored(one, 0, [4, 5]) for one in (*rows, rows[0]))
    assert first.equals(again)
    assert first.schema == as_stored(schema) == second.schema
    output = Output(str(tmp_path), Storage())
    assert [output.asset(str(one["map"].to_pylist()[0])) for one in (first, second)] == [b"one", b"two"]
    assert first["map"].to_pylist()[1] is None
    sink.remove(pa.Table.from_batches([first]), pa.Table.from_batches([second]))
    assert len(files(tmp_path)) == 1
    sink.close()


def test_an_address_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the address of an object in the output"):
        map_of("assets/../../secret", Storage(), str(tmp_path))
    with pytest.raises(UserError, match="is missing, which a row names"):
        map_of(f"assets/map/part-00000000/00000000-{'0' * 16}.png", Storage(), str(tmp_path))


def test_run_lengths_of_no_class_need_a_size(tmp_path: Path) -> None:
    found = map_of([], Storage(), str(tmp_path), (3, 4))
    assert found.shape == (3, 4)
    assert set(found.ravel().tolist()) == {class_map.NONE}
    with pytest.raises(class_map.NotAMap, match="of no class, so its size has to be given"):
        map_of([], Storage(), str(tmp_path))


@pytest.mark.slow
def test_assets_lie_in_a_bucket_as_well(scenes: Any, bucket: Bucket) -> None:
    photos, classes = scenes
    out, storage = f"{bucket.url}/out", Storage(bucket.options)
    run(job(photos, out, output={"url": out, "storage": bucket.options.model_dump()}), QUIET)
    found: list[Any] = cnnbatch.open(out, storage).arrow(["map"])["map"].to_pylist()
    for address, expected in zip(found, classes, strict=True):
        assert np.array_equal(map_of(address, storage, out), expected)


def test_objects_have_assets_too(tmp_path: Path) -> None:
    crop = as_asset(pa.field("crop", pa.large_binary()), "jpg")
    label = pa.field("label", pa.string(), metadata={"about": "kept"})
    schema = pa.schema([pa.field("objects", pa.list_(pa.struct([label, crop])))])
    faces = [
        [{"label": "a", "crop": b"one"}, {"label": "b", "crop": b"two"}],
        None,
        [],
        [{"label": "c", "crop": None}, {"label": "d", "crop": b"three"}],
    ]
    rows = pa.RecordBatch.from_pylist([{"objects": one} for one in faces], schema=schema)
    output = Output(str(tmp_path), Storage())
    sink = AssetSink(output, schema)
    stored = sink.stored(rows.slice(0, 4), 7, [3, 4, 5, 8])
    sink.close()
    assert stored.schema.equals(sink.schema, check_metadata=True)
    found: Any = stored["objects"].to_pylist()
    first, failed, empty, last = found
    assert (failed, empty) == (None, [])
    assert [one["label"] for one in (*first, *last)] == ["a", "b", "c", "d"]
    assert last[0]["crop"] is None
    for one, place, data in (
        (first[0], "00000003.0", b"one"),
        (first[1], "00000003.1", b"two"),
        (last[1], "00000008.1", b"three"),
    ):
        assert one["crop"].startswith(f"assets/crop/part-00000007/{place}-")
        assert (tmp_path / one["crop"]).read_bytes() == data
    part = pa.Table.from_batches([stored])
    sink.remove(part, part.slice(0, 1))
    assert {path.name[:10] for path in (tmp_path / "assets").rglob("*.jpg")} == {"00000003.0", "00000003.1"}
