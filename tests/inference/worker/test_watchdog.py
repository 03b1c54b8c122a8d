"""The watchdog: what hangs ends its process, before the first image too."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import CHECKOUT

HEAD = """
import sys, time
from pathlib import Path
from cnnbatch.models import passes
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.watchdog import Watchdog

journal = Journal(Path(sys.argv[1]) / "journal")
watchdog = Watchdog(journal, 0.5, Path(sys.argv[1]) / "stacks", "an image hangs")
stopped = []
"""


def ended(folder: Path, code: str) -> tuple[int, str]:
    """Return the status and the words of a process that runs ``code`` beside a watchdog of half a second."""
    found = subprocess.run(
        [sys.executable, "-c", HEAD + code, str(folder)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return found.returncode, found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (
            "with passes.trying(least_s=0): time.sleep(60)",
            3,
            "the model gave nothing for a picture of its own within 0.5 s",
        ),
        (
            "with journal.predicting(0, [1]), passes.trying(stopped.append): time.sleep(60)",
            3,
            "an image hangs",
        ),
        # What can be stopped is, and nothing else happens.
        (
            "with passes.trying(lambda: stopped.append(1), least_s=0):\n"
            "    while not stopped: time.sleep(0.05)\n"
            "time.sleep(1.5)\n"
            "watchdog.close()",
            0,
            "",
        ),
        (
            "with passes.trying(lambda: stopped.append(1), least_s=0): time.sleep(60)",
            3,
            "the model gave nothing",
        ),
        ("time.sleep(2); watchdog.close()", 0, ""),
        ("for _ in range(20):\n    with passes.trying(least_s=0): time.sleep(0.1)\nwatchdog.close()", 0, ""),
    ],
)
def test_what_hangs_ends_its_process(tmp_path: Path, code: str, status: int, said: str) -> None:
    found, words = ended(tmp_path, code)
    assert found == status
    assert words.startswith(said)
