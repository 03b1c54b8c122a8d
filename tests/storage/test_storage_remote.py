from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage import (
    AlreadyExists,
    Changed,
    Forbidden,
    NotFound,
    Storage,
    StorageOptions,
    TooLarge,
    Unreadable,
)
from cnnbatch.types import Span
from tests.servers import Bucket, Reply, WebServer

pytest_plugins = ("tests.s3",)

QUICK = StorageOptions(timeout_s=2, retries=1)
# Buckets


def test_a_bucket_is_listed_page_by_page(web: WebServer, aws_keys: None) -> None:
    def page(method: str, path: str) -> Reply:
        number = len(web.requests)
        objects = "".join(
            f"<Contents><Key>p/{number:06}-{item:03}.jpg</Key><Size>1</Size><ETag>e</ETag>"
            "<LastModified>2026-11-24T04:00:00.000Z</LastModified></Contents>"
            for item in range(1000)
        )
        token = f"<NextContinuationToken>{number}</NextContinuationToken><IsTruncated>true</IsTruncated>"
        return Reply(body=f"<ListBucketResult>{token}{objects}</ListBucketResult>".encode())

    web.answer = page
    storage = Storage(StorageOptions(endpoint=web.url()))
    first = list(islice(storage.list("s3://endless/p"), 1500))  # this listing never ends
    assert [entry.uri for entry in first] == sorted({entry.uri for entry in first})
    assert len(web.requests) <= 4


def test_a_listing_out_of_order_is_refused(web: WebServer, aws_keys: None) -> None:
    objects = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-11-24T04:00:00.000Z</LastModified></Contents>"
        for key in ("b", "a")
    )
    web.answer = lambda method, path: Reply(body=f"<ListBucketResult>{objects}</ListBucketResult>".encode())
    with pytest.raises(UserError, match="by name"):
        list(Storage(StorageOptions(endpoint=web.url())).list("s3://express"))


def test_folder_markers_are_no_files(bucket: Bucket) -> None:
    for path in ("root/", "root/a.jpg", "root/a/", "root/a/b.jpg"):
        bucket.put(path, b"" if path.endswith("/") else b"x")
    found = Storage(bucket.options).list(f"{bucket.url}/root")
    assert [entry.uri for entry in found] == [f"{bucket.url}/root/a.jpg", f"{bucket.url}/root/a/b.jpg"]


def test_an_object_that_cannot_be_addressed_is_told(bucket: Bucket) -> None:
    bucket.put("root//b.jpg")
    storage = Storage(bucket.options)
    with pytest.raises(UserError, match="root//b.jpg"):
        list(storage.list(f"{bucket.url}/root"))
    with pytest.raises(Unreadable):
        storage.read(f"{bucket.url}/root//b.jpg")


def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    storage = Storage(bucket.options)
    with pytest.raises(NotFound, match="no such bucket"):
        list(storage.list("s3://no-such-bucket/x"))
    with pytest.raises(NotFound, match="no such bucket"):
        storage.read("s3://no-such-bucket/x")
    with pytest.raises(EnvironmentFault, match="NoSuchBucket") as fault:
        storage.create("s3://no-such-bucket/x", b"x")
    assert "create the bucket" in fault.value.mend


CASES: list[tuple[Reply, type[Exception]]] = [
    (Reply.error(404, "NoSuchKey"), NotFound),
    (Reply.error(403, "AccessDenied"), Forbidden),
    (Reply.error(403, "InvalidObjectState"), Forbidden),
    (Reply.error(400, "KMS.DisabledException"), Unreadable),
    (Reply.error(410, "Gone"), Unreadable),
    (Reply.error(403, "InvalidAccessKeyId"), EnvironmentFault),
    (Reply.error(403, "SignatureDoesNotMatch"), EnvironmentFault),
    (Reply.error(400, "ExpiredToken"), EnvironmentFault),
    (Reply.error(403, "RequestTimeTooSkewed"), EnvironmentFault),
    (Reply.error(401, "Unauthorized"), EnvironmentFault),
    (Reply.error(301, "PermanentRedirect"), EnvironmentFault),
    (Reply.error(400, "AuthorizationHeaderMalformed"), EnvironmentFault),
    (Reply.error(500, "InternalError"), EnvironmentFault),
    (Reply.error(503, "SlowDown"), EnvironmentFault),
    (Reply(wait_s=3.0), EnvironmentFault),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "kind"), CASES, ids=lambda value: getattr(value, "body", b"").decode()[13:40]
)
def test_whose_fault_an_answer_of_a_bucket_is(
    reply: Reply, kind: type[Exception], web: WebServer, aws_keys: None
) -> None:
    web.answer = lambda method, path: reply
    storage = Storage(StorageOptions(endpoint=web.url(), timeout_s=0.5, retries=1))
    for ask in (storage.read, storage.head):
        with pytest.raises(kind, match="s3://images/a.jpg") as raised:
            ask("s3://images/a.jpg")
        assert raised.type is kind
    if kind is EnvironmentFault:
        with pytest.raises(EnvironmentFault):
            list(storage.list("s3://images"))


