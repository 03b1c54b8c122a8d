"""Outputs that earlier versions wrote are read, evaluated, compared, exported, reported and gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.images import decode
from cnnbatch.inference import fingerprint as identity
from tests.places import CHECKOUT

EARLIER = CHECKOUT / "tests" / "earlier_outputs"
MAPS = ("map", "map_with_truth", "objects", "train")
Copy = Callable[[str], Path]


@pytest.fixture(params=sorted(path.name for path in EARLIER.iterdir() if path.is_dir()))
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Copy:
    """Return a function that copies an output of one earlier version to where it may be written."""

    def to_tmp(name: str) -> Path:
        return Path(shutil.copytree(EARLIER / request.param / name, tmp_path / name))

    return to_tmp


def command(*words: str | Path) -> str:
    """Run a command that has to succeed, and return what it printed."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def metric(output: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "evaluation.json").read_text())["metrics"][name]
    return found


@pytest.mark.parametrize(
    ("name", "images", "failed"),
    [("map", 23, 1), ("map_with_truth", 23, 1), ("objects", 5, 1), ("train", 1, 0)],
)
def test_rows_are_read(copy: Copy, name: str, images: int, failed: int) -> None:
    table = cnnbatch.open(copy(name)).arrow()
    errors = [row for row in table["error"].to_pylist() if row]
    assert table.num_rows == images
    assert [error["code"] for error in errors] == ["undecodable"] * failed


@pytest.mark.parametrize("name", ["map_with_truth", "train"])
def test_an_evaluation_again_gives_the_same_numbers(copy: Copy, name: str) -> None:
    output = copy(name)
    before = metric(output, "top1")
    command("evaluate", output)
    assert metric(output, "top1") == before
    assert (output / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", MAPS)
def test_a_report_is_written(copy: Copy, name: str) -> None:
    output = copy(name)
    command("report", output)
    assert "png" in (output / "report.html").read_text()


def test_two_outputs_are_compared(copy: Copy, tmp_path: Path) -> None:
    printed = command("compare", copy("map"), copy("map_with_truth"), "--to", tmp_path / "differences")
    assert "23 images" in printed or "22 images" in printed
    assert (tmp_path / "differences").is_dir()


def test_predictions_are_exported(copy: Copy, tmp_path: Path) -> None:
    command("export", copy("map"), "--format", "csv", "--to", tmp_path / "labels.csv")
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 24
    command("export", copy("objects"), "--format", "coco", "--to", tmp_path / "boxes.json")
    assert json.loads((tmp_path / "boxes.json").read_text())


def test_a_trained_folder_is_a_model(copy: Copy, tmp_path: Path) -> None:
    cnnbatch.run(
        "classify",
        input="package:skimage/data/chelsea.png",
        output=str(tmp_path / "labels"),
        task={"model": str(copy("train"))},
        compute__pool="inline",
        quiet=True,
    )
    assert cnnbatch.open(tmp_path / "labels").arrow()["label"].to_pylist() == ["png"]


def test_a_study_keeps_its_table(copy: Copy) -> None:
    table = pq.read_table(copy("study") / "study.parquet")
    assert table.num_rows == 2


def again(output: Path) -> Any:
    """Give the command again that made the output."""
    recorded = json.loads((output / "_job" / "identity.json").read_text())
    return cnnbatch.run(
        "classify",
        input={"url": recorded["input.url"], "shard_size": 3},
        output=str(output),
        task={"model": recorded["task.model"], "weights": recorded["task.weights"]},
        compute={"pool": "inline", "cpus_per_worker": 1},
        max_failed=1,
        quiet=True,
    )


def test_an_unfinished_output_is_gone_on_with(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    output = copy("unfinished")
    recorded = json.loads((output / "_job" / "identity.json").read_text())
    monkeypatch.setattr(identity, "_minor", lambda package: recorded[package])
    monkeypatch.setattr(decode, "VERSION", recorded["decoder"])
    monkeypatch.setattr(identity, "REVISION", recorded.get("decoder_revision", 1))
    before = {path.name: path.read_bytes() for path in (output / "predictions").iterdir()}
    summary = again(output)
    assert (summary.images, summary.total) == (13, 22)
    assert {name: (output / "predictions" / name).read_bytes() for name in before} == before
    keys = cnnbatch.open(output).arrow()["key"].to_pylist()
    assert keys == recorded["input.url"]


def test_an_unfinished_output_of_another_decoder_is_refused(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = copy("unfinished")
    recorded = json.loads((output / "_job" / "identity.json").read_text())
    monkeypatch.setattr(identity, "_minor", lambda package: recorded[package])
    monkeypatch.setattr(decode, "VERSION", recorded["decoder"])
    with pytest.raises(UserError, match=r"the decoder's revision: the output has 1, this job has [2-9]"):
        again(output)
    assert len(list((output / "predictions").iterdir())) == 3


def rewritten(part: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a part with another footer."""
    table = pq.read_table(part)
    footer = json.loads((pq.read_metadata(part).metadata or {})[b"cnnbatch"])
    change(footer)
    with pq.ParquetWriter(part, table.schema.remove_metadata()) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"cnnbatch": json.dumps(footer)})


def later_footer(output: Path) -> None:
    """Give the parts footers of a shape that only a later version knows."""

    def change(footer: dict[str, Any]) -> None:
        footer["versions"]["cnnbatch"] = "99.1.0"
        footer["receipts"] = [footer.pop("receipt")]

    for part in (output / "predictions").iterdir():
        rewritten(part, change)


def later_records(output: Path) -> None:
    """Give the job's records shapes that only a later version knows, and say its version."""
    identity = output / "_job" / "identity.json"
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "cnnbatch": "99.1"}))
    (output / "_job" / "classes.json").write_text('{"groups": []}')
    (output / "_job" / "job.yaml").write_text("jobs: []")


@pytest.mark.parametrize("later", [later_footer, later_records])
def test_an_output_of_a_newer_version_is_refused(
    copy: Copy, later: Callable[[Path], None], tmp_path: Path
) -> None:
    output, known = copy("map_with_truth"), copy("map")
    later(output)
    ways: dict[str, list[str | Path]] = {
        "failed": [output],
        "evaluate": [output],
        "report": [output],
        "compare": [known, output],
        "export": [output, "--format", "csv", "--to", tmp_path / "rows.csv"],
    }
    for name, words in ways.items():
        done = CliRunner().invoke(app, [name, *map(str, words)])
        assert (done.exit_code, "was written by cnnbatch 99.1" in done.stderr) == (2, True), done.output
        assert f"this is cnnbatch {cnnbatch.__version__}" in done.stderr
        assert "what to do: install cnnbatch 99.1" in done.stderr
    with pytest.raises(UserError, match=r"written by cnnbatch 99\.1"):
        len(cnnbatch.open(output))
    if later is later_records:  # The parts of another torch are refused before their footers are read.
        with pytest.raises(UserError, match=r"written by cnnbatch 99\.1"):
            again(output)
