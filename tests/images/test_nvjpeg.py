"""Decoding on the device: what goes there, that the host has the rest, and when it is worth it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

import cnnbatch
from cnnbatch.errors import EnvironmentFault
from cnnbatch.images.decode import DecodeError, Size, decode
from cnnbatch.images.jpeg import read_header
from cnnbatch.images.nvjpeg import DecodeAll, OnDevice, suits
from cnnbatch.images.quiet import without_warnings
from cnnbatch.inference import fingerprint as identity
from cnnbatch.inference.autotune import measure as measuring
from cnnbatch.inference.autotune.candidates import Pace, TuningTrial
from cnnbatch.inference.autotune.store import SettingsStore
from cnnbatch.inference.messages import Ready, TuningSample
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.readahead import DecodeOptions, Item, ReadAhead, ReadRequest
from cnnbatch.inference.worker.settings import Settings, choose
from cnnbatch.inference.worker.transfer import Overlapped, stack
from cnnbatch.inference.worker.worker import ImageOutputs
from cnnbatch.job import MapJob
from cnnbatch.models.preprocessing import Preprocessing, prepare
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage
from cnnbatch.types import Failure, Image, ImageRef, Prepared, Shard
from tests.pictures import FILES, exif_of, photo, saved

CUDA = torch.cuda.is_available()
Decoded = tuple[Tensor, Size]


def on_host(files: list[Tensor]) -> list[Tensor]:
    """Decode as nvjpeg does, but by libjpeg."""
    with without_warnings():
        pictures: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB)
    return pictures


def handled(data: bytes, decode_all: DecodeAll = on_host) -> Decoded | None:
    """Return what is decoded on the device; None where it is the host's."""
    found: list[Decoded] = []
    is_done = OnDevice(decode_all).handle(data, found.append)
    assert is_done == bool(found)
    return found[0] if found else None


# ---- which files

SUITABLE = {
    "jpeg",
    "jpeg 4:4:4",
    "jpeg 4:2:2",
    "jpeg gray",
    "jpeg progressive",
    "jpeg restarts",
}


@pytest.mark.parametrize("name", FILES)
def test_plain_jpeg_is_decoded_on_the_device_and_nothing_else(name: str) -> None:
    found = handled(FILES[name]())
    assert (found is not None) == (name in SUITABLE)
    if found is not None:
        pixels, size = decode(FILES[name]())
        assert found[1] == size
        assert torch.equal(found[0], pixels)


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_the_hosts(orientation: int) -> None:
    data = saved(photo(), "JPEG", exif=exif_of(orientation))
    found, (pixels, size) = handled(data), decode(data)
    assert found is not None
    assert found[1] == size
    assert torch.equal(found[0], pixels)


def odd() -> Iterator[tuple[str, bytes]]:
    jpeg, progressive = FILES["jpeg"](), FILES["jpeg progressive"]()
    frame, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda") + 14
    yield "12 bit", jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :]
    yield "arithmetic", jpeg[:frame] + b"\xff\xc9" + jpeg[frame + 2 :]
    yield "lossless", jpeg[:frame] + b"\xff\xc3" + jpeg[frame + 2 :]
    yield "without its end", jpeg[:-2]
    yield "with bytes behind its end", jpeg + b"\0"
    yield "two pictures", jpeg + jpeg
    yield "a marker in the picture", jpeg[:scan] + b"\xff\xe5" + jpeg[scan + 2 :]
    yield "a frame among the scans", progressive[:-2] + progressive[frame : frame + 19] + b"\xff\xd9"
    yield "a header alone", jpeg[: scan - 14] + b"\xff\xd9"


@pytest.mark.parametrize(("name", "data"), list(odd()), ids=[name for name, _ in odd()])
def test_an_odd_jpeg_is_the_hosts(name: str, data: bytes) -> None:
    assert outcome(data, None) == outcome(data, on_host)
    try:
        header = read_header(data)
    except DecodeError:
        return
    assert header is None or not suits(data, header)


def test_what_is_too_large_for_the_device_is_the_hosts() -> None:
    data = FILES["jpeg"]()
    header = read_header(data)
    assert header is not None
    assert suits(data, header)
    assert not suits(data, replace(header, size=(1 << 13, 1 + (1 << 12))))


