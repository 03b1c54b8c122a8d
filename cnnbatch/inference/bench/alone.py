"""The stages of a worker in a row, each by itself: called once to warm up, once to take the time.

In as many processes as the job has cores, all at once, since cores share caches and memory: what one of them
does alone is no ceiling for all. An accelerator is measured from one process; what its other cores would do
to that one is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.bench.processes import in_new_processes
from cnnbatch.inference.bench.stages import Stages, StageSample, mean
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.malloc import keep_freed_memory
from cnnbatch.inference.worker.readahead import DecodeOptions, Item, ReadAhead, ReadRequest
from cnnbatch.inference.worker.settings import Settings
from cnnbatch.inference.worker.timings import ShardTally
from cnnbatch.inference.worker.worker import PredictFault, Worker
from cnnbatch.output.folder import Output
from cnnbatch.output.part import Outcome, PartSpool
from cnnbatch.storage import Storage
from cnnbatch.types import Content, Failure, Shard

READ_ALONE = 64  # images of which the processor's part is measured: from afar each takes its time


def measure(sample: StageSample, processes: int) -> Stages:
    """Measure the stages in so many processes at once and return their mean.

    Raises:
        UserError, EnvironmentFault: as a worker does; also where no image comes through.
    """
    return mean(in_new_processes(_measure_here, sample, processes))


def _measure_here(sample: StageSample) -> Stages:
    keep_freed_memory()
    return measure_here(sample)


def measure_here(sample: StageSample) -> Stages:
    """Measure the stages in this process, on one thread."""
    settings = replace(Settings.from_json(sample.settings), threads=1)
    with TemporaryDirectory(prefix="cnnbatch-bench-") as folder:
        journal = Journal(Path(folder) / "journal")
        worker = Worker(sample.job, sample.source, Output(folder, Storage()), journal, settings)
        line = _Line(sample, worker, settings)
        try:
            for stage in (line.read, line.prepare, line.forward, line.rows, line.write):
                stage()
                stage()
        except PredictFault as fault:
            raise EnvironmentFault(
                f"the model fails on images of the sample: {fault.message}",
                "`cnnbatch check JOB` says on which; look at the device (driver, memory) and at the model",
            ) from None
        finally:
            line.close()
        return line.found()


class _Line:
    """Every stage leaves what the next one takes."""

    def __init__(self, sample: StageSample, worker: Worker, settings: Settings) -> None:
        self._sample = sample
        self._worker = worker
        self._settings = settings
        self._shard = Shard(0, sample.refs)
        truth = sample.source.truth(self._shard)
        places = range(len(sample.refs))
        self._reading = ReadRequest(self._shard, places, {}, None if truth is None else truth.to_pylist())
        self._ahead = ReadAhead(
            sample.source, worker.model, worker.journal, DecodeOptions(1, settings.window)
        )
        self._seconds: dict[str, float] = {}

    def close(self) -> None:
        """End the threads."""
        self._ahead.close()
        self._worker.close()

    def read(self) -> None:
        """Read the images side by side, as a worker does, and some of them on this thread alone."""
        with ThreadPoolExecutor(self._sample.readers, "read") as threads:
            found = list(threads.map(_timed, self._sample.source.read(self._shard)))
        self._contents = [content for content, _ in found]
        self._seconds["read"] = sum(seconds for _, seconds in found) / len(found)
        some = Shard(0, self._shard.refs[:READ_ALONE])
        started = time.process_time()
        for reader in self._sample.source.read(some):
            reader()
        self._seconds["reading"] = (time.process_time() - started) / len(some.refs)

    def prepare(self) -> None:
        """Decode and prepare one image after the other, so that few are held decoded."""
        self._items = [Item(place, Outcome(ref)) for place, ref in enumerate(self._sample.refs)]
        for item, content in zip(self._items, self._contents, strict=True):
            if isinstance(content, Failure):
                item.outcome.failure = content
            else:
                self._ahead.prepare(content, item, self._reading)
        self._good = [item for item in self._items if item.outcome.failure is None]
        if not self._good:
            raise UserError(f"expected images to measure on, but all {len(self._items):,} fail")
        size = self._settings.window
        self._windows = [self._items[start : start + size] for start in range(0, len(self._items), size)]
        for stage in ("decode", "prepare"):
            self._seconds[stage] = sum(item.seconds[stage] for item in self._good) / len(self._good)

    def forward(self) -> None:
        """Run the network on the inputs of each window."""
        started, moment = self._now(), time.perf_counter()
        self._predicted = list(self._worker.predictor.predict(0, self._windows))
        taken, passed = self._now() - started, time.perf_counter() - moment
        self._seconds["forward"] = taken / len(self._good)
        self._given = min(1.0, taken / passed)

    def rows(self) -> None:
        """Make the rows of each window."""
        started = time.process_time()
        self._rows = [
            self._worker.window_rows(self._shard, window.items, window.outputs(), ShardTally())
            for window in self._predicted
        ]
        self._seconds["rows"] = (time.process_time() - started) / len(self._good)

    def write(self) -> None:
        """Write a part to the local disk."""
        started = time.process_time()
        with PartSpool(self._rows[0].schema) as spool:
            for rows in self._rows:
                spool.write(rows)
            spool.finish({})
        self._seconds["write"] = (time.process_time() - started) / len(self._good)

    def found(self) -> Stages:
        """Return what the last calls took."""
        good, inputs = len(self._good), [one for item in self._good for one in item.prepared]
        return Stages(
            seconds={stage: taken for stage, taken in self._seconds.items() if stage != "reading"},
            reading=self._seconds["reading"],
            images=len(self._items),
            failed=len(self._items) - good,
            inputs=len(inputs) / good,
            pixels=sum(_area(item.outcome.size) for item in self._good) / good,
            input_pixels=sum(_area(one.size) for one in inputs) / good,
            given=self._given,
        )

    def _now(self) -> float:
        """Return the processor's time, or the clock's once the accelerator has done what it was given."""
        if self._settings.type == "cpu":
            return time.process_time()
        if self._settings.type == "cuda":
            torch.cuda.synchronize()
        else:
            torch.mps.synchronize()
        return time.perf_counter()


def _timed(reader: Callable[[], Content | Failure]) -> tuple[Content | Failure, float]:
    started = time.perf_counter()
    return reader(), time.perf_counter() - started


def _area(size: Any) -> int:
    return int(size[0] * size[1]) if size else 0
