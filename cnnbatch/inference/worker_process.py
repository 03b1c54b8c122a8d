"""A worker as its process offers it: answers are values, faults too, and the journal is its last word.

The same class is a Ray actor, in a local process or in the caller's own; it imports torch when it loads.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.messages import Fault, Ready, RememberedSettings, TuningSample, Withdrawn, Work
from cnnbatch.inference.worker.host_memory import memory_left_bytes, peak_rss_bytes, rss_bytes
from cnnbatch.inference.worker.journal import Journal, suspects
from cnnbatch.inference.worker.watchdog import Watchdog, has_fired
from cnnbatch.job import MapJob
from cnnbatch.types import Failure, Receipt, Shard

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnbatch.inference.autotune.candidates import TuningTrial
    from cnnbatch.inference.messages import LoadOrder
    from cnnbatch.inference.worker.settings import Settings
    from cnnbatch.inference.worker.worker import Worker
    from cnnbatch.types import Model

Answer = TypeVar("Answer")
ON_CPU_WHAT_MPS_LACKS = ("PYTORCH_ENABLE_MPS_FALLBACK", "1")
_IMPORTS = (
    "  what to do: install it where the workers run; a function of the program that was started (__main__) "
    "belongs into a module of its own"
)
HANG_WORDS = (
    "no progress on an image within compute.batch_timeout_s, so this process ends\n"
    "  what to do: give it again with compute.pool=local (or ray): that finds the image and gives it its row"
)


class WorkerProcess:
    """One worker: `load` first, then `run`, or `try_alone` and `probe` where images are suspected.

    ``import_path`` are the folders that the caller imports from, so that its own packages are found.
    """

    def __init__(self, import_path: Sequence[str] = ()) -> None:
        sys.path.extend(folder for folder in import_path if folder not in sys.path)
        self._worker: Worker | None = None
        self._order: LoadOrder | None = None
        self._watchdog: Watchdog | None = None
        self._on_cpu: Sequence[str] = ()
        self._plain: Settings | None = None
        self._remembered: RememberedSettings | None = None
        self._note = ""

    def load(self, order: LoadOrder) -> Ready | Fault:
        """Settle how to run, and load the model."""
        return self._answer(lambda: self._load(order))

    def measure(self, sample: TuningSample) -> Ready | Fault:
        """Find the fastest way through the network that gives the same results, and go on with it."""
        return self._answer(lambda: self._measure(sample))

    def run(self, work: Work) -> Receipt | Withdrawn | Fault:
        """Predict one shard and write its part, unless it is withdrawn before."""
        return self._answer(lambda: self._loaded().run(work))

    def rows(self, work: Work) -> pa.Table | Fault:
        """Predict one shard and return its rows, of which nothing is written."""
        return self._answer(lambda: self._loaded().rows(work))

    def withdraw(self, index: int) -> None:
        """Have `run` give back a shard that waits for another one, if it does so still."""
        if self._worker:
            self._worker.withdraw(index)

    def try_alone(self, shard: Shard, position: int) -> Failure | Fault | None:
        """Predict one suspect by itself; return why it fails, or None.

        Where the model raises on it and on random pixels too, that is a fault of the environment.
        """
        answer = self._answer(lambda: self._loaded().try_alone(shard, position))
        if not isinstance(answer, Fault) or answer.kind != "predict":
            return answer
        return self.probe() or Failure("predict", "predict", answer.what)

    def probe(self) -> Fault | None:
        """Predict random pixels; where the model raises, that is a fault of the environment."""
        answer = self._answer(lambda: self._loaded().probe())
        if answer is None or answer.kind != "predict":
            return answer
        return Fault(
            "environment",
            f"on {socket.gethostname()} the model fails on every image, and on random pixels: {answer.what}",
            "look at the device (driver, memory) and at the model; no row was written for these images",
        )

    def beat(self) -> None:
        """Answer, which a process that is stopped does not."""

    def close(self) -> None:
        """End the threads and forget the journal."""
        if self._watchdog:
            self._watchdog.close()
        if self._worker:
            self._worker.close()
            take_journal(str(self._worker.journal.path))
        self._watchdog = self._worker = None

    def _load(self, order: LoadOrder) -> Ready:
        os.environ.setdefault(*ON_CPU_WHAT_MPS_LACKS)  # Read when torch is imported, which is now.
        from cnnbatch.inference.autotune import recall
        from cnnbatch.inference.worker import devices, malloc
        from cnnbatch.inference.worker.settings import choose
        from cnnbatch.models.runtime.backends import Unavailable

        self.close()
        if not order.inline:  # In the caller's own process the allocator is the caller's.
            malloc.keep_freed_memory()
        self._order = order
        settings, is_open = choose(order.job, order.inline, order.kept)
        known = recall.recalled(order, settings) if is_open else None
        journal = Journal(Path(tempfile.gettempdir()) / f"cnnbatch-journal-{os.getpid()}-{uuid4().hex}")
        words = HANG_WORDS if order.inline else ""
        self._watchdog = Watchdog(journal, order.job.compute.batch_timeout_s, _hang_file(journal.path), words)
        try:
            with devices.operators_on_cpu() as self._on_cpu:
                loaded = recall.load(known, settings, partial(self._make, journal))
            self._worker, self._plain = loaded.worker, settings
            self._remembered, self._note = loaded.remembered, loaded.note
        except Unavailable as error:
            raise _unavailable(settings.backend, str(error), order.job) from error
        finally:
            if self._worker is None:  # Nothing is left to watch.
                self._watchdog.close()
                take_journal(str(journal.path))
        trials = recall.trials_of(self._remembered, settings) if self._remembered else ()
        return self._ready(is_open, peak_rss_bytes(), trials)

    def _make(self, journal: Journal, settings: Settings, model: Model | None = None) -> Worker:
        from cnnbatch.inference.worker.worker import Worker

        order = self._order
        assert order is not None
        return Worker(order.job, order.source, order.output, journal, settings, model)

    def _measure(self, sample: TuningSample) -> Ready:
        from cnnbatch.inference.autotune.measure import measure
        from cnnbatch.inference.autotune.recall import to_remember

        assert self._order is not None
        if self._remembered is not None:  # Which is not enough for so many images: as if nothing were known.
            self._load(replace(self._order, remembered=()))
        first, order, plain = self._loaded(), self._order, self._plain
        assert plain is not None
        taken = peak_rss_bytes()
        measured = measure(order.job, first, sample, partial(self._make, first.journal))
        self._worker = measured.worker
        # The peak is now that of several networks at once, which no other worker will hold.
        taken = max(taken, rss_bytes())
        found = to_remember(order.job, plain, sample, measured)
        return self._ready(False, taken, measured.trials, found)

    def _ready(
        self,
        is_open: bool,
        taken_bytes: int,
        trials: Sequence[TuningTrial] = (),
        found: RememberedSettings | None = None,
    ) -> Ready:
        worker = self._loaded()
        return Ready(
            settings=worker.settings.to_json(),
            operators_on_cpu=tuple(self._on_cpu),
            identity=worker.identity,
            host=socket.gethostname(),
            journal=str(worker.journal.path),
            rss_bytes=taken_bytes,
            left_bytes=memory_left_bytes(),
            classes=worker.classes(),
            key=worker.settings.key,
            open=is_open,
            trials=[trial.to_json() for trial in trials],
            notes=(*worker.notes(), *filter(None, [self._note])),
            remembered=self._remembered,
            found=found,
        )

    def _answer(self, ask: Callable[[], Answer]) -> Answer | Fault:
        """Return what ``ask`` returns, or as a value what it raises that is not a defect of this code."""
        from cnnbatch.inference.worker.worker import PredictFault

        try:
            return ask()
        except PredictFault as fault:
            self._loaded().journal.clear()
            return Fault("predict", fault.message, positions=fault.positions)
        except UserError as error:
            return Fault("user", str(error))
        except ImportError as error:
            return Fault("user", f"a worker can't import what the job needs: {error}\n{_IMPORTS}")
        except EnvironmentFault as fault:
            return Fault("environment", fault.what, fault.mend)
        except (MemoryError, OSError) as error:
            what = f"{type(error).__name__} on {socket.gethostname()}: {error}"
            return Fault("environment", what, "look at that host's memory, disk and limits")

    def _loaded(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("a worker is asked to predict before it was loaded")
        return self._worker


def _unavailable(backend: str, reason: str, job: MapJob) -> UserError | EnvironmentFault:
    """Return the error that a backend which can't run is: the person's who named it, else the machine's."""
    if job.compute.backend != "auto":
        return UserError(
            f"compute.backend: {backend} can't be used here: {reason}\n  what to do: leave it at auto"
        )
    return EnvironmentFault(
        f"on {socket.gethostname()} {backend}, by which this output is made, can't be used: {reason}",
        "make that machine like the one that settled it, or give compute.backend=eager",
    )


def take_journal(path: str) -> tuple[dict[int, list[int]], bool]:
    """Return what an ended process was at, by shard, and whether it hung; then remove its journal."""
    journal = Path(path)
    if not journal.exists():
        return {}, False
    found, hung = suspects(journal), has_fired(_hang_file(journal))
    journal.unlink()
    _hang_file(journal).unlink(missing_ok=True)
    return found, hung


def _hang_file(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}.stacks")
