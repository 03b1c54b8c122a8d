"""A file handle over range reads: the readers of Parquet and CSV need one, object storage has none."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, cast

from cnnbatch.types import Span

_READAHEAD = 1 << 18  # bytes; one request for the many small reads of a footer or a line


class _Ranges(io.RawIOBase):
    def __init__(self, read: Callable[[Span], bytes], size: int) -> None:
        super().__init__()
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = self._read(Span(self._at, length))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Return the rest in one request, rather than in one for each of Python's small blocks."""
        data = self._read(Span(self._at, self._size - self._at)) if self._at < self._size else b""
        self._at += len(data)
        return data


def range_file(read: Callable[[Span], bytes], size: int) -> BinaryIO:
    """Return a seekable, thread-safe handle on an object of ``size`` bytes; ``read`` gives any span of it."""
    return cast(BinaryIO, io.BufferedReader(_Ranges(read, size), buffer_size=_READAHEAD))
