"""`cnnbatch bench`: the figures by hand, what follows from them, and the command on small collections."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner, Result

from cnnbatch.cli.app import app
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.bench import alone as line
from cnnbatch.inference.bench import stages
from cnnbatch.inference.bench import throughput as whole
from cnnbatch.inference.bench.advice import advice
from cnnbatch.inference.bench.command import Bench, bench
from cnnbatch.inference.bench.machine import Machine
from cnnbatch.inference.bench.processes import in_new_processes
from cnnbatch.inference.bench.repeat import RepeatedSource, own_key
from cnnbatch.inference.bench.stages import Stages, StageSample
from cnnbatch.inference.bench.summary import figures, head
from cnnbatch.inference.bench.throughput import Feed, Here, Whole, steady_rate
from cnnbatch.inference.messages import STAGES
from cnnbatch.inference.worker.settings import Settings
from cnnbatch.job import MapJob, to_yaml
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef, Receipt, Shard
from tests.conftest import jpeg
from tests.inference.test_run import break_some, job
from tests.sources.test_source_coco import annotation, image
from tests.sources.test_source_coco import write as write_coco
from tests.sources.test_source_tar import write as write_tar
from tests.toy import Toy, ToyModel

if TYPE_CHECKING:
    from cnnbatch.types import Image, Prepared, Runtime

Photos = Callable[[int], Path]
CPU = Machine(cores=4, workers=4, devices=0, readers=64)
GPU = Machine(cores=2, workers=2, devices=2, readers=32)
SECONDS = {"read": 0.032, "decode": 0.006, "prepare": 0.002, "forward": 0.009, "rows": 0.001, "write": 0.001}


def measured(
    machine: Machine = CPU,
    seconds: Mapping[str, float] | None = None,
    compute: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Bench:
    """Return what a bench may have found; ``changes`` are of fields of any of its values."""
    device = "cuda:H100" if machine.devices else "cpu"
    settings = {"device": device, "precision": "fp32", "backend": "eager", "batch": 16, "window": 128}
    spec = job(Path("photos"), "out", compute={"pool": "auto", "cpus_per_worker": "auto", **(compute or {})})
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"shard_size": 100})})
    here = Here(cores=4, used=machine, has_bf16=False, has_openvino=True)
    run = Whole(
        images=1000,
        failed={},
        failed_keys=frozenset(),
        seconds=20.0,
        ray_s=2.0,
        start_s=5.0,
        steady=190.0,
        busy_s=0.02,
        mean_bytes=1e5,
        settings=settings,
        here=here,
    )
    alone = Stages({**SECONDS, **(seconds or {})}, 0.001, 128, 0, 1.0, 60_000.0, 50_000.0, 1.0)
    found = Bench(spec, 100_000, True, run, alone)
    return changed(found, changes)


def changed(found: Bench, changes: Mapping[str, Any]) -> Bench:
    here = replace(found.whole.here, **{k: v for k, v in changes.items() if hasattr(found.whole.here, k)})
    alone = replace(
        found.stages,
        **{k: v for k, v in changes.items() if k in ("inputs", "pixels", "input_pixels", "given")},
    )
    own = {k: v for k, v in changes.items() if k in ("steady", "ray_s", "start_s")}
    top = {k: v for k, v in changes.items() if k in ("images", "more")}
    return replace(found, whole=replace(found.whole, here=here, **own), stages=alone, **top)


# The figures, by hand


def test_on_a_cpu_the_ceiling_is_the_cores_over_the_sum_of_the_stages() -> None:
    found = measured()
    assert found.ceiling == pytest.approx(4 / 0.020)  # 1 of reading, 6, 2, 9, 1 and 1 ms
    assert (found.bound, found.bottleneck) == ("the processor", "forward")
    assert found.reached == pytest.approx(0.95)
    assert sum(map(found.share, STAGES)) == pytest.approx(1)
    assert found.share("forward") == pytest.approx(0.45)
    alone = {stage: found.alone(stage) for stage in STAGES}
    expected = {"read": 2000, "decode": 4 / 0.006, "prepare": 2000, "forward": 4 / 0.009, "rows": 4000}
    assert alone == pytest.approx({**expected, "write": 4000})


def test_slow_reads_bound_a_cpu() -> None:
    found = measured(seconds={"read": 0.64})
    assert (found.bottleneck, found.bound) == ("read", "reading")
    assert found.ceiling == pytest.approx(100)
    assert "ceiling     100 images/s: 64 reads at a time, 640 ms each" in list(figures(found))


@pytest.mark.parametrize(
    ("seconds", "bottleneck", "ceiling"),
    [
        ({}, "forward", 2 / 0.009),
        ({"forward": 0.001}, "decode", 2 / 0.008),
        ({"forward": 0.001, "decode": 0.001, "prepare": 0.007}, "prepare", 2 / 0.008),
        ({"forward": 0.001, "rows": 0.02}, "rows", 2 / 0.02),
        ({"write": 0.05}, "write", 2 / 0.05),
        ({"read": 0.64}, "read", 32 / 0.64),
    ],
)
def test_an_accelerator_is_as_fast_as_the_slowest_stage(
    seconds: dict[str, float], bottleneck: str, ceiling: float
) -> None:
    found = measured(GPU, seconds)
    assert found.bottleneck == bottleneck
    assert found.ceiling == pytest.approx(ceiling)
    if bottleneck not in ("decode", "prepare"):  # These two share their threads.
        assert found.alone(bottleneck) == pytest.approx(ceiling)


def test_the_mean_of_processes() -> None:
    one = measured().stages
    other = replace(one, seconds={stage: 3 * taken for stage, taken in one.seconds.items()}, reading=0.003)
    both = stages.mean([one, other])
    assert both.seconds == pytest.approx({stage: 2 * taken for stage, taken in SECONDS.items()})
    assert both.reading == pytest.approx(0.002)


def footer(worker: int, second: float, rows: int) -> dict[str, Any]:
    finished = f"2026-01-01T00:00:{second:06.3f}+00:00"
    return {"worker": worker, "host": "here", "finished": finished, "receipt": {"rows": rows}}


def test_the_steady_rate_is_of_the_time_in_which_all_work() -> None:
    parts = [footer(1, second, 100) for second in (2, 4, 6, 8)]
    assert steady_rate(parts) == pytest.approx(50)
    # The second worker begins late and ends early: from 3 to 7 s it makes 200 rows, the first one 200.
    parts += [footer(2, second, 100) for second in (3, 5, 7)]
    assert steady_rate(parts) == pytest.approx(100)
    assert steady_rate(parts[:1]) is None
    assert steady_rate([parts[0], parts[-1]]) is None
    assert steady_rate([]) is None


# What follows from the figures


def test_good_figures_ask_for_nothing_but_a_faster_network() -> None:
    assert [sentence.partition(":")[0] for sentence in advice(measured())] == [
        "the network takes 45% of the processor"
    ]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (measured(replace(CPU, cores=2), compute={"workers": 2}), "2 of 4 cores have work: compute.workers"),
        (measured(replace(CPU, cores=3), compute={"cpus_per_worker": 3}), "compute.cpus_per_worker=auto"),
        (measured(seconds={"read": 0.64}), "64 images at a time, 640 ms each; nearer storage"),
        (measured(replace(CPU, workers=1, readers=16), {"read": 0.64}), "compute.cpus_per_worker=1 gives"),
        (measured(GPU, {"read": 0.64}), "compute.gpus_per_worker=0.5 gives two workers a GPU"),
        (measured(GPU, {"decode": 0.02}), "decode bounds, on 2 of 4 cores: compute.cpus_per_worker=2"),
        (measured(replace(GPU, cores=4), {"decode": 0.04}), "decode bounds, on all 4 cores"),
        (measured(GPU, {"write": 0.02}), "write bounds, one thread a worker: compute.gpus_per_worker=0.5"),
        (measured(GPU), "the network bounds: more accelerators, or a smaller network"),
        (measured(inputs=4.0), "an image makes 4 inputs of the network"),
        (measured(seconds={"decode": 0.03}, pixels=12e6), "240 times the pixels that the network sees"),
        (measured(seconds={"decode": 0.03}), "decode takes 68% of the processor: more cores"),
        (measured(images=250, more=False), "work for 3 of 4 workers: input.shard_size=31"),
        (measured(images=570, more=False), "start-up dominates: 5 s for 3 s of work on 570 images"),
        (measured(images=190, more=False), "starting Ray alone took 2 s: compute.pool=local"),
        (measured(steady=100.0), "the run came to 50% of its ceiling"),
        (measured(steady=100.0, given=0.5), "busy with something else: a process got 50% of its core"),
    ],
)  # fmt: skip
def test_what_would_help(found: Bench, words: str) -> None:
    said = advice(found)
    assert any(words in sentence for sentence in said), said


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (measured(GPU), "processor"),
        (measured(GPU, pixels=12e6), "smaller copies"),
        (measured(images=570, more=True), "start-up"),
        (measured(images=5700, more=False), "start-up"),
        (measured(images=570, more=False), "starting Ray"),
        (measured(steady=None), "ceiling"),
        (measured(seconds={"decode": 0.03}), "pixels"),
    ],
)
def test_what_the_figures_do_not_say(found: Bench, word: str) -> None:
    assert not [sentence for sentence in advice(found) if word in sentence]


class Able(Toy):
    """A task that leaves much to choose."""

    backends = frozenset({"eager", "compile", "openvino"})
    precisions = frozenset({"fp32", "bf16"})


class Plain(Toy):
    """A task that leaves nothing to choose."""

    precisions = frozenset({"fp32"})


def able(found: Bench, kind: type[Toy] = Able) -> str:
    """Return the advice to the same job of another kind of task."""
    task = kind(name="tests.toy:Toy")
    return "\n".join(advice(replace(found, job=found.job.model_copy(update={"task": task}))))


def test_other_ways_through_the_network_are_named_where_they_were_not_tried() -> None:
    said = "compute.precision=auto takes it"
    assert said in able(measured(has_bf16=True, compute={"precision": "fp32"}))
    assert said not in able(measured(has_bf16=False, compute={"precision": "fp32"}))
    assert said not in able(measured(has_bf16=True, compute={"precision": "auto"}))
    assert said not in able(measured(GPU, {"decode": 0.02}, {"precision": "fp32"}, has_bf16=True))
    assert said not in able(measured(has_bf16=True, compute={"precision": "fp32"}), Plain)
    said = "compute.backend=auto also tries compile and openvino"
    assert said in able(measured(compute={"backend": "eager"}))
    assert said not in able(measured())
    said = "pip install 'cnnbatch[openvino]'"
    assert said in able(measured(has_openvino=False))
    assert said not in able(measured()) + able(measured(GPU, has_openvino=False))


def test_the_summary_in_words() -> None:
    assert head(measured()) == (
        "tests.toy:Toy on cpu: 4 workers, 4 of 4 cores; fp32, eager, batches of at most 16"
    )
    assert "2 accelerators" in head(measured(GPU))
    assert list(figures(measured())) == [
        "ceiling     200 images/s: 4 cores over the 20 ms of an image's stages",
        "steady      190 images/s, 95% of the ceiling",
        "whole       50 images/s: 1,000 images in 20 s, 5 s of them start-up (Ray 2 s)",
        "bottleneck  forward, 45% of the processor",
    ]
    assert "steady      unknown: no worker finished two parts; more --images tell" in figures(
        measured(steady=None)
    )


# A trial's shards


def receipt(shard: Shard, busy_s: float, **failed: int) -> Receipt:
    rows = len(shard.refs)
    return Receipt(shard.index, rows, rows, failed, {"read": 99.0, "forward": busy_s})


def refs(count: int) -> list[ImageRef]:
    return [ImageRef(str(number), "") for number in range(count)]


def test_parts_grow_to_some_seconds_of_work() -> None:
    feed = Feed(refs(10_000), first=16, most=1000, ends=True)
    works = feed.work()
    first = next(works).shard
    assert len(first.refs) == 16
    feed.take(receipt(first, 1.6, empty=2))
    assert len(next(works).shard.refs) == 50  # 0.1 s each: 5 s of work
    feed.take(receipt(first, 0.0))
    feed.busy_s = 1e-6
    assert len(next(works).shard.refs) == 1000
    assert feed.failed == {"empty": 2}
    assert [len(work.shard.refs) for work in Feed(refs(7), 16, 3, True).work()] == [3, 3, 1]


def test_parts_end_with_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "RUN_S", 0.0)
    feed = Feed(iter(lambda: ImageRef("", ""), None), first=5, most=9, ends=False)
    works = feed.work()
    feed.take(receipt(next(works).shard, 1.0))
    assert list(works) == []
    feed = Feed(refs(5), first=2, most=2, ends=True)
    works = feed.work()
    feed.take(receipt(next(works).shard, 1.0))
    assert len(list(works)) == 2


# Images again and again


def sources(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Yield inputs of every kind that opens its containers, or knows its truth, in its own way."""
    folder = tmp_path / "classes"
    for number in range(3):
        path = folder / f"kind-{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    yield {"url": str(folder), "format": "folders"}
    for name in ("some.tar", "some.tar.gz"):
        files = [(f"{number}.jpg", jpeg(number)) for number in range(3)]
        yield {"url": write_tar(tmp_path / name, files)}
    (tmp_path / "coco").mkdir()
    for number in range(3):
        (tmp_path / "coco" / f"{number}.jpg").write_bytes(jpeg(number))
    named = [image(number + 1, f"{number}.jpg", width=64, height=48) for number in range(3)]
    truth = write_coco(tmp_path / "instances.json", named, [annotation(1, 1), annotation(2, 3)])
    yield {"url": str(tmp_path / "coco"), "truth": truth}


