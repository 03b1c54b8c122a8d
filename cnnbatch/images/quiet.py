"""Decoders' warnings are nobody's: they are ignored in the thread that decodes, and nowhere else."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Decoding(threading.local):
    now = False


_decoding = _Decoding()
_filter_lock = threading.Lock()


class _InThisThread(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _decoding.now


class _Remark(Warning, metaclass=_InThisThread):
    """Every category of warning in a thread that is decoding, none in any other."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings in this thread alone.

    `warnings.catch_warnings` swaps the filters of the whole process, which threads that come and
    go leave in disorder. This is one filter that stays, and holds where `_decoding` says so.
    """
    with _filter_lock:
        if not warnings.filters or warnings.filters[0][2] is not _Remark:
            warnings.simplefilter("ignore", _Remark)
    _decoding.now = True
    try:
        yield
    finally:
        _decoding.now = False
