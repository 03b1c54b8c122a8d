"""What is said of images that failed: the exit status of every run, the list of all, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.storage import Storage
from cnnbatch.terminal.screen import Screen
from tests.inference.test_new import add, files
from tests.inference.test_run import QUIET, job, parts

Photos = Callable[[int], Path]
NEW = RunOptions(new=True)


def with_failures(photos: Photos, count: int, *broken: int) -> Path:
    """Return a folder of pictures of which some are none."""
    folder = photos(count)
    for number in broken:
        files(folder)[number].write_bytes(b"no picture")
    return folder


def test_the_same_command_after_too_many_failures_has_the_same_status(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = with_failures(photos, 30, 2, 17), tmp_path / "out"
    assert run(job(folder, out), QUIET).exit_status == 1
    again = run(job(folder, out))
    said = capsys.readouterr().out
    assert (again.images, again.exit_status, again.failed) == (0, 1, {})
    assert again.failed_in_all == {"undecodable": 2}
    assert "nothing to do" in said
    assert "failed in all: 2 of 30; cnnbatch failed" in said
    assert "more failures than max_failed allows" in said
    assert run(job(folder, out, max_failed=0.1), QUIET).exit_status == 0
    assert run(job(folder, out), RunOptions(retry_failed=True, quiet=True)).exit_status == 1
    files(folder)[2].write_bytes(files(folder)[3].read_bytes())
    files(folder)[17].write_bytes(files(folder)[3].read_bytes())
    assert run(job(folder, out), RunOptions(retry_failed=True, quiet=True)).exit_status == 0
    assert run(job(folder, out), QUIET).exit_status == 0


def test_what_was_predicted_before_a_stop_is_judged_with_the_rest(photos: Photos, tmp_path: Path) -> None:
    folder, out = with_failures(photos, 30, 2), tmp_path / "out"
    run(job(folder, out), QUIET)
    (out / "predictions" / "part-00000002.parquet").unlink()
    summary = run(job(folder, out), QUIET)
    assert (summary.images, dict(summary.failed), summary.exit_status) == (10, {}, 1)


def test_new_judges_what_it_predicted_and_says_how_many_failed_in_all(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = with_failures(photos, 30, 2), tmp_path / "out"
    assert run(job(folder, out), QUIET).exit_status == 1
    nothing = run(job(folder, out), NEW)
    assert nothing.exit_status == 0
    assert "failed in all: 1 of 30" in capsys.readouterr().out
    add(folder, "z/new.jpg", files(folder)[0])
    assert run(job(folder, out), NEW).exit_status == 0
    assert "failed in all: 1 of 31" in capsys.readouterr().out
    (folder / "z" / "bad.jpg").write_bytes(b"")
    bad = run(job(folder, out), NEW)
    assert (bad.images, bad.exit_status, bad.failed_in_all) == (1, 1, {"empty": 1, "undecodable": 1})


def test_a_few_failed_images_of_this_run_are_on_the_screen(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = with_failures(photos, 30, *range(5)), tmp_path / "out"
    run(job(folder, out))
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if line.startswith("    album-")]) == 3
    (folder / "z").mkdir()
    (folder / "z" / "bad\x1b[2J.jpg").write_bytes(b"")
    run(job(folder, out), NEW)
    said = capsys.readouterr().out
    assert "z/bad\\x1b[2J.jpg: " in said
    assert "    album-" not in said


def test_failed_images_are_listed(photos: Photos, tmp_path: Path) -> None:
    folder, out = with_failures(photos, 30, 2, 17), tmp_path / "out"
    names = [str(files(folder)[number].relative_to(folder)) for number in (2, 17)]
    (folder / "album-0" / "tab\tand\nline.jpg").write_bytes(b"")
    run(job(folder, out), QUIET)
    listed = CliRunner().invoke(app, ["failed", str(out)])
    assert listed.exit_code == 0
    lines = [line.split("\t") for line in listed.stdout.splitlines()]
    assert [line[:2] for line in lines] == [
        [names[0], "undecodable"],
        ["album-0/tab\\tand\\nline.jpg", "empty"],
        [names[1], "undecodable"],
    ]
    expected = cnnbatch.open(str(out)).failed(["key", "error"]).to_pylist()
    assert [line[2] for line in lines] == [row["error"]["message"] for row in expected]
    as_json = json.loads(CliRunner().invoke(app, ["failed", str(out), "--json"]).stdout)
    assert as_json == [
        {"key": row["key"], "code": row["error"]["code"], "message": row["error"]["message"]}
        for row in expected
    ]


@pytest.mark.parametrize("failed", [0, 1])
def test_a_list_of_failed_images_is_json_however_many_there_are(
    failed: int, photos: Photos, tmp_path: Path
) -> None:
    folder, out = with_failures(photos, 3, *range(failed)), tmp_path / "out"
    run(job(folder, out), QUIET)
    assert len(json.loads(CliRunner().invoke(app, ["failed", str(out), "--json"]).stdout)) == failed
    assert len(CliRunner().invoke(app, ["failed", str(out)]).stdout.splitlines()) == failed


def test_no_output_has_no_list(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["failed", str(tmp_path)])
    assert (listed.exit_code, listed.stdout) == (2, "")
    assert "expected an output of a job" in listed.stderr


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments that run the toy task."""
    path = folder.parent / "toy.yaml"
    path.write_text(
        "task: {name: 'tests.toy:Toy'}\n"
        f"input: {{url: {folder}, shard_size: 10}}\noutput: {out}\n"
        "compute: {pool: inline, batch: 4, cpus_per_worker: 1, backend: eager, precision: fp32}\n"
    )
    return ["run", str(path), *more]


