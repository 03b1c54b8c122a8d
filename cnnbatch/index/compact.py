"""Writes segments anew: without the rows that are gone, small ones together, or with codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa

from cnnbatch.errors import OutputHeld
from cnnbatch.humanize import counted
from cnnbatch.index import segments
from cnnbatch.index.build import FORMAT, entry_of, put_new
from cnnbatch.index.codebook import threads
from cnnbatch.index.grid import Encoder, encoder_of
from cnnbatch.index.manifest import Manifest, SegmentEntry, commit, segment_uri
from cnnbatch.index.objects import read_codebook, read_segment, unnamed
from cnnbatch.index.search import open_index
from cnnbatch.output import lock
from cnnbatch.storage import Storage, join, redact
from cnnbatch.types import Map, here


@dataclass(frozen=True, slots=True)
class Rewriter:
    """What makes one segment of several of the index at ``uri``; travels to workers."""

    uri: str
    storage: Storage
    encoder: Encoder | None

    def __call__(self, group: Sequence[SegmentEntry]) -> SegmentEntry:
        """Return the segment with the live rows of all, in order, each with its code."""
        book = None if self.encoder is None else segments.checksum(self.encoder.codebook.to_bytes())
        name = segments.name_of([FORMAT, book, [[one.sha256, one.gone] for one in group]])
        table = pa.concat_tables([self._live(one) for one in group]).combine_chunks()
        vectors, codes = segments.vectors_of(table), None
        if self.encoder is not None:
            with threads(1):
                codes = self.encoder(vectors)
        rows = table.drop_columns([one for one in segments.BYTES if one in table.column_names])
        left_out: dict[str, int] = {}
        for entry in group:
            for reason, count in entry.left_out.items():
                left_out[reason] = left_out.get(reason, 0) + count
        made = segments.saying(segments.with_vectors(rows, vectors, codes), {"left_out": left_out})
        data = put_new(self.storage, segment_uri(self.uri, name), segments.written(made))
        return entry_of(name, data, made)

    def _live(self, entry: SegmentEntry) -> pa.Table:
        live = np.ones(entry.rows, bool)
        live[entry.gone_rows()] = False
        return read_segment(self.uri, self.storage, entry).filter(pa.array(live))


def grouped(entries: Sequence[SegmentEntry], most: int) -> Iterator[tuple[SegmentEntry, ...]]:
    """Yield segments that may be one: consecutive ones whose live rows are at most ``most`` together."""
    group: list[SegmentEntry] = []
    for entry in entries:
        if group and sum(one.live for one in group) + entry.live > most:
            yield tuple(group)
            group = []
        group.append(entry)
    if group:
        yield tuple(group)


def compacted(index: str, storage: Storage, manifest: Manifest, apply: Map) -> Manifest:
    """Return a state with the same live rows in as few segments as may be; objects are only added."""
    groups = [*grouped(manifest.segments, manifest.segment_rows)]
    anew = [group for group in groups if len(group) > 1 or group[0].gone]
    codebook = read_codebook(index, storage, manifest)
    rows = sum(one.live for group in anew for one in group)
    made = apply(Rewriter(index, storage, encoder_of(codebook, rows)), anew)
    entries = [next(made) if group in anew else group[0] for group in groups]
    return manifest.model_copy(update={"segments": tuple(one for one in entries if one.rows)})


def compact_index(uri: str) -> Iterator[str]:
    """Compact the index at ``uri``, and delete every object that it no longer names; yield what was done.

    Raises UserError where there is none, OutputHeld where another command works on it.
    """
    opened = open_index(uri)
    uri, storage = opened.uri, opened.storage
    with lock.hold(storage, join(uri, "_job", "lock"), uuid4().hex):
        opened.refresh()
        before = opened.manifest
        # Also where nothing changes: a writer that read the state before may name what is deleted now.
        state = commit(uri, storage, compacted(uri, storage, before, here), opened.etag)
        if state is None:
            raise OutputHeld(
                f"{redact(uri)} was changed meanwhile\n  what to do: give the same command again"
            )
        deleted = [*unnamed(uri, storage, state)]
        for one in deleted:
            storage.delete(one)
    gone = sum(one.rows - one.live for one in before.segments)
    yield f"{counted(len(before.segments), 'segment')} became {len(state.segments)}"
    yield f"{counted(gone, 'row')} removed, {counted(len(deleted), 'object')} deleted"
