"""What was forgotten in an output stays forgotten, whatever is run on it later; all else stays as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnbatch.errors import UserError
from cnnbatch.evaluation.comparison import CompareOptions, compare
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.launch import report
from cnnbatch.output.evaluation import read_evaluation
from cnnbatch.output.export import export
from cnnbatch.output.failures import failed_images
from cnnbatch.output.folder import Output
from cnnbatch.output.forgetting import Rewritten
from cnnbatch.output.forgotten import key_hmac, secret_of, suppress
from cnnbatch.output.reader import Reader
from cnnbatch.storage import Storage
from cnnbatch.terminal.screen import Screen
from tests import tiny
from tests.conftest import jpeg
from tests.forgetting import forget, traces
from tests.inference.test_new import NEW, PRUNE, add, change, files
from tests.inference.test_run import QUIET, job, parts, table

Photos = Callable[[int], Path]
GONE = "album-1/00004.jpg"
AGAIN = RunOptions(retry_failed=True, quiet=True)


def by_key(out: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in table(out).to_pylist()}


def hashed(out: Path, key: str) -> str:
    return key_hmac(secret_of(Output(str(out), Storage())), key)


def require_forgotten(out: Path, before: dict[str, dict[str, Any]], *keys: str) -> None:
    """Require a row that says nothing for each of ``keys``, and no trace; others are as ``before``."""
    after = by_key(out)
    for key in keys:
        row = after.pop(hashed(out, key))
        assert row.pop("error")["code"] == "forgotten"
        assert row.pop("vanished") is False
        assert {name for name, value in row.items() if value is not None} == {"key"}
    assert after == {key: row for key, row in before.items() if key not in keys}
    vectors = [before[key]["values"] for key in keys if key in before]
    assert traces(out, [key.split("/")[-1] for key in keys], vectors) == set()


def test_a_photo_leaves_a_row_that_says_nothing(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "out"
    run(job(folder, out), QUIET)
    before, old, place = by_key(out), parts(out), [*by_key(out)].index(GONE)
    part, page = "predictions/part-00000001.parquet", "_job/plan/00000/00001.parquet"
    assert {part, page} <= traces(out, ["00004.jpg"], [before[GONE]["values"]])
    rewritten = forget(out, GONE)
    require_forgotten(out, before, GONE)
    assert [*by_key(out)].index(hashed(out, GONE)) == place
    assert rewritten.shards == {1}
    assert {one.uri.removeprefix(f"{out}/") for one in rewritten.objects} == {part, page, "report.html"}
    assert {name for name in old if parts(out)[name] != old[name]} == {"part-00000001.parquet"}
    assert Rewritten.from_json(rewritten.to_json()) == rewritten
    result = Reader(str(out), Storage())
    assert (len(result), result.failures().total(), [*failed_images(result)]) == (27, 0, [])


@pytest.mark.parametrize("options", [QUIET, NEW, AGAIN, PRUNE], ids=["plain", "new", "again", "prune"])
def test_later_runs_leave_it_as_it_is(options: RunOptions, photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "out"
    run(job(folder, out), QUIET)
    before = by_key(out)
    forget(out, GONE)
    old = parts(out)
    summary = run(job(folder, out, max_failed=0.0), options)
    assert (summary.images, summary.exit_status, summary.failed_in_all) == (0, 0, {})
    assert parts(out) == old
    require_forgotten(out, before, GONE)


def test_a_lost_part_is_predicted_without_it(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "out"
    run(job(folder, out), QUIET)
    before = by_key(out)
    forget(out, GONE)
    for part in out.glob("predictions/*"):
        part.unlink()
    summary = run(job(folder, out, max_failed=0.0), QUIET)
    assert (summary.images, summary.exit_status, summary.failed_in_all) == (27, 0, {})
    assert by_key(out).keys() == before.keys() - {GONE} | {hashed(out, GONE)}
    assert traces(out, ["00004.jpg"], [before[GONE]["values"]]) == set()


def test_a_photo_that_changes_or_goes_stays_forgotten(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "out"
    run(job(folder, out), QUIET)
    forget(out, GONE)
    before = by_key(out)
    change(folder / GONE, files(folder)[0])
    added = add(folder, "new/a.jpg", files(folder)[3])
    assert run(job(folder, out), NEW).found == {"new": 1, "changed": 0, "vanished": 0}
    (folder / GONE).unlink()
    added.unlink()
    summary = run(job(folder, out), RunOptions(new=True, prune=True, quiet=True))
    assert summary.found == {"new": 0, "changed": 0, "vanished": 1}
    after = by_key(out)
    assert after.pop("new/a.jpg")["vanished"]
    assert after == before
    assert traces(out, ["00004.jpg"]) == set()


def test_what_later_listings_found_of_it_goes_too(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "out"
    run(job(folder, out), QUIET)
    for number, path in enumerate((folder / GONE, files(folder)[3])):
        path.write_bytes(jpeg(100 + number))
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert run(job(folder, out), NEW).found["changed"] == 2
    before, changes = by_key(out), "_job/plan/00001/changes-00000.parquet"
    assert changes in traces(out, ["00004.jpg"])
    forget(out, GONE)
    require_forgotten(out, before, GONE)
    assert run(job(folder, out), NEW).images == 0
    (out / "_job" / "plan" / "00001" / "applied.json").unlink()  # Then the parts are compared with the plan.
    assert run(job(folder, out), AGAIN).images == 0
    require_forgotten(out, before, GONE)


def test_a_sample_takes_the_same_images_as_ever(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(60), tmp_path / "out"
    run(job(folder, out, input={"sample": 0.3}), QUIET)
    before = by_key(out)
    gone, other = [*before][2], next(key for key in map(str, folder.rglob("*.jpg")) if key not in before)
    other = other.removeprefix(f"{folder}/")
    forget(out, gone, other)
    assert run(job(folder, out, input={"sample": 0.3}), NEW).found == {"new": 0, "changed": 0, "vanished": 0}
    require_forgotten(out, before, gone)
    run(job(folder, out, input={"sample": 1.0}), QUIET)
    assert len(by_key(out)) == 60
    assert {hashed(out, gone), hashed(out, other)} <= by_key(out).keys()
    assert traces(out, [gone, other]) == set()


def test_a_listing_whose_last_image_is_forgotten_goes_on(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(35), tmp_path / "out"
    run(job(folder, out), QUIET)
    before = by_key(out)
    plan = out / "_job" / "plan" / "00000"
    for name in ("complete.json", "00002.parquet"):
        (plan / name).unlink(missing_ok=True)
    (out / "predictions" / "part-00000003.parquet").unlink()
    gone = [*by_key(out)][-1]
    forget(out, gone)
    run(job(folder, out), QUIET)
    require_forgotten(out, before, gone)
    assert (plan / "complete.json").exists()
    assert run(job(folder, out), NEW).images == 0


def test_a_failed_image_that_is_forgotten_is_no_failure(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(27), tmp_path / "out"
    (folder / GONE).write_bytes(b"no picture")
    files(folder)[2].write_bytes(b"no picture")
    assert run(job(folder, out, max_failed=1.0), QUIET).failed_in_all == {"undecodable": 2}
    forget(out, GONE)
    assert run(job(folder, out, max_failed=1.0), QUIET).failed_in_all == {"undecodable": 1}
    (one,) = failed_images(Reader(str(out), Storage()))
    assert one.key == str(files(folder)[2].relative_to(folder))
    assert run(job(folder, out, max_failed=1.0), AGAIN).images == 1


def test_one_worker_and_several_leave_the_same(photos: Photos, tmp_path: Path) -> None:
    folder, found = photos(35), list[dict[str, dict[str, Any]]]()
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        run(job(folder, out), QUIET)
        forget(out, GONE)
        for part in out.glob("predictions/*"):
            part.unlink()
        run(job(folder, out, compute={"pool": "local", "workers": workers}), QUIET)
        rows = by_key(out)
        found.append({key: row for key, row in rows.items() if key != hashed(out, GONE)})
        assert rows[hashed(out, GONE)]["error"]["code"] == "forgotten"
    assert found[0] == found[1]


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Have a process end where it writes or deletes for the ``number``-th time."""
    left = number

    def counted(real: Any) -> Any:
        def write(*given: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*given)

        return write

    for name in ("create", "replace", "put", "delete"):
        patch.setattr(Storage, name, counted(getattr(Storage, name)))