def test_counts_status_and_paths_are_one_json_object_and_nothing_else(
    photos: Photos, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = with_failures(photos, 5, 2), tmp_path / "out"
    for status, images in ((1, 5), (1, 0)):
        done = CliRunner().invoke(app, command(folder, out, "--json"))
        found = json.loads(done.stdout)
        assert (done.exit_code, found["status"]) == (status, status)
        assert (found["images"], found["total"]) == (images, 5)
        assert found["failed_in_all"] == {"undecodable": 1}
        assert found["failed"] == ({"undecodable": 1} if images else {})
        assert found["paths"] == {
            "predictions": str(out / "predictions"),
            "report": str(out / "report.html"),
        }
    assert "nothing to do" in done.stderr
    wrong = CliRunner().invoke(app, command(folder, out, "task.seed=3", "--json"))
    assert (wrong.exit_code, json.loads(wrong.stdout)["status"]) == (2, 2)
    assert "task.seed" in json.loads(wrong.stdout)["error"]
    assert capfd.readouterr().out == ""


# ---- a list of wrong addresses ------------------------------------------------------------------


def wrong_list(folder: Path, count: int, there: dict[int, str] | None = None) -> Path:
    """Write a list of addresses that name nothing, but those at some places."""
    lines = [(there or {}).get(number, f"gone/{number:05}.jpg") for number in range(count)]
    (folder / "list.txt").write_text("\n".join(lines))
    return folder / "list.txt"


def test_a_list_whose_first_thousand_images_are_nowhere_stops(photos: Photos, tmp_path: Path) -> None:
    folder, out = photos(1), tmp_path / "out"
    with pytest.raises(UserError) as error:
        run(job(wrong_list(folder, 1200), out, max_failed=0.99), QUIET)
    assert str(folder / "gone" / "00000.jpg") in str(error.value)
    assert "max_failed=1" in str(error.value)
    assert not [path for path in out.rglob("*") if path.is_file()]
    # Once the list is corrected the same command runs it.
    wrong_list(folder, 3, {0: "album-0/00000.jpg"})
    assert run(job(folder / "list.txt", out, max_failed=0.99), QUIET).total == 3


@pytest.mark.parametrize(
    ("count", "there", "max_failed"),
    [(1001, None, 1.0), (999, None, 0.5), (1100, {999: "album-0/00000.jpg"}, 0.5)],
)
def test_other_lists_have_a_row_an_image(
    count: int, there: dict[int, str] | None, max_failed: float, photos: Photos, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chosen = {"shard_size": 500}
    summary = run(job(wrong_list(photos(1), count, there), out, input=chosen, max_failed=max_failed), QUIET)
    assert (summary.images, summary.failed) == (count, {"not_found": count - len(there or {})})
    assert summary.exit_status == (0 if max_failed == 1 else 1)


def test_a_folder_is_asked_for_one_image(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, head, asked = photos(30), Storage.head, list[str]()

    def counts(self: Storage, uri: str) -> Any:
        asked.append(uri)
        return head(self, uri)

    monkeypatch.setattr(Storage, "head", counts)
    run(job(folder, tmp_path / "out"), QUIET)
    assert len([uri for uri in asked if uri.endswith(".jpg")]) == 1


# ---- progress -----------------------------------------------------------------------------------


def test_progress_of_new_counts_this_run(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photos(41), tmp_path / "out"
    run(job(folder, out), QUIET)
    kept = parts(out)
    for number in range(3):
        add(folder, f"z/{number}.jpg", files(folder)[number])
    lines: list[str] = []
    monkeypatch.setattr(Screen, "_put", lambda screen, line: lines.append(line))
    run(job(folder, out), RunOptions(new=True, quiet=True))
    assert [line for line in lines if line.startswith("predict")][-1].startswith("predict 3/3 images")
    assert not any("/44" in line for line in lines)
    assert {name: parts(out)[name] for name in kept} == kept
    (out / "predictions" / "part-00000001.parquet").unlink()
    lines.clear()
    run(job(folder, out), QUIET)  # To go on with a run counts what was done before.
    assert [line for line in lines if line.startswith("predict")][-1].startswith("predict 44/44 images")
