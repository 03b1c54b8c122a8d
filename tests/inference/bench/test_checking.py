"""A check: what it counts, measures and says, and that it leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cnnbatch.cli.app import app
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.bench.check import Checked, check, lines
from cnnbatch.inference.bench.estimate import Measured, estimate, plan_size, rates
from cnnbatch.inference.bench.listing import ListingCount, WatchedStorage
from cnnbatch.inference.bench.machine import Machine
from cnnbatch.inference.run import run
from cnnbatch.inference.worker import malloc
from cnnbatch.job import MapJob, to_yaml
from cnnbatch.output.plan import spread
from cnnbatch.storage import Entry, Storage
from cnnbatch.types import ImageRef, Span
from tests.conftest import jpeg
from tests.inference.test_run import QUIET, job, parts
from tests.servers import Bucket, Reply, WebServer

pytest_plugins = ("tests.s3",)

Photos = Callable[[int], Path]
SECONDS = {"read": 0.032, "decode": 0.006, "prepare": 0.002, "forward": 0.010, "rows": 0.001, "write": 0.001}
CPU = Machine(cores=4, workers=4, devices=0, readers=64)
GPU = Machine(cores=8, workers=2, devices=2, readers=32)


def counted(images: int, **known: Any) -> ListingCount:
    return ListingCount(images=images, **{"complete": True, "objects": images, **known})


def measured(**known: Any) -> Measured:
    return Measured(
        **{"images": 8, "failed": 0, "mean_bytes": 500.0, "seconds": SECONDS, "memory_bytes": 7, **known}
    )


# The arithmetic, by hand


def test_on_a_cpu_the_stages_share_the_cores() -> None:
    assert rates(SECONDS, CPU, 0) == pytest.approx({"the processor": 4 / 0.020, "reading": 64 / 0.032})


def test_an_accelerator_is_as_fast_as_its_slowest_stage() -> None:
    found = rates(SECONDS, GPU, 0.0001)
    expected = {"decoding": 1000, "the network": 200, "rows": 2000, "writing": 2000, "reading": 1000}
    assert found == pytest.approx({**expected, "listing": 10_000})
    cost = estimate(counted(7200), measured(), GPU, 1000, False)
    assert cost.slowest == "the network"
    assert (cost.seconds or 0, cost.money(3.0) or 0) == pytest.approx((36, 0.03))


def test_a_part_is_one_workers() -> None:
    assert CPU.busy(0) == CPU.busy(1) == Machine(cores=1, workers=1, devices=0, readers=16)
    assert GPU.busy(1) == Machine(cores=4, workers=1, devices=1, readers=16)
    assert GPU.busy(2) == GPU.busy(99) == GPU
    cost = estimate(counted(2000), measured(), CPU, 1000, False)
    assert cost.machine.cores == 2
    assert cost.rates["the processor"] == pytest.approx(2 / 0.020)


def test_a_slow_listing_and_slow_reading_bound_the_rate() -> None:
    slow = counted(4000, seconds=40.0)
    assert estimate(slow, measured(), CPU, 1000, False).slowest == "listing"
    far = measured(seconds={**SECONDS, "read": 6.4})
    cost = estimate(counted(4000), far, CPU, 1000, False)
    assert cost.slowest == "reading"
    assert cost.seconds == pytest.approx(400)
    assert estimate(counted(900, seconds=40.0), measured(), CPU, 1000, False).slowest == "the processor"


def test_bytes_are_the_listings_where_it_has_them() -> None:
    assert estimate(counted(10), measured(), CPU, 4, False).read_bytes == 5000
    some = counted(10, sized=4, sized_bytes=1000)
    assert estimate(some, measured(), CPU, 4, False).read_bytes == 1000 + 6 * 500


def test_requests_are_counted() -> None:
    cost = estimate(counted(2500, objects=3001, complete=False), measured(), CPU, 1000, True)
    assert cost.requests == {"list": 4, "read": 2500, "parts": 3, "truth": 3, "plan": 4}
    assert (cost.parts, cost.at_least) == (3, True)
    assert estimate(counted(2500), measured(), CPU, 1000, False).requests["truth"] == 0


@pytest.mark.parametrize(
    ("images", "first", "parts", "pages"),
    [
        (0, 10, 0, 0),
        (10, 10, 1, 1),
        (95, 10, 10, 4),  # pages of 1, 2, 4 and 3 parts
        (31_234, 1000, 32, 6),  # 1, 2, 4, 8, 16 and 1
        (
            1_500_000,
            1000,
            1250,
            4 + 61 + 1 + 31,
        ),  # from the 1,001st part on they hold 2,000, a page 8 of them
    ],
)
def test_the_size_of_a_plan(images: int, first: int, parts: int, pages: int) -> None:
    assert plan_size(images, first) == (parts, pages)


def test_without_a_picture_that_could_be_predicted_the_time_is_unknown() -> None:
    cost = estimate(counted(100), measured(seconds={}), CPU, 10, False)
    assert (cost.slowest, cost.seconds, cost.money(1)) == (None, None, None)


def test_the_sample_is_spread() -> None:
    refs = [ImageRef(str(number), "") for number in range(100)]
    assert [ref.key for ref in spread(refs, 4)] == ["0", "25", "50", "75"]
    assert spread(refs[:3], 8) == tuple(refs[:3])


# The check


def text(found: Checked, price: float | None = None) -> str:
    return "\n".join(lines(found, price))


def test_a_check_sees_measures_and_writes_nothing(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "deep" / "out"
    found = check(job(folder, out, compute={"cpus_per_worker": "auto"}))
    assert not out.parent.exists()
    cost = found.estimate
    sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
    assert (cost.images, cost.at_least, cost.read_bytes, cost.parts) == (27, False, sum(sizes), 3)
    assert cost.requests == {"list": 1, "read": 27, "parts": 3, "truth": 0, "plan": 4}
    assert found.measured.seconds.keys() == SECONDS.keys()
    assert all(found.measured.seconds[stage] > 0 for stage in ("read", "decode", "prepare", "forward"))
    assert found.machine.cores == os.cpu_count()
    assert cost.seconds is not None
    assert cost.memory_bytes > 10_000_000
    assert len(found.seen) == 8
    assert all(": class " in line for line in found.seen)
    said = text(found)
    assert re.search(r"8 of 8 images were predicted on cpu:.+ in fp32, in batches of at most 4", said)
    assert "by the sizes in the listing" in said
    assert "money" not in said


def test_what_fails_is_told_and_not_fatal(photos: Photos, tmp_path: Path) -> None:
    folder = photos(5)
    names = sorted(path for path in folder.rglob("*.jpg"))
    names[1].write_bytes(b"no picture")
    found = check(job(folder, tmp_path / "out", {"fault": "raise", "at": names[3].name}))
    assert [line for line in found.seen if "failed: undecodable" in line and names[1].name in line]
    assert [line for line in found.seen if "failed: predict" in line and "planted" in line]
    assert (found.measured.images, found.measured.failed) == (5, 2)
    assert found.estimate.seconds is not None
    for path in names:
        path.write_bytes(b"")
    nothing = check(job(folder, tmp_path / "out"))
    assert "unknown: no image of the sample could be predicted" in text(nothing, 1.0)
    assert not (tmp_path / "out").exists()


def test_a_fault_of_the_model_is_no_row(photos: Photos, tmp_path: Path) -> None:
    broken = {"fault": "device", "flag": str(tmp_path)}
    with pytest.raises(EnvironmentFault, match="fails on every image"):
        check(job(photos(3), tmp_path / "out", broken))


def test_an_output_that_exists_stays_as_it_was(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(12), tmp_path / "out"
    run(job(folder, out), QUIET)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    found = check(job(folder, out), images=2)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert found.finished == len(parts(out)) == 2
    assert f"finished parts in {out}: 2; a run keeps them" in text(found)
    with pytest.raises(UserError, match=r"task\.seed: the output has 0, this job has 1"):
        check(job(folder, out, {"seed": 1}))
    with pytest.raises(UserError, match="precision: the output has 'fp32', this job has 'bf16'"):
        check(job(folder, out, compute={"precision": "bf16"}))


def test_an_output_that_cannot_be_written(photos: Photos, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EnvironmentFault):
        check(job(photos(2), tmp_path / "file" / "out"))


def endless(suffix: str) -> Callable[..., Iterator[Entry]]:
    def listing(self: Storage, uri: str, after: str | None = None) -> Iterator[Entry]:
        names = sorted(Path(uri).rglob("*.jpg"))
        yield from (Entry(str(path), path.stat().st_size, "e") for path in names)
        for number in itertools.count():
            yield Entry(f"{uri}/x/{number:012}{suffix}", 1000, "e")

    return listing


@pytest.mark.parametrize("suffix", [".jpg", ".txt"])
def test_a_listing_without_end_takes_its_time_only(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    spec = job(photos(9), tmp_path / "out", input={"sample": 1.0})
    own = Storage.list
    made = endless(suffix)

    def listing(self: Storage, uri: str, after: str | None = None) -> Iterator[Entry]:
        return made(self, uri, after) if uri.endswith("photos") else own(self, uri, after)

    monkeypatch.setattr(Storage, "list", listing)
    started = time.monotonic()
    found = check(spec, images=9, listing_s=0.3)
    assert time.monotonic() - started < 20
    cost = found.estimate
    assert cost.at_least
    assert cost.images > 1000 if suffix == ".jpg" else cost.images == 9
    assert cost.requests["list"] > 1
    said = text(found, 1.0)
    assert f"images    at least {cost.images:,}: the listing goes on after" in said
    assert said.count("at least") == 6


def test_no_image_in_time(tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = job(photos(1), tmp_path / "out", input={"format": "files"})
    found = check(spec, listing_s=-1.0)
    assert (found.estimate.images, found.seen, found.measured.images) == (0, [], 0)
    assert "at least 0" in text(found)


def test_a_check_measures_nothing(photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.inference.autotune.measure.has_bf16", lambda device: True)
    folder, out = photos(100), tmp_path / "out"
    assert check(job(folder, out), images=1).settings["precision"] == "fp32"


def test_sizes_of_what_lies_in_containers() -> None:
    storage = WatchedStorage()
    assert storage.size_of(ImageRef("a", "x.tar", Span(512, 33))) == 33
    assert storage.size_of(ImageRef("a", "a.jpg")) is None


# The command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(malloc, "keep_freed_memory", lambda: None)  # it is for the whole process

    def call(spec: MapJob, *arguments: str) -> Result:
        path = tmp_path / "job.yaml"
        path.write_text(to_yaml(spec))
        return CliRunner().invoke(app, ["check", str(path), *arguments])

    return call


def test_the_command(photos: Photos, tmp_path: Path, command: Callable[..., Result]) -> None:
    folder, out = photos(12), tmp_path / "out"
    done = command(job(folder, out), "--images", "3", "--price-per-hour", "2.5")
    assert done.exit_code == 0, done.output
    said = done.stdout.splitlines()
    assert [line.split(":")[0].strip() for line in said[:3]] == [
        "album-0/00000.jpg",
        "album-1/00001.jpg",
        "album-2/00002.jpg",
    ]
    assert any(line.startswith("  money     ") and "at 2.5 an hour of this machine" in line for line in said)
    assert not out.exists()


def test_the_commands_ways_to_end(photos: Photos, tmp_path: Path, command: Callable[..., Result]) -> None:
    spec = job(photos(2), tmp_path / "out")
    wrong = command(spec, "input.limt=3", "compute.workers=none")
    assert wrong.exit_code == 2
    assert "2 mistakes" in wrong.stderr
    assert command(spec, f"input={tmp_path}/nowhere").exit_code == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("no folder")
    refused = command(spec, f"output={tmp_path}/file/out")
    assert refused.exit_code == 3
    assert "what to do: " in refused.stderr
    run(spec, QUIET)
    other = command(spec, "task.seed=1")
    assert other.exit_code == 2
    assert "task.seed: the output has 0, this job has 1" in other.stderr
    assert "Traceback" not in wrong.output + refused.output + other.output


# Buckets


def test_from_bucket_to_bucket(bucket: Bucket) -> None:
    for number in range(12):
        bucket.put(f"photos/{number:03}.jpg", b"" if number == 4 else jpeg(number))
    storage = bucket.options.model_dump()
    spec: dict[str, Any] = {
        "task": {"name": "tests.toy:Toy"},
        "input": {"url": f"{bucket.url}/photos", "storage": storage},
        "output": {"url": f"{bucket.url}/out", "storage": storage},
    }
    found = check(MapJob.model_validate(spec), images=12)
    listed = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    assert len(listed) == 12
    assert found.estimate.read_bytes == sum(one["Size"] for one in listed)
    assert (found.estimate.images, found.measured.failed) == (12, 1)
    spec["output"]["url"] = "s3://no-such-bucket/out"
    with pytest.raises(EnvironmentFault, match="was not written"):
        check(MapJob.model_validate(spec))


def test_an_input_that_may_not_be_listed(web: WebServer, aws_keys: None, tmp_path: Path) -> None:
    web.answer = lambda method, path: Reply.error(403, "AccessDenied")
    storage = {"endpoint": web.url(), "retries": 0}
    spec = job(Path("unused"), tmp_path / "out", input={"url": "s3://images/photos", "storage": storage})
    with pytest.raises(EnvironmentFault, match="may not be listed"):
        check(spec)
    assert not (tmp_path / "out").exists()
