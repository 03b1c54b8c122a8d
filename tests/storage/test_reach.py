"""How far a list may reach that was read from the web or a bucket."""

from __future__ import annotations

import io
import json
import pickle
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.job import MapJob, fingerprint_fields
from cnnbatch.output import plan
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.storage import Storage, StorageOptions
from cnnbatch.storage.reach import Reach, is_public
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source
from tests.conftest import jpeg
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import QUICK, fill, read, source

pytest_plugins = ("tests.s3",)


@pytest.fixture
def inside() -> Iterator[WebServer]:
    """Give a server that the reader of a list can reach and its author cannot."""
    server = WebServer()
    server.answer = lambda method, path: Reply(body=b"secret")
    yield server
    server.stop()


def of_list(
    web: WebServer, lines: Sequence[str], options: StorageOptions = QUICK, allow: Sequence[str] = ()
) -> Source:
    """Return the source of a list on ``web``, beside which ``/own.jpg`` lies."""
    files = {"/lists/list.txt": "\n".join(lines).encode(), "/own.jpg": b"own", "/lists/a.jpg": b"beside"}
    web.answer = lambda method, path: Reply(body=files[path]) if path in files else Reply(404)
    return source(f"{web.url()}/lists/list.txt", Storage(options), allow=allow)


def refused(result: Content | Failure, allow: str) -> bool:
    return (
        isinstance(result, Failure)
        and (result.stage, result.code) == ("read", "forbidden")
        and f"input.allow=[{allow}]" in result.message
    )


LOCAL = [
    "/etc/passwd",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "FILE:///etc/passwd",
    "local:///etc/passwd",
    "~/.ssh/id_rsa",
    "package:skimage/data/coffee.png",
    "package:skimage//etc/passwd",
    "memory://kept/a.jpg",
    "dataset:pets_sample",
    "data://x",
    "zip://a.jpg::/etc/archive.zip",
    "simplecache::file:///etc/passwd",
    "filecache://etc/passwd",
    "reference://x",
    "git://x",
    "ftp://host::file:///etc/passwd",
    "hf://datasets/a/b::file:///etc/passwd",
]


@pytest.mark.parametrize("address", LOCAL)
def test_a_list_from_the_web_names_nothing_of_this_machine(address: str, web: WebServer) -> None:
    results = read(of_list(web, [address, f"{web.url()}/own.jpg", "a.jpg"]))
    if address.startswith("simplecache::"):  # no address at all, but a path beside the list
        assert isinstance(results[0], Failure)
    else:
        assert refused(results[0], "local")
    assert results[1:] == [b"own", b"beside"]


def test_what_is_allowed_is_read(tmp_path: Path, web: WebServer, inside: WebServer, bucket: Bucket) -> None:
    fill(tmp_path, ["a.jpg"])
    stored = bucket.put("b.jpg", b"of the bucket")
    lines = [f"{tmp_path}/a.jpg", f"{inside.url()}/c.jpg", stored]
    wanted = {"local": b"a.jpg", "private": b"secret", "buckets": b"of the bucket"}
    for number, (allow, data) in enumerate(wanted.items()):
        results = read(of_list(web, lines, bucket.options, [allow]))
        assert results[number] == data
        assert all(
            refused(result, other)
            for place, (other, result) in enumerate(zip(wanted, results, strict=True))
            if place != number
        )
    assert read(of_list(web, lines, bucket.options, list(wanted))) == list(wanted.values())


def hosts_of(server: WebServer) -> list[str]:
    """Return ways to write this machine that are not 127.0.0.1."""
    port = server.url().rpartition(":")[2]
    names = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "[::ffff:127.0.0.1]",
    ]
    return [f"http://{name}:{port}/x.jpg" for name in names]


def test_a_list_from_the_web_does_not_lead_into_this_network(web: WebServer, inside: WebServer) -> None:
    others = [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/x",
        "http://[fe80::1]/x",
        "http://[::1]/x",
    ]
    addresses = [*hosts_of(inside), *others]
    results = read(of_list(web, [*addresses, "a.jpg"], StorageOptions(timeout_s=1, retries=0)))
    assert results[-1] == b"beside"
    assert all(isinstance(result, Failure) for result in results[:-1])
    assert all(refused(result, "private") or "is no address" in str(result) for result in results[:-1])
    assert refused(results[0], "private")
    assert not inside.requests


