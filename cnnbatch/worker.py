"""One shard inside an actor: threads read and decode, this one predicts, another writes the rows.

A shard is taken in windows of a fixed number of images. Batches are cut inside a window by plan
order and shape, never by arrival, so that a row depends on its window alone, not on who computed
it; the price is a short batch at the end of a window with failures.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain, islice
from time import perf_counter, thread_time
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from cnnbatch import identity, plan
from cnnbatch.errors import EnvironmentFault
from cnnbatch.job import MapJob
from cnnbatch.journal import Journal
from cnnbatch.output import Output
from cnnbatch.readahead import Item, ReadAhead, Reading
from cnnbatch.records import Failure, Image, ImageRef, Prepared, Receipt, Shard, Work
from cnnbatch.sink import PartSpool, part_rows, part_schema, sweep
from cnnbatch.sources import Source
from cnnbatch.speed import Settings
from cnnbatch.storage import AlreadyExists, Changed
from cnnbatch.truth import Class, ModelClasses, check_sizes, classes_of, object_labels

PROBE_SIZE = (480, 640)
T = TypeVar("T")


class PredictFault(Exception):
    """The model raised on a batch: which images of which shard, and what it said."""

    def __init__(self, shard: int, positions: Sequence[int], message: str) -> None:
        super().__init__(shard, tuple(positions), message)
        self.shard = shard
        self.positions = tuple(positions)
        self.message = message


class Worker:
    """A loaded model with its threads; two shards may run in it at once."""

    def __init__(
        self, job: MapJob, source: Source, output: Output, journal: Journal, settings: Settings
    ) -> None:
        sweep()
        torch.set_num_threads(settings.threads)
        self.model = job.task.load(settings.runtime())
        self.identity = identity.of(job, self.model, settings.precision)
        self._source = source
        self._output = output
        self._settings = settings
        self.journal = journal
        self._schema = part_schema(source.columns, job.input.keep, job.task.columns())
        self._match = getattr(self.model, "match", None)
        truth = source.truth_schema
        if self._match and truth is not None and "objects" in truth.names:
            self._match(classes_of(truth))
        beside = settings.device != "cpu"
        self._ahead = ReadAhead(source, self.model, journal, settings.threads, settings.window, beside)
        self._rows_thread = ThreadPoolExecutor(1, "rows")
        self._device = threading.Lock()

    def run(self, work: Work) -> Receipt:
        """Predict one shard and put its part; a part that is there already is left as it is.

        Raises PredictFault where the model raised, EnvironmentFault where nothing may be written.
        """
        shard, started = work.shard, _now()
        old, etag = (None, None) if work.again is None else self._part(shard)
        positions = range(len(shard.refs)) if old is None else _positions_again(old, work)
        truth = self._truth(shard)
        tally, sizes = Tally(), list[tuple[int, int] | None]()
        with PartSpool(self._schema) as spool:
            for rows in self._rows(work, positions, truth, tally):
                sizes += _sizes(rows) if truth is not None else []
                if old is not None:
                    old = _replace_rows(old, pa.Table.from_batches([rows]))
                else:
                    with tally.wall("write"):
                        spool.write(rows)
            for batch in _marked(old, shard).to_batches() if old is not None else ():
                spool.write(batch)
            receipt = tally.receipt(shard, old)
            file = spool.finish(self._footer(shard, receipt, started))
            if truth is not None:
                self._put_truth(shard, truth, _sizes(old) if old is not None else sizes, etag)
            self._put_part(shard, file, etag)
        return receipt

    def try_alone(self, shard: Shard, position: int) -> Failure | None:
        """Predict one image by itself and keep nothing; return why its row is a failure, or None.

        Raises PredictFault where the model raised.
        """
        truth, tally = self._truth(shard), Tally()
        rows = pa.Table.from_batches(self._rows(Work(shard), [position], truth, tally), schema=self._schema)
        error = rows.column("error")[0].as_py()
        return Failure(**error) if error else None

    def probe(self) -> None:
        """Run the network on one picture of random pixels; raises whatever it raises."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (3, *PROBE_SIZE), dtype=torch.uint8, generator=generator)
        prepared = self.model.prepare(Image(ImageRef("probe", "probe"), pixels, PROBE_SIZE))
        self._forward(0, [0] * len(prepared), prepared)

    def classes(self) -> dict[str, Any] | None:
        """Return the model's classes as JSON values; None where it has none."""
        found = getattr(self.model, "classes", None)
        return asdict(found) if isinstance(found, ModelClasses) else None

    def close(self) -> None:
        """End the threads."""
        self._ahead.close()
        self._rows_thread.shutdown()

    def _rows(
        self, work: Work, positions: Sequence[int], truth: pa.Table | None, tally: Tally
    ) -> Iterator[pa.RecordBatch]:
        """Yield a window's rows each, one window behind the one that is predicted."""
        reading = Reading(work.shard, positions, work.condemned, None if truth is None else truth.to_pylist())
        pending: Future[pa.RecordBatch] | None = None
        with self._ahead.windows(reading) as windows, _Turn(self._device) as device:
            if not self._ahead.beside:  # Decoding takes the device's own time.
                device.take()
            for window in windows:
                device.take()
                outputs = self._predict(work.shard, window, tally)
                if pending is not None:
                    yield pending.result()
                pending = self._rows_thread.submit(self._window_rows, work.shard, window, outputs, tally)
        if pending is not None:
            yield pending.result()

    def _truth(self, shard: Shard) -> pa.Table | None:
        """Return the shard's truth; classes that its source did not tell before are matched now."""
        truth = self._source.truth(shard)
        if truth is not None and self._match and not classes_of(truth.schema):
            self._match([Class(name, name) for name in object_labels(truth)])
        return truth

    def _predict(self, shard: Shard, window: Sequence[Item], tally: Tally) -> list[list[Any]]:
        """Return the outputs of a window's inputs: one inner list an image that has not failed."""
        good = [item for item in window if item.outcome.failure is None]
        inputs = [(place, prepared) for place, item in enumerate(good) for prepared in item.prepared]
        found: list[Any] = [None] * len(inputs)
        with tally.wall("forward"):
            for batch in _batches([prepared for _, prepared in inputs], self._settings.batch):
                positions = [good[inputs[number][0]].position for number in batch]
                outputs = self._forward(shard.index, positions, [inputs[number][1] for number in batch])
                for number, output in zip(batch, outputs, strict=True):
                    found[number] = output
        grouped: list[list[Any]] = [[] for _ in good]
        for (place, _), output in zip(inputs, found, strict=True):
            grouped[place].append(output)
        return grouped

    def _forward(self, shard: int, positions: Sequence[int], prepared: Sequence[Prepared]) -> list[Any]:
        with self.journal.predicting(shard, sorted(set(positions))):
            try:
                batch = _stack(prepared)
                if self._settings.device.startswith("cuda"):
                    batch = batch.pin_memory()
                sizes = torch.tensor([one.size for one in prepared])
                with torch.inference_mode():
                    return _split(self.model.forward(batch, sizes))
            except EnvironmentFault:
                raise
            except Exception as error:  # Whose fault it is, the images alone in a fresh actor decide.
                raise PredictFault(shard, positions, f"{type(error).__name__}: {error}") from error

    def _window_rows(
        self, shard: Shard, window: Sequence[Item], outputs: list[list[Any]], tally: Tally
    ) -> pa.RecordBatch:
        started = thread_time()
        good = [item for item in window if item.outcome.failure is None]
        images = [item.image for item in good if item.image is not None]
        try:
            task_rows = self.model.rows(images, [item.prepared for item in good], outputs) if good else None
        except Exception as error:  # The same question as in _forward, asked of the task's own code.
            positions = [item.position for item in good]
            raise PredictFault(shard.index, positions, f"{type(error).__name__}: {error}") from error
        rows = part_rows([item.outcome for item in window], task_rows, self._schema)
        tally.add(window, thread_time() - started)
        return rows

    def _part(self, shard: Shard) -> tuple[pa.Table, str]:
        etag = self._output.storage.head(self._output.part(shard.index)).etag or ""
        with self._output.storage.open(self._output.part(shard.index)) as file:
            return pq.read_table(file, schema=self._schema), etag

    def _footer(self, shard: Shard, receipt: Receipt, started: str) -> dict[str, Any]:
        return {
            "fingerprint": identity.fingerprint(self.identity),
            "digest": plan.digest(shard),
            "versions": identity.versions(),
            "weights": self.identity["weights"],
            "precision": self._settings.precision,
            "device": self._settings.device,
            "receipt": asdict(receipt),
            "started": started,
            "finished": _now(),
            "host": socket.gethostname(),
            "worker": os.getpid(),
            "licence": getattr(self.model, "licence", None),
        }

    def _put_truth(
        self, shard: Shard, truth: pa.Table, sizes: Sequence[tuple[int, int] | None], etag: str | None
    ) -> None:
        """Write the truth; for a part that is there (``etag``) over what it had."""
        sink = pa.BufferOutputStream()
        pq.write_table(check_sizes(truth, sizes), sink)
        put = self._output.storage.create if etag is None else self._output.storage.put
        with suppress(AlreadyExists):
            put(self._output.truth(shard.index), sink.getvalue().to_pybytes())

    def _put_part(self, shard: Shard, file: Any, etag: str | None) -> None:
        uri = self._output.part(shard.index)
        try:
            if etag is None:
                self._output.storage.create(uri, file)
            else:
                self._output.storage.replace(uri, file, etag)
        except (AlreadyExists, Changed):
            return  # Another worker finished this shard first: its part stands.


