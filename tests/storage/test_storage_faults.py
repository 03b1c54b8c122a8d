"""Storage that stumbles: a proxy injects faults between the product and a bucket, and every row is right."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cnnbatch
from cnnbatch.errors import EnvironmentFault, OutputHeld
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.output import lock
from cnnbatch.storage import AlreadyExists, Changed, NotFound, Storage, StorageOptions, retrying
from cnnbatch.types import Span
from tests.conftest import jpeg
from tests.proxy import FAULTS, Fault, FaultyProxy
from tests.servers import Bucket, Reply, WebServer

pytest_plugins = ("tests.s3",)
QUIET = RunOptions(quiet=True)
SEED = 20


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.storage.retrying.FIRST_PAUSE_S", 0.002)


@pytest.fixture
def photos(bucket: Bucket) -> Bucket:
    for number in range(40):
        bucket.put(f"photos/{number:03}.jpg", jpeg(number))
    return bucket


def through(proxy: FaultyProxy, **more: Any) -> StorageOptions:
    return StorageOptions(endpoint=proxy.url, region="us-east-1", **{"timeout_s": 10, "retries": 12, **more})


def job(bucket: Bucket, images: StorageOptions, rows: StorageOptions, **more: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {"name": "tests.toy:Toy"},
            "input": {"url": f"{bucket.url}/photos", "shard_size": 8, "storage": images, **more},
            "output": {"url": f"{bucket.url}/out", "storage": rows},
            "compute": {"pool": "inline", "batch": 4, "cpus_per_worker": 1},
        }
    )


def rows_of(bucket: Bucket) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        cnnbatch.open(f"{bucket.url}/out", Storage(bucket.options)).arrow().to_pylist()
    )
    return rows


def check_run(faults: tuple[Fault, ...], photos: Bucket) -> None:
    with FaultyProxy(photos.options.endpoint or "", 0.2, faults, SEED, delay_s=0.05) as proxy:
        summary = run(job(photos, through(proxy), through(proxy)), QUIET)
    assert proxy.met.total() > 20
    assert set(proxy.met) == set(faults)
    assert (summary.images, dict(summary.failed), summary.exit_status) == (40, {}, 0)
    rows = rows_of(photos)
    assert [row["key"] for row in rows] == [f"{number:03}.jpg" for number in range(40)]
    assert not any(row["error"] for row in rows)


@pytest.mark.slow
def test_with_a_fifth_of_all_requests_broken_every_row_is_right(photos: Bucket) -> None:
    check_run(FAULTS, photos)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_with_one_kind_of_fault_every_row_is_right(fault: Fault, photos: Bucket) -> None:
    check_run((fault,), photos)


MIXED = pytest.param(FAULTS, id="all")
ALONE = [pytest.param((fault,), id=fault, marks=pytest.mark.long) for fault in FAULTS]


@pytest.mark.slow
@pytest.mark.parametrize("faults", [MIXED, *ALONE])
def test_every_request_is_tried_again(
    faults: tuple[Fault, ...], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbatch.storage.buckets._IN_PIECES", 1 << 20)
    names = [f"many/{number:02}" for number in range(30)]
    for name in names:
        bucket.put(name)
    data = bytes(range(256)) * (24 << 10)  # more than one piece of an upload
    (tmp_path / "large").write_bytes(data)
    with FaultyProxy(bucket.options.endpoint or "", 0.4, faults, SEED, delay_s=0.01) as proxy:
        storage = Storage(through(proxy, retries=25))
        for number in range(3):
            uri = f"{bucket.url}/{number}"
            etag = storage.create(uri, b"first")
            assert storage.head(uri).etag == etag
            with pytest.raises(AlreadyExists):
                storage.create(uri, b"other")
            second = storage.replace(uri, b"second", etag)
            with pytest.raises(Changed):
                storage.replace(uri, b"third", etag)
            assert (storage.read(uri), storage.read(uri, Span(2, 3))) == (b"second", b"con")
            assert storage.head(uri).etag == second
            storage.put(uri, tmp_path / "large")
            with storage.open(uri) as file:
                assert file.read() == data
            assert [entry.uri for entry in storage.list(f"{bucket.url}/many")] == [
                f"{bucket.url}/{name}" for name in names
            ]
            storage.delete(uri)
            assert not storage.exists(uri)
    assert proxy.met.total() > 10


def test_a_listing_goes_on_where_it_broke(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.storage.buckets._PAGE", 7)
    names = [f"{bucket.url}/many/{number:02}" for number in range(40)]
    for name in names:
        bucket.put(name.removeprefix(f"{bucket.url}/"))
    for fault in FAULTS:
        first: list[Fault | None] = [None, fault, fault]
        with FaultyProxy(bucket.options.endpoint or "", first=first) as proxy:
            assert [entry.uri for entry in Storage(through(proxy)).list(f"{bucket.url}/many")] == names


@pytest.mark.parametrize("fault", ["500_after", "reset_after"])
def test_a_put_whose_answer_is_lost_is_looked_at_again(fault: Fault, bucket: Bucket) -> None:
    uri, endpoint = f"{bucket.url}/lock", bucket.options.endpoint or ""
    plain = Storage(bucket.options)
    with FaultyProxy(endpoint, first=[fault]) as proxy:
        etag = Storage(through(proxy)).create(uri, b"mine")
    assert plain.head(uri).etag == etag
    with FaultyProxy(endpoint, first=[fault]) as proxy:
        etag = Storage(through(proxy)).replace(uri, b"mine again", etag)
    assert plain.head(uri).etag == etag
    with FaultyProxy(endpoint, first=[fault]) as proxy, pytest.raises(AlreadyExists):
        Storage(through(proxy)).create(uri, b"another's")
    with FaultyProxy(endpoint, first=[fault]) as proxy, pytest.raises(Changed):
        Storage(through(proxy)).replace(uri, b"another's", '"old"')
    with pytest.raises(AlreadyExists):  # what no answer was lost of is not taken for one's own
        plain.create(uri, b"mine again")
    with FaultyProxy(endpoint, first=[fault]) as proxy:  # not even where no attempt is left
        assert Storage(through(proxy, retries=0)).create(f"{uri}-2", b"mine")
    assert plain.read(uri) == b"mine again"


def test_a_lock_whose_answer_is_lost_is_held(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.05)
    uri, found = f"{bucket.url}/lock", Storage(bucket.options)
    with FaultyProxy(bucket.options.endpoint or "", first=["500_after", *[None] * 3, "reset_after"]) as proxy:
        with lock.hold(Storage(through(proxy)), uri, "mine"):
            first = found.head(uri).etag
            until = time.monotonic() + 20
            while len({method for method, _ in proxy.requests}) < 3 or proxy.met.total() < 2:
                time.sleep(0.05)
                assert time.monotonic() < until
            while found.head(uri).etag == first:
                time.sleep(0.05)
                assert time.monotonic() < until
            with pytest.raises(OutputHeld), lock.hold(found, uri, "another"):
                pass
        assert not found.exists(uri)


@pytest.mark.slow
def test_a_refusal_that_begins_in_mid_run_is_the_storages_fault(photos: Bucket) -> None:
    def is_image(method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and "/photos/" in path

    with FaultyProxy(photos.options.endpoint or "", deny_after=19, denies=is_image) as proxy:
        with pytest.raises(EnvironmentFault, match="AccessDenied") as fault:
            run(job(photos, through(proxy), photos.options), QUIET)
        assert "rights" in fault.value.mend
    rows = rows_of(photos)
    assert 8 <= len(rows) < 20
    assert not any(row["error"] for row in rows)
    assert run(job(photos, photos.options, photos.options), QUIET).exit_status == 0
    assert len(rows_of(photos)) == 40


@pytest.mark.slow
def test_single_refusals_among_others_are_rows(photos: Bucket) -> None:
    def is_refused(method: str, path: str) -> bool:
        return path.endswith(("/photos/003.jpg", "/photos/017.jpg", "/photos/039.jpg"))

    with FaultyProxy(photos.options.endpoint or "", deny_after=0, denies=is_refused) as proxy:
        summary = run(job(photos, through(proxy), photos.options), QUIET)
    assert (summary.images, dict(summary.failed)) == (40, {"forbidden": 3})
    refused = [row["key"] for row in rows_of(photos) if row["error"]]
    assert refused == ["003.jpg", "017.jpg", "039.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize("faults", [MIXED, *ALONE])
def test_a_web_file_is_asked_for_again(faults: tuple[Fault, ...], web: WebServer) -> None:
    data = bytes(range(256)) * 64
    web.ranged = True
    web.answer = lambda method, path: Reply(body=data) if path == "/a.jpg" else Reply(404)
    with FaultyProxy(web.url(), 0.4, faults, SEED, delay_s=0.01) as proxy:
        storage = Storage(StorageOptions(timeout_s=10, retries=25))
        for number in range(20):
            assert storage.read(f"{proxy.url}/a.jpg", Span(number, 100)) == data[number : number + 100]
            assert storage.head(f"{proxy.url}/a.jpg").size == len(data)
            with storage.open(f"{proxy.url}/a.jpg") as file:
                assert file.read() == data
            with pytest.raises(NotFound):
                storage.read(f"{proxy.url}/b.jpg")
    assert proxy.met.total() > 10


def test_what_a_mount_fails_to_do_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    failures = [errno.ESTALE, errno.ETIMEDOUT, errno.ESTALE]
    opening = os.open

    def stumble(path: str, *args: int, **kwargs: int) -> int:
        if failures:
            raise OSError(failures[0], os.strerror(failures.pop(0)))
        return opening(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", stumble)
    assert Storage(StorageOptions(retries=3)).read(str(tmp_path / "a.jpg")) == b"image"
    failures = [errno.ESTALE] * 5
    with pytest.raises(EnvironmentFault, match="mount"):
        Storage(StorageOptions(retries=3)).read(str(tmp_path / "a.jpg"))


def test_a_link_whose_answer_a_mount_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linking = os.link

    def lose(source: str, target: str) -> None:
        linking(source, target)
        linking(source, target)  # which raises FileExistsError, as NFS does of a request that it sent twice

    monkeypatch.setattr(os, "link", lose)
    assert Storage().create(str(tmp_path / "part"), b"mine")
    with pytest.raises(AlreadyExists):
        Storage().create(str(tmp_path / "part"), b"another's")
    assert (tmp_path / "part").read_bytes() == b"mine"


def test_the_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.1)
    found = [[retrying.pause_s(failed) for _ in range(100)] for failed in range(1, 12)]
    for failed, pauses in enumerate(found):
        most = min(0.1 * 2**failed, 15)
        assert all(most / 2 <= pause <= most for pause in pauses)
        assert len(set(pauses)) > 50


@pytest.mark.parametrize("fault", ["500", "reset_before", "truncated"])
def test_the_keys_of_a_machines_role_are_asked_for_again(
    fault: Fault, bucket: Bucket, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c", "Expiration": "2099-01-01T00:00:00Z"}
    answers = {
        "/latest/api/token": b"token",
        "/latest/meta-data/iam/security-credentials/": b"role",
        "/latest/meta-data/iam/security-credentials/role": json.dumps({"Code": "Success", **keys}).encode(),
    }
    web.answer = lambda method, path: Reply(body=answers[path]) if path in answers else Reply(404)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    uri = bucket.put("a.jpg", b"image")
    with FaultyProxy(web.url(), first=[fault, None, fault, fault]) as proxy:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.url)
        options = bucket.options.model_copy(update={"retries": 8})
        assert Storage(options).read(uri) == b"image"
        assert proxy.met[fault] == 3


def test_attempts_that_hang_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr("cnnbatch.storage.retrying.time", clock)

    def count(timeout_s: float) -> int:
        made = 0
        for _ in retrying.attempts(StorageOptions(timeout_s=timeout_s, retries=8)):
            now[0] += timeout_s
            made += 1
        return made

    assert [count(timeout_s) for timeout_s in (1, 60, 200, 600)] == [9, 6, 2, 2]
