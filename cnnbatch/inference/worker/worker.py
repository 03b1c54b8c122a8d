"""One shard inside a worker process: threads read and decode, this one predicts, another writes the rows.

A shard is taken in windows of a fixed number of images. Batches are cut inside a window by plan
order and shape, never by arrival, so that a row depends on its window alone, not on who computed
it; the price is a short batch at the end of a window with failures.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.evaluation.known_classes import aliases_of, judged_by
from cnnbatch.inference import fingerprint
from cnnbatch.inference.messages import Withdrawn, Work
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.predictor import PredictFault, Predictor
from cnnbatch.inference.worker.readahead import DecodeOptions, Item, ReadAhead, ReadRequest
from cnnbatch.inference.worker.settings import Settings
from cnnbatch.inference.worker.timings import ShardTally
from cnnbatch.inference.worker.transfer import Direct, transfer_for
from cnnbatch.inference.worker.turns import ShardWithdrawn, Turn, Turns
from cnnbatch.job import MapJob
from cnnbatch.output import plan
from cnnbatch.output.assets import AssetSink
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten_rows import blanked_truth, forgotten_places
from cnnbatch.output.part import PartSpool, part_rows, part_schema, sweep
from cnnbatch.output.truth_file import truth_file
from cnnbatch.sources.forgotten import forgetting_of
from cnnbatch.storage import AlreadyExists, Changed, redact
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.truth.problems import check_sizes
from cnnbatch.types import Failure, Model, Receipt, Shard, Source

if TYPE_CHECKING:
    from cnnbatch.images.nvjpeg import OnDevice

__all__ = ["PredictFault", "Worker"]

_SEEN = ("key", "width", "height", "error")
"""What a row says that its ground truth depends on."""


class Worker:
    """A loaded model with its threads; two shards may run in it at once."""

    def __init__(
        self,
        job: MapJob,
        source: Source,
        output: Output,
        journal: Journal,
        settings: Settings,
        model: Model | None = None,
    ) -> None:
        sweep()
        settings.apply()
        self.model = job.task.load(settings.runtime()) if model is None else model
        self.settings = settings
        self.identity = fingerprint.of(job, self.model, settings.precision, settings.decoder)
        self._source = source
        self._forgetting = replace(forgetting_of(source), model=self.identity["weights"])
        self._output = output
        self.journal = journal
        columns = getattr(self.model, "columns", None) or job.task.columns()
        self._schema = part_schema(source.columns, job.input.keep, columns)
        self._assets = AssetSink(output, self._schema)
        self._aliases = aliases_of(job)
        self._judged_by = judged_by(source.truth_schema, columns)
        overlaps, on_device = settings.type != "cpu", _on_device(settings)
        decoding = DecodeOptions(settings.decode_threads, settings.window, overlaps, on_device)
        self._ahead = ReadAhead(source, self.model, journal, decoding)
        self.predictor = Predictor(self.model, transfer_for(settings.device), journal, settings.batch)
        self._rows_thread = ThreadPoolExecutor(1, "rows")
        self._turns = Turns()

    def run(self, work: Work) -> Receipt | Withdrawn:
        """Predict one shard and put its part; a part that is there already is left as it is.

        Raises PredictFault where the model raised, EnvironmentFault where nothing may be written.
        """
        try:
            with self._turns.waiting(work.shard.index):
                return self._run(work)
        except ShardWithdrawn:
            return Withdrawn()

    def withdraw(self, index: int) -> None:
        """Give back a shard that waits for its turn on the device; where it has had that, do nothing."""
        if self._turns.withdraw(index):
            self._ahead.withdraw(index)

    def _run(self, work: Work) -> Receipt:
        work = replace(work, shard=self._forgetting.shard(work.shard))
        shard, started = work.shard, _now()
        old, etag = (None, None) if work.again is None else self._part(shard)
        positions = range(len(shard.refs)) if old is None else _positions_again(old, work)
        truth = self._truth(shard)
        tally, done, seen = ShardTally(), 0, list[pa.Table]()
        replaced = old
        with PartSpool(self._assets.schema) as spool:
            for rows in self._rows(work, positions, truth, tally, self._assets):
                seen += [pa.Table.from_batches([rows]).select(_SEEN)] if truth is not None else []
                if old is not None:
                    old = _replace_rows(old, rows, positions[done : done + rows.num_rows])
                    done += rows.num_rows
                else:
                    with tally.wall("write"):
                        spool.write(rows)
            for batch in _marked(old, shard).to_batches() if old is not None else ():
                spool.write(batch)
            receipt = tally.receipt(shard, old)
            file = spool.finish(self._footer(shard, receipt, started))
            if truth is not None:
                whole = old if old is not None else pa.concat_tables(seen)
                self._put_truth(shard, truth, whole, etag)
            is_put = self._put_part(shard, file, etag)
        if is_put and replaced is not None and old is not None:
            self._assets.remove(replaced, old)
        return receipt

    def rows(self, work: Work) -> pa.Table:
        """Predict one shard, and keep nothing: return its rows. Raises as `run`."""
        rows = self._rows(work, range(len(work.shard.refs)), None, ShardTally())
        return pa.Table.from_batches(rows, schema=self._schema)

    def try_alone(self, shard: Shard, position: int) -> Failure | None:
        """Predict one image by itself and keep nothing; return why its row is a failure, or None.

        Raises PredictFault where the model raised.
        """
        truth, tally = self._truth(shard), ShardTally()
        rows = pa.Table.from_batches(self._rows(Work(shard), [position], truth, tally), schema=self._schema)
        error = rows.column("error")[0].as_py()
        return Failure(**error) if error else None

    def probe(self) -> None:
        """Run the network on one picture of random pixels; raises whatever it raises."""
        self.predictor.probe()

    def classes(self) -> dict[str, Any] | None:
        """Return the model's classes as JSON values; None where it has none."""
        found = getattr(self.model, "classes", None)
        return asdict(found) if isinstance(found, ModelClasses) else None

    def notes(self) -> tuple[str, ...]:
        """Return the model's sentences for the person who runs the job."""
        return tuple(getattr(self.model, "notes", ()))

    def close(self) -> None:
        """End the threads."""
        self._ahead.close()
        self.predictor.close()
        self._rows_thread.shutdown()
        self._assets.close()

    def _rows(
        self,
        work: Work,
        positions: Sequence[int],
        truth: pa.Table | None,
        tally: ShardTally,
        assets: AssetSink | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield a window's rows each, one window behind the one that is predicted.

        Where they are kept, ``assets`` takes theirs.
        """
        reading = ReadRequest(
            work.shard, positions, work.condemned, None if truth is None else truth.to_pylist()
        )
        pending: Future[pa.RecordBatch] | None = None
        for items, outputs in self._predicted(self.predictor, reading, tally):
            if pending is not None:
                yield pending.result()
            pending = self._rows_thread.submit(self._stored, work.shard, items, outputs, tally, assets)
        if pending is not None:
            yield pending.result()

    def _stored(
        self,
        shard: Shard,
        window: Sequence[Item],
        outputs: list[list[Any]],
        tally: ShardTally,
        assets: AssetSink | None,
    ) -> pa.RecordBatch:
        """Make the rows of a window and, where they are kept, write their assets."""
        rows = self._forgetting.rows(self.window_rows(shard, window, outputs, tally))
        if assets is None:
            return rows
        return assets.stored(rows, shard.index, [item.position for item in window])

    def outputs(self, shard: Shard, clock: Callable[[], float]) -> Iterator[ImageOutputs]:
        """Yield what the network says of the images that can be predicted, in order; nothing is kept.

        ``clock`` tells the seconds of the forward pass, which are shared out evenly in a window. Raises
        as `run`.
        """
        reading = ReadRequest(shard, range(len(shard.refs)), {}, None)
        tally = ShardTally(clock)
        # Nothing overlaps, so that the seconds of the forward pass are all its own.
        predictor = Predictor(self.model, Direct(), self.journal, self.settings.batch)
        for items, outputs in self._predicted(predictor, reading, tally):
            forward_s, tally.seconds["forward"] = tally.seconds["forward"], 0.0
            good = [item for item in items if item.outcome.failure is None]
            for item, inner in zip(good, outputs, strict=True):
                other_s = item.seconds["decode"] + item.seconds["prepare"]
                yield ImageOutputs(item.position, inner, forward_s / len(good), other_s)

    def ahead_s(self, shard: Shard) -> float:
        """Return the seconds an image that reading, decoding and preparing take, with all threads at it."""
        started = perf_counter()
        with self._ahead.windows(ReadRequest(shard, range(len(shard.refs)), {}, None)) as windows:
            for _ in windows:
                pass
        return (perf_counter() - started) / len(shard.refs)

    def _predicted(
        self, predictor: Predictor, reading: ReadRequest, tally: ShardTally
    ) -> Iterator[tuple[Sequence[Item], list[list[Any]]]]:
        """Yield each window with the outputs of its images that have not failed."""
        timed = partial(tally.wall, "forward")
        with self._ahead.windows(reading) as windows, Turn(self._turns, reading.shard.index) as device:
            if not self._ahead.overlaps:  # Decoding takes the device's own time.
                device.take()
            for window in predictor.predict(reading.shard.index, device.taken_by(windows), timed):
                yield window.items, window.outputs()

    def _truth(self, shard: Shard) -> pa.Table | None:
        """Return the shard's truth; an object of a class that the model does not know raises UserError."""
        truth, model = self._source.truth(shard), getattr(self.model, "classes", None)
        if truth is not None and self._judged_by and isinstance(model, ModelClasses):
            self._judged_by.require_known(truth, model, self._aliases)
        return truth

    def window_rows(
        self, shard: Shard, window: Sequence[Item], outputs: list[list[Any]], tally: ShardTally
    ) -> pa.RecordBatch:
        """Make the rows of a window, whose images that have not failed have these outputs."""
        started = thread_time()
        good = [item for item in window if item.outcome.failure is None]
        images = [item.image for item in good if item.image is not None]
        try:
            task_rows = self.model.rows(images, [item.prepared for item in good], outputs) if good else None
        except Exception as error:  # The same question as in predicting, asked of the task's own code.
            positions = [item.position for item in good]
            raise PredictFault(shard.index, positions, f"{type(error).__name__}: {error}") from error
        rows = part_rows([item.outcome for item in window], task_rows, self._schema)
        tally.add(window, thread_time() - started)
        return rows

    def _part(self, shard: Shard) -> tuple[pa.Table, str]:
        etag = self._output.storage.head(self._output.part(shard.index)).etag or ""
        with self._output.storage.open(self._output.part(shard.index)) as file:
            return pq.read_table(file, schema=self._assets.schema), etag

    def _footer(self, shard: Shard, receipt: Receipt, started: str) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint.fingerprint(self.identity),
            "digest": plan.digest(shard),
            "versions": fingerprint.versions(),
            "weights": self.identity["weights"],
            "precision": self.settings.precision,
            "backend": self.settings.backend,
            "device": self.settings.device,
            "decoder": self.settings.decoder,
            "receipt": asdict(receipt),
            "started": started,
            "finished": _now(),
            "host": socket.gethostname(),
            "worker": os.getpid(),
            "licence": getattr(self.model, "licence", None),
            "forgotten": dict.fromkeys(self._forgetting.forgotten.commands),
        }

    def _put_truth(self, shard: Shard, truth: pa.Table, rows: pa.Table, etag: str | None) -> None:
        """Write the truth of ``rows``' images; for a part that is there (``etag``) over what it had."""
        put = self._output.storage.create if etag is None else self._output.storage.put
        truth = blanked_truth(check_sizes(truth, _sizes(rows)), forgotten_places(rows))
        with suppress(AlreadyExists):
            put(self._output.truth(shard.index), truth_file(truth))

    def _put_part(self, shard: Shard, file: Any, etag: str | None) -> bool:
        """Put the part, and say whether it now is this one."""
        uri = self._output.part(shard.index)
        try:
            if etag is None:
                self._output.storage.create(uri, file)
            else:
                self._output.storage.replace(uri, file, etag)
        except AlreadyExists:
            self._require_ours(shard)  # Another worker finished this shard first: its part stands.
            return False
        except Changed:
            return False
        return True

    def _require_ours(self, shard: Shard) -> None:
        """Refuse a part that a run of another job, which had not ended yet, has put in this one's place."""
        found = self._output.footer(shard.index)
        same = found.get("precision") != self.settings.precision or (
            found.get("fingerprint") == fingerprint.fingerprint(self.identity)
        )
        if not same or found["digest"] != plan.digest(shard):
            part = redact(self._output.part(shard.index))
            raise UserError(
                f"{part} was written by a run of another job, which had not ended when this one began\n"
                "  what to do: choose another output, or delete this one"
            )


@dataclass(frozen=True, slots=True)
class ImageOutputs:
    """One image's outputs, one an input, with its share of the forward pass and what decoding took."""

    position: int
    outputs: Sequence[Any]
    forward_s: float
    decode_s: float


def _on_device(settings: Settings) -> OnDevice | None:
    if settings.decoder == "cpu":
        return None
    from cnnbatch.images.nvjpeg import OnDevice

    return OnDevice()


def _sizes(rows: pa.Table) -> list[tuple[int, int] | None]:
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


def _replace_rows(part: pa.Table, rows: pa.RecordBatch, positions: Sequence[int]) -> pa.Table:
    """Return ``part`` with ``rows`` at ``positions``."""
    taken = np.arange(part.num_rows)
    taken[positions] = part.num_rows + np.arange(rows.num_rows)
    return pa.concat_tables([part, pa.Table.from_batches([rows])]).take(taken)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
