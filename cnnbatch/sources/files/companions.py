"""A camera's raw file beside a JPEG of the same stem is that picture's companion, and no image of its own.

A listing comes in the order of its addresses, in which the two need not be neighbours: between ``a.cr2`` and
``a.jpg`` lies all that begins with ``a.`` and sorts between them, a whole folder ``a.d/`` perhaps. So a raw
file waits, with what follows it, until its JPEG has come or can no longer come. Where too much waits, or the
listing began in between, the listing is asked once more from the stem on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cnnbatch.images.formats import JPEG_SUFFIXES, RAW_SUFFIXES, suffix_of
from cnnbatch.sources.files.left_out import COMPANIONS, count
from cnnbatch.storage import Entry

MOST_WAITING = 1000


@dataclass(slots=True)
class _Pending:
    """An entry whose turn has not come; ``reason``: why it is left out, ``stem``: its own while undecided."""

    entry: Entry
    reason: str
    stem: str = ""


class CompanionPairs:
    """Takes all entries of a listing in its order, and gives back the images among them, in the same order.

    ``has_jpeg`` says of a stem whether a JPEG of its name is listed; ``after`` is where the listing began.
    What is left out is counted in ``counts``, in its turn too.
    """

    def __init__(
        self, counts: Counter[str], has_jpeg: Callable[[str], bool], after: str | None, finds: bool
    ) -> None:
        self._counts, self._has_jpeg, self._after, self._finds = counts, has_jpeg, after or "", finds
        self._waiting: deque[_Pending] = deque()
        self._undecided: list[_Pending] = []
        self._jpegs: list[str] = []  # stems of those that an entry to come may still belong to

    def take(self, entry: Entry, reason: str) -> Iterator[Entry]:
        """Take the next entry, left out for a ``reason`` or an image; yield the images that are decided."""
        waiting = _Pending(entry, reason)
        if self._finds:
            self._decide(entry.uri, reason)
            if not reason:
                self._pair(waiting)
        self._waiting.append(waiting)
        yield from self._decided()
        if len(self._waiting) > MOST_WAITING:
            self._ask(self._waiting[0])
            yield from self._decided()

    def end(self) -> Iterator[Entry]:
        """Yield what still waits: no JPEG came."""
        for waiting in self._undecided:
            waiting.stem = ""
        yield from self._decided()

    def _decide(self, uri: str, reason: str) -> None:
        """Decide those that this address decides."""
        stem = "" if reason else _stem_of(uri, JPEG_SUFFIXES)
        for waiting in self._undecided:
            if stem and stem == waiting.stem:
                waiting.reason, waiting.stem = COMPANIONS, ""
            elif not uri.startswith(waiting.stem + "."):
                waiting.stem = ""
        self._undecided = [waiting for waiting in self._undecided if waiting.stem]
        self._jpegs = [known for known in self._jpegs if uri.startswith(known + ".")]
        if stem and stem not in self._jpegs:
            self._jpegs.append(stem)

    def _pair(self, waiting: _Pending) -> None:
        stem = _stem_of(waiting.entry.uri, RAW_SUFFIXES)
        if not stem:
            return
        if stem in self._jpegs:
            waiting.reason = COMPANIONS
            return
        waiting.stem = stem
        self._undecided.append(waiting)
        if self._after.startswith(stem + "."):  # Its JPEG may have been listed before.
            self._ask(waiting)

    def _ask(self, waiting: _Pending) -> None:
        waiting.reason = COMPANIONS if self._has_jpeg(waiting.stem) else ""
        waiting.stem = ""
        self._undecided = [one for one in self._undecided if one.stem]

    def _decided(self) -> Iterator[Entry]:
        while self._waiting and not self._waiting[0].stem:
            first = self._waiting.popleft()
            if first.reason:
                count(self._counts, first.reason)
            else:
                yield first.entry


def _stem_of(uri: str, suffixes: frozenset[str]) -> str:
    """Return an address without its suffix where that is one of these; else nothing."""
    suffix = suffix_of(uri)
    return uri[: -len(suffix)] if suffix in suffixes else ""


def has_jpeg(entries: Iterator[Entry], stem: str, takes: Callable[[str], bool]) -> bool:
    """Say whether a listing that begins behind a stem and its dot holds a JPEG of it."""
    for entry in entries:
        if not entry.uri.startswith(stem + "."):
            return False
        if _stem_of(entry.uri, JPEG_SUFFIXES) == stem and takes(entry.uri):
            return True
    return False
