"""Imports what the workers of a map job need into the process that they are forked from.

A process with threads cannot be forked safely, so none is started: numpy's and pyarrow's libraries would
start some when they are loaded. No device is touched either, since CUDA does not survive a fork.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""What OpenBLAS (in numpy) and jemalloc (in pyarrow) read when they are loaded; workers use neither."""


def preload() -> None:
    """Import all that does not depend on the job; to be called before numpy and pyarrow are imported."""
    from cnnbatch.models.libraries.without_compiler import defer_compiler

    defer_compiler()
    with _environment(_WITHOUT_THREADS):
        import pyarrow as pa

        import cnnbatch.images.pasted_masks
        import cnnbatch.inference.autotune.measure
        import cnnbatch.inference.worker_process
        import cnnbatch.models.building
        import cnnbatch.models.detectors
        import cnnbatch.models.pixel_network
        import cnnbatch.models.segmenters
        import cnnbatch.tasks.classify
        import cnnbatch.tasks.instances
        import cnnbatch.tasks.keypoints
        import cnnbatch.tasks.segment  # noqa: F401

        pa.array([0])  # This imports pandas, where it is installed.
    gc.freeze()  # What is shared with the forked processes is not written to by their garbage collectors.


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