def test_every_source_reads_its_images_again(tmp_path: Path) -> None:
    for chosen in sources(tmp_path):
        spec = job(tmp_path, tmp_path / "out", input=chosen)
        source = open_source(spec.input, Storage())
        own = tuple(source.refs())
        again = RepeatedSource(source, own)
        shard = Shard(0, tuple(islice(again.refs(), 7)))
        keys = [ref.key for ref in shard.refs]
        assert len(set(keys)) == 7
        assert [own_key(key) for key in keys] == [own[place % 3].key for place in range(7)]
        expected = [reader() for reader in source.read(Shard(0, own))]
        assert [reader() for reader in again.read(shard)] == [expected[place % 3] for place in range(7)]
        known, truth = source.truth(Shard(0, own)), again.truth(shard)
        if known is None:
            assert truth is None
        else:
            assert truth is not None
            assert truth.to_pylist() == [known.to_pylist()[place % 3] for place in range(7)]


# The stages and the whole, in this process


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measure in this process, which then is as it was."""

    def call(function: Callable[[Any], Any], value: Any, processes: int = 1) -> list[Any]:
        return [function(value) for _ in range(processes)]

    monkeypatch.setattr(whole, "in_new_processes", call)
    monkeypatch.setattr(line, "in_new_processes", call)
    monkeypatch.setattr(line, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class TiledModel(ToyModel):
    """Two inputs of an image."""

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Give the same input twice."""
        return [*super().prepare(image)] * 2


