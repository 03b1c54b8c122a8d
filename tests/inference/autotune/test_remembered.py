"""What was measured once is taken again where it holds; where measuring would not pay, there is the prior."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import cnnbatch
from cnnbatch.inference.autotune import candidates as candidates_module
from cnnbatch.inference.autotune import recall, remembered
from cnnbatch.inference.autotune.candidates import MOST_S, Budget, TuningCandidate, candidates, prior
from cnnbatch.inference.autotune.store import FirstImages, SettingsStore
from cnnbatch.inference.messages import LoadOrder, Ready, RememberedSettings
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.inference.worker.settings import Settings
from cnnbatch.inference.worker.worker import Worker
from cnnbatch.job import MapJob
from cnnbatch.output.folder import Output
from cnnbatch.report import ways
from cnnbatch.storage import Storage
from cnnbatch.types import Backend, ImageRef, Precision
from tests import paced

Photos = Callable[[int], Path]
ALL: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
BACKENDS: tuple[Backend, ...] = ("eager", "compile", "openvino")
PACE = {"eager": 1.0, "openvino": 0.25, "compile": 0.5}
NARROW_IS_FASTER = {"eager": 4.0, "eager bf16": 1.0, "openvino": 0.5, "compile": 0.5}


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a processor that computes in bfloat16, and forget what a task said of the budget."""
    monkeypatch.setattr(candidates_module, "SHARE", candidates_module.SHARE)
    monkeypatch.setattr(candidates_module, "LOADING_S", candidates_module.LOADING_S)
    monkeypatch.setattr("cnnbatch.inference.autotune.measure.has_bf16", lambda device: True)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of images of every pass which is made to measure."""
    found: list[int] = []
    outputs = Worker.outputs

    def counted(self: Worker, shard: Any, clock: Any) -> Any:
        found.append(len(shard.refs))
        return outputs(self, shard, clock)

    monkeypatch.setattr(Worker, "outputs", counted)
    return found


def job(photos: Path, out: Path, task: dict[str, Any] | None = None, **compute: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {"name": "tests.paced:Paced", "milliseconds": PACE, **(task or {})},
            "input": {"url": str(photos), "shard_size": 60},
            "output": str(out),
            "compute": {"pool": "inline", "batch": 16, "cpus_per_worker": 1, "precision": "fp32", **compute},
        }
    )


def small(photos: Path, out: Path, **task: Any) -> MapJob:
    """Return a job of too few images to measure all ways."""
    return job(photos, out, {"share": 0.01, "milliseconds": NARROW_IS_FASTER, **task}, precision="auto")


def kept(out: Path) -> dict[str, Any]:
    """Return how the one kind of device runs."""
    (path,) = (out / "_job" / "settings").iterdir()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def way(out: Path) -> str:
    """Return by which way all parts were made, by what each of them says."""
    output = Output(str(out), Storage())
    footers = [output.footer(index) for index in output.finished()]
    (found,) = {f"{footer['backend']} {footer['precision']}" for footer in footers}
    return found


def verdicts(out: Path) -> dict[str, str]:
    return {f"{one['backend']} {one['precision']}": one["verdict"] for one in kept(out)["trials"]}


def files() -> list[Path]:
    return sorted(remembered.folder().glob("*"))


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(
    photos: Photos, tmp_path: Path, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(110)
    run(job(folder, tmp_path / "first"))
    assert passes
    assert "on this machine on" not in capsys.readouterr().err
    passes.clear()
    run(job(folder, tmp_path / "second"))
    assert passes == []
    assert way(tmp_path / "first") == way(tmp_path / "second") == "openvino fp32"
    (day,) = [json.loads(path.read_text())["on"] for path in files()]
    shown = capsys.readouterr()
    assert f"fp32, openvino: measured on this machine on {day}" in shown.err.splitlines()
    assert "ran by: openvino fp32" in shown.out
    assert verdicts(tmp_path / "second") == {"eager fp32": "slower", "openvino fp32": "chosen"}
    assert kept(tmp_path / "second")["trials"][1]["agreement"]["class agreement"] == 1
    (device,) = ways.devices(Output(str(tmp_path / "second"), Storage()))
    assert device.why.endswith(f"times as fast as eager fp32: measured on this machine on {day}.")


@pytest.mark.slow
def test_for_another_network_of_the_same_name_it_is_measured_anew(
    photos: Photos, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(110)
    run(job(folder, tmp_path / "first"), RunOptions(quiet=True))
    passes.clear()
    monkeypatch.setattr(paced, "LIBRARY", "paced 2")
    run(job(folder, tmp_path / "second"), RunOptions(quiet=True))
    assert passes
    assert way(tmp_path / "second") == "openvino fp32"


def test_of_another_task_nothing_is_taken(tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out")
    remembered.remember(spec, one(), pytest.fail)
    assert remembered.recall(job(tmp_path, tmp_path / "out", backend="eager"), pytest.fail) == (one(),)
    assert remembered.recall(job(tmp_path, tmp_path / "out", {"weights": "1" * 64}), pytest.fail) == ()


@pytest.mark.slow
def test_a_way_that_is_gone_is_measured_anew(
    photos: Photos,
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = photos(110)
    run(job(folder, tmp_path / "first"), RunOptions(quiet=True))
    passes.clear()
    monkeypatch.setattr(paced, "LACKING", {"openvino"})
    run(job(folder, tmp_path / "second"))
    assert passes
    assert way(tmp_path / "second") == "compile fp32"
    said = [line for line in capsys.readouterr().err.splitlines() if "can't be used any more" in line]
    assert len(said) == 1
    assert said[0].startswith("openvino fp32, measured on this machine on ")
    assert said[0].endswith("planted: no openvino")
    passes.clear()
    run(job(folder, tmp_path / "third"), RunOptions(quiet=True))
    assert passes == []
    assert way(tmp_path / "third") == "compile fp32"


@pytest.mark.slow
def test_what_the_output_keeps_wins(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(job(folder, out, {"share": 0.01, "milliseconds": NARROW_IS_FASTER}), RunOptions(quiet=True))
    run(small(folder, tmp_path / "narrow"), RunOptions(quiet=True))
    assert way(tmp_path / "narrow") == "eager bf16"
    (out / "predictions" / "part-00000001.parquet").unlink()
    for path in (out / "_job" / "settings").iterdir():  # As on another kind of device.
        path.unlink()
    run(small(folder, out), RunOptions(quiet=True))
    assert way(out) == "eager fp32"


@pytest.mark.slow
def test_what_the_job_names_wins_and_is_remembered_apart(photos: Photos, tmp_path: Path) -> None:
    folder = photos(110)
    jobs: list[tuple[str, dict[str, Any], str]] = [
        ("auto", {}, "openvino fp32"),
        ("backend", {"backend": "eager"}, "eager fp32"),
        ("precision", {"precision": "bf16"}, "openvino bf16"),
        ("both", {"precision": "bf16", "backend": "eager"}, "eager bf16"),
        ("auto again", {}, "openvino fp32"),
    ]
    for name, compute, expected in jobs:
        run(job(folder, tmp_path / name, **compute), RunOptions(quiet=True))
        assert way(tmp_path / name) == expected
    assert len(files()) == 2  # Where both are named, or one that leaves nothing open, nothing is measured.


@pytest.mark.slow
def test_a_damaged_file_costs_a_note(
    photos: Photos, tmp_path: Path, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(110)
    run(job(folder, tmp_path / "first"), RunOptions(quiet=True))
    (path,) = files()
    good = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"openvino"', '"/bin/sh"'))
    passes.clear()
    run(job(folder, tmp_path / "second"))
    assert passes
    said = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
    assert len(said) == 1
    assert json.loads(path.read_text())["backend"] == good["backend"]


def test_a_folder_that_cannot_be_written_costs_a_note(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path / "file"))
    summary = run(job(photos(110), tmp_path / "out"))
    assert (summary.images, summary.failed) == (110, {})
    said = [line for line in capsys.readouterr().err.splitlines() if "not remembered" in line]
    assert len(said) == 1
    assert "CNNBATCH_CACHE" in said[0]


def one(**fields: Any) -> RememberedSettings:
    """Return what an earlier job has found."""
    found = RememberedSettings(
        conditions={"device": "cpu:AVX2"},
        network="0",
        precision="bf16",
        backend="eager",
        batch=16,
        tf32=False,
        decoder="cpu",
        found="measured",
        on="2026-11-30",
    )
    return replace(found, **fields)


@pytest.mark.parametrize(
    "damage",
    [
        {"precision": "fp64"},
        {"backend": "../../evil.so"},
        {"batch": 0},
        {"batch": 10**9},
        {"batch": "16"},
        {"batch": True},
        {"tf32": "yes"},
        {"decoder": "rm -rf"},
        {"found": "guessed"},
        {"on": "today\u001b[2J"},
        {"enough": -1},
        {"rate": float("nan")},
        {"rate": 0},
        {"agreement": {"class agreement": "1"}},
        {"agreement": {str(number): 1.0 for number in range(99)}},
        {"conditions": {"device": ["cpu"]}},
        {"network": "0" * 9999},
        {"padding": "0" * 20_000},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_hostile_file_is_not_believed(damage: dict[str, Any], tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out")
    remembered.remember(spec, one(), pytest.fail)
    assert remembered.recall(spec, pytest.fail) == (one(),)
    (path,) = files()
    path.write_text(json.dumps(asdict(one()) | damage))
    notes: list[str] = []
    assert remembered.recall(spec, notes.append) == ()
    assert len(notes) == 1
    assert files() == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[]", b"null", b"[" * 16_000])
def test_a_file_that_is_no_record_is_not_believed(content: bytes, tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out")
    remembered.remember(spec, one(), pytest.fail)
    (path,) = files()
    path.write_bytes(content)
    notes: list[str] = []
    assert remembered.recall(spec, notes.append) == ()
    assert len(notes) == 1


def test_a_folder_or_a_pipe_in_the_place_of_a_file_is_not_read(tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out")
    remembered.remember(spec, one(), pytest.fail)
    (path,) = files()
    path.unlink()
    for make in (os.mkdir, os.mkfifo):
        make(path)
        assert len(notes_of(spec)) == 1
        if path.exists():
            path.rmdir()


def notes_of(spec: MapJob) -> list[str]:
    notes: list[str] = []
    assert remembered.recall(spec, notes.append) == ()
    return notes


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_FILES", 5)
    spec = job(tmp_path, tmp_path / "out")
    for number in range(8):
        remembered.remember(spec, one(conditions={"device": str(number)}), pytest.fail)
    assert len(files()) == 5
    devices = {found.conditions["device"] for found in remembered.recall(spec, pytest.fail)}
    assert "7" in devices


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({}, True),
        ({"precision": "fp16"}, False),  # Which a CPU only emulates.
        ({"decoder": "cuda"}, False),
        ({"tf32": True}, False),
        ({"batch": 8}, False),  # The job names 16.
        ({"precision": "fp32"}, True),
    ],
)
def test_only_a_way_that_is_open_here_is_taken(fields: dict[str, Any], taken: bool, tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out", precision="auto")
    plain = Settings("cpu:AVX2", "fp32", 16, 128, 1)
    here = recall._conditions(spec, plain, True, True)
    found = one(conditions=here, **fields)
    output, source = Output(str(tmp_path), Storage()), None
    order = LoadOrder(spec, source, output, True, None, (one(), found))  # type: ignore[arg-type]
    assert recall.recalled(order, plain) == (found if taken else None)
    settled = replace(order, kept={"precision": "fp32"})
    assert recall.recalled(settled, plain) is None


@pytest.mark.parametrize(
    ("batch", "taken"), [(8, True), (16, True), (32, True), (64, False), (10_000, False)]
)
def test_no_batch_is_taken_that_measuring_would_not_try(batch: int, taken: bool, tmp_path: Path) -> None:
    spec = job(tmp_path, tmp_path / "out", precision="auto", batch="auto")
    plain = Settings("cpu:AVX2", "fp32", 16, 128, 1)
    found = one(conditions=recall._conditions(spec, plain, True, True), batch=batch)
    order = LoadOrder(spec, None, Output(str(tmp_path), Storage()), True, None, (found,))  # type: ignore[arg-type]
    assert (recall.recalled(order, plain) is found) == taken


@pytest.mark.slow
def test_broken_pictures_are_no_reason_for_the_next_job(photos: Photos, tmp_path: Path) -> None:
    folder = photos(110)
    for path in sorted(folder.rglob("*.jpg"))[::4]:
        path.write_bytes(b"no picture")
    run(small(folder, tmp_path / "out"), RunOptions(quiet=True))
    assert kept(tmp_path / "out")["precision"] == "fp32"
    assert files() == []


@pytest.mark.parametrize("name", ["_machine", "_versions", "device", "threads", "batch", "backend"])
def test_under_other_conditions_nothing_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, plain = job(tmp_path, tmp_path / "out", precision="auto"), Settings("cpu:AVX2", "fp32", 16, 128, 1)
    found = one(conditions=recall._conditions(spec, plain, True, True))
    others: dict[str, Any] = {
        "_machine": lambda: "another",
        "_versions": lambda: {},
        "device": "cpu:AVX512",
        "threads": 2,
        "batch": "auto",
        "backend": "eager",
    }
    if name.startswith("_"):
        monkeypatch.setattr(recall, name, others[name])
    elif name in ("batch", "backend"):
        compute = {"precision": "auto", name: others[name]}
        spec = job(tmp_path, tmp_path / "out", **compute)
    else:
        plain = replace(plain, **{name: others[name]})
    order = LoadOrder(spec, None, Output(str(tmp_path), Storage()), True, None, (found,))  # type: ignore[arg-type]
    assert recall.recalled(order, plain) is None


def test_the_prior_takes_a_narrower_precision_that_gives_the_same_results(
    photos: Photos, tmp_path: Path, passes: list[int]
) -> None:
    out = tmp_path / "out"
    run(small(photos(110), out), RunOptions(quiet=True))
    assert way(out) == "eager bf16"
    assert passes == [16, 32, 16, 32]  # Of each a batch to warm up, then those that are timed and compared.
    found = verdicts(out)
    assert (found.pop("eager fp32"), found.pop("eager bf16")) == ("slower", "chosen")
    assert set(found.values()) == {"not tried"}
    chosen = next(one for one in kept(out)["trials"] if one["verdict"] == "chosen")
    assert chosen["reason"].startswith("chosen by prior, since measuring would take about ")
    assert chosen["agreement"]["class agreement"] == 1


def test_the_prior_stays_with_fp32_where_results_differ(photos: Photos, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(small(photos(110), out, shift={"eager bf16": 1}), RunOptions(quiet=True))
    assert way(out) == "eager fp32"
    assert verdicts(out)["eager bf16"] == "other results"
    assert verdicts(out)["eager fp32"] == "chosen"


def test_the_prior_is_not_tried_where_that_takes_more_than_it_saves(
    photos: Photos, tmp_path: Path, passes: list[int]
) -> None:
    folder, out = photos(110), tmp_path / "out"
    slow = {**NARROW_IS_FASTER, "eager": 0.1}
    run(small(folder, out, milliseconds=slow), RunOptions(quiet=True))
    assert way(out) == "eager fp32"
    assert passes == [16, 32]
    passes.clear()
    run(small(folder, tmp_path / "again", milliseconds=slow), RunOptions(quiet=True))
    assert (way(tmp_path / "again"), passes) == ("eager fp32", [])


def test_the_priors_way_is_taken_again_and_by_what_resumes(
    photos: Photos, tmp_path: Path, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(110), tmp_path / "out"
    run(small(folder, out), RunOptions(quiet=True))
    passes.clear()
    run(small(folder, tmp_path / "second"))
    assert "bf16, eager: chosen by prior on this machine on " in capsys.readouterr().err
    first = cnnbatch.open(str(out)).arrow(["key", "label"])
    for path in files():
        path.unlink()
    settled = kept(out)
    (out / "predictions" / "part-00000001.parquet").unlink()
    run(small(folder, out), RunOptions(quiet=True))
    assert passes == []
    assert cnnbatch.open(str(out)).arrow(["key", "label"]) == first
    assert (kept(out), way(out), way(tmp_path / "second")) == (settled, "eager bf16", "eager bf16")


@pytest.mark.slow
def test_a_larger_job_measures_what_the_prior_has_settled(
    photos: Photos, tmp_path: Path, passes: list[int]
) -> None:
    folder = photos(110)
    run(small(folder, tmp_path / "small"), RunOptions(quiet=True))
    (path,) = files()
    assert json.loads(path.read_text())["found"] == "prior"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"enough": 110}))
    passes.clear()
    run(small(folder, tmp_path / "large"), RunOptions(quiet=True))
    assert passes  # From the beginning, and then the job is found too small again.
    assert json.loads(path.read_text())["enough"] > 110
    assert way(tmp_path / "large") == "eager bf16"


@pytest.mark.parametrize(
    ("images", "workers", "enough", "measures"),
    [(1500, 2, 800, False), (1600, 2, 800, True), (10**6, 1, None, False), (1500, 0, 1500, True)],
)
def test_it_is_measured_again_for_many_more_images(
    images: int, workers: int, enough: int | None, measures: bool, tmp_path: Path
) -> None:
    refs = [ImageRef(f"{number:04}", f"{number:04}") for number in range(200)]
    output = Output(str(tmp_path), Storage())
    store = SettingsStore(job(tmp_path, tmp_path), output, FirstImages(refs, lambda: images))
    ready = Ready(
        {"device": "cpu:AVX2"}, {}, "host", "journal", 0, 0, open=True, remembered=one(enough=enough)
    )
    assert (store.sample(ready, workers) is not None) == measures


def test_the_budget_says_how_many_images_would_be_enough() -> None:
    budget = Budget(images=1500, workers=2, seconds_each=0.01, spent_s=1.0)
    assert budget.enough is None
    assert budget.reason_against(0.5) == ""
    assert budget.enough is None
    assert budget.reason_against(4.0)
    assert budget.enough == 2000
    assert Budget(2000 * 2, 2, 0.01, spent_s=1.0).reason_against(4.0) == ""
    assert budget.reason_against(3.0)
    assert budget.enough == 1600
    budget.reason_against(2 * MOST_S)  # Which no job has.
    assert budget.enough == 1600
    assert not budget.pays(1.0, 0.001)
    assert budget.enough == 1000
    assert Budget(1000 * 2, 2, 0.01).pays(1.0, 0.001)


@pytest.mark.parametrize(
    ("device", "bf16", "backend", "expected"),
    [
        ("cpu", True, "eager", "bf16 eager"),
        ("cpu", False, "eager", ""),
        ("cpu", True, "openvino", "bf16 openvino"),
        ("cuda", True, "eager", "bf16 eager"),
        ("cuda", False, "eager", "fp16 eager"),
        ("cuda", True, "compile", "bf16 compile"),
        ("mps", False, "eager", "fp16 eager"),
    ],
)
def test_the_prior_is_what_the_device_computes_in(
    device: str, bf16: bool, backend: Backend, expected: str
) -> None:
    found = prior(candidates(device, bf16, ALL, BACKENDS), backend)
    assert (f"{found.precision} {found.backend}" if found else "") == expected
    assert prior(candidates(device, bf16, {"fp32"}, BACKENDS), backend) is None
    assert prior([TuningCandidate("bf16", "eager")], "openvino") is None
