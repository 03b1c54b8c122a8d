"""Which map suits: this process, processes of this machine, or tasks of a Ray cluster; and the last."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnbatch.cluster import parallel
from cnnbatch.cluster.parallel import MANY_IMAGES, chosen_map, on_ray
from cnnbatch.cluster.process_map import ProcessMap
from cnnbatch.config.compute import Compute
from cnnbatch.errors import UserError
from cnnbatch.types import Map, here
from tests import judged
from tests.places import CHECKOUT


def test_the_map_suits_the_images_and_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert chosen_map(MANY_IMAGES - 1, "auto") is here
    assert chosen_map(MANY_IMAGES, 1) is here
    assert isinstance(chosen_map(MANY_IMAGES, "auto"), ProcessMap)
    assert isinstance(chosen_map(1, 2), ProcessMap)
    monkeypatch.setattr(parallel, "cluster_address", lambda: "10.0.0.5:6379")
    assert chosen_map(MANY_IMAGES - 1, "auto") is here
    assert chosen_map(1, 2) is not here
    assert not isinstance(chosen_map(1, 2), ProcessMap)


EVALUATING = """
import os, sys
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.terminal.screen import Screen
os.cpu_count = lambda: 2
evaluation = evaluate_again(sys.argv[1], ["workers=2"], Screen(quiet=True))
print(evaluation.images, sorted({"ray", "torch"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_evaluating_on_one_machine_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    data = judged.dataset(12, 4)
    folder = judged.write_detected(tmp_path / "out", data, judged.detections(data))
    command = [sys.executable, "-c", EVALUATING, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert (done.stdout, done.stderr) == ("12 []\n", "")


@pytest.fixture
def two_on_ray() -> Iterator[Map]:
    from cnnbatch.cluster import session

    yield on_ray(Compute(), 2)
    session.close()


@pytest.mark.slow
def test_results_of_tasks_on_ray_come_in_order_and_errors_as_they_are(two_on_ray: Map) -> None:
    assert list(two_on_ray(_after, [0.3, 0.2, 0.1, 0.0] * 3)) == [0.3, 0.2, 0.1, 0.0] * 3
    with pytest.raises(UserError, match=r"^expected a number that is not negative$"):
        list(two_on_ray(_after, [0.0, -1.0, 0.1]))


def _after(seconds: float) -> float:
    if seconds < 0:
        raise UserError("expected a number that is not negative")
    time.sleep(seconds)
    return seconds
