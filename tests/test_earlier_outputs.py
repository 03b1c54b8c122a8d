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

EARLIER = Path(__file__).parent / "earlier_outputs"
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