def test_a_redirect_does_not_lead_into_this_network(web: WebServer, inside: WebServer) -> None:
    found = of_list(web, ["a.jpg", "once.jpg", "twice.jpg", "file.jpg", "loop.jpg", "here.jpg"])
    refs = list(found.refs())
    targets = {
        "/lists/once.jpg": f"{inside.url()}/x.jpg",
        "/lists/twice.jpg": "/lists/once.jpg",
        "/lists/file.jpg": "file:///etc/passwd",
        "/lists/loop.jpg": "/lists/loop.jpg",
        "/lists/here.jpg": "/lists/a.jpg",
    }
    web.answer = lambda method, path: (
        Reply(302, headers={"Location": targets[path]}) if path in targets else Reply(body=b"beside")
    )
    results = read(found, refs)
    assert results[0] == results[5] == b"beside"
    assert refused(results[1], "private")
    assert refused(results[2], "private")
    assert [result.code for result in results[3:5] if isinstance(result, Failure)] == ["unreadable"] * 2
    assert not inside.requests


def test_a_name_is_judged_by_where_the_connection_goes(
    web: WebServer, inside: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a resolver gives a public address first, and another one when it is asked again."""
    port, resolve, asked = int(inside.url().rpartition(":")[2]), socket.getaddrinfo, []

    def answer(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "rebinding.example":
            return resolve(host, *args, **kwargs)
        asked.append(host)
        address = "192.88.99.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    found = of_list(web, ["a.jpg", f"http://rebinding.example:{port}/x.jpg"])
    refs = list(found.refs())
    monkeypatch.setattr(socket, "getaddrinfo", answer)
    socket.getaddrinfo("rebinding.example", port)  # whoever asks beforehand sees the public one
    results = read(found, refs)
    assert results[0] == b"beside"
    assert refused(results[1], "private")
    assert not inside.requests


def test_a_public_list_is_not_at_home_in_a_private_network() -> None:
    """The author of a list decides where the list's own name leads."""
    away, home = Reach("http://files.example/l.txt"), Reach("http://files.example/l.txt", private_home=True)
    assert not away.lets_connect("http://files.example/a.jpg", "10.0.0.1")
    assert home.lets_connect("http://files.example:80/a.jpg", "10.0.0.1")
    assert not home.lets_connect("http://files.example:8080/a.jpg", "10.0.0.1")
    assert not home.lets_connect("http://other.example/a.jpg", "10.0.0.1")
    assert not home.lets_connect("http://files.example/a.jpg", "169.254.169.254")
    assert away.lets_connect("http://other.example/a.jpg", "8.8.8.8")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),  # Alibaba's metadata
        ("169.254.169.254", False),  # most clouds'
        ("168.63.129.16", False),  # Azure's agent
        ("192.0.0.192", False),  # Oracle's metadata
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),  # AWS's metadata
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),  # the same behind NAT64
        ("2002:7f00:1::", False),  # 127.0.0.1 by 6to4
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_list_in_a_bucket_names_its_own_bucket(tmp_path: Path, web: WebServer, bucket: Bucket) -> None:
    other = f"{bucket.name}-other"
    bucket.client.create_bucket(Bucket=other)
    bucket.client.put_object(Bucket=other, Key="x.jpg", Body=b"other")
    own = bucket.put("elsewhere/own.jpg", b"own")
    web.answer = lambda method, path: Reply(body=b"web")
    lines = [
        own,
        f"s3://{other}/x.jpg",
        "/etc/passwd",
        f"{web.url()}/a.jpg",
        "az://c/x.jpg",
        "hf://datasets/a/b/c",
    ]
    url = bucket.put("lists/list.txt", "\n".join(lines).encode())
    results = read(source(url, Storage(bucket.options)))
    assert results[0] == b"own"
    wanted = ["buckets", "local", "private", "buckets", "buckets"]
    assert [refused(result, allow) for result, allow in zip(results[1:], wanted, strict=True)] == [True] * 5


