"""Reads, decodes and prepares a shard's images, in order, a bounded number ahead.

ReadRequest waits for the network: many threads do it while the network predicts. Decoding takes the
processor. Where predicting takes another device, decoding goes on beside it; where it takes the
same processor, the two take turns, a window each: fewer hand-overs between threads, and neither
drives the other's data out of the caches (together 3 to 4 % of the processor time, measured for a
network of 7 ms an image). One feeding thread a shard keeps the order; two shards of a worker take
turns at feeding, so that the second is read while the first still predicts.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import call
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cnnbatch.errors import EnvironmentFault
from cnnbatch.images.decode import DecodeError, Size, decode
from cnnbatch.images.formats import why_refused
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.output.part import Outcome
from cnnbatch.types import Content, Failure, Image, Prepared, Preparing, Shard, Source

if TYPE_CHECKING:
    from cnnbatch.images.nvjpeg import OnDevice

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
class ReadRequest:
    """Which images of a shard to bring: ``positions``, but for those that are ``condemned`` already."""

    shard: Shard
    positions: Sequence[int]
    condemned: Mapping[int, Failure]
    truth: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How images are decoded: by how many ``threads``, ``window`` images at a time.

    ``overlaps``: decode while the model predicts, rather than in turns with it. ``on_device`` decodes and
    prepares there what it can, the host the rest.
    """

    threads: int
    window: int
    overlaps: bool = False
    on_device: OnDevice | None = None


