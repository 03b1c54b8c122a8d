"""A map job in one process: every image its row, in place, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest

import cnnbatch
from cnnbatch.errors import EnvironmentFault, OutputHeld, UserError
from cnnbatch.inference.run import RunOptions, Summary, run
from cnnbatch.job import MapJob
from cnnbatch.storage import Entry, Storage

QUIET = RunOptions(quiet=True)


def job(photos: Path, out: Path | str, task: dict[str, Any] | None = None, **sections: Any) -> MapJob:
    """Return a job of the toy task with small shards and batches."""
    spec: dict[str, Any] = {
        "task": {"name": "tests.toy:Toy", **(task or {})},
        "input": {"url": str(photos), "shard_size": 10, **sections.pop("input", {})},
        "output": sections.pop("output", str(out)),
        "compute": {"pool": "inline", "batch": 4, "cpus_per_worker": 1, **sections.pop("compute", {})},
    }
    return MapJob.model_validate({**spec, **sections})


def table(out: Path) -> pa.Table:
    """Return the rows of an output."""
    rows: pa.Table = cnnbatch.open(str(out)).arrow()
    return rows


def parts(out: Path) -> dict[str, bytes]:
    """Return the bytes of every finished part."""
    return {path.name: path.read_bytes() for path in sorted((out / "predictions").glob("part-*"))}


def test_one_row_an_image_in_the_order_of_the_listing(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "out"
    summary = run(job(folder, out), QUIET)
    rows = table(out).to_pylist()
    keys = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    assert [row["key"] for row in rows] == keys
    assert all(row["error"] is None and row["label"].startswith("class ") for row in rows)
    assert all((row["width"], row["height"]) == (64, 48) for row in rows)
    assert [row["bytes"] for row in rows] == [(folder / key).stat().st_size for key in keys]
    assert (summary.images, summary.exit_status) == (27, 0)
    assert len(parts(out)) == 3


def test_a_second_run_has_nothing_to_do(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(12), tmp_path / "out"
    run(job(folder, out), QUIET)
    before = parts(out)
    summary = run(job(folder, out), QUIET)
    assert (summary.images, summary.total, summary.exit_status) == (0, 12, 0)
    assert parts(out) == before


class Opened(Exception):
    """That a run has asked for workers."""


def test_workers_start_while_a_new_input_is_listed_and_not_where_there_is_nothing_to_do(
    photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, listed = photos(30), tmp_path / "out", Storage.list
    opened = Event()

    def open_pool(*_: object) -> Any:
        opened.set()
        raise Opened

    def slow(self: Storage, uri: str, after: str | None = None) -> Iterator[Entry]:
        if uri.endswith("photos"):
            assert opened.wait(60), "no worker was started while the listing went on"
        yield from listed(self, uri, after)

    monkeypatch.setattr("cnnbatch.inference.run.open_pool", open_pool)
    with monkeypatch.context() as listing:
        listing.setattr(Storage, "list", slow)
        with pytest.raises(Opened):
            run(job(folder, out, input={"format": "files"}, compute={"pool": "local"}), QUIET)
    run(job(folder, out), QUIET)
    monkeypatch.setattr("cnnbatch.inference.run.KnownClasses", None)  # Nothing is looked at, either.
    assert run(job(folder, out, compute={"pool": "local"}), QUIET).images == 0
    next(out.glob("predictions/part-*")).unlink()
    monkeypatch.undo()
    monkeypatch.setattr("cnnbatch.inference.run.open_pool", open_pool)
    with pytest.raises(Opened):
        run(job(folder, out, compute={"pool": "local"}), QUIET)


def test_an_interrupted_run_goes_on_where_it_was(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(35), tmp_path / "out"
    run(job(folder, out), QUIET)
    whole = table(out)
    (out / "predictions" / "part-00000001.parquet").unlink()
    (out / "predictions" / "part-00000003.parquet").unlink()
    kept = parts(out)
    summary = run(job(folder, out, compute={"batch": 7}), QUIET)
    assert summary.images == 15
    assert {name: parts(out)[name] for name in kept} == kept
    assert table(out).drop_columns(["values", "score"]) == whole.drop_columns(["values", "score"])


def test_an_interrupted_listing_goes_on_behind_its_last_page(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(35), tmp_path / "out"
    run(job(folder, out), QUIET)
    whole = table(out)
    plan = out / "_job" / "plan" / "00000"
    for name in ("complete.json", "00002.parquet"):
        (plan / name).unlink(missing_ok=True)
    (out / "predictions" / "part-00000003.parquet").unlink()
    run(job(folder, out), QUIET)
    assert table(out) == whole
    assert json.loads((plan / "complete.json").read_text())["images"] == 35


def break_some(folder: Path) -> dict[str, str]:
    """Break every tenth picture in one of three ways; return the code that each must get."""
    broken = {}
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        if number % 10 == 3:
            kind = number // 10 % 3
            data = path.read_bytes()
            path.write_bytes([b"", b"not a picture", data[: len(data) // 2]][kind])
            broken[str(path.relative_to(folder))] = ["empty", "undecodable", "truncated"][kind]
    return broken


def test_every_broken_file_has_its_row_and_code(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(60), tmp_path / "out"
    broken = break_some(folder)
    summary = run(job(folder, out), QUIET)
    rows = table(out).to_pylist()
    assert len(rows) == 60
    assert {row["key"]: row["error"]["code"] for row in rows if row["error"]} == broken
    assert all(row["label"] is None for row in rows if row["error"])
    assert sum(summary.failed.values()) == 6
    assert summary.exit_status == 1
    assert run(job(folder, tmp_path / "lenient", max_failed=0.1), QUIET).exit_status == 0


def test_retry_failed_predicts_only_the_failed_rows_again(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(30), tmp_path / "out"
    run(job(folder, out), QUIET)
    whole = table(out)
    good = {path: path.read_bytes() for path in folder.rglob("*.jpg")}
    broken = break_some(folder)
    other = tmp_path / "other"
    run(job(folder, other), QUIET)
    for path, data in good.items():
        path.write_bytes(data)
    before = parts(other)
    summary = run(job(folder, other), RunOptions(retry_failed=True, quiet=True))
    assert (summary.images, summary.exit_status) == (len(broken), 0)
    columns = ["key", "uri", "bytes", "width", "height", "error", "label"]
    assert table(other).select(columns) == whole.select(columns)
    assert set(parts(other)) == set(before)
    again = run(job(folder, other), RunOptions(retry_failed=True, quiet=True))
    assert again.images == 0


def test_an_image_that_breaks_the_model_gets_its_row(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(30), tmp_path / "out"
    run(job(folder, tmp_path / "plain"), QUIET)
    run(job(folder, out, {"fault": "raise", "at": "00007"}), QUIET)
    rows = {row["key"]: row for row in table(out).to_pylist()}
    assert [key for key, row in rows.items() if row["error"]] == ["album-1/00007.jpg"]
    assert rows["album-1/00007.jpg"]["error"]["code"] == "predict"
    assert "planted" in rows["album-1/00007.jpg"]["error"]["message"]
    plain = {row["key"]: row["label"] for row in table(tmp_path / "plain").to_pylist()}
    assert all(row["label"] == plain[key] for key, row in rows.items() if not row["error"])


def test_a_broken_device_writes_no_row_and_the_same_run_goes_on(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out, flag = photos(12), tmp_path / "out", tmp_path / "broken"
    flag.touch()
    spec = job(folder, out, {"fault": "device", "flag": str(flag)})
    with pytest.raises(EnvironmentFault, match="random pixels"):
        run(spec, QUIET)
    assert not (out / "predictions").exists()
    flag.unlink()
    assert run(spec, QUIET).images == 12
    assert all(row["error"] is None for row in table(out).to_pylist())


def test_a_report_that_was_not_written_is_written_by_the_same_run_again(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(5), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["cnnbatch.inference.run"], "write_report", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(job(folder, out), QUIET)
    assert not (out / "report.html").exists()
    assert run(job(folder, out), QUIET).images == 0
    report = (out / "report.html").read_bytes()
    (out / "report.html").write_bytes(b"as it was")
    run(job(folder, out), QUIET)
    assert (out / "report.html").read_bytes() == b"as it was"
    assert b"00001.jpg" in report


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def refuse_output(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """Have the disk be full, or the credentials run out, from the second part on."""
    create = Storage.create

    def fail(self: Storage, uri: str, data: Any) -> None:
        if uri.endswith("part-00000001.parquet"):
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            raise EnvironmentFault("the credentials are refused", "renew them")
        create(self, uri, data)

    monkeypatch.setattr(Storage, "create", fail)


@pytest.mark.parametrize("full", [True, False], ids=["full disk", "refused credentials"])
def test_an_output_that_can_not_be_written_costs_no_row_and_the_same_run_goes_on(
    photos: Callable[[int], Path], tmp_path: Path, full: bool
) -> None:
    folder, out = photos(30), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        refuse_output(patch, full)
        with pytest.raises(EnvironmentFault) as fault:
            run(job(folder, out), QUIET)
    assert fault.value.mend
    kept = parts(out)
    assert list(kept) == ["part-00000000.parquet"]
    assert run(job(folder, out), QUIET).images == 20
    assert {name: parts(out)[name] for name in kept} == kept
    assert [row["error"] for row in table(out).to_pylist()] == [None] * 30


def test_a_changed_task_on_an_old_output_is_refused(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(5), tmp_path / "out"
    run(job(folder, out, {"seed": 1}), QUIET)
    before = parts(out)
    with pytest.raises(UserError, match=r"task\.seed: the output has 1, this job has 2"):
        run(job(folder, out, {"seed": 2}), QUIET)
    (out / "predictions" / "part-00000000.parquet").rename(out / "predictions" / "part-00000009.parquet")
    other = job(folder, out, {"seed": 1}, compute={"precision": "bf16"})
    with pytest.raises(UserError, match="precision: the output has 'fp32', this job has 'bf16'"):
        run(other, QUIET)
    assert list(parts(out).values()) == list(before.values())


def test_what_cannot_change_a_row_may_change(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(25), tmp_path / "out"
    run(job(folder, out), QUIET)
    (out / "predictions" / "part-00000002.parquet").unlink()
    changed = job(folder, out, input={"shard_size": 3, "limit": 7}, compute={"batch": 2}, max_failed=0.5)
    assert run(changed, QUIET).images == 5


def test_an_output_without_parts_may_be_given_another_job(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out, flag = photos(5), tmp_path / "out", tmp_path / "broken"
    flag.touch()
    with pytest.raises(EnvironmentFault):
        run(job(folder, out, {"fault": "device", "flag": str(flag)}), QUIET)
    assert run(job(folder, out, {"seed": 3}), QUIET).images == 5


def test_an_output_that_is_held_is_refused(photos: Callable[[int], Path], tmp_path: Path) -> None:
    from cnnbatch.output import lock
    from cnnbatch.storage import Storage

    out = tmp_path / "out"
    with (
        lock.hold(Storage(), str(out / "_job" / "lock"), "other"),
        pytest.raises(OutputHeld, match="another run holds this output"),
    ):
        run(job(photos(3), out), QUIET)
    assert run(job(photos(3), out), QUIET).images == 3


@pytest.mark.parametrize(
    "gone",
    [
        {"host": "elsewhere", "renewed": 0.0},
        {"process": 2**22 + 1},
        {"started": "1"},
    ],
)
def test_a_holder_that_is_gone_is_replaced_at_once(
    photos: Callable[[int], Path], tmp_path: Path, gone: dict[str, Any]
) -> None:
    import os
    import socket

    out = tmp_path / "out"
    (out / "_job").mkdir(parents=True)
    holder = {"run": "x", "host": socket.gethostname(), "process": os.getpid(), "started": "0", **gone}
    (out / "_job" / "lock").write_text(json.dumps(holder))
    assert run(job(photos(3), out), QUIET).images == 3


def test_limit_and_sample_choose_images(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder = photos(60)
    assert run(job(folder, tmp_path / "some", input={"limit": 7}), QUIET).images == 7
    sampled = run(job(folder, tmp_path / "part", input={"sample": 0.5}), QUIET)
    assert 15 < sampled.images < 45


def test_a_list_keeps_its_columns_and_truth(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(15), tmp_path / "out"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    lines = [f"{name},id{number},class {number % 8},north" for number, name in enumerate(names)]
    (folder / "list.csv").write_text("uri,id,species,site\n" + "\n".join(lines) + "\n")
    chosen = {"url": str(folder / "list.csv"), "key": "id", "label": "species", "keep": ["site"]}
    run(job(folder, out, input=chosen), QUIET)
    rows = table(out).to_pylist()
    assert [row["key"] for row in rows] == [f"id{number}" for number in range(15)]
    assert {row["site"] for row in rows} == {"north"}
    truth = pa.parquet.read_table(out / "_job" / "truth" / "part-00000000.parquet")
    assert truth.column("label").to_pylist() == [f"class {number % 8}" for number in range(10)]


def test_a_summary_says_what_happened(photos: Callable[[int], Path], tmp_path: Path, capsys: Any) -> None:
    folder, out = photos(4), tmp_path / "out"
    (folder / "album-0" / "00000.jpg").write_bytes(b"")
    summary = run(job(folder, out))
    said = capsys.readouterr().out
    assert isinstance(summary, Summary)
    assert "album-0/00000.jpg: failed: empty" in said
    assert "album-1/00001.jpg: class" in said
    assert "--retry-failed" in said
    assert str(out / "report.html") in said