class Tally:
    """Counts rows, failures and seconds of one shard while its windows pass."""

    def __init__(self) -> None:
        self.rows = 0
        self.failed: dict[str, int] = {}
        self.seconds = dict.fromkeys(("read", "decode", "prepare", "forward", "rows", "write"), 0.0)

    def wall(self, stage: str) -> _Wall:
        """Return a block that adds its wall time to ``stage``."""
        return _Wall(self.seconds, stage)

    def add(self, window: Iterable[Item], rows_s: float) -> None:
        """Count a window's images, and ``rows_s`` seconds for making their rows."""
        self.seconds["rows"] += rows_s
        for item in window:
            self.rows += 1
            if item.outcome.failure:
                self.failed[item.outcome.failure.code] = self.failed.get(item.outcome.failure.code, 0) + 1
            for stage, seconds in item.seconds.items():
                self.seconds[stage] += seconds

    def receipt(self, shard: Shard, replaced: pa.Table | None) -> Receipt:
        """Return the shard's receipt; ``replaced`` is the whole part where only some rows were made anew."""
        rows, failed = self.rows, self.failed
        if replaced is not None:
            rows, failed = replaced.num_rows, _failures(replaced)
        return Receipt(shard.index, rows, self.rows, failed, self.seconds, self.failed)