class ReadAhead:
    """The reading and decoding threads of one worker."""

    def __init__(
        self,
        source: Source,
        model: Preparing,
        journal: Journal,
        options: DecodeOptions,
    ) -> None:
        self._source = source
        self._model = model
        self._journal = journal
        self._window = options.window
        self._on_device = options.on_device
        self.overlaps = options.overlaps
        self._reads = ThreadPoolExecutor(READ_THREADS, "read")
        self._decodes = ThreadPoolExecutor(options.threads, "decode")
        # Where decoding has begun, or has one thread, handing it to that thread would gain nothing.
        in_turns = not options.overlaps and options.threads > 1
        self._apply: Callable[..., Iterator[Item]] = self._decodes.map if in_turns else map
        self._turn = threading.Lock()
        self._feeds: dict[int, _Feed] = {}
        self._unread = threading.Semaphore(UNREAD_LIMIT)

    @contextmanager
    def windows(self, reading: ReadRequest) -> Iterator[Iterator[list[Item]]]:
        """Read while the block lasts; give the images in the order of their positions, a window at a time.

        What was given takes room no more: so much may be read while it is predicted. Taking a
        window raises EnvironmentFault only.
        """
        feed = self._feeds[reading.shard.index] = _Feed(self._window)
        feeder = threading.Thread(target=self._feed, args=(reading, feed), name="feed", daemon=True)
        feeder.start()
        # Who then waits for a device waits with its images under way: none holds it and waits for a turn.
        feed.begun.wait()
        try:
            yield self._take(feed)
        finally:
            self._feeds.pop(reading.shard.index, None)
            feed.stop(self._window)
            if not feed.withdrawn:  # Then it waits for the shard before, and ends when its turn comes.
                feeder.join()

    def withdraw(self, shard: int) -> None:
        """Have `windows` of a shard that waits for another one to be read wait no longer."""
        if feed := self._feeds.get(shard):
            feed.withdrawn = True
            feed.begun.set()

    def _take(self, feed: _Feed) -> Iterator[list[Item]]:
        while window := list(self._apply(call, islice(feed.finishers, self._window))):
            feed.room.release(len(window))
            yield window
        if feed.fault:
            raise feed.fault

    def close(self) -> None:
        """End the threads."""
        self._reads.shutdown(cancel_futures=True)
        self._decodes.shutdown(cancel_futures=True)

    def _feed(self, reading: ReadRequest, feed: _Feed) -> None:
        try:
            with self._turn:
                feed.begun.set()
                if not feed.stopped:
                    self._submit_all(reading, feed)
        except Exception as fault:  # Handed to the thread that takes the items, which raises it.
            feed.fault = fault
        feed.put(None)

    def _submit_all(self, reading: ReadRequest, feed: _Feed) -> None:
        readers = self._source.read(
            Shard(reading.shard.index, tuple(reading.shard.refs[p] for p in reading.positions))
        )
        for position, reader in zip(reading.positions, readers, strict=True):
            feed.room.acquire()
            if feed.stopped:
                return
            vanished = position in reading.shard.vanished
            item = Item(position, Outcome(reading.shard.refs[position], vanished))
            if failure := reading.condemned.get(position):
                item.outcome.failure = failure
                feed.put(partial(_done, item))
                continue
            feed.encoded.wait()
            self._unread.acquire()
            read = self._reads.submit(self._read, reader, item, feed.encoded)
            finish = partial(self._decode, read, item, reading, feed.encoded)
            feed.put(self._decodes.submit(finish).result if self.overlaps else finish)

    def _read(
        self, reader: Callable[[], Content | Failure], item: Item, encoded: _Budget
    ) -> Content | Failure:
        started = time.perf_counter()
        try:
            data = reader()
        finally:
            self._unread.release()
            item.seconds["read"] = time.perf_counter() - started
        if not isinstance(data, Failure):
            encoded.add(_size_bytes(data))
        return data

    def _decode(
        self, read: Future[Content | Failure], item: Item, reading: ReadRequest, encoded: _Budget
    ) -> Item:
        data = read.result()
        if isinstance(data, Failure):
            item.outcome.failure = data
            return item
        item.outcome.bytes = _size_bytes(data)
        try:
            with self._journal.decoding(reading.shard.index, item.position):
                self.prepare(data, item, reading)
        finally:
            encoded.add(-item.outcome.bytes)
        return item

    def prepare(self, data: Content, item: Item, reading: ReadRequest) -> None:
        """Decode and prepare one image that was read, in this thread."""
        truth = None if reading.truth is None else reading.truth[item.position]
        fill = partial(self._fill, item, truth, time.thread_time())
        try:
            if self._on_device and isinstance(data, bytes) and self._on_device.handle(data, fill):
                return
            least = self._model.decode_size
            decoded = decode(data, least) if isinstance(data, bytes) else data.decode(least)
        except DecodeError as error:
            ref = item.outcome.ref
            item.outcome.failure = Failure(
                "decode", error.code, why_refused(error.code, str(error), ref.key, ref.uri)
            )
            return
        try:
            fill(decoded)
        except (EnvironmentFault, MemoryError, OSError):
            raise
        except Exception as error:  # Whatever a model's own preparation says of this image is its row.
            item.outcome.failure = Failure("prepare", "prepare", f"{type(error).__name__}: {error}")

    def _fill(
        self, item: Item, truth: Mapping[str, Any] | None, started: float, decoded: tuple[Tensor, Size]
    ) -> None:
        """Prepare an image that is decoded, where its pixels lie."""
        decoded_at = time.thread_time()
        pixels, item.outcome.size = decoded
        image = Image(item.outcome.ref, pixels, item.outcome.size, truth)
        item.prepared = self._model.prepare(image)
        item.image = Image(image.ref, _NO_PIXELS, image.size, truth)
        item.seconds["decode"] = decoded_at - started
        item.seconds["prepare"] = time.thread_time() - decoded_at


def _size_bytes(data: Content) -> int:
    return len(data) if isinstance(data, bytes) else data.size_bytes


def _done(item: Item) -> Item:
    return item


class _Feed:
    """What the feeding thread and the taker of its images share: for each, a call that returns it done."""

    def __init__(self, window: int) -> None:
        self.room = threading.Semaphore(window)
        self.encoded = _Budget(ENCODED_LIMIT_BYTES)
        self.begun = threading.Event()
        self.stopped = self.withdrawn = False
        self.fault: Exception | None = None
        ordered: queue.SimpleQueue[Callable[[], Item] | None] = queue.SimpleQueue()
        self.put = ordered.put
        self.finishers = iter(ordered.get, None)  # Once the end is met, it stays the end.

    def stop(self, room: int) -> None:
        """Have the feeding thread end, whatever it waits for."""
        self.stopped = True
        self.room.release(room)
        self.encoded.lift()


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

    def lift(self) -> None:
        """Bound nothing any more."""
        with self._changed:
            self._limit = sys.maxsize
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._limit)
