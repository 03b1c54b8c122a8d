"""Cuts a listing into shards, and shards into pages: pure functions of the listing's order.

Early shards are small, so that the first results come early; later ones grow, so that forty
million images make some 5,600 parts. The price: a shard's length depends on its number, so a plan
is read back, never made anew.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from cnnbatch.types import ImageRef, Row, Shard, Span

SHARDS_BETWEEN_DOUBLINGS = 1000
LARGEST_DOUBLING = 4
REFS_IN_A_PAGE = 16_000
_FIELDS: list[pa.Field[Any]] = [
    pa.field("shard", pa.int32(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("etag", pa.string()),
    pa.field("offset", pa.int64()),
    pa.field("length", pa.int64()),
    pa.field("row", pa.int64()),
]
PAGE_COLUMNS = pa.schema(_FIELDS)
_OF_CHANGES: list[pa.Field[Any]] = [pa.field("position", pa.int32()), pa.field("gone", pa.bool_())]
CHANGE_COLUMNS = pa.schema([*_FIELDS, *_OF_CHANGES])


def shard_length(index: int, first: int) -> int:
    """Return how many refs shard ``index`` holds where the first shards hold ``first``."""
    return int(first * 2 ** min(index // SHARDS_BETWEEN_DOUBLINGS, LARGEST_DOUBLING))


def is_sampled(key: str, fraction: float) -> bool:
    """Say whether ``key`` is among the sampled ``fraction``; the same for every listing and run."""
    if fraction >= 1:
        return True
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
    return number < fraction * 2**64


def select(refs: Iterable[ImageRef], sample: float, limit: int | None) -> Iterator[ImageRef]:
    """Keep the sampled refs, at most ``limit`` of them, in order."""
    most = None if limit is None else min(limit, sys.maxsize)
    return islice((ref for ref in refs if is_sampled(ref.key, sample)), most)


def cut(refs: Iterable[ImageRef], length: Callable[[int], int], index: int = 0) -> Iterator[Shard]:
    """Cut ``refs`` into consecutive shards numbered from ``index``; only the last may be short."""
    stream = iter(refs)
    while batch := tuple(islice(stream, length(index))):
        yield Shard(index, batch)
        index += 1


def pages(shards: Iterable[Shard], index: int = 0) -> Iterator[list[Shard]]:
    """Group whole shards into pages: 1, 2, 4 … 16 shards, at most `REFS_IN_A_PAGE` refs or one shard.

    The first pages are small, so that work starts while the listing goes on.
    """
    page: list[Shard] = []
    for shard in shards:
        if page and sum(len(held.refs) for held in page) + len(shard.refs) > REFS_IN_A_PAGE:
            yield page
            page, index = [], index + 1
        page.append(shard)
        if len(page) == 2 ** min(index, 4):
            yield page
            page, index = [], index + 1
    if page:
        yield page


def digest(shard: Shard) -> str:
    """Return the SHA-256 of a shard's refs, without what the job keeps of them."""
    state = hashlib.sha256()
    for ref in shard.refs:
        state.update(repr((ref.key, ref.uri, ref.at, ref.etag)).encode())
    if shard.vanished:
        state.update(repr(sorted(shard.vanished)).encode())
    return state.hexdigest()


def page_table(page: list[Shard], columns: pa.Schema) -> pa.Table:
    """Return a page as a table of `PAGE_COLUMNS`, and the source's ``columns`` under ``columns``."""
    refs = [(shard.index, ref) for shard in page for ref in shard.refs]
    arrays: list[pa.Array[Any]] = [
        pa.array([index for index, _ in refs], pa.int32()),
        pa.array([ref.key for _, ref in refs], pa.string()),
        pa.array([ref.uri for _, ref in refs], pa.string()),
        pa.array([ref.etag for _, ref in refs], pa.string()),
        pa.array([ref.at.offset if isinstance(ref.at, Span) else None for _, ref in refs], pa.int64()),
        pa.array([ref.at.length if isinstance(ref.at, Span) else None for _, ref in refs], pa.int64()),
        pa.array([ref.at.index if isinstance(ref.at, Row) else None for _, ref in refs], pa.int64()),
    ]
    table = pa.Table.from_arrays(arrays, schema=PAGE_COLUMNS)
    if not columns.names:
        return table
    kept = pa.array(
        [{name: ref.columns.get(name) for name in columns.names} for _, ref in refs], pa.struct(columns)
    )
    return table.append_column(pa.field("columns", pa.struct(columns)), kept)


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a planned image, by its shard and position: it is ``ref`` now, or gone where None."""

    shard: int
    position: int
    key: str
    ref: ImageRef | None


def change_table(changes: Sequence[Change], columns: pa.Schema) -> pa.Table:
    """Return changes as a page with the columns ``position`` and ``gone`` added."""
    refs = [Shard(one.shard, (one.ref or ImageRef(one.key, ""),)) for one in changes]
    table = page_table(refs, columns)
    table = table.append_column("position", pa.array([one.position for one in changes], pa.int32()))
    return table.append_column("gone", pa.array([one.ref is None for one in changes], pa.bool_()))


def table_changes(table: pa.Table) -> Iterator[Change]:
    """Return the changes of a page, as `change_table` was given them."""
    for row in table.to_pylist():
        ref = None if row["gone"] else _ref(row)
        yield Change(row["shard"], row["position"], row["key"], ref)


def changed(shard: Shard, changes: Iterable[Change]) -> Shard:
    """Return ``shard`` as it is after ``changes`` of it, the oldest first."""
    refs, vanished = list(shard.refs), set(shard.vanished)
    for one in changes:
        if one.ref is None:
            vanished.add(one.position)
        else:
            refs[one.position] = one.ref
            vanished.discard(one.position)
    return Shard(shard.index, tuple(refs), frozenset(vanished))


def page_shards(table: pa.Table) -> Iterator[Shard]:
    """Return the shards of a page, as `page_table` was given them."""
    rows = table.to_pylist()
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end]["shard"] != rows[start]["shard"]:
            yield Shard(rows[start]["shard"], tuple(_ref(row) for row in rows[start:end]))
            start = end


def _ref(row: dict[str, object]) -> ImageRef:
    at: Span | Row | None = None
    if row["offset"] is not None:
        at = Span(row["offset"], row["length"])  # type: ignore[arg-type]
    elif row["row"] is not None:
        at = Row(row["row"])  # type: ignore[arg-type]
    return ImageRef(str(row["key"]), str(row["uri"]), at, row["etag"], row.get("columns") or {})  # type: ignore[arg-type]


def spread(refs: Sequence[ImageRef], count: int) -> tuple[ImageRef, ...]:
    """Return ``count`` refs at equal distances, the first among them; all where there are no more."""
    return (
        tuple(refs[place * len(refs) // count] for place in range(count))
        if len(refs) > count
        else tuple(refs)
    )