def test_a_list_that_a_person_has_here_names_anything(tmp_path: Path, web: WebServer, bucket: Bucket) -> None:
    fill(tmp_path, ["images/a.jpg"])
    web.answer = lambda method, path: Reply(body=b"web")
    stored = bucket.put("b.jpg", b"of the bucket")
    lines = "\n".join(
        [f"{tmp_path}/images/a.jpg", f"{web.url()}/a.jpg", stored, "package:skimage/__init__.py"]
    )
    wanted = [b"images/a.jpg", b"web", b"of the bucket"]
    fill(tmp_path / "a::b", ["list.txt"])
    (tmp_path / "a::b" / "list.txt").write_text(lines)
    here = source(str(tmp_path / "a::b" / "list.txt"), Storage(bucket.options))
    fsspec.filesystem("memory").pipe_file("/reach/list.txt", lines.encode())
    for found in (here, source("memory://reach/list.txt", Storage(bucket.options))):
        results = read(found)
        assert results[:3] == wanted
        assert isinstance(results[3], bytes)


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.parquet"])
def test_every_form_of_a_list_reaches_as_far(name: str, web: WebServer) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": ["/etc/passwd", "a.jpg"]}), sink)
    text = "url;x\n/etc/passwd;1\na.jpg;2\n".replace(";", "\t" if name.endswith("tsv") else ",").encode()
    files = {
        f"/lists/{name}": sink.getvalue() if name.endswith("parquet") else text,
        "/lists/a.jpg": b"beside",
    }
    web.ranged = True
    web.answer = lambda method, path: Reply(body=files[path]) if path in files else Reply(404)
    results = read(source(f"{web.url()}/lists/{name}"))
    assert refused(results[0], "local")
    assert results[1] == b"beside"


def test_the_images_of_a_coco_file_do_not_lead_into_this_network(web: WebServer, inside: WebServer) -> None:
    names = ["a.jpg", "b.jpg"]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    file = json.dumps({"images": images, "categories": [{"id": 1, "name": "cat"}]}).encode()
    files = {"/set/set.json": Reply(body=file), "/set/a.jpg": Reply(body=b"beside")}
    files["/set/b.jpg"] = Reply(302, headers={"Location": f"{inside.url()}/x.jpg"})
    web.ranged = True
    web.answer = lambda method, path: files.get(path, Reply(404))
    found = source(f"{web.url()}/set/set.json")
    refs = list(found.refs())
    results = read(pickle.loads(pickle.dumps(found)), refs)
    assert results[0] == b"beside"
    assert refused(results[1], "private")
    assert not inside.requests


def test_the_reach_travels_to_the_workers(tmp_path: Path, web: WebServer) -> None:
    fill(tmp_path, ["a.jpg"])
    found = of_list(web, [f"{tmp_path}/a.jpg", "a.jpg"])
    refs = list(found.refs())
    again: Source = pickle.loads(pickle.dumps(found))
    results = read(again, refs)
    assert refused(results[0], "local")
    assert results[1] == b"beside"
    planned = [ImageRef("x", f"{tmp_path}/a.jpg")]  # whatever a plan says
    assert refused([reader() for reader in again.read(Shard(0, tuple(planned)))][0], "local")


def test_an_inventory_lists_from_its_own_bucket(bucket: Bucket) -> None:
    other = f"{bucket.name}-other"
    bucket.client.create_bucket(Bucket=other)
    bucket.client.put_object(
        Bucket=other, Key="data/1.csv", Body=f'"{bucket.name}","a.jpg","1","e"\n'.encode()
    )
    manifest = (
        f'{{"sourceBucket": "{bucket.name}", "destinationBucket": "arn:aws:s3:::{other}",'
        '"fileFormat": "CSV", "fileSchema": "Bucket, Key, Size, ETag", "files": [{"key": "data/1.csv"}]}'
    )
    url = bucket.put("inventory/manifest.json", manifest.encode())
    fields: dict[str, Any] = {"inventory": url}
    with pytest.raises(UserError, match=r"another bucket.*input\.allow=\[buckets\]"):
        source(bucket.url, Storage(bucket.options), **fields)
    found = source(bucket.url, Storage(bucket.options), **fields, allow=["buckets"])
    assert [ref.key for ref in found.refs()] == ["a.jpg"]


