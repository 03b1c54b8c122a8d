"""The process ends with the status of whoever ends it first, however many ask for that at the same time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.places import CHECKOUT

BEGIN = """
import os, signal, threading, time
from cnnbatch.terminal import interrupts
interrupts.install()
interrupts.at_leave(lambda: time.sleep(0.5))
"""

WHILE_ANOTHER_THREAD_ENDS_IT = """
threading.Thread(target=interrupts.leave, args=(130,)).start()
time.sleep(0.2)
interrupts.leave(5)
os._exit(6)
"""

SIGNALLED_WHILE_IT_ENDS = """
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
interrupts.leave(130)
"""


@pytest.mark.parametrize("then", [WHILE_ANOTHER_THREAD_ENDS_IT, SIGNALLED_WHILE_IT_ENDS])
def test_a_process_ends_once(then: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + then], cwd=CHECKOUT, timeout=20, check=False)
    assert done.returncode == 130
