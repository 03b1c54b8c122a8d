"""The process that workers are forked from: all is imported, no thread runs, no device is touched."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.places import CHECKOUT

PRELOADED = """
import os, sys
from cnnbatch.cluster.local import server
from cnnbatch.inference.preload import preload

before = dict(os.environ)
preload()
assert dict(os.environ) == before
threads = os.listdir("/proc/self/task")
assert len(threads) == 1, threads
import torch

assert not torch.cuda.is_initialized()
wanted = {"cnnbatch.inference.worker.worker", "cnnbatch.tasks.classify", "torchvision", "pyarrow.parquet"}
assert wanted <= set(sys.modules), wanted - set(sys.modules)
assert "torch._dynamo" not in sys.modules and "timm" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how many threads there are")
def test_preloading_starts_no_thread() -> None:
    found = subprocess.run([sys.executable, "-c", PRELOADED], capture_output=True, text=True, cwd=CHECKOUT)
    assert not found.returncode, found.stderr
