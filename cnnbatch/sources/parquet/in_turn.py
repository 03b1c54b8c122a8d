"""Images that come one behind the other, as those of a Parquet file: fetched ahead by one thread.

How large they are is known only when they are there. So what is ahead is bounded by bytes, and an image is
handed out when it is there: who takes it sees at once how many bytes it holds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from cnnbatch.types import Content, Failure, ImageRef

AHEAD_BYTES = 64 << 20
"""Bytes that are fetched and not handed out before no other image is fetched."""

AHEAD_IMAGES = 32
"""And as many images."""

Reader = Callable[[], Content | Failure]


def read_in_turn(
    refs: Iterable[ImageRef], fetch: Callable[[ImageRef], Content | Failure], close: Callable[[], None]
) -> Iterator[Reader]:
    """Give one reader an image; ``fetch`` needs no locks, and ``close`` runs behind its last call."""
    ahead = _Ahead(refs, fetch, close)
    threading.Thread(target=ahead.work, name="container", daemon=True).start()
    try:
        while (reader := ahead.take()) is not None:
            yield reader
            del reader  # the image is the reader's alone
    finally:
        ahead.stop()


class _Ahead:
    """What is fetched and not handed out.

    The lock is one that its own thread may take twice: a generator may be left to the garbage collector,
    which may run in the thread that holds it.
    """

    def __init__(
        self,
        refs: Iterable[ImageRef],
        fetch: Callable[[ImageRef], Content | Failure],
        close: Callable[[], None],
    ) -> None:
        self._refs, self._fetch, self._close = refs, fetch, close
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[tuple[int, Reader | None]] = deque()
        self._bytes = 0
        self._stopped = False

    def take(self) -> Reader | None:
        """Return the next image's reader, once it is there; None behind the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            size, reader = self._waiting.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return reader

    def stop(self) -> None:
        """Have the thread end behind what is under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def work(self) -> None:
        """Fetch all images, as far ahead as there is room."""
        try:
            for ref in self._refs:
                if not self._has_room():
                    break
                self._add(self._settled(ref))
        finally:
            self._close()
            self._add((0, None))

    def _has_room(self) -> bool:
        """Wait for room; say whether more is wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or (self._bytes < AHEAD_BYTES and len(self._waiting) < AHEAD_IMAGES)
            )
            return not self._stopped

    def _add(self, one: tuple[int, Reader | None]) -> None:
        with self._changed:
            self._bytes += one[0]
            self._waiting.append(one)
            self._changed.notify_all()

    def _settled(self, ref: ImageRef) -> tuple[int, Reader]:
        """Fetch an image; an error is the reader's, which raises it."""
        try:
            content = self._fetch(ref)
        except BaseException as error:
            return 0, partial(_fail, error)
        return len(content) if isinstance(content, bytes) else 0, partial(_give, content)


def _give(content: Content | Failure) -> Content | Failure:
    return content


def _fail(error: BaseException) -> Content | Failure:
    raise error
