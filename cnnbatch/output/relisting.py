"""Compares a listing with what is planned, in a table on disk: bounded memory for any number of images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.output import plan
from cnnbatch.output.plan import Change
from cnnbatch.storage.scratch import scratch
from cnnbatch.types import ImageRef, Shard

_CACHE_KB = 8 << 10
_SPOOLED = 4096  # changed images in one page
_OPEN = 4  # such pages in memory: most inputs change in their own order
_TABLES = """
CREATE TABLE planned (
    place INTEGER PRIMARY KEY, key TEXT, etag TEXT, shard INTEGER, position INTEGER, gone INTEGER
);
CREATE TABLE change (shard INTEGER, position INTEGER, key TEXT, number INTEGER);
CREATE TABLE page (number INTEGER PRIMARY KEY, body BLOB);
"""


class PlannedImage(NamedTuple):
    """An image with its place in the plan; what is ``gone`` already is not found to vanish again."""

    key: str
    etag: str | None
    shard: int
    position: int
    gone: bool = False


class Planned:
    """The planned images by key; `compare` notes what became of them.

    Images may be added until `index` is called, and compared from then on. ``columns`` are the source's.
    """

    def __init__(self, columns: pa.Schema) -> None:
        self._columns = columns
        self._base = scratch(self, _TABLES, _CACHE_KB)
        self._seen = bytearray()
        self._changed = 0
        self._unspooled: list[ImageRef] = []
        self._page = lru_cache(maxsize=_OPEN)(self._read_page)

    def add(self, images: Iterable[PlannedImage]) -> None:
        """Add images."""
        self._base.executemany(
            "INSERT INTO planned (key, etag, shard, position, gone) VALUES (?, ?, ?, ?, ?)", images
        )

    def apply(self, changes: Iterable[Change]) -> None:
        """Take in what an earlier listing found changed or gone."""
        self._base.executemany(
            "UPDATE planned SET etag = ?, gone = ? WHERE key = ?",
            ((one.ref.etag if one.ref else None, one.ref is None, one.key) for one in changes),
        )

    def index(self) -> None:
        """Make the keys searchable: before `apply` and `compare`, after the last `add`."""
        self._base.execute("CREATE UNIQUE INDEX by_key ON planned (key)")
        (count,) = self._base.execute("SELECT COUNT(*) FROM planned").fetchone()
        self._seen = bytearray(count + 1)

    def compare(self, refs: Iterable[ImageRef], changed: bool) -> Iterator[ImageRef]:
        """Yield the images that are not planned; with ``changed``, note those whose etag is another."""
        find = "SELECT place, etag, gone, shard, position FROM planned WHERE key = ?"
        cursor = self._base.cursor()
        for ref in refs:
            found = cursor.execute(find, (ref.key,)).fetchone()
            if found is None:
                yield ref
                continue
            place, etag, gone, shard, position = found
            self._seen[place] = 1
            if changed and not ref.is_forgotten and (gone or (ref.etag is not None and ref.etag != etag)):
                self._note(shard, position, ref.key, ref)

    def note_vanished(self) -> None:
        """Note as gone what `compare` has not met, once it has met everything."""
        rows = self._base.execute("SELECT place, shard, position, key FROM planned WHERE NOT gone")
        for place, shard, position, key in rows:
            if not self._seen[place]:
                self._note(shard, position, key, None)

    def changes(self) -> Iterator[Change]:
        """Yield what was noted, by shard and position."""
        self._spool()
        for shard, position, key, number in self._base.execute(
            "SELECT * FROM change ORDER BY shard, position"
        ):
            ref = None if number is None else self._page(number // _SPOOLED)[number % _SPOOLED]
            yield Change(shard, position, key, ref)

    def _note(self, shard: int, position: int, key: str, ref: ImageRef | None) -> None:
        number = None if ref is None else self._changed
        self._base.execute("INSERT INTO change VALUES (?, ?, ?, ?)", (shard, position, key, number))
        if ref is not None:
            self._changed += 1
            self._unspooled.append(ref)
            if len(self._unspooled) == _SPOOLED:
                self._spool()

    def _spool(self) -> None:
        if self._unspooled:
            buffer = io.BytesIO()
            pq.write_table(plan.page_table([Shard(0, tuple(self._unspooled))], self._columns), buffer)
            page = (self._changed - 1) // _SPOOLED, buffer.getvalue()
            self._base.execute("INSERT INTO page VALUES (?, ?)", page)
            self._unspooled = []

    def _read_page(self, number: int) -> tuple[ImageRef, ...]:
        (body,) = self._base.execute("SELECT body FROM page WHERE number = ?", (number,)).fetchone()
        (shard,) = plan.page_shards(pq.read_table(io.BytesIO(body)))
        return shard.refs
