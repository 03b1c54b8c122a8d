"""Makes segments, one at a time on any worker: reads rows of outputs, encodes them, and puts one object."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from cnnbatch.index import segments
from cnnbatch.index.codebook import Codebook, threads
from cnnbatch.index.embeddings import EmbeddedOutput, EmbeddedRows, read_rows
from cnnbatch.index.grid import Encoder
from cnnbatch.index.manifest import SegmentEntry, StoredObject, codebook_uri, segment_uri
from cnnbatch.index.plan import Pieces, PlannedSegment
from cnnbatch.storage import AlreadyExists, NotFound, Storage
from cnnbatch.types import R, T

FORMAT = 1
"""What is in the name of a segment: a later layout makes others of the same rows."""


@dataclass(frozen=True, slots=True)
class Made:
    """A segment with its ``name``, as a file and as a table; ``lies_there``: an earlier run has put it."""

    name: str
    data: bytes
    table: pa.Table
    lies_there: bool


@dataclass(frozen=True, slots=True)
class SegmentMaker:
    """What makes the segments of the index at ``uri``; travels to workers, which call it with pieces."""

    uri: str
    storage: Storage
    outputs: tuple[EmbeddedOutput, ...]
    encoder: Encoder | None
    state: int
    """The state of the index to which segments are added: in a later one the same rows are another segment,
    since in the first of them they may be gone."""

    def __call__(self, planned: PlannedSegment) -> SegmentEntry:
        """Return the segment that is planned; one that an earlier run made is taken as it is."""
        return self.put(self.made(planned))

    def made(self, planned: PlannedSegment) -> Made:
        """Return the segment that is planned, as it lies there or else as it is to be put there."""
        name = segments.name_of(self._contents(planned.pieces))
        try:
            data = self.storage.read(segment_uri(self.uri, name))
        except NotFound:
            table = self._made(planned.pieces)
            return Made(name, segments.written(table), table, lies_there=False)
        return Made(name, data, segments.read(data), lies_there=True)

    def put(self, made: Made) -> SegmentEntry:
        """Put a segment, unless it lies there already; return what the manifest says of it."""
        uri = segment_uri(self.uri, made.name)
        data = made.data if made.lies_there else put_new(self.storage, uri, made.data)
        return entry_of(made.name, data, made.table)

    def _contents(self, pieces: Pieces) -> list[object]:
        book = None if self.encoder is None else segments.checksum(self.encoder.codebook.to_bytes())
        outputs = [[one.number, one.output.uri, one.column, one.kept.names] for one in self.outputs]
        used = {piece.output for piece in pieces}
        return [
            FORMAT,
            self.state,
            book,
            [one for one in outputs if one[0] in used],
            [piece.contents() for piece in pieces],
        ]

    def _made(self, pieces: Pieces) -> pa.Table:
        found = rows_of(self.outputs, pieces)
        codes = None
        if self.encoder is not None:
            with threads(1):
                codes = self.encoder(found.vectors)
        table = segments.with_vectors(found.rows, found.vectors, codes)
        return segments.saying(table, {"left_out": found.left_out})


def in_threads(function: Callable[[T], R], values: Iterable[T], threads: int) -> Iterator[R]:
    """Yield ``function(value)`` for each value, in order; threads compute the next ones meanwhile."""
    with ThreadPoolExecutor(threads, "segments") as pool:
        stream = iter(values)
        order = deque(pool.submit(function, one) for one in islice(stream, threads + 1))
        while order:
            yield order.popleft().result()
            order.extend(pool.submit(function, one) for one in islice(stream, 1))


def rows_of(outputs: Sequence[EmbeddedOutput], pieces: Pieces) -> EmbeddedRows:
    """Return the rows of some pieces, in order."""
    by_number = {one.number: one for one in outputs}
    read = [read_rows(by_number[piece.output], piece.part, piece.rows) for piece in pieces]
    left_out: dict[str, int] = {}
    for one in read:
        for reason, count in one.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    table = pa.concat_tables([one.rows for one in read]).combine_chunks()
    return EmbeddedRows(table, np.concatenate([one.vectors for one in read]), left_out)


def put_new(storage: Storage, uri: str, data: bytes) -> bytes:
    """Put an object that is named by what it is made of; return what lies there, perhaps another's."""
    try:
        storage.create(uri, data)
    except AlreadyExists:
        return storage.read(uri)
    return data


def put_codebook(uri: str, storage: Storage, codebook: Codebook) -> StoredObject:
    """Put a codebook in the index at ``uri``."""
    data = codebook.to_bytes()
    total = segments.checksum(data)
    put_new(storage, codebook_uri(uri, total[:32]), data)
    return StoredObject(name=total[:32], sha256=total, bytes=len(data))


def entry_of(name: str, data: bytes, table: pa.Table) -> SegmentEntry:
    """Return what the manifest says of a segment, which is ``table`` and as a file ``data``."""
    outputs, parts = (np.asarray(table[one].to_numpy()) for one in ("output", "part"))
    ranges = {int(one): parts[outputs == one] for one in np.unique(outputs)}
    return SegmentEntry(
        name=name,
        sha256=segments.checksum(data),
        bytes=len(data),
        rows=table.num_rows,
        parts=tuple((one, int(found.min()), int(found.max())) for one, found in ranges.items()),
        left_out=segments.about(table).get("left_out", {}),
    )
