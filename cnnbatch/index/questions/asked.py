"""A question as it travels to workers, and what each process holds of it: made once, whatever it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index.build import rows_of
from cnnbatch.index.calibrated import read_calibrated
from cnnbatch.index.embeddings import EmbeddedOutput, counts, parts_of
from cnnbatch.index.manifest import Manifest
from cnnbatch.index.named_pictures import FOLDER, largest_faces, require_people
from cnnbatch.index.plan import Piece
from cnnbatch.index.questions.answers import Answering, Matches, Names, require_rows
from cnnbatch.index.questions.gallery import Gallery, gallery_of_index, names_of
from cnnbatch.index.search import Index
from cnnbatch.index.search_decision import SearchDecision, search_decision
from cnnbatch.job import IdentifyJob, SearchJob
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage, redact

Asking = SearchJob | IdentifyJob


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about the parts of ``embedded``, to be answered into ``output`` by an index in one state.

    ``gallery`` has the embeddings of those whom faces may be, None for the index's own. ``fingerprint`` tells
    all that can change a row.
    """

    job: Asking
    index: str
    storage: Storage
    manifest: Manifest
    etag: str
    gallery: EmbeddedOutput | None
    embedded: EmbeddedOutput
    output: Output
    fingerprint: str = ""


@dataclass(frozen=True)
class Held:
    """What a process holds of a question; ``number`` is that of the embeddings' output in the index."""

    index: Index
    answering: Answering
    number: int | None

    def own(self, part: int, ids: pa.Array[Any]) -> NDArray[np.int64]:
        """Return the rows of the index that the embeddings ``ids`` (Q,) of a part are, -1 for none."""
        found = np.full(len(ids), -1, np.int64)
        copy = self.index.copy()
        for table, start in zip(copy.tables, copy.starts, strict=False):
            if self.number is None:
                break
            here = (table["output"].to_numpy() == self.number) & (table["part"].to_numpy() == part)
            if here.any():
                rows = np.flatnonzero(here)
                known: Any = table["id"].take(rows).combine_chunks()
                places = pc.index_in(ids, value_set=known).to_numpy(zero_copy_only=False)
                places = np.nan_to_num(places, nan=-1).astype(np.int64)
                found = np.where(places < 0, found, start + rows[places])
        return found


_HELD: dict[str, Held] = {}
"""What this process holds, by the fingerprint: of one question at a time."""


def held(asked: Asked) -> Held:
    """Return what this process holds of a question; that of any other goes."""
    if asked.fingerprint not in _HELD:
        _HELD.clear()
        _HELD[asked.fingerprint] = _made(asked)
    return _HELD[asked.fingerprint]


def release() -> None:
    """Let go of what this process holds."""
    _HELD.clear()


def _made(asked: Asked) -> Held:
    index = Index(asked.index, asked.storage, asked.manifest, asked.etag)
    index.copy()
    if index.etag != asked.etag:  # What it had named was gone, and it took over another state.
        raise UserError(
            f"{redact(asked.index)} has changed since this job began, and what it was made of is gone\n"
            "  what to do: choose another output, whose rows are then all of the index as it is now"
        )
    urls = [one.url for one in asked.manifest.outputs]
    url = redact(asked.embedded.output.uri)
    section = asked.job.search if isinstance(asked.job, SearchJob) else asked.job.identify
    number = urls.index(url) if url in urls and not section.itself else None
    return Held(index, _answering(asked, index), number)


def _answering(asked: Asked, index: Index) -> Answering:
    if isinstance(asked.job, SearchJob):
        search = asked.job.search
        rows = index.rows(search.where)
        require_rows(rows, index, {"search.where": search.where})
        return Matches(index, rows, search.k, _decision(index, search.rate, search.prior, len(rows)))
    section = asked.job.identify
    if asked.gallery is not None:
        gallery = gallery_of_output(asked.gallery)
    else:
        require_people(section.people, [*index.manifest.kept], "identify.people")
        gallery = gallery_of_index(index.copy(), section.people, index.rows(section.where))
    asked_for = {"identify.people": section.people, "identify.where": section.where}
    require_rows(gallery.rows, index, {"identify.gallery": section.gallery} if section.gallery else asked_for)
    people = len(gallery.names)
    return Names(
        gallery, section.matches, _decision(index, section.rate, section.prior, len(gallery), people)
    )


def _decision(
    index: Index, rate: float, prior: float, size: int, people: int | None = None
) -> SearchDecision:
    calibrated = read_calibrated(index.uri, index.storage, index.manifest.space)
    return search_decision(calibrated, index.uri, rate, prior, size, people)


def gallery_of_output(embedded: EmbeddedOutput) -> Gallery:
    """Return the largest face of each picture of an output, by the folders of their people."""
    pieces = tuple(
        Piece(embedded.number, part, digest, range(len(counts(embedded, part))))
        for part, digest in sorted(parts_of(embedded.output).items())
    )
    found = rows_of([embedded], pieces)
    largest = largest_faces(found.rows["key"], found.rows["box"])
    table = found.rows.take(largest)
    names = names_of(table, FOLDER)
    known = np.array([bool(name) for name in names], np.bool_)
    people = [*dict.fromkeys(name for name in names if name)]
    numbers = {name: number for number, name in enumerate(people)}
    return Gallery(
        found.vectors,
        largest[known],
        np.array([numbers[name] for name in names if name], np.int32),
        people,
        lambda rows: [*map(str, found.rows["id"].take(rows).to_pylist())],
    )
