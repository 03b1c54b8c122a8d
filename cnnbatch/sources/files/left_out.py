"""What a listing passes over, counted: nothing that lies in a folder is left out without a word."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from cnnbatch.images.formats import suffix_of

if TYPE_CHECKING:
    from cnnbatch.types import ImageRef, Source

COMPANIONS = "raw beside a JPEG of its name"
HIDDEN = "hidden"
_WITHOUT_SUFFIX = "without suffix"
_OTHERS = "others"
_MOST_KINDS = 100
_MOST_SHOWN = 6
_LONGEST_SUFFIX = 16


class LeftOut:
    """The counts of the listing that yielded last, by suffix; of each listing there are its own."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()


def count(counts: Counter[str], kind: str) -> None:
    """Count one file; kinds beyond a hundred are told together."""
    counts[kind if kind in counts or len(counts) < _MOST_KINDS else _OTHERS] += 1


def kind_of(path: str) -> str:
    """Return how a file that is no image is counted: by its suffix."""
    suffix = suffix_of(path)
    return suffix if 1 < len(suffix) <= _LONGEST_SUFFIX else _WITHOUT_SUFFIX if len(suffix) < 2 else _OTHERS


def left_out_by(source: Source) -> Counter[str]:
    """Return what a source's last listing passed over; nothing of a source that lists no folder."""
    return Counter(_counts_of(source))


def _counts_of(source: Source) -> Mapping[str, int]:
    within: object = source
    while within is not None:
        found = getattr(within, "left_out", None)
        if isinstance(found, LeftOut):
            return found.counts
        names = ("source", "regions", "pictures")
        within = next((getattr(within, name) for name in names if hasattr(within, name)), None)
    return {}


class LeftOutBefore:
    """Lets refs pass, and tells what their source had left out when any of them came."""

    def __init__(self, refs: Iterable[ImageRef], source: Source) -> None:
        self._refs, self._source = refs, source
        self._counts = Counter[str]()
        self._since = deque[tuple[int, str, int]]()  # by which ref's number what kind was counted how often

    def __iter__(self) -> Iterator[ImageRef]:
        last: Mapping[str, int] = {}
        for number, ref in enumerate(self._refs):
            now = _counts_of(self._source)
            if now != last:
                grown = ((kind, count - last.get(kind, 0)) for kind, count in now.items())
                self._since.extend((number, kind, more) for kind, more in grown if more)
                last = dict(now)
            yield ref

    def counts(self, refs: int) -> Counter[str]:
        """Return what was left out before the last of the first ``refs``, which never become fewer."""
        while self._since and self._since[0][0] < refs:
            _, kind, more = self._since.popleft()
            self._counts[kind] += more
        return Counter(self._counts)


def in_words(counts: Mapping[str, int]) -> str:
    """Return the counts as ``7 .txt, 3 hidden``, the most first; empty where there are none."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{number:,} {kind}" for kind, number in ranked[:_MOST_SHOWN]]
    rest = sum(number for _, number in ranked[_MOST_SHOWN:])
    return ", ".join([*words, *([f"{rest:,} more"] if rest else [])])