@pytest.mark.slow
def test_a_command_that_is_killed_anywhere_goes_on(tmp_path: Path) -> None:
    photos, out, backup = warm_and_cold(tmp_path / "photos", 6), tmp_path / "out", tmp_path / "backup"
    run(classify(photos, out), QUIET)
    Output(str(out), Storage()).decide("forgotten/secret", {"version": 1, "secret": "5" * 64})
    shutil.copytree(out, backup)
    gone, name = ("warm/0001.png", "cold/0003.png"), "a" * 32
    expected, whole, number = forget(out, *gone, name=name), snapshot(out), 0
    while True:
        shutil.rmtree(out)
        shutil.copytree(backup, out)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(number, patch)
            try:
                forget(out, *gone, name=name)
                break
            except Killed:
                number += 1
        found = forget(out, *gone, name=name)
        assert {one.uri for one in found.objects} == {one.uri for one in expected.objects}
        assert snapshot(out) == whole, number
    assert number > 10


def warm_and_cold(folder: Path, each: int) -> Path:
    """Write pictures of the two classes of the small network."""
    tiny.colours(folder, each, ("blue", "red"))
    for colour, name in (("blue", "cold"), ("red", "warm")):
        (folder / colour).rename(folder / name)
    return folder


def classify(photos: Path, out: Path, **more: Any) -> MapJob:
    """Return a job of a small network whose classes are the names of the photos' folders."""
    spec: dict[str, Any] = {
        "task": {"name": "classify", "model": "tests.tiny:build"},
        "input": {"url": str(photos), "format": "folders", "shard_size": 4},
        "output": str(out),
        "compute": {"pool": "inline", "precision": "fp32", "backend": "eager", "cpus_per_worker": 1},
    }
    return MapJob.model_validate({**spec, **more})