class Tiled(Toy):
    """A task that fans out."""

    def load(self, runtime: Runtime) -> TiledModel:
        """Build the network."""
        return TiledModel(self)


def said(_: str) -> None:
    """Hear what goes on."""


@pytest.mark.usefixtures("here")
def test_a_folder_is_measured_and_the_output_is_not_touched(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(12), tmp_path / "out"
    found = bench(job(folder, out, compute={"cpus_per_worker": "auto"}), 40, said)
    assert not out.exists()
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"cnnbatch-bench-*/{folder.name}"))
    assert (found.images, found.more) == (12, False)
    assert (found.whole.images, found.whole.failed) == (40, {})
    assert found.whole.seconds > found.whole.start_s > found.whole.ray_s == 0
    assert found.whole.steady is not None
    assert found.machine == Machine(os.cpu_count() or 1, 1, 0, 16)
    assert all(found.stages.seconds[stage] > 0 for stage in STAGES)
    assert found.stages.reading > 0
    assert (found.stages.failed, found.stages.inputs) == (0, 1.0)
    assert (found.stages.pixels, found.stages.input_pixels) == (64 * 48, 16 * 16)
    assert found.stages.images % 4 == 0  # whole batches


@pytest.mark.usefixtures("here")
def test_without_a_number_it_runs_for_a_time(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "RUN_S", 0.3)
    found = bench(job(photos(3), tmp_path / "out"), None, said)
    assert found.whole.images > 30
    assert found.whole.steady is not None


