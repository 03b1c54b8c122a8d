"""Whose fault it is that an image is not given: its own, or that of the place that gave others before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage import Storage, StorageOptions
from cnnbatch.storage.serving import Serving
from cnnbatch.types import Failure
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import failure, keys, listed, read, source

pytest_plugins = ("tests.s3",)

PAGE = b"<!DOCTYPE html><html><body>please log in</body></html>"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.storage.retrying.FIRST_PAUSE_S", 0.002)


@pytest.fixture
def other() -> Iterator[WebServer]:
    server = WebServer()
    server.answer = lambda method, path: Reply(body=b"image")
    yield server
    server.stop()


def test_many_that_ask_whether_a_place_still_serves_share_a_request() -> None:
    asked, go = [], threading.Event()

    def readable(uri: str) -> bool:
        asked.append(uri)
        go.wait(5)
        return False

    serving = Serving(readable)
    assert serving.still("host") is None
    serving.note("host", "host/a.jpg")
    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(serving.still, "host") for _ in range(16)]
        threading.Timer(0.2, go.set).start()
        assert [answer.result() for answer in answers] == [False] * 16
    assert 1 <= len(asked) <= 2
    assert serving.still("host") is False  # asked anew, since what was heard before may not hold now
    assert serving.elsewhere("host") is None
    assert serving.elsewhere("another") is False


LATER = {
    "403": Reply.error(403, "AccessDenied"),
    "404 NoSuchBucket": Reply.error(404, "NoSuchBucket"),
    "500": Reply.error(500, "InternalError"),
    "503": Reply.error(503, "SlowDown"),
}


@pytest.mark.parametrize("reply", LATER.values(), ids=LATER)
def test_what_a_bucket_answers_from_some_moment_on(reply: Reply, web: WebServer, aws_keys: None) -> None:
    web.answer = lambda method, path: Reply(body=b"image")
    lines = [f"s3://images/{number}.jpg" for number in range(6)]
    storage = Storage(StorageOptions(endpoint=web.url(), retries=1, timeout_s=2))
    storage_list = "memory://serving/list.txt"
    fsspec.filesystem("memory").pipe_file("/serving/list.txt", "\n".join(lines).encode())
    found = source(storage_list, storage)
    refs = list(found.refs())
    assert read(found, refs[:3]) == [b"image"] * 3
    web.answer = lambda method, path: reply
    for ref in refs[3:]:
        with pytest.raises(EnvironmentFault):
            read(found, [ref])


def test_a_refusal_in_flight_is_judged_by_what_is_served_behind_it(web: WebServer, aws_keys: None) -> None:
    """Others that were served after the request began say nothing: the refusal began behind them."""
    denied = threading.Event()

    def answer(method: str, path: str) -> Reply:
        if path.endswith("slow.jpg"):
            denied.wait(5)
        return Reply.error(403, "AccessDenied") if denied.is_set() else Reply(body=b"image")

    web.answer = answer
    storage = Storage(StorageOptions(endpoint=web.url(), retries=0))
    fsspec.filesystem("memory").pipe_file("/serving/two.txt", b"s3://images/slow.jpg\ns3://images/fine.jpg")
    found = source("memory://serving/two.txt", storage)
    slow, fine = found.refs()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(read, found, [slow])
        while not web.requests:
            time.sleep(0.01)
        assert read(found, [fine]) == [b"image"]
        denied.set()
        with pytest.raises(EnvironmentFault):
            waiting.result()


@pytest.mark.parametrize("reply", [Reply(403), Reply(401), Reply(429), Reply(500), Reply(body=PAGE)])
def test_what_a_host_answers_from_some_moment_on(reply: Reply, tmp_path: Path, web: WebServer) -> None:
    web.answer = lambda method, path: Reply(body=b"image")
    found = source(listed(tmp_path, "\n".join(f"{web.url()}/{number}.jpg" for number in range(6))))
    refs = list(found.refs())
    assert read(found, refs[:3]) == [b"image"] * 3
    if reply.status != 429:  # which says nothing of the one that was asked for
        web.answer = lambda method, path: reply if path[1] > "3" else Reply(body=b"image")
        (single,) = read(found, refs[4:5])
        assert single == PAGE or isinstance(single, Failure)
    web.answer = lambda method, path: reply
    for ref in refs[3:]:
        with pytest.raises(EnvironmentFault):
            read(found, [ref])


def test_a_host_that_never_gave_anything_fails_alone_where_others_serve(
    tmp_path: Path, web: WebServer, other: WebServer
) -> None:
    lines = [*(f"{web.url()}/{number}.jpg" for number in range(20)), f"{other.url()}/a.jpg"]
    for status in (403, 500):
        web.answer = lambda method, path, status=status: Reply(status)  # type: ignore[misc]
        results = read(source(listed(tmp_path, "\n".join(lines))))
        codes = {failure(result) for result in results[:-1]}
        assert codes == {("read", "forbidden" if status == 403 else "unreadable")}
        assert results[-1] == b"image"


def test_where_every_address_is_refused_the_host_is_at_fault(tmp_path: Path, web: WebServer) -> None:
    web.answer = lambda method, path: Reply(403)
    found = source(listed(tmp_path, "\n".join(f"{web.url()}/{number}.jpg" for number in range(20))))
    with pytest.raises(EnvironmentFault, match="refused"):
        read(found)


def test_a_host_that_does_not_resolve(tmp_path: Path, web: WebServer) -> None:
    web.answer = lambda method, path: Reply(body=b"image")
    nowhere = [f"http://no-such-host-{number}.invalid/a.jpg" for number in range(3)]
    results = read(source(listed(tmp_path, "\n".join([*nowhere, f"{web.url()}/a.jpg"]))))
    assert [failure(result) for result in results[:3]] == [("read", "unreadable")] * 3
    assert results[3] == b"image"
    with pytest.raises(EnvironmentFault, match="no such host") as fault:
        read(source(listed(tmp_path, "\n".join(nowhere))))
    assert "network" in fault.value.mend
    (tmp_path / "a.jpg").write_bytes(b"image")
    with pytest.raises(EnvironmentFault, match="no such host"):  # a file says nothing of the network
        read(source(listed(tmp_path, f"{nowhere[0]}\na.jpg")))
    with pytest.raises(EnvironmentFault, match="no such host"):
        keys(nowhere[0])


MALFORMED = [
    "http://[bad/a.jpg",
    "http://user:secret@[bad/a.jpg",
    "http://host:99999/a.jpg",
    "http://host:port/a.jpg",
    "http:///a.jpg",
    "http://",
    "http://a..b/c.jpg",
    "http://no host/a.jpg",
    "http://xn--/a.jpg",
    "http://exämple..invalid/ü.jpg",
    "http://" + "a" * 300 + ".example/a.jpg",
    "ftp://",
    "s4://bucket/a.jpg",
    "sftp2://host/a.jpg",
    "webdav://host/a.jpg",
    "github://host/a.jpg",
    "dir://host/a.jpg",
    "s3:///a.jpg",
    "s3://no bucket/a.jpg",
    "s3://bucket/a//b.jpg",
    "gs://",
    "file://",
    "file:///a%00b.jpg",
    "package:__main__/a.jpg",
    "package:no_such_package/a.jpg",
    "package:..",
    "dataset:pets_sample",
    "data:image/png;base64,AAAA",
    "x" * 100_000,
    "a\x01b\x7f.jpg",
    "~nobody/a.jpg",
    "\\\\host\\share\\a.jpg",
]


@pytest.mark.slow
@pytest.mark.parametrize("address", MALFORMED, ids=lambda address: address[:20])
def test_a_malformed_address_is_one_row(
    address: str, tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    web.answer = lambda method, path: Reply(body=b"image")
    found = source(listed(tmp_path, f"{web.url()}/a.jpg\n{address}\n{web.url()}/b.jpg\n"))
    refs = list(found.refs())
    results = read(found, refs)
    assert len(refs) == 3
    assert (results[0], results[2]) == (b"image", b"image")
    assert failure(results[1]) in [("read", "unreadable"), ("read", "not_found")]
    assert "secret" not in str(results[1])
    assert "\n" not in str(results[1])


def test_a_long_address_is_one_row_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    results = read(source(listed(tmp_path, f"url,x\n{'y' * 500_000},1\na.jpg,2\n", ".csv")))
    assert failure(results[0]) == ("read", "not_found")
    assert results[1] == b"image"


@pytest.mark.parametrize("address", [*MALFORMED, *(f"{kind}://host/a.jpg" for kind in ("zip", "reference"))])
def test_a_malformed_input_is_one_clear_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    if address in ("package:__main__/a.jpg", "package:no_such_package/a.jpg"):
        with pytest.raises(EnvironmentFault, match="not installed"):
            keys(address)
    else:
        with pytest.raises(UserError) as error:
            keys(address)
        assert "secret" not in str(error.value)


def test_every_scheme_that_fsspec_knows_is_read_or_refused(tmp_path: Path, web: WebServer) -> None:
    own = {"file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "memory", "local"}
    kinds = sorted(set(fsspec.available_protocols()) - own)
    web.answer = lambda method, path: Reply(body=b"image")
    lines = [f"{web.url()}/a.jpg", *(f"{kind}://127.0.0.1:1/a.jpg" for kind in kinds)]
    results = read(source(listed(tmp_path, "\n".join(lines))))
    assert results[0] == b"image"
    assert {failure(result)[0] for result in results[1:]} == {"read"}


def test_a_bucket_of_another_kind_of_name_is_read(bucket: Bucket) -> None:
    bucket.client.create_bucket(Bucket="Old.Style-1")
    bucket.client.put_object(Bucket="Old.Style-1", Key="a.jpg", Body=b"image")
    assert Storage(bucket.options).read("s3://Old.Style-1/a.jpg") == b"image"


def test_one_good_host_among_many_that_do_not_answer(tmp_path: Path, web: WebServer) -> None:
    """Whatever the schemes: the few that are asked beside a failed one may all be bad, too."""
    web.answer = lambda method, path: Reply(body=b"image")
    bad = [f"{kind}://127.0.0.{number}:1/a.jpg" for number in range(2, 9) for kind in ("ftp", "http")]
    found = source(listed(tmp_path, "\n".join([f"{web.url()}/a.jpg", *bad])))
    first, *results = read(found)
    assert first == b"image"
    assert {failure(result) for result in results} == {("read", "unreadable")}