def test_evaluation_report_and_exports_have_no_trace_of_it(tmp_path: Path) -> None:
    photos, out, fresh = warm_and_cold(tmp_path / "photos", 6), tmp_path / "out", tmp_path / "fresh"
    gone = ("warm/0001.png", "cold/0003.png")
    run(classify(photos, out), QUIET)
    assert "_job/truth/part-00000000.parquet" in traces(out, gone)
    forget(out, *gone)
    evaluation = read_evaluation(str(out), Storage())
    assert evaluation is not None
    assert (evaluation.images, evaluation.failed) == (10, 0)
    for name in gone:
        (photos / name).unlink()
    run(classify(photos, fresh), QUIET)
    expected = read_evaluation(str(fresh), Storage())
    assert expected is not None
    assert evaluation.metrics == expected.metrics
    assert "2 forgotten" in (out / "report.html").read_text()
    report(str(out), Storage())
    assert traces(out, gone) == set()
    summary = export(str(out), "csv", str(tmp_path / "rows.csv"))
    assert (summary.counts.images, summary.counts.forgotten, summary.counts.failed.total()) == (10, 2, 0)
    text = (tmp_path / "rows.csv").read_text()
    assert len(text.splitlines()) == 11
    assert not any(hashed(out, name) in text for name in gone)
    with Screen(quiet=True) as screen:
        found = compare(str(out), str(fresh), CompareOptions(), Storage(), screen)
    assert found.agreement.count == 10


def test_until_it_is_done_nothing_reads_the_output(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(12), tmp_path / "out"
    run(job(folder, out), QUIET)
    suppress(Output(str(out), Storage()), "a" * 32, [], "s3://faces/index")
    for act in (
        lambda: run(job(folder, out), QUIET),
        lambda: table(out),
        lambda: report(str(out), Storage()),
        lambda: export(str(out), "csv", str(tmp_path / "rows.csv")),
        lambda: compare(str(out), str(out), CompareOptions(), Storage(), Screen(quiet=True)),
    ):
        with pytest.raises(UserError, match="`cnnbatch forget s3://faces/index` goes on"):
            act()