@pytest.mark.usefixtures("here")
def test_every_source_is_measured(tmp_path: Path) -> None:
    for chosen in sources(tmp_path):
        found = bench(job(tmp_path, tmp_path / "out", input=chosen), 9, said)
        assert (found.whole.images, found.whole.failed, found.stages.failed) == (9, {}, 0)


@pytest.mark.usefixtures("here")
def test_a_task_that_fans_out(photos: Photos, tmp_path: Path) -> None:
    spec = job(photos(5), tmp_path / "out").model_copy(update={"task": Tiled(name="tests.toy:Toy")})
    found = bench(spec, 10, said)
    assert (found.stages.inputs, found.stages.input_pixels) == (2.0, 2 * 16 * 16)
    assert found.stages.failed == 0


@pytest.mark.usefixtures("here")
def test_what_fails_is_counted_and_left_out(photos: Photos, tmp_path: Path) -> None:
    folder = photos(30)
    broken = break_some(folder)
    found = bench(job(folder, tmp_path / "out", {"fault": "raise", "at": "00007"}), 30, said)
    assert found.whole.failed == {"empty": 1, "undecodable": 1, "truncated": 1, "predict": 1}
    assert found.whole.failed_keys == {*broken, "album-1/00007.jpg"}
    assert found.stages.failed == 0
    assert any(line.startswith("failed      4 of 30: ") for line in figures(found))


