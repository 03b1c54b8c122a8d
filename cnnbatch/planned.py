"""Compares a listing with what is planned, in a table on disk: bounded memory for any number of images."""

from __future__ import annotations

import shutil
import sqlite3
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch import plan
from cnnbatch.plan import Change
from cnnbatch.records import ImageRef, Shard

_CACHE_KB = 8 << 10
_SPOOLED = 4096  # changed images in one file
_OPEN = 4  # such files in memory
_TABLES = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{_CACHE_KB};
CREATE TABLE planned (
    place INTEGER PRIMARY KEY, key TEXT, etag TEXT, shard INTEGER, position INTEGER, gone INTEGER
);
CREATE TABLE change (shard INTEGER, position INTEGER, key TEXT, number INTEGER);
"""


class Planned:
    """The planned images by key; `compare` notes what became of them.

    Images may be added until `index` is called, and compared from then on. ``columns`` are the source's.
    """

    def __init__(self, columns: pa.Schema) -> None:
        self._columns = columns
        self._folder = Path(mkdtemp(prefix="cnnbatch-planned-"))
        self._base = sqlite3.connect(self._folder / "planned", check_same_thread=False)
        weakref.finalize(self, _remove, self._base, self._folder)
        self._base.executescript(_TABLES)
        self._seen = bytearray()
        self._changed = 0
        self._unspooled: list[ImageRef] = []
        self._open: OrderedDict[int, tuple[ImageRef, ...]] = OrderedDict()

    def add(self, images: Iterable[tuple[str, str | None, int, int]]) -> None:
        """Add images as (key, etag, shard, position in it)."""
        self._base.executemany(
            "INSERT INTO planned (key, etag, shard, position, gone) VALUES (?, ?, ?, ?, 0)", images
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
            if changed and (gone or (ref.etag is not None and ref.etag != etag)):
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
            yield Change(shard, position, key, None if number is None else self._changed_ref(number))

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
            table = plan.page_table([Shard(0, tuple(self._unspooled))], self._columns)
            pq.write_table(table, self._file((self._changed - 1) // _SPOOLED))
            self._unspooled = []

    def _changed_ref(self, number: int) -> ImageRef:
        """Return a changed image; a few files stay in memory, for most listings change in their own order."""
        file, place = divmod(number, _SPOOLED)
        if file not in self._open:
            (shard,) = plan.page_shards(pq.read_table(self._file(file)))
            self._open[file] = shard.refs
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return self._open[file][place]

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.parquet"


def _remove(base: sqlite3.Connection, folder: Path) -> None:
    base.close()
    shutil.rmtree(folder, ignore_errors=True)
