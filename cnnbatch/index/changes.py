"""What outputs have that an index has not: parts that are new, and rows of known parts that have changed.

The unit of change is a picture: where one of its faces is another one, all of them are taken anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.index import segments
from cnnbatch.index.embeddings import EmbeddedOutput, counts, parts_of, read_rows
from cnnbatch.index.manifest import Manifest, SegmentEntry
from cnnbatch.index.objects import read_segment
from cnnbatch.index.plan import Piece
from cnnbatch.storage import Storage
from cnnbatch.types import Map

Counted = tuple[Piece, NDArray[np.int64]]
_HELD = 4  # segments that are kept at hand: consecutive parts are mostly in one


@dataclass
class Changes:
    """``new`` parts and ``changed`` rows, each with the number of embeddings a row; ``gone`` rows by segment.

    ``digests`` are those of all parts of each of the ``outputs``, by its number.
    """

    outputs: Mapping[int, EmbeddedOutput]
    new: list[Piece] = field(default_factory=list)
    changed: list[Counted] = field(default_factory=list)
    gone: dict[str, list[int]] = field(default_factory=dict)
    digests: dict[int, dict[int, str]] = field(default_factory=dict)

    def counted(self, apply: Map) -> Iterator[Counted]:
        """Yield all that is to be added, with its counts: new parts in order, then what has changed."""
        new = sorted(self.new, key=lambda piece: (piece.output, piece.part))
        numbers = apply(_Counter(self.outputs), [(one.output, one.part) for one in new])
        for piece, found in zip(new, numbers, strict=True):
            yield Piece(piece.output, piece.part, piece.digest, range(len(found))), found
        yield from self.changed


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counts the embeddings of the rows of a part, on any worker."""

    outputs: Mapping[int, EmbeddedOutput]

    def __call__(self, part: tuple[int, int]) -> NDArray[np.int64]:
        return counts(self.outputs[part[0]], part[1])


def changes_of(
    index: str, storage: Storage, manifest: Manifest, outputs: Sequence[EmbeddedOutput]
) -> Changes:
    """Return what ``outputs`` have that the index at ``index`` has not, and the reverse."""
    found = Changes({one.number: one for one in outputs})

    @lru_cache(_HELD)
    def segment(entry_number: int) -> pa.Table:
        return read_segment(index, storage, manifest.segments[entry_number])

    for output in outputs:
        now = parts_of(output.output)
        known = manifest.outputs[output.number].digests()
        found.digests[output.number] = now
        for part in sorted(now.keys() | known.keys()):
            if part not in known:
                found.new.append(Piece(output.number, part, now[part], ()))
            elif now.get(part) != known[part]:
                _compare(found, manifest, segment, output, part)
    return found


def _compare(
    found: Changes,
    manifest: Manifest,
    segment: Callable[[int], pa.Table],
    output: EmbeddedOutput,
    part: int,
) -> None:
    """Add what a part has now that its rows in the index have not, and which of these are gone."""
    digest = found.digests[output.number].get(part)
    after: dict[str, bytes] = {}
    rows: dict[str, list[int]] = {}
    if digest is not None:
        read = read_rows(output, part, range(len(counts(output, part))))
        after = _signatures(read.rows, read.vectors, output.kept.names)
        for one in read.rows.select(["key", "row"]).to_pylist():
            rows.setdefault(one["key"], []).append(one["row"])
    before: dict[str, bytes] = {}
    for entry, positions, table in _held(manifest, segment, output.number, part):
        signed = _signatures(table, segments.vectors_of(table), output.kept.names)
        before |= signed
        keys: list[str] = table["key"].to_pylist()  # type: ignore[assignment]
        stale = [place for place, key in zip(positions, keys, strict=True) if after.get(key) != signed[key]]
        if stale:
            found.gone.setdefault(entry.name, []).extend(stale)
    fresh = [numbers for key, numbers in rows.items() if before.get(key) != after[key]]
    if digest is not None and fresh:
        fresh.sort()
        piece = Piece(output.number, part, digest, tuple(numbers[0] for numbers in fresh))
        found.changed.append((piece, np.array([len(numbers) for numbers in fresh], np.int64)))


def _held(
    manifest: Manifest, segment: Callable[[int], pa.Table], output: int, part: int
) -> Iterable[tuple[SegmentEntry, list[int], pa.Table]]:
    """Yield the rows of a part that are in the index: the segment, their places there, and themselves."""
    for number, entry in enumerate(manifest.segments):
        if entry.live and entry.may_hold(output, part):
            table = segment(number)
            mine = (table["output"].to_numpy() == output) & (table["part"].to_numpy() == part)
            mine[entry.gone_rows()] = False
            if mine.any():
                places = np.flatnonzero(mine)
                yield entry, places.tolist(), table.take(places)


def _signatures(rows: pa.Table, vectors: NDArray[np.float16], kept: Sequence[str]) -> dict[str, bytes]:
    """Return by key a digest of all that the index has of a picture."""
    hashes: dict[str, blake2b] = {}
    facts = rows.select(["key", "id", "box", *kept]).to_pylist()
    for row, vector in zip(facts, vectors, strict=True):
        whole = hashes.setdefault(row["key"], blake2b(digest_size=16))
        whole.update(repr(row).encode() + vector.tobytes())
    return {key: whole.digest() for key, whole in hashes.items()}