def test_what_passes_is_tried_again(web: WebServer, aws_keys: None) -> None:
    failures = iter([Reply.error(503, "SlowDown"), Reply.error(500, "InternalError"), Reply(wait_s=3)])
    web.answer = lambda method, path: next(failures, Reply(body=b"image"))
    storage = Storage(StorageOptions(endpoint=web.url(), timeout_s=0.5, retries=4))
    assert storage.read("s3://images/a.jpg") == b"image"
    assert len(web.requests) == 4


def test_an_object_that_fails_while_others_are_served_fails_alone(web: WebServer, aws_keys: None) -> None:
    served = threading.Event()

    def answer(method: str, path: str) -> Reply:
        if "broken" in path:
            served.wait(5)
            return Reply.error(500, "InternalError")
        return Reply(body=b"image")

    web.answer = answer
    storage = Storage(StorageOptions(endpoint=web.url(), timeout_s=5, retries=1))
    with ThreadPoolExecutor(1) as threads:
        broken = threads.submit(storage.read, "s3://images/broken.jpg")
        while not web.requests:
            served.wait(0.01)
        storage.read("s3://images/fine.jpg")
        served.set()
        with pytest.raises(Unreadable, match="others beside it were served"):
            broken.result()
    assert storage.answers("s3://images/x.jpg")
    assert not storage.answers("s3://other/x.jpg")


def test_a_bucket_out_of_reach(aws_keys: None) -> None:
    for endpoint in ("http://127.0.0.1:1", "http://no-such-host.invalid"):
        storage = Storage(StorageOptions(endpoint=endpoint, timeout_s=2, retries=1))
        with pytest.raises(EnvironmentFault, match="does not answer") as fault:
            storage.read("s3://images/a.jpg")
        assert "network" in fault.value.mend


def test_no_credentials_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("cnnbatch.storage.credentials._METADATA", ("127.0.0.1", 1))
    with pytest.raises(EnvironmentFault, match="no credentials") as fault:
        Storage().read("s3://images/a.jpg")
    assert "AWS_ACCESS_KEY_ID" in fault.value.mend
    assert "anonymous" in fault.value.mend