def outcome(data: bytes, decode_all: DecodeAll | None) -> str | tuple[int, ...]:
    """Return the code of a file's failure, else the shape of its pixels."""
    try:
        found = handled(data, decode_all) if decode_all else None
        return tuple((found or decode(data))[0].shape)
    except DecodeError as error:
        return error.code


@pytest.mark.slow
def test_hostile_files_fail_as_ever(shared: Path) -> None:
    files = [path for path in sorted((shared / "data" / "hostile").rglob("*")) if path.is_file()]
    found = {
        path.name: (outcome(path.read_bytes(), None), outcome(path.read_bytes(), on_host)) for path in files
    }
    assert {name: both for name, both in found.items() if both[0] != both[1]} == {}


def test_what_headers_tell_is_refused_before_the_device_is_asked() -> None:
    jpeg = FILES["jpeg"]()
    frame = jpeg.index(b"\xff\xc0") + 5
    bomb = jpeg[:frame] + b"\xfa\0\xfa\0" + jpeg[frame + 4 :]
    for data, code in ((bomb, "too_large"), (b"", "empty")):
        with pytest.raises(DecodeError) as refused:
            handled(data)
        assert refused.value.code == code


# ---- what fails on the device


class Failing:
    """Decodes on the host, but fails on every call that has this file; ``calls`` are the sizes of all."""

    def __init__(self, file: bytes, error: Exception) -> None:
        self._file, self._error = file, error
        self.calls: list[int] = []

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        self.calls.append(len(files))
        if any(bytes(one.numpy()) == self._file for one in files):
            raise self._error
        return on_host(files)


ERRORS = [RuntimeError("planted: nvjpeg"), torch.OutOfMemoryError("CUDA out of memory. planted")]


@pytest.mark.parametrize("error", ERRORS)
def test_a_picture_that_fails_on_the_device_is_the_hosts(error: Exception) -> None:
    bad, good = FILES["jpeg"](), FILES["jpeg 4:4:4"]()
    assert handled(bad, Failing(bad, error)) is None
    assert handled(good, Failing(bad, error)) is not None


@pytest.mark.parametrize("error", [*ERRORS, ValueError("planted: prepare")])
def test_a_picture_that_cannot_be_prepared_on_the_device_is_the_hosts(error: Exception) -> None:
    def take(_: Decoded) -> None:
        raise error

    assert not OnDevice(on_host).handle(FILES["jpeg"](), take)


def test_a_picture_of_another_size_than_its_header_is_the_hosts() -> None:
    assert handled(FILES["jpeg"](), lambda files: [torch.zeros(3, 8, 8, dtype=torch.uint8)]) is None


def test_what_waits_is_decoded_in_one_call_and_a_failure_in_it_is_its_own() -> None:
    bad, good = FILES["jpeg"](), FILES["jpeg 4:4:4"]()
    first = FILES["jpeg gray"]()
    begun, asked = threading.Event(), threading.Event()
    failing = Failing(bad, ERRORS[0])

    def slow(files: list[Tensor]) -> list[Tensor]:
        if bytes(files[0].numpy()) == first:
            begun.set()
            assert asked.wait(60)
        return failing(files)

    device = OnDevice(slow)
    failing.calls.clear()
    with ThreadPoolExecutor(4) as threads:
        found: list[Decoded] = []
        done = [threads.submit(device.handle, first, found.append)]
        assert begun.wait(60)
        done += [threads.submit(device.handle, data, found.append) for data in (good, bad, good)]
        while len(device._gathered._waiting) < 3:
            threading.Event().wait(0.01)
        asked.set()
    assert [one.result() for one in done] == [True, True, False, True]
    assert failing.calls == [1, 3, 1, 1, 1]
    assert len(found) == 3


