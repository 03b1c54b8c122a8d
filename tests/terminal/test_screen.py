"""What a run says before there are images to count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cnnbatch
from cnnbatch.terminal import screen
from cnnbatch.terminal.screen import Screen
from cnnbatch.types import Receipt
from tests.pictures import photo


def test_what_is_done_first_is_said_at_once_and_then_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Screen(quiet=False) as shown:
        shown.doing("listing photos")
        assert capsys.readouterr().err == "listing photos · 0 s\n"
        shown.doing("starting 2 workers")
        assert shown.line() == "starting 2 workers · 0 s"
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(screen, "PLAIN_EVERY_S", 0)
        shown.show()
        assert capsys.readouterr().err == "starting 2 workers · 0 s\n"
        shown.count(Receipt(0, 5, 5, {}, {}), 10)
        assert capsys.readouterr().err.startswith("predict 5/10 images")
        shown.doing("measuring")  # of a second worker, while the first predicts
        assert shown.line().startswith("predict 5/10 images")


def test_a_quiet_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(quiet=True) as shown:
        shown.doing("listing photos")
    assert capsys.readouterr() == ("", "")


def test_one_of_several_runs_hands_its_lines_on(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with Screen(quiet=True, progress=lines.append) as shown:
        shown.doing("listing photos")
        shown.count(Receipt(0, 5, 5, {}, {}), 10)
        shown.note("left out: 2 .csv")
    assert lines[0] == "listing photos · 0 s"
    assert lines[-1].startswith("predict 5/10 images")
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_the_seconds_go_on_while_nothing_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "PLAIN_EVERY_S", 0)
    monkeypatch.setattr(screen, "TICK_S", 0.01)
    with Screen(quiet=False) as shown:
        shown.doing("loading mobilenet_v2")
        for _ in range(500):
            if (said := capsys.readouterr().err).count("loading mobilenet_v2") > 1:
                break
            shown._ended.wait(0.01)
        assert "loading mobilenet_v2 · " in said


def test_a_run_says_what_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "PLAIN_EVERY_S", 0)
    photo().save(tmp_path / "a.jpg")
    job = {"task": {"name": "tests.toy:Toy"}, "compute": {"pool": "inline"}}
    (tmp_path / "job.yaml").write_text(json.dumps(job | {"input": f"{tmp_path}/*.jpg", "output": "out"}))
    cnnbatch.run(tmp_path / "job.yaml", output=str(tmp_path / "out"))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"listing {tmp_path}/*.jpg")
    assert any(line.startswith("loading tests.toy:Toy") for line in said)