class _Wall:
    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._stage] += perf_counter() - self._started


class _Turn:
    """Holds the device from a shard's first batch to its last, so that shards don't interleave."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._held = False

    def take(self) -> None:
        if not self._held:
            self._held = self._lock.acquire()

    def __enter__(self) -> _Turn:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._lock.release()


def _batches(inputs: Sequence[Prepared], size: int) -> Iterator[tuple[int, ...]]:
    """Yield the numbers of the inputs that go through the network together: one shape, in order."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, prepared in enumerate(inputs):
        shapes.setdefault(tuple(prepared.pixels.shape), []).append(number)
    return chain.from_iterable(_batched(numbers, size) for numbers in shapes.values())


def _batched(values: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    stream = iter(values)
    return iter(lambda: tuple(islice(stream, size)), ())


def _stack(prepared: Sequence[Prepared]) -> torch.Tensor:
    """Return the inputs as one batch (N, 3, H, W), in the memory order that they lie in."""
    if prepared[0].pixels.stride(0) == 1:  # (H, W, 3) in memory: stacked so, it is channels-last at no cost.
        return torch.stack([one.pixels.permute(1, 2, 0) for one in prepared]).permute(0, 3, 1, 2)
    return torch.stack([one.pixels for one in prepared])


def _split(outputs: Any) -> list[Any]:
    """Cut a dict or tuple of tensors (or lists) of first dimension N into N dicts or tuples, on the host."""
    if isinstance(outputs, dict):
        columns = [_host(value) for value in outputs.values()]
        return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
    return list(zip(*(_host(value) for value in outputs), strict=True))


def _host(value: Any) -> Sequence[Any]:
    return value.cpu().unbind(0) if isinstance(value, torch.Tensor) else list(value)


def _sizes(rows: pa.RecordBatch | pa.Table) -> list[tuple[int, int] | None]:
    """Return the (width, height) of each row's image, None where it could not be read."""
    pairs = zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)
    return [None if width is None or height is None else (width, height) for width, height in pairs]


def _positions_again(part: pa.Table, work: Work) -> list[int]:
    """Return which rows are predicted again: those that failed with such a code, or whose image changed."""
    codes = pc.struct_field(part["error"], "code").to_pylist()
    etags = part["etag"].to_pylist()
    return [
        position
        for position, (ref, code, etag) in enumerate(zip(work.shard.refs, codes, etags, strict=True))
        if position not in work.shard.vanished and (code in (work.again or ()) or ref.etag != etag)
    ]


def _marked(part: pa.Table, shard: Shard) -> pa.Table:
    """Return ``part`` with its column ``vanished`` as the shard has it."""
    place = part.schema.get_field_index("vanished")
    marks = pa.array([position in shard.vanished for position in range(part.num_rows)])
    return part.set_column(place, part.schema.field(place), marks)


def _failures(part: pa.Table) -> dict[str, int]:
    codes = pc.struct_field(part["error"], "code").to_pylist()
    return dict(Counter(code for code in codes if code is not None))


def _replace_rows(part: pa.Table, rows: pa.Table) -> pa.Table:
    """Return ``part`` with ``rows`` in the place of the rows of the same keys."""
    keys = part.column("key").to_pylist()
    fresh = {key: len(keys) + place for place, key in enumerate(rows.column("key").to_pylist())}
    return pa.concat_tables([part, rows]).take([fresh.get(key, place) for place, key in enumerate(keys)])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