def test_a_device_that_decodes_nothing_is_the_environments_fault() -> None:
    def broken(files: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("torchvision not compiled with nvJPEG support")

    with pytest.raises(EnvironmentFault, match="nvjpeg.*not compiled"):
        OnDevice(broken)


# ---- among the threads that read ahead


class Files:
    """A source of files that lie in memory."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files

    def read(self, shard: Shard) -> Iterator[Callable[[], bytes | Failure]]:
        return iter([lambda ref=ref: self._files[int(ref.key)] for ref in shard.refs])


class Crops:
    """A model that prepares as a classifier does; it has no room for these pictures at first."""

    how = Preprocessing(resize=32, crop=(32, 32))

    def __init__(self, full: Collection[int] = ()) -> None:
        self.full = {str(number) for number in full}

    def decode_size(self, size: Size) -> Size | None:
        return self.how.decode_size(size)

    def prepare(self, image: Image) -> Sequence[Prepared]:
        if image.ref.key in self.full:
            self.full.remove(image.ref.key)
            raise torch.OutOfMemoryError("CUDA out of memory. planted")
        return [prepare(image.pixels, image.size, self.how)]


def read_all(
    folder: Path, files: Sequence[bytes], on_device: OnDevice | None, full: Collection[int] = ()
) -> list[Item]:
    source: Any = Files(files)
    model: Any = Crops(full)
    ahead = ReadAhead(source, model, Journal(folder / "journal"), DecodeOptions(4, 8, True, on_device))
    refs = tuple(ImageRef(str(number), str(number)) for number in range(len(files)))
    try:
        with ahead.windows(ReadRequest(Shard(0, refs), range(len(files)), {}, None)) as windows:
            return [item for window in windows for item in window]
    finally:
        ahead.close()


def test_a_shard_has_the_same_sizes_and_failures_either_way(tmp_path: Path) -> None:
    files = [make() for make in FILES.values()]
    files += [data for _, data in odd()] + [b"", b"no picture", FILES["jpeg"]()[:300]]
    before = read_all(tmp_path, files, None)
    plain = [place for place, name in enumerate(FILES) if name in SUITABLE]
    after = read_all(tmp_path, files, OnDevice(on_host), full=plain[:3])
    for one, other in zip(before, after, strict=True):
        assert (one.outcome.size, one.outcome.failure) == (other.outcome.size, other.outcome.failure)
        assert [found.pixels.shape for found in one.prepared] == [
            found.pixels.shape for found in other.prepared
        ]
        for here, there in zip(one.prepared, other.prepared, strict=True):
            assert torch.equal(here.pixels, there.pixels)


# ---- when it is worth it


def test_the_device_decodes_only_where_the_host_holds_it_up() -> None:
    slow = Pace(ahead_s=0.004, forward_s=0.001)
    assert slow.reason_against_device() == ""
    assert Pace(0.001, 0.002).reason_against_device() == (
        "decoding keeps up: 1000 images a second, the network 500"
    )
    assert slow.reason_for_device(Pace(0.002, 0.001)) == (
        "with decoding on the device 500 images a second, else 250"
    )
    assert slow.reason_for_device(Pace(0.0039, 0.001)) == ""  # Hardly faster.
    assert slow.reason_for_device(Pace(0.0001, 0.0045)) == ""  # The network's device is the slower one then.


def job(folder: Path, out: Path, **compute: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {"name": "classify", "model": "mobilenet_v2", "weights": "random:0"},
            "input": {"url": str(folder)},
            "output": str(out),
            "compute": {"pool": "inline", **compute},
        }
    )


PRETENDED = Settings("cuda:Pretended", "fp32", 4, 32, 2)


@dataclass
class FakeModel:
    identity: dict[str, str]


class FakeWorker:
    """A worker of pretended pace and results: ``shift`` moves the class of what the device decodes."""

    def __init__(self, settings: Settings, pace: Pace, shift: int = 0) -> None:
        self.settings, self._pace, self._shift = settings, pace, shift
        self.model = FakeModel({})
        self.identity = {"weights": "0" * 64}
        self.closed = False

    def outputs(self, shard: Shard, clock: Any) -> Iterator[ImageOutputs]:
        for place in range(len(shard.refs)):
            row = 0.1 + 0.8 * torch.nn.functional.one_hot(torch.tensor((place + self._shift) % 3), 3).float()
            decode_s = self._pace.ahead_s * self.settings.threads
            yield ImageOutputs(place, [{"probabilities": row}], self._pace.forward_s, decode_s)

    def ahead_s(self, shard: Shard) -> float:
        return self._pace.ahead_s

    def close(self) -> None:
        self.closed = True


def measured(
    tmp_path: Path, host: Pace, device: Pace, shift: int = 0, is_open: bool = True, fault: bool = False
) -> tuple[Settings, list[TuningTrial], list[FakeWorker]]:
    made: list[FakeWorker] = []

    def make(settings: Settings, model: Any) -> Any:
        on_device = settings.decoder == "cuda"
        if on_device and fault:
            raise EnvironmentFault("planted: no nvjpeg", "")
        made.append(FakeWorker(settings, device if on_device else host, shift if on_device else 0))
        return made[-1]

    refs = tuple(ImageRef(str(number), str(number)) for number in range(104))
    sample = TuningSample(Shard(0, refs), 10**6, 1, precision_open=False, decoder_open=is_open)
    spec = job(tmp_path, tmp_path / "out", precision="fp32", backend="eager", batch=4)
    first = make(PRETENDED, None)
    found = measuring.measure(spec, first, sample, make)
    assert [one.settings for one in made if not one.closed] == [found.worker.settings]
    return found.worker.settings, [trial for trial in found.trials if trial.decoder == "cuda"], made


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say of the device what torch would ask one that is there."""
    monkeypatch.setattr(measuring, "find_device", lambda wanted: "cuda")
    monkeypatch.setattr(measuring, "has_bf16", lambda device: True)


SLOW, FAST = Pace(0.004, 0.001), Pace(0.0005, 0.001)


@pytest.mark.usefixtures("pretended_cuda")
def test_the_device_is_chosen_where_the_whole_gets_faster(tmp_path: Path) -> None:
    settings, (trial,), _ = measured(tmp_path, SLOW, FAST)
    assert settings.decoder == "cuda"
    assert (trial.verdict, trial.reason) == (
        "chosen",
        "with decoding on the device 1000 images a second, else 250",
    )
    assert trial.agreement["class agreement"] == 1


@pytest.mark.usefixtures("pretended_cuda")
@pytest.mark.parametrize(
    ("host", "device", "shift", "fault", "verdict"),
    [
        (SLOW, SLOW, 0, False, "slower"),
        (SLOW, FAST, 1, False, "other results"),
        (SLOW, FAST, 0, True, "not available"),
        (FAST, FAST, 0, False, "not tried"),
    ],
)
def test_else_the_host_decodes_and_the_reason_is_kept(
    host: Pace, device: Pace, shift: int, fault: bool, verdict: str, tmp_path: Path
) -> None:
    settings, (trial,), _ = measured(tmp_path, host, device, shift, fault=fault)
    assert settings.decoder == "cpu"
    assert trial.verdict == verdict
    assert trial.reason or verdict == "slower"


@pytest.mark.usefixtures("pretended_cuda")
def test_a_decoder_that_is_settled_is_not_tried_again(tmp_path: Path) -> None:
    settings, trials, _ = measured(tmp_path, SLOW, FAST, is_open=False)
    assert (settings.decoder, trials) == ("cpu", [])


# ---- once for an output


def ready(settings: Settings, said: dict[str, Any]) -> Ready:
    return Ready(settings.to_json(), said, "here", "", 0, 0, key=settings.key)


def test_the_first_kind_of_device_decides_and_the_identity_says_so(tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out")
    model: Any = FakeModel({"weights": "0" * 64})
    said = {name: identity.of(spec, model, "fp32", name) for name in ("cpu", "cuda")}
    major, minor, _ = version("torchvision").split(".", 2)
    assert said["cuda"]["decoder"] == f"nvjpeg of torchvision {major}.{minor}, {said['cpu']['decoder']}"
    store = SettingsStore(spec, Output(str(tmp_path / "out"), Storage()))
    first = replace(PRETENDED, decoder="cuda")
    kept = store.keep(ready(first, said["cuda"]))
    assert (kept["decoder"], kept[first.key]["decoder"]) == ("cuda", "cuda")
    other = replace(PRETENDED, device="cuda:Other")
    assert other.key not in store.keep(ready(other, said["cpu"]))
    follows = replace(other, decoder="cuda")
    assert store.keep(ready(follows, said["cuda"]))[other.key]["decoder"] == "cuda"


def test_an_output_of_before_is_the_hosts(tmp_path: Path) -> None:
    spec, output = job(tmp_path, tmp_path / "out"), Output(str(tmp_path / "out"), Storage())
    output.decide("settings", {"precision": "fp32"})
    store = SettingsStore(spec, output)
    model: Any = FakeModel({"weights": "0" * 64})
    device = replace(PRETENDED, decoder="cuda")
    assert device.key not in store.keep(ready(device, identity.of(spec, model, "fp32", "cuda")))
    assert PRETENDED.key in store.keep(ready(PRETENDED, identity.of(spec, model, "fp32", "cpu")))


def test_a_machine_without_cuda_is_refused_where_the_device_decodes(tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out", device="cpu")
    with pytest.raises(EnvironmentFault, match="no CUDA device, by which this output's pictures are decoded"):
        choose(spec, True, {"precision": "fp32", "decoder": "cuda"})
    assert choose(spec, True, {"precision": "fp32"})[0].decoder == "cpu"


# ---- on a GPU

on_gpu = pytest.mark.skipif(not CUDA, reason="no CUDA device")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", sorted(SUITABLE))
def test_nvjpeg_is_near_libjpeg(name: str, orientation: int) -> None:
    smooth = photo().resize((488, 360))
    options = {
        "progressive": name == "jpeg progressive",
        "subsampling": {"jpeg 4:4:4": 0, "jpeg 4:2:2": 1}.get(name, 2),
        "restart_marker_rows": int(name == "jpeg restarts"),
    }
    picture = smooth.convert("L") if name == "jpeg gray" else smooth
    data = saved(picture, "JPEG", exif=exif_of(orientation), quality=90, **options)
    found: list[Decoded] = []
    assert OnDevice().handle(data, lambda decoded: found.append((decoded[0].cpu(), decoded[1])))
    pixels, size = decode(data)
    assert found[0][1] == size
    assert (found[0][0].float() - pixels).abs().mean() < 2


@pytest.mark.gpu
@on_gpu
def test_damage_is_found_on_the_device_too() -> None:
    """What this finds would be committed as finished: then nvjpeg must not be offered here."""
    data, device = saved(photo().resize((400, 300)), "JPEG"), OnDevice()
    scan = data.index(b"\xff\xda") + 14
    for cut in range(scan + 100, len(data) - 100, 997):
        damaged = data[:cut].rstrip(b"\xff") + b"\xff\xd9"
        assert not device.handle(damaged, lambda decoded: None), f"cut at {cut} of {len(data)}"


@pytest.mark.gpu
@on_gpu
def test_threads_prepare_on_the_device_what_each_would_alone(tmp_path: Path) -> None:
    files = [saved(photo().resize((200 + 8 * side, 300)), "JPEG") for side in range(40)] * 8
    files[5] = FILES["png"]()
    alone = read_all(tmp_path, files[:40], OnDevice())
    together = read_all(tmp_path, files, OnDevice())
    assert [item.outcome.failure for item in together] == [None] * len(files)
    for place, item in enumerate(together):
        if place % 40 != 5:
            assert item.prepared[0].pixels.is_cuda
            assert torch.equal(item.prepared[0].pixels, alone[place % 40].prepared[0].pixels)


@pytest.mark.gpu
@on_gpu
def test_inputs_on_either_side_make_one_batch() -> None:
    pictures = [torch.randint(0, 256, (5, 6, 3), dtype=torch.uint8).permute(2, 0, 1) for _ in range(4)]
    expected = torch.stack(pictures)
    mixed = [Prepared(one.cuda() if place % 2 else one, (5, 6)) for place, one in enumerate(pictures)]
    transfer = Overlapped()
    for batch in (stack(mixed), transfer.bring(mixed)()):
        assert batch.is_cuda
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.cpu(), expected)
    transfer.close()


@pytest.mark.gpu
@on_gpu
def test_a_whole_job_is_the_hosts_within_the_guard(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, tables = photos(60), {}
    for decoder in ("cpu", "cuda"):
        spec = job(folder, tmp_path / decoder)
        output = Output(str(tmp_path / decoder), Storage())
        output.decide("settings", {"precision": "fp32", "decoder": decoder})
        run(spec, RunOptions(quiet=True))
        assert {output.footer(index)["decoder"] for index in output.finished()} == {decoder}
        tables[decoder] = cnnbatch.open(str(tmp_path / decoder)).arrow(["key", "label", "score", "error"])
    assert tables["cpu"]["key"] == tables["cuda"]["key"]
    assert tables["cuda"]["error"].null_count == 60
    scores = [np.array(tables[decoder]["score"].to_pylist()) for decoder in ("cpu", "cuda")]
    assert np.abs(scores[0] - scores[1]).max() < 0.03