def test_the_shared_credentials_file_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: Bucket
) -> None:
    uri = bucket.put("a.jpg")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "keys").write_text("[work]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert Storage(bucket.options).read(uri) == b"x"


def test_anonymous_requests_are_not_signed(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answer = lambda method, path: Reply(body=b"image")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    storage = Storage(StorageOptions(endpoint=web.url(), anonymous=True))
    assert storage.read("s3://public/a.jpg") == b"image"


def test_a_create_refused_for_a_writer_that_failed_is_tried_again(web: WebServer, aws_keys: None) -> None:
    puts = iter([Reply.error(409, "ConditionalRequestConflict")])

    def answer(method: str, path: str) -> Reply:
        return next(puts, Reply()) if method == "PUT" else Reply(404)

    web.answer = answer
    assert Storage(StorageOptions(endpoint=web.url(), retries=2)).create("s3://out/part", b"x") == '"tag"'


@pytest.mark.parametrize(
    ("url", "new", "same"),
    [
        ("s3://out/part", ("if-none-match", "*"), ("if-match", '"tag"')),
        ("az://out/part", ("if-none-match", "*"), ("if-match", '"tag"')),
        ("gs://out/part", ("x-goog-if-generation-match", "0"), ("x-goog-if-generation-match", "77")),
    ],
)
def test_the_condition_of_a_write_reaches_the_store(
    url: str,
    new: tuple[str, str],
    same: tuple[str, str],
    web: WebServer,
    aws_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "test")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "dGVzdA==")
    web.answer = lambda method, path: Reply(headers={"x-goog-generation": "77"})
    storage = Storage(StorageOptions(endpoint=web.url(), retries=0))
    storage.create(url, b"x")
    storage.replace(url, b"x", '"tag"')
    assert web.conditions == [("PUT", *new), ("PUT", *same)]
    web.answer = lambda method, path: Reply(
        412 if method == "PUT" else 200, headers={"x-goog-generation": "77"}
    )
    with pytest.raises(AlreadyExists):
        storage.create(url, b"x")
    with pytest.raises(Changed):
        storage.replace(url, b"x", '"tag"')
    with pytest.raises(Changed):
        storage.replace(url, b"x", '"other"')


def test_a_bucket_that_refuses_to_say_what_is_there(web: WebServer, aws_keys: None) -> None:
    web.answer = lambda method, path: Reply.error(403, "AccessDenied")
    with pytest.raises(EnvironmentFault, match="AccessDenied") as fault:
        Storage(StorageOptions(endpoint=web.url(), retries=0)).exists("s3://out/part")
    assert "right to list" in fault.value.mend


def test_options_that_a_store_does_not_know() -> None:
    with pytest.raises(UserError, match=r"storage\.requester_pays"):
        Storage(StorageOptions(requester_pays=True)).read("gs://b/a.jpg")
    with pytest.raises(UserError, match="names no bucket"):
        Storage().read("s3:///a.jpg")


# The web


def test_a_web_file(web: WebServer) -> None:
    data = bytes(range(100))

    def answer(method: str, path: str) -> Reply:
        return Reply(body=data) if path == "/cat.jpg?id=1" else Reply(404)

    web.answer = answer
    storage = Storage(QUICK)
    uri = f"{web.url()}/cat.jpg?id=1"
    assert storage.read(uri) == data
    assert storage.read(uri, Span(10, 5)) == data[10:15]  # the server ignores ranges
    assert storage.head(uri).size == 100
    assert storage.head(uri).etag == '"tag"'
    with storage.open(uri) as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == data[-3:]
    with pytest.raises(TooLarge):
        storage.read(uri, limit=99)
    with pytest.raises(NotFound):
        storage.read(f"{web.url()}/dog.jpg")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Forbidden), (403, Forbidden), (410, NotFound), (418, Unreadable), (503, EnvironmentFault)],
)
def test_whose_fault_an_answer_of_the_web_is(status: int, kind: type[Exception], web: WebServer) -> None:
    web.answer = lambda method, path: Reply(status)
    with pytest.raises(kind) as raised:
        Storage(QUICK).read(f"{web.url()}/cat.jpg?sig=SECRET&id=1")
    assert "SECRET" not in str(raised.value)
    assert "id=1" in str(raised.value)


@pytest.mark.slow
def test_a_web_file_is_tried_again(web: WebServer) -> None:
    failures = iter([Reply(503), Reply(429), Reply(wait_s=5)])
    web.answer = lambda method, path: next(failures, Reply(body=b"image"))
    assert Storage(StorageOptions(timeout_s=1, retries=3)).read(f"{web.url()}/a.jpg") == b"image"


def test_a_dead_host_is_its_images_fault_when_others_live(web: WebServer) -> None:
    dead = "http://127.0.0.1:1/a.jpg"
    storage = Storage(StorageOptions(timeout_s=1, retries=3))
    with pytest.raises(EnvironmentFault, match="does not answer"):
        storage.read(dead)
    web.answer = lambda method, path: Reply(body=b"image")
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(storage.read, dead)
        while not reading.done():
            storage.read(f"{web.url()}/fine.jpg")
        with pytest.raises(Unreadable):
            reading.result()


def test_the_web_is_read_only_and_has_no_folders(web: WebServer) -> None:
    storage = Storage(QUICK)
    for write in (
        lambda: storage.create(web.url(), b""),
        lambda: storage.replace(web.url(), b"", ""),
        lambda: storage.put(web.url(), b""),
        lambda: storage.delete(web.url()),
        lambda: list(storage.list(web.url())),
    ):
        with pytest.raises(UserError):
            write()


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(UserError, match=r"s4:// is no known kind .* did you mean s3"):
        Storage().read("s4://bucket/a.jpg")
