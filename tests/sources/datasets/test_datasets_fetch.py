"""Fetching data sets, from a server of this machine: checked, unpacked with care, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.run import run
from cnnbatch.sources.cifar10 import CLASSES
from cnnbatch.sources.datasets import cached
from cnnbatch.sources.datasets.fetching import RECORD, fetch
from cnnbatch.storage import Storage
from tests.inference.test_run import QUIET, job, table
from tests.sourcing import QUICK, keys
from tests.tiny_sets import Published, cifar10, eurosat, labels, tar, zipped

pytest_plugins = ("tests.s3", "tests.published")
pytestmark = pytest.mark.usefixtures("nothing_here")

FETCH = """
import sys
from dataclasses import replace
from cnnbatch.sources.datasets import named
from cnnbatch.sources.datasets.fetching import fetch
from cnnbatch.sources.datasets.layouts import Remote
from cnnbatch.storage import Storage

entry = named(sys.argv[1])
files = [Remote(url, sha256=digest) for url, digest in zip(sys.argv[2::2], sys.argv[3::2])]
fetch(replace(entry, download=replace(entry.download, files=lambda: files)), Storage(), chunk_bytes=1000)
"""


def test_a_fetched_set_is_classified(publish: Callable[..., Published], tmp_path: Path) -> None:
    published = publish(
        "cifar10", cifar10(), md5=hashlib.md5(cifar10()["cifar-10-python.tar.gz"]).hexdigest()
    )
    folder = published.fetch()
    assert folder == tmp_path / "cache" / "data" / "cifar10"
    out = tmp_path / "out"
    task = {
        "name": "classify",
        "model": "squeezenet1_1",
        "weights": "random",
        "classes": list(CLASSES),
        "preprocessing": {"resize": 32, "crop": 32},
    }
    given = {"url": "dataset:cifar10", "split": "test"}
    run(job(tmp_path, out, task, input=given, compute={"precision": "fp32"}), QUIET)
    assert table(out)["key"].to_pylist() == ["test_batch#0", "test_batch#1"]
    assert table(out)["error"].null_count == 2


def test_what_is_recorded_and_that_a_second_fetch_asks_for_nothing(publish: Callable[..., Published]) -> None:
    published = publish("eurosat", eurosat())
    folder = published.fetch()
    about = json.loads((folder / RECORD).read_text())
    data = published.archives["EuroSAT.zip"]
    assert (about["name"], about["licence"]) == ("eurosat", "MIT")
    assert about["files"] == [
        {
            "url": f"{published.web.url()}/EuroSAT.zip",
            "bytes": len(data),
            "md5": hashlib.md5(data).hexdigest(),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", about["fetched"])
    assert labels("dataset:eurosat", None)["Forest/Forest_1.jpg"] == "Forest"
    asked = len(published.web.requests)
    assert published.fetch() == folder
    assert len(published.web.requests) == asked
    assert sorted(path.name for path in folder.parent.iterdir()) == [".eurosat.lock", "eurosat"]


@pytest.mark.parametrize("ranged", [True, False], ids=["ranges", "no ranges"])
def test_a_server_may_know_ranges_or_not(ranged: bool, publish: Callable[..., Published]) -> None:
    published = publish("eurosat", eurosat())
    published.web.ranged = ranged
    published.fetch(chunk_bytes=700)
    assert bool(published.web.ranges) == ranged
    assert len(keys("dataset:eurosat")) == 4


@pytest.mark.parametrize("digest", ["md5", "sha256"])
def test_another_file_than_is_known_is_not_used(digest: str, publish: Callable[..., Published]) -> None:
    published = publish("eurosat", eurosat(), **{digest: "ab" * (16 if digest == "md5" else 32)})
    with pytest.raises(
        EnvironmentFault, match=f"not the file that is known: expected {digest} abab.*was used"
    ):
        published.fetch()
    assert not cached(published.entry).exists()
    assert publish("eurosat", eurosat()).fetch().is_dir()  # nothing of the wrong file is left to go on with


def test_a_file_that_was_fetched_is_not_fetched_again(publish: Callable[..., Published]) -> None:
    halves = {
        f"{name}.tar": tar({f"VOCdevkit/VOC2007/{path}": b"x" for path in paths}, "w")
        for name, paths in {
            "images": ["JPEGImages/1.jpg", "ImageSets/Main/train.txt"],
            "truth": ["Annotations/1.xml"],
        }.items()
    }
    published = publish("voc2007", halves)
    missing = published.archives.pop("truth.tar")
    with pytest.raises(EnvironmentFault, match="truth.tar can't be fetched.*404"):
        published.fetch()
    assert not cached(published.entry).exists()
    published.archives["truth.tar"] = missing
    published.web.requests.clear()
    published.fetch()
    assert set(published.web.requests) == {"/truth.tar"}
    assert keys("dataset:voc2007") == ["JPEGImages/1.jpg"]


def test_a_killed_fetch_leaves_nothing_and_goes_on(publish: Callable[..., Published]) -> None:
    published = publish("eurosat", eurosat())
    web, data = published.web, published.archives["EuroSAT.zip"]
    web.ranged = True
    answer, gate = web.answer, 4  # one request for the size, and three thousand bytes
    web.answer = lambda method, path: replace(
        answer(method, path), wait_s=60.0 if len(web.requests) > gate else 0.0
    )
    files = [f"{web.url()}/EuroSAT.zip", hashlib.sha256(data).hexdigest()]
    process = subprocess.Popen([sys.executable, "-c", FETCH, "eurosat", *files])
    deadline = time.monotonic() + 60
    while len(web.requests) <= gate and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not cached(published.entry).exists()
    web.answer = answer
    web.ranges.clear()
    published.fetch(chunk_bytes=1000)
    assert web.ranges[0] == ("/EuroSAT.zip", "bytes=3000-3999")
    assert len(keys("dataset:eurosat")) == 4


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)
    return buffer.getvalue()


def giant() -> bytes:
    member = tarfile.TarInfo("2750/a.jpg")
    member.size = 2 << 30
    return member.tobuf() + bytes(10240)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.tar.gz", tar({"2750/ok.jpg": b"x", "../../evil": b"x"}), r"'\.\./\.\./evil' leaves the folder"),
        ("a.tar", tar({"/tmp/evil": b"x"}, "w"), "'/tmp/evil' leaves the folder"),
        ("a.tar", tar({"2750/../../evil": b"x"}, "w"), "leaves the folder"),
        ("a.tar", link("2750", "/tmp"), "'2750' is a link or a device"),
        ("a.tar", link("2750/a", "/etc/passwd", tarfile.LNKTYPE), "is a link or a device"),
        ("a.tar", link("2750/a", "", tarfile.FIFOTYPE), "is a link or a device"),
        ("a.tar", giant(), "unpacks to far more than images would"),
        ("a.zip", zipped({"../evil": b"x"}), "leaves the folder"),
        ("a.zip", zipped({"..\\evil": b"x"}), "leaves the folder"),
        ("a.zip", zipped({"C:/evil": b"x"}), "leaves the folder"),
        ("a.zip", zipped({"2750": b"/tmp"}, 0o120777), "is a link or a device"),
        ("a.zip", eurosat()["EuroSAT.zip"][:-40], "no whole archive"),
        ("a.tgz", tar({"2750/a.jpg": os.urandom(9000)})[:-2000], "no whole archive"),
        ("a.tgz", b"no archive at all", "no whole archive"),
        (
            "a.zip",
            zipped({"other/a.jpg": b"x"}),
            "hold something else than was known of them; expected 2750/",
        ),
    ],
)
def test_a_hostile_archive_is_refused(
    name: str, data: bytes, said: str, publish: Callable[..., Published], tmp_path: Path
) -> None:
    published = publish("eurosat", {name: data})
    with pytest.raises(EnvironmentFault, match=said):
        published.fetch()
    assert not cached(published.entry).exists()
    assert not list(tmp_path.rglob("evil"))


def test_one_process_fetches_a_set_at_a_time_into_its_own_place(publish: Callable[..., Published]) -> None:
    published = publish("eurosat", eurosat())
    failed: list[str] = []

    def again(more: int) -> None:
        with pytest.raises(EnvironmentFault, match="another process is fetching eurosat") as caught:
            published.fetch()
        failed.append(str(caught.value))

    fetch(published.entry, Storage(QUICK), again)
    assert failed
    other = publish("cifar10", cifar10())
    (cached(other.entry) / "mine").mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match="is in the way"):
        other.fetch()
