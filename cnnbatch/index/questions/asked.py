"""A question as it travels to workers, and what each process holds of it: made once, whatever it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.config.questions import IdentifySection, SearchSection
from cnnbatch.errors import UserError
from cnnbatch.index.build import rows_of
from cnnbatch.index.calibrated import Calibrated
from cnnbatch.index.embeddings import EmbeddedOutput, counts, parts_of
from cnnbatch.index.gallery import Gallery, gallery_of_photos
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.manifest import Manifest
from cnnbatch.index.persons.gallery import gallery_of_names
from cnnbatch.index.plan import Piece
from cnnbatch.index.questions.answers import Answering, Matches, Names, require_rows
from cnnbatch.index.search import Index
from cnnbatch.index.search_decision import SearchDecision, search_decision
from cnnbatch.job import IdentifyJob, SearchJob
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage, redact

Asking = SearchJob | IdentifyJob
Ids: TypeAlias = "pa.Array[Any]"


@dataclass(frozen=True, slots=True)
class IndexState:
    """An index at ``uri`` as it was when a job began: its manifest, with its etag, and its calibration."""

    uri: str
    storage: Storage
    manifest: Manifest
    etag: str
    calibrated: Calibrated | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about the parts of ``embedded``, to be answered into ``output`` by an index in one state.

    ``gallery`` has the embeddings of those whom faces may be, None for the index's own. ``fingerprint`` tells
    all that can change a row.
    """

    job: Asking
    index: IndexState
    gallery: EmbeddedOutput | None
    embedded: EmbeddedOutput
    output: Output
    fingerprint: str = ""


@dataclass(frozen=True)
class Held:
    """What a process holds of a question.

    ``own_rows`` gives, for a part and the ids (Q,) of its embeddings, which rows that are searched these
    embeddings themselves are, -1 for none.
    """

    index: Index
    answering: Answering
    own_rows: Callable[[int, Ids], NDArray[np.int64]]


def _none_is_own(part: int, ids: Ids) -> NDArray[np.int64]:
    return np.full(len(ids), -1, np.int64)


def _own_in_index(copy: LocalCopy, number: int, part: int, ids: Ids) -> NDArray[np.int64]:
    """Return which rows of an index the embeddings of its ``number``-th output are."""
    found = _none_is_own(part, ids)
    for table, start in zip(copy.tables, copy.starts, strict=False):
        rows = np.flatnonzero((table["output"].to_numpy() == number) & (table["part"].to_numpy() == part))
        if len(rows):
            places = _places(ids, table["id"].take(rows).combine_chunks())
            found = np.where(places < 0, found, start + rows[places])
    return found


def _places(ids: Any, among: Any) -> NDArray[np.int64]:
    """Return where each id (Q,) is among others, -1 for nowhere."""
    places = pc.index_in(ids, value_set=among)
    return np.asarray(pc.fill_null(places, pa.scalar(-1, pa.int32())), np.int64)


_HELD: dict[str, Held] = {}
"""What this process holds, by the fingerprint: of one question at a time."""


def held(asked: Asked) -> Held:
    """Return what this process holds of a question; that of any other goes."""
    if asked.fingerprint not in _HELD:
        _HELD.clear()
        _HELD[asked.fingerprint] = _made(asked)
    return _HELD[asked.fingerprint]


@contextmanager
def closing_held() -> Iterator[None]:
    """Let go of what this process holds when the block ends."""
    try:
        yield
    finally:
        _HELD.clear()


def _made(asked: Asked) -> Held:
    state = asked.index
    index = Index(state.uri, state.storage, state.manifest, state.etag)
    index.copy()
    if index.etag != state.etag:  # What it had named was gone, and it took over another state.
        raise UserError(
            f"{redact(state.uri)} has changed since this job began, and what it was made of is gone\n"
            "  what to do: choose another output, whose rows are then all of the index as it is now"
        )
    answering = _answering(asked, index)
    return Held(index, answering, _own_rows(asked, index, answering))


def _own_rows(asked: Asked, index: Index, answering: Answering) -> Callable[[int, Ids], NDArray[np.int64]]:
    """Return what finds the rows that are the very embeddings asked about, which are no matches of these."""
    section = asked.job.search if isinstance(asked.job, SearchJob) else asked.job.identify
    if section.itself:
        return _none_is_own
    url = redact(asked.embedded.output.uri)
    if asked.gallery is not None and isinstance(answering, Names):
        if redact(asked.gallery.output.uri) != url:
            return _none_is_own
        gallery = answering.gallery
        among = pa.array(gallery.ids_of(np.arange(len(gallery.vectors))), pa.string())
        return lambda part, ids: _places(ids, among)
    urls = [one.url for one in index.manifest.outputs]
    if url not in urls:
        return _none_is_own
    return partial(_own_in_index, index.copy(), urls.index(url))


def _answering(asked: Asked, index: Index) -> Answering:
    if isinstance(asked.job, SearchJob):
        search = asked.job.search
        rows = index.rows(search.where)
        require_rows(rows, index, {"search.where": search.where})
        return Matches(index, rows, search.k, _decision(asked, search, len(rows)))
    section = asked.job.identify
    if asked.gallery is not None:
        gallery = gallery_of_output(asked.gallery)
    else:
        rows = index.rows(section.where)
        gallery = gallery_of_names(index, index.copy(), section.people, rows, "identify.people")
    asked_for = {"identify.people": section.people, "identify.where": section.where}
    require_rows(gallery.rows, index, {"identify.gallery": section.gallery} if section.gallery else asked_for)
    return Names(gallery, section.matches, _decision(asked, section, len(gallery), len(gallery.names)))


def _decision(
    asked: Asked, section: SearchSection | IdentifySection, rows: int, people: int | None = None
) -> SearchDecision:
    state = asked.index
    return search_decision(state.calibrated, state.uri, section.rate, section.prior, rows, people)


def gallery_of_output(embedded: EmbeddedOutput) -> Gallery:
    """Return the largest face of each picture of an output, by the folders of their people."""
    pieces = tuple(
        Piece(embedded.number, part, digest, range(len(counts(embedded, part))))
        for part, digest in sorted(parts_of(embedded.output).items())
    )
    return gallery_of_photos(rows_of([embedded], pieces))
