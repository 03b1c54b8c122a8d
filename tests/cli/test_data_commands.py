"""``cnnbatch data``: what there is and where, and fetching it, agreed to."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.sources.datasets import cached
from cnnbatch.sources.datasets.table import DATASETS
from tests.tiny_sets import Published, eurosat

pytest_plugins = ("tests.s3", "tests.published")
pytestmark = pytest.mark.usefixtures("nothing_here")


def test_the_list_says_what_lies_where(publish: Callable[..., Published], tmp_path: Path) -> None:
    folder = publish("eurosat", eurosat()).fetch()
    result = CliRunner().invoke(app, ["data", "list", "--json"])
    rows = {row["name"]: row for row in json.loads(result.output)}
    assert list(rows) == list(DATASETS)
    assert (rows["eurosat"]["where"], rows["cifar10"]["where"]) == (str(folder), None)
    assert (rows["cifar10"]["download_bytes"], rows["cifar10"]["splits"]) == (170_498_071, ["train", "test"])
    assert rows["camvid"]["default_split"] == "train"
    lines = {line.split()[0]: line for line in CliRunner().invoke(app, ["data", "list"]).output.splitlines()}
    assert re.search(
        r"cifar10 +60,000 +170 MB +train, test +none stated; for research +not here", lines["cifar10"]
    )
    assert re.search(r"535 +none +train \(unless said\), val, test", lines["camvid"])


def test_the_fetch_command(publish: Callable[..., Published], monkeypatch: pytest.MonkeyPatch) -> None:
    published = publish("eurosat", eurosat())
    monkeypatch.setitem(DATASETS, "eurosat", published.entry)
    refused = CliRunner().invoke(app, ["data", "fetch", "eurosat"])
    assert refused.exit_code == 2
    assert (
        "27,000 images, 94 MB to download\n  licence: MIT (https://github.com/phelber/EuroSAT)"
        in refused.stderr
    )
    assert "agree to it by --yes" in refused.stderr
    assert not published.web.requests
    for _ in range(2):
        done = CliRunner().invoke(app, ["data", "fetch", "eurosat", "--yes"])
        assert (done.exit_code, done.output) == (0, f"eurosat is here: {cached(published.entry)}\n")
    for name, said in {
        "eurosatt": "did you mean eurosat?",
        "raccoon": "it comes from https://github.com/",
    }.items():
        wrong = CliRunner().invoke(app, ["data", "fetch", name, "--yes"])
        assert wrong.exit_code == 2
        assert said in wrong.stderr


def test_on_a_terminal_it_asks_first(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cnnbatch", "data", "fetch", "cifar10"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, b"n\n")
        said, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert "60,000 images, 170 MB to download" in said
    assert said.endswith("Nothing was fetched.\n")
    assert not (tmp_path / "cache").exists()
