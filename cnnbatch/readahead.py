"""Reads, decodes and prepares a shard's images in threads, in order, a bounded number ahead.

Reading waits for the network and takes many threads; decoding takes the processor and takes few.
One feeding thread a shard keeps the order; two shards of an actor take turns at feeding, so that
the second is read while the first still predicts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from cnnbatch.decode import DecodeError, decode
from cnnbatch.errors import EnvironmentFault
from cnnbatch.journal import Journal
from cnnbatch.records import Failure, Image, Prepared, Shard
from cnnbatch.sink import Outcome
from cnnbatch.sources import Source
from cnnbatch.tasks import Model

READ_THREADS = 16
UNREAD_LIMIT = 32
ENCODED_LIMIT_BYTES = 128 * 2**20
_NO_PIXELS = torch.empty((3, 0, 0), dtype=torch.uint8)


@dataclass(slots=True)
class Item:
    """One image on its way: its outcome so far and, where it has not failed, its network inputs.

    ``image`` holds no pixels any more; ``seconds`` are wall time for ``read`` and processor time of
    the decoding thread for ``decode`` and ``prepare``.
    """

    position: int
    outcome: Outcome
    image: Image | None = None
    prepared: Sequence[Prepared] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """Which images of a shard to bring: ``positions``, but for those that are ``condemned`` already."""

    shard: Shard
    positions: Sequence[int]
    condemned: Mapping[int, Failure]
    truth: Sequence[Mapping[str, Any]] | None


class ReadAhead:
    """The reading and decoding threads of one worker."""

    def __init__(
        self, source: Source, model: Model, journal: Journal, decode_threads: int, ahead: int
    ) -> None:
        self._source = source
        self._model = model
        self._journal = journal
        self._ahead = ahead
        self._reads = ThreadPoolExecutor(READ_THREADS, "read")
        self._decodes = ThreadPoolExecutor(decode_threads, "decode")
        self._turn = threading.Lock()
        self._unread = threading.Semaphore(UNREAD_LIMIT)
        self._encoded = _Budget(ENCODED_LIMIT_BYTES)

    def items(self, reading: Reading) -> Generator[Item, None, None]:
        """Yield the images in the order of their positions; raises EnvironmentFault only."""
        ordered: queue.SimpleQueue[Future[Item] | None] = queue.SimpleQueue()
        feed = _Feed(threading.Semaphore(self._ahead), ordered.put)
        feeder = threading.Thread(target=self._feed, args=(reading, feed), name="feed", daemon=True)
        feeder.start()
        try:
            while (item := ordered.get()) is not None:
                yield item.result()
                feed.room.release()
            if feed.fault:
                raise feed.fault
        finally:
            feed.stop(self._ahead)
            feeder.join()

    def close(self) -> None:
        """End the threads."""
        self._reads.shutdown(cancel_futures=True)
        self._decodes.shutdown(cancel_futures=True)

    def _feed(self, reading: Reading, feed: _Feed) -> None:
        try:
            with self._turn:
                self._submit_all(reading, feed)
        except Exception as fault:  # Handed to the thread that takes the items, which raises it.
            feed.fault = fault
        feed.put(None)

    def _submit_all(self, reading: Reading, feed: _Feed) -> None:
        readers = self._source.read(
            Shard(reading.shard.index, tuple(reading.shard.refs[p] for p in reading.positions))
        )
        for position, reader in zip(reading.positions, readers, strict=True):
            feed.room.acquire()
            if feed.stopped:
                return
            item = Item(position, Outcome(reading.shard.refs[position]))
            if failure := reading.condemned.get(position):
                item.outcome.failure = failure
                feed.put(_done(item))
                continue
            self._encoded.wait()
            self._unread.acquire()
            read = self._reads.submit(self._read, reader, item)
            feed.put(self._decodes.submit(self._decode, read, item, reading))

    def _read(self, reader: Callable[[], bytes | Failure], item: Item) -> bytes | Failure:
        started = time.perf_counter()
        try:
            data = reader()
        finally:
            self._unread.release()
            item.seconds["read"] = time.perf_counter() - started
        if isinstance(data, bytes):
            self._encoded.add(len(data))
        return data

    def _decode(self, read: Future[bytes | Failure], item: Item, reading: Reading) -> Item:
        data = read.result()
        if isinstance(data, Failure):
            item.outcome.failure = data
            return item
        item.outcome.bytes = len(data)
        try:
            with self._journal.decoding(reading.shard.index, item.position):
                self._prepare(data, item, reading)
        finally:
            self._encoded.add(-len(data))
        return item

    def _prepare(self, data: bytes, item: Item, reading: Reading) -> None:
        started = time.thread_time()
        try:
            pixels, item.outcome.size = decode(data, self._model.decode_size)
        except DecodeError as error:
            item.outcome.failure = Failure("decode", error.code, str(error))
            return
        decoded = time.thread_time()
        truth = None if reading.truth is None else reading.truth[item.position]
        image = Image(item.outcome.ref, pixels, item.outcome.size, truth)
        try:
            item.prepared = self._model.prepare(image)
        except (EnvironmentFault, MemoryError, OSError):
            raise
        except Exception as error:  # Whatever a model's own preparation says of this image is its row.
            item.outcome.failure = Failure("prepare", "prepare", f"{type(error).__name__}: {error}")
            return
        item.image = Image(image.ref, _NO_PIXELS, image.size, truth)
        item.seconds["decode"] = decoded - started
        item.seconds["prepare"] = time.thread_time() - decoded


def _done(item: Item) -> Future[Item]:
    done: Future[Item] = Future()
    done.set_result(item)
    return done


class _Feed:
    """What the feeding thread and the taker of its items share."""

    def __init__(self, room: threading.Semaphore, put: Callable[[Future[Item] | None], None]) -> None:
        self.room = room
        self.put = put
        self.stopped = False
        self.fault: Exception | None = None

    def stop(self, room: int) -> None:
        self.stopped = True
        self.room.release(room)


class _Budget:
    """Bytes that are read and not yet decoded; waiting for room is the feeding threads' only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    def add(self, count: int) -> None:
        with self._changed:
            self._held += count
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._limit)
