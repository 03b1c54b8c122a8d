"""Cuts a listing into shards, and shards into pages: pure functions of the listing's order.

Where the length is the task's own, the shards at both ends of a listing are small: the first, so that results
come early and every worker has work at once; the last, so that all workers end together. Eight hold 32 refs,
eight 64, eight 96 and so on, and the last ones are the first in reverse. Between them the length doubles
every thousand shards: a million images make 1,211 parts, forty million some 5,900.

Why so: of 1,500 images, in 31 shards, two workers have the same time but for 3 %; 64 workers idle 2 % of
their time on a million images, where what an image costs differs by half from shard to shard. A shard costs
its worker some 10 ms, which is one image or two of a small network. Batches end with their shard, so 32 is
two batches of a CPU; on a GPU only the ends have shorter batches.

How long a shard is depends on its number and on how many refs are left, where these are few; never on workers
or their pace. A plan is read back, never made anew.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from cnnbatch.types import ImageRef, Row, Shard, Span

SHARDS_BETWEEN_DOUBLINGS = 1000
LARGEST_DOUBLING = 4
SMALLEST = 32
"""Refs in the first and last shards, and by how many their lengths differ from step to step."""
SHARDS_OF_A_LENGTH = 8
MOST_AHEAD = 32_000
"""Refs that are held back, at most, to see whether the listing ends there."""
REFS_IN_A_PAGE = 16_000
_FIELDS: list[pa.Field[Any]] = [
    pa.field("shard", pa.int32(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("uri", pa.string()),
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


@dataclass(frozen=True, slots=True)
class SmallEnds:
    """Shards of ``length`` refs, smaller ones at both ends of a listing."""

    length: int


def shard_size(asked: int | Literal["auto"], own: int) -> int | SmallEnds:
    """Return how a job's shards are cut: as ``input.shard_size`` asks, or by the task's ``own`` length."""
    if asked != "auto":
        return asked
    return SmallEnds(own) if own > SMALLEST else own


def shards(
    refs: Iterable[ImageRef], size: int | SmallEnds, index: int = 0, first: int = 0
) -> Iterator[Shard]:
    """Cut ``refs`` into shards of this size, numbered from ``index``, of a listing that began at ``first``.

    A listing that goes on behind any shard gives the same as one that was never interrupted.
    """
    if isinstance(size, SmallEnds):
        return _cut_with_small_ends(refs, size.length, index, first)
    return cut(refs, lambda number: shard_length(number, size), index)


def _cut_with_small_ends(refs: Iterable[ImageRef], length: int, index: int, first: int) -> Iterator[Shard]:
    stream, held = iter(refs), deque[ImageRef]()
    while True:
        longest = longest_length(index, length, first)
        held.extend(islice(stream, max(0, refs_ahead(longest) - len(held))))
        if not held:
            return
        yield Shard(index, tuple(held.popleft() for _ in range(length_before_end(longest, len(held)))))
        index += 1


def longest_length(index: int, length: int, first: int = 0) -> int:
    """Return how many refs shard ``index`` holds, of a listing that began at shard ``first`` and goes on.

    The first shards are small; the others hold ``length``, doubled as `shard_length` says.
    """
    early = SMALLEST * (1 + (index - first) // SHARDS_OF_A_LENGTH)
    if early < length:
        return early
    small = length // SMALLEST * SHARDS_OF_A_LENGTH  # The small ones don't count for the doubling.
    return shard_length(max(0, index - small), length)


def refs_ahead(longest: int) -> int:
    """Return with how many refs left a shard of ``longest`` is not one of the last, which are smaller."""
    return max(longest + SMALLEST, min(longest + _in_smaller(longest // SMALLEST), MOST_AHEAD))


def length_before_end(longest: int, left: int) -> int:
    """Return how many refs a shard holds with ``left`` of them to come, itself included.

    ``left`` may be any number from `refs_ahead` on where it is not known. The first that is shorter takes
    what is over, so that all behind it are multiples of `SMALLEST`.
    """
    if left >= refs_ahead(longest):
        return longest
    step = 1
    while SMALLEST * (step + 1) + _in_smaller(step + 1) <= left:
        step += 1
    return min(left, SMALLEST * step + left % SMALLEST)


def _in_smaller(step: int) -> int:
    """Return how many refs the shards of all steps below ``step`` hold at one end."""
    return SHARDS_OF_A_LENGTH * SMALLEST * step * (step - 1) // 2


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
        pa.array([ref.uri or None for _, ref in refs], pa.string()),
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
    return ImageRef(str(row["key"]), str(row["uri"] or ""), at, row["etag"], row.get("columns") or {})  # type: ignore[arg-type]


def spread(refs: Sequence[ImageRef], count: int) -> tuple[ImageRef, ...]:
    """Return ``count`` refs at equal distances, the first among them; all where there are no more."""
    return (
        tuple(refs[place * len(refs) // count] for place in range(count))
        if len(refs) > count
        else tuple(refs)
    )