def test_images_that_fail_only_now_are_left_out_of_the_stages_after(
    photos: Photos, tmp_path: Path, here: None
) -> None:
    folder = photos(6)
    (folder / "album-0" / "00003.jpg").write_bytes(b"no picture")
    spec = job(folder, tmp_path / "out")
    source = open_source(spec.input, Storage())
    settings = Settings("cpu", "fp32", batch=2, window=4, threads=1).to_json()
    sample = StageSample(spec, source, tuple(source.refs()), settings, 4)
    found = line.measure(sample, 1)
    assert (found.images, found.failed) == (6, 1)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="all 6 fail"):
        line.measure(sample, 1)
    broken = spec.model_copy(update={"task": Toy(name="tests.toy:Toy", fault="device", flag=str(tmp_path))})
    (folder / "album-0" / "00003.jpg").write_bytes(jpeg(1))
    with pytest.raises(EnvironmentFault, match="the model fails on images of the sample: .*device is broken"):
        line.measure(replace(sample, job=broken), 1)


# New processes


def test_what_a_new_process_raises_is_raised_here() -> None:
    assert in_new_processes(len, "abc", 2) == [3, 3]
    with pytest.raises(ValueError, match="invalid literal"):
        in_new_processes(int, "x")
    with pytest.raises(EnvironmentFault, match="FileNotFoundError"):
        in_new_processes(os.listdir, "/nowhere")
    with pytest.raises(EnvironmentFault, match="has ended"):
        in_new_processes(os._exit, 1)


# The command


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Result]:
    def call(spec: MapJob, *arguments: str) -> Result:
        path = tmp_path / "job.yaml"
        path.write_text(to_yaml(spec))
        return CliRunner().invoke(app, ["bench", str(path), *arguments])

    return call


@pytest.mark.usefixtures("here")
def test_the_command(photos: Photos, tmp_path: Path, command: Callable[..., Result]) -> None:
    done = command(job(photos(12), tmp_path / "out"), "--images", "30", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found["stages"]) == list(STAGES)
    costs = [found["stages"][stage]["seconds"] for stage in STAGES]
    assert found["bounds"]["the processor"] == pytest.approx(found["machine"]["used"]["cores"] / sum(costs))
    assert found["ceiling"] == min(found["bounds"].values())
    assert found["whole"]["reached"] == pytest.approx(found["whole"]["steady"] / found["ceiling"])
    assert found["whole"]["images"] == 30
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_on_ray(photos: Photos, tmp_path: Path, command: Callable[..., Result]) -> None:
    spec = job(photos(12), tmp_path / "out", compute={"pool": "ray", "workers": 1})
    done = command(spec, "--images", "100")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert re.match(r"tests.toy:Toy on cpu[^,]*: 1 worker, 1 of ", lines[0])
    assert [line.split()[0] for line in lines[3:9]] == list(STAGES)
    words = [line.split()[0] for line in lines if line]
    assert {"ceiling", "steady", "whole", "bottleneck"} <= set(words)
    assert "(Ray " in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_the_commands_ways_to_end(photos: Photos, tmp_path: Path, command: Callable[..., Result]) -> None:
    folder = photos(3)
    spec = job(folder, tmp_path / "out")
    wrong = command(spec, "input.limt=3")
    assert (wrong.exit_code, "did you mean" in wrong.stderr) == (2, True)
    assert command(spec, f"input={tmp_path}/nowhere").exit_code == 2
    (tmp_path / "empty").mkdir()
    nothing = command(spec, f"input={tmp_path}/empty")
    assert nothing.exit_code == 2
    assert str(tmp_path / "empty") in nothing.stderr
    broken = command(spec, "task.fault=device", f"task.flag={tmp_path}", "--images", "3")
    assert broken.exit_code == 3
    assert "fails on every image" in broken.stderr
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    bad = command(spec, "--images", "3")
    assert bad.exit_code == 2
    assert "none of 3 could be predicted: empty 3" in bad.stderr
    assert not (tmp_path / "out").exists()
