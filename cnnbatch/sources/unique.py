"""Finds a key that comes twice in a stream of any length, in a few megabytes and 24 bytes of disk a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cnnbatch.errors import EnvironmentFault

_PARTITIONS = 256  # by the first byte of the digest
_BUFFER = 24 * 512  # bytes of one partition kept in memory before they are spooled
_EARLY = 1 << 17  # keys that are compared at once, so that most mistakes show before any work is done
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<i8")])


class Keys:
    """Keys with their places; equal ones share a partition, and each partition is sorted by itself.

    Keys are compared by 128-bit digests: among 10^12 keys the odds of a false alarm are below 10^-14.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffers = [bytearray() for _ in range(_PARTITIONS)]
        self._early: dict[bytes, int] = {}

    def add(self, key: str, place: int) -> tuple[int, int] | None:
        """Note a key; return both places if it is known at once to have come before."""
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._early:
            return self._early[digest], place
        if len(self._early) < _EARLY:
            self._early[digest] = place
        buffer = self._buffers[digest[0]]
        buffer += digest + place.to_bytes(8, "little")
        if len(buffer) >= _BUFFER:
            self._spool(digest[0])
        return None

    def duplicate(self) -> tuple[int, int] | None:
        """Return the places of the first key that came twice."""
        found = [pair for number in range(_PARTITIONS) if (pair := _first(self._records(number)))]
        return min(found, key=lambda pair: pair[1], default=None)

    def _spool(self, number: int) -> None:
        try:
            with self._path(number).open("ab") as file:
                file.write(self._buffers[number])
        except OSError as error:
            raise EnvironmentFault(
                f"{self._folder}: {error.strerror}, while the keys of the list were checked there",
                "free space on that disk, or set TMPDIR to another one",
            ) from None
        self._buffers[number].clear()

    def _records(self, number: int) -> np.ndarray:
        path = self._path(number)
        return np.frombuffer((path.read_bytes() if path.exists() else b"") + self._buffers[number], _RECORD)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}"


@contextmanager
def unique_keys() -> Iterator[Keys]:
    """Give an empty set of keys, on a temporary folder that goes at the end."""
    with TemporaryDirectory(prefix="cnnbatch-keys-") as folder:
        yield Keys(Path(folder))


def _first(records: np.ndarray) -> tuple[int, int] | None:
    """Return the places of the two equal digests whose second place comes first."""
    records = records[np.lexsort((records["place"], records["low"], records["high"]))]
    one, two = records[:-1], records[1:]
    twice = np.flatnonzero((one["high"] == two["high"]) & (one["low"] == two["low"]))
    if not len(twice):
        return None
    best = twice[np.argmin(two["place"][twice])]
    return int(one["place"][best]), int(two["place"][best])