BOXES = pa.struct([(side, pa.float32()) for side in ("x1", "y1", "x2", "y2")])
OBJECTS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32()), ("box", BOXES)]))


def output(images: Path, folder: Path) -> Path:
    """Write what a detection of ``images`` leaves: of each the same box."""
    refs = [ImageRef(path.name, str(path), etag="e") for path in sorted(images.glob("*.jpg"))]
    shard, box = Shard(0, tuple(refs)), {"x1": 0, "y1": 0, "x2": 9, "y2": 9}
    good = {"vanished": False, "objects": [{"label": "cat", "score": 0.9, "box": box}]}
    rows = [{"key": ref.key, "uri": ref.uri, **good} for ref in refs]
    job = {"task": {"name": "detect"}, "input": {"url": str(images)}, "output": {"url": str(folder)}}
    for name in ("_job/plan/00000", "predictions"):
        (folder / name).mkdir(parents=True)
    (folder / "_job" / "job.yaml").write_text(json.dumps(job))
    (folder / "_job" / "plan" / "00000" / "complete.json").write_text('{"images": 2}')
    pq.write_table(
        plan.page_table([shard], pa.schema([])), folder / "_job" / "plan" / "00000" / "00000.parquet"
    )
    table = pa.Table.from_pylist(rows, pa.schema([*ENGINE_COLUMNS, ("objects", OBJECTS)]))
    pq.write_table(table, folder / "predictions" / "part-00000000.parquet")
    return folder


def test_an_output_in_a_bucket_names_its_own_bucket(tmp_path: Path, bucket: Bucket) -> None:
    for number in range(2):
        fill(tmp_path / "photos", [f"{number}.jpg"])
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    boxes = output(tmp_path / "photos", tmp_path / "boxes")
    for file in boxes.rglob("*.*"):
        bucket.put(str(file.relative_to(tmp_path)), file.read_bytes())
    url, storage = f"{bucket.url}/boxes#objects", Storage(bucket.options)
    results = read(source(url, storage))
    assert len(results) == 2
    assert all(refused(result, "local") for result in results)
    assert not any(isinstance(result, Failure) for result in read(source(url, storage, allow=["local"])))
    assert not any(isinstance(result, Failure) for result in read(source(f"{boxes}#objects")))


def job(url: str, out: Path | str, **more: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {"name": "tests.toy:Toy"},
            "input": {"url": url, **more},
            "output": {"url": str(out)},
            "compute": {"pool": "inline"},
        }
    )


def test_what_is_allowed_does_not_change_a_row() -> None:
    plain, allowing = (job("photos", "out", **more) for more in ({}, {"allow": ["local"]}))
    assert fingerprint_fields(plain) == fingerprint_fields(allowing)
    with pytest.raises(UserError, match="allow"):
        cnnbatch.run("classify", input={"url": "photos", "allow": ["everything"]}, output="out")


# Packages


@pytest.mark.parametrize(
    "inside",
    ["/etc/passwd", "../secret", "data/../../secret", "data//x", "..\\secret", "link", "folder/secret", ".."],
)
def test_an_address_of_a_package_stays_in_it(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, ["secret", "reached/__init__.py", "reached/data/a.jpg"])
    (tmp_path / "reached" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "reached" / "folder").symlink_to(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    url = str(fill(tmp_path, ["lists/x"]) / "lists" / "list.txt")
    Path(url).write_text(f"package:reached/data/a.jpg\npackage:reached/{inside}\n")
    results = read(source(url))
    assert results[0] == b"reached/data/a.jpg"
    assert isinstance(results[1], Failure)
    assert results[1].code == "unreadable"
