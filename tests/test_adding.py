"""The package of docs/adding.md: its code, installed as it stands there, and its commands."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.places import CHECKOUT

CHECKOUT = CHECKOUT
PAGE = CHECKOUT / "docs" / "adding.md"
_FILE = re.compile(r"^`(?P<name>[\w./]+)`\n```\w*\n(?P<text>.*?)^```$", re.M | re.S)
_COMMANDS = re.compile(r"## Running it\n\n```\n(.*?)```", re.S)
LEVELS = {"black": 0, "dark": 60, "middle": 128, "bright": 200, "white": 255}
OFF = 2.5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder on which the page's package is installed, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site")
    for found in _FILE.finditer(PAGE.read_text()):
        path = folder / found["name"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(found["text"])
    about = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "brightness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    points = about["entry-points"]["cnnbatch.plugins"]
    lines = "\n".join(f"{name} = {address}" for name, address in points.items())
    (info / "entry_points.txt").write_text(f"[cnnbatch.plugins]\n{lines}\n")
    return folder


def run(site: Path, folder: Path, command: str) -> str:
    """Run a command of the page; return what it prints."""
    words = [sys.executable, "-m", "cnnbatch", *shlex.split(command)[1:]]
    path = os.pathsep.join([str(site), str(CHECKOUT)])
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_package_gets_rows_metric_report_comparison_and_export(site: Path, tmp_path: Path) -> None:
    for name, level in LEVELS.items():
        Image.new("RGB", (64, 48), (level, level, level)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [f"{name}.png,{level + OFF}" for name, level in LEVELS.items()]
    (tmp_path / "measured.csv").write_text("\n".join(["file,brightness", *rows, "broken.png,1", ""]))
    (tmp_path / "job.yaml").write_text((site / "job.yaml").read_text() + "max_failed: 1\n")
    commands = _COMMANDS.search(PAGE.read_text())
    assert commands is not None
    said = {line: run(site, tmp_path, line) for line in commands[1].splitlines()}

    [part] = (tmp_path / "sharp" / "predictions").iterdir()
    table = pq.read_table(part, columns=["key", "brightness"]).to_pylist()
    found = {Path(row["key"]).stem: row["brightness"] for row in table}
    assert found == {**{name: pytest.approx(level) for name, level in LEVELS.items()}, "broken": None}
    evaluation = json.loads((tmp_path / "sharp" / "evaluation.json").read_text())
    error = evaluation["metrics"]["mean_absolute_error"]
    assert (error["value"], error["count"]) == (pytest.approx(OFF), len(LEVELS))
    assert evaluation["notes"]["images without a predicted brightness"] == 1
    page = (tmp_path / "sharp" / "report.html").read_text()
    assert all(words in page for words in ("mean_absolute_error", "brightness 130.5", "brightness 128.0"))
    compared = json.loads((tmp_path / "differences" / "comparison.json").read_text())
    assert compared["agreement"]["value"] == 1
    assert "brightness" in said[next(line for line in said if line.startswith("cnnbatch run"))]
    with (tmp_path / "sharp.csv").open() as file:
        exported = {Path(row["key"]).stem: row["brightness"] for row in csv.DictReader(file)}
    assert float(exported["middle"]) == LEVELS["middle"]


def test_the_page_names_every_layer_that_has_entries() -> None:
    layers = set()
    for path in (CHECKOUT / "cnnbatch").rglob("*.py"):
        layers.update(re.findall(r'Entries\(\s*"(\w+)"', path.read_text()))
    text = PAGE.read_text()
    assert layers
    assert {layer for layer in layers if f"`{layer}." not in text} == set()


def test_what_the_page_says_may_be_imported_is_there() -> None:
    table = PAGE.read_text().partition("### What you may import")[2].partition("## The package")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", table, re.M)
    assert len(rows) > 10
    for module, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.slow
def test_the_model_of_the_page_is_built(site: Path) -> None:
    code = (
        "import torch; from cnnbatch.models import Choice, build_classifier\n"
        "network = build_classifier(Choice('brightness.model:tiny', 'random'))\n"
        "assert network.module(torch.zeros(1, 3, 32, 32)).shape == (1, 2)"
    )
    path = os.pathsep.join([str(site), str(CHECKOUT)])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
