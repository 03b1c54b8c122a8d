"""The state of an index: one object, which names all others and is replaced last, by its etag.

Readers see the old state or the new one. Of two writers the second finds another etag than the one that it
read, and starts again from what is there now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbatch.errors import UserError
from cnnbatch.metrics import Value
from cnnbatch.output import integrity
from cnnbatch.output.embeddings import EmbeddingSpace
from cnnbatch.storage import AlreadyExists, Changed, NotFound, Storage, join, redact

VERSION: Literal[1] = 1
"""The newest layout that can be read."""

NAME = "manifest.json"
GROWN = 1.1
"""By how much an index has grown when what was measured of it, as recall, is to be measured again."""
_DIGEST = 8  # bytes by which two etags of one part are told apart
_PUT_BACK = "put it back as it was, or build the index anew in another place"

_Natural = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Sum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Runs = tuple[tuple[_Natural, _Natural], ...]
"""Numbers as runs: (first, how many)."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredObject(_Record):
    """An object that the index is made of; ``name`` follows from what went into it."""

    name: _Name
    sha256: _Sum
    bytes: _Natural


class SegmentEntry(StoredObject):
    """A segment: how many rows it has, and the parts ``(output, first, last)`` that they come from.

    ``left_out`` counts by reason the embeddings that are no vectors, ``gone`` are rows that are not searched.
    """

    rows: _Natural
    parts: tuple[tuple[_Natural, _Natural, _Natural], ...] = ()
    left_out: dict[str, _Natural] = {}
    gone: Runs = ()

    def gone_rows(self) -> NDArray[np.int64]:
        """Return the numbers of the rows that are gone, ascending."""
        return np.concatenate([np.empty(0, np.int64), *(np.arange(a, a + n) for a, n in self.gone)])

    def without(self, rows: Iterable[int]) -> SegmentEntry:
        """Return the entry with more rows gone."""
        return self.model_copy(update={"gone": runs({*self.gone_rows().tolist(), *rows})})

    @property
    def live(self) -> int:
        """How many rows are searched."""
        return self.rows - sum(count for _, count in self.gone)

    def may_hold(self, output: int, part: int) -> bool:
        """Say whether a part of an output may have rows here."""
        return any(one == output and first <= part <= last for one, first, last in self.parts)


class OutputEntry(_Record):
    """An output whose embeddings are in the index.

    ``task`` is the section of the job that made them, by which photos to search for are embedded.
    ``parts`` are runs of parts: the number of the first, and a digest of the etag of each.
    """

    url: str
    column: Literal["embedding", "objects"]
    task: dict[str, Any] = {}
    parts: tuple[tuple[_Natural, str], ...] = ()

    def digests(self) -> dict[int, str]:
        """Return the digest of each part that is in the index, by its number."""
        size = 2 * _DIGEST
        return {
            first + place: text[size * place : size * (place + 1)]
            for first, text in self.parts
            for place in range(len(text) // size)
        }

    def with_digests(self, digests: Mapping[int, str]) -> OutputEntry:
        """Return the entry with these parts, in place of those that it had."""
        parts = tuple(
            (first, "".join(digests[first + one] for one in range(n))) for first, n in runs(digests)
        )
        return self.model_copy(update={"parts": parts})


class Recall(_Record):
    """What approximate search finds of what exact search finds, for probes that did not train the codebook.

    ``at_10`` and ``at_1`` are shares of the 10 nearest and of the nearest, ``rows`` the size of the index
    when it was measured. ``matches`` is the share of those of the 10 whose similarity is at least ``match``.
    """

    at_10: float
    at_1: float
    probes: _Natural
    rows: _Natural
    match: float | None = None
    matches: float | None = None
    match_count: _Natural = 0


class Measured(_Record):
    """A number of an evaluation, as `metrics.Value` has it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    count: _Natural = 0
    reason: str | None = None

    @classmethod
    def of(cls, value: Value) -> Measured:
        """Return a number without its replicates."""
        return cls(**{name: getattr(value, name) for name in cls.model_fields})

    def as_value(self) -> Value:
        """Return it as evaluations have it."""
        return Value(self.value, self.low, self.high, self.count, self.reason)


class Verification(_Record):
    """How well similarities tell people apart, by ``people``: a kept column, or the folders of pictures.

    ``rows`` is the size of the index when it was measured.
    """

    people: str
    rows: _Natural
    metrics: dict[str, Measured]


class Manifest(_Record):
    """All of an index but its rows.

    ``state`` is greater by one after each change, so that no two states have one etag. ``refine``: so many
    times k candidates are compared by their vectors. ``lists`` are the inverted lists of the codebook, of
    which ``probes`` are scanned for a query; 0: there are none. ``people`` says who is in the pictures: a
    kept column, or ``folder``; None: nobody knows.
    """

    version: Literal[1] = VERSION
    state: _Natural = 0
    space: dict[str, Any]
    kept: dict[str, str]
    segment_rows: Annotated[int, Field(ge=1)]
    exact_below: _Natural
    outputs: tuple[OutputEntry, ...] = ()
    segments: tuple[SegmentEntry, ...] = ()
    codebook: StoredObject | None = None
    lists: _Natural = 0
    probes: _Natural = 0
    refine: Annotated[int, Field(ge=1)] = 10
    recall: Recall | None = None
    people: str | None = None
    verification: Verification | None = None
    persons: StoredObject | None = None
    build_seconds: float = 0.0

    @property
    def embedding_space(self) -> EmbeddingSpace:
        """What the vectors are."""
        return EmbeddingSpace(**self.space)

    @property
    def dimensions(self) -> int:
        """How long a vector is."""
        return self.embedding_space.dimensions

    @property
    def live(self) -> int:
        """How many rows are searched."""
        return sum(one.live for one in self.segments)

    @property
    def bytes(self) -> int:
        """How large the objects are that the index is made of, the manifest apart."""
        others = [one.bytes for one in (self.codebook, self.persons) if one]
        return sum(others) + sum(one.bytes for one in self.segments)

    def left_out(self) -> dict[str, int]:
        """Return how many embeddings are no vectors, by reason."""
        found: dict[str, int] = {}
        for one in self.segments:
            for reason, count in one.left_out.items():
                found[reason] = found.get(reason, 0) + count
        return found


def segment_uri(index: str, name: str) -> str:
    """Return the address of a segment."""
    return join(index, "segments", f"{name}.parquet")


def codebook_uri(index: str, name: str) -> str:
    """Return the address of a codebook."""
    return join(index, "codebooks", f"{name}.npy")


def persons_uri(index: str, name: str) -> str:
    """Return the address of what says who is who."""
    return join(index, "persons", f"{name}.parquet")


def etag_digest(etag: str | None, size: int) -> str:
    """Return the digest of a part's etag, and of its size where the storage has no etags."""
    return blake2b(f"{etag} {size}".encode(), digest_size=_DIGEST).hexdigest()


def runs(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return numbers as runs, ascending: (first, how many)."""
    grouped = groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    groups: list[Sequence[tuple[int, int]]] = [[*group] for _, group in grouped]
    return tuple((group[0][1], len(group)) for group in groups)


def described(space: EmbeddingSpace) -> dict[str, Any]:
    """Return an embedding space as the manifest has it."""
    return asdict(space)


def read_manifest(index: str, storage: Storage) -> tuple[Manifest, str] | None:
    """Return the state of the index at an address, and its etag; None where there is no index.

    Raises UserError where it is damaged, or of a newer version.
    """
    uri = join(index, NAME)
    try:
        etag, data = storage.head(uri).etag, storage.read(uri)
    except NotFound:
        return None
    try:
        return Manifest.model_validate_json(data), etag or ""
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        if place == "version":
            raise UserError(
                f"{redact(uri)} is not of version {VERSION}, which is all that this cnnbatch reads\n"
                "  what to do: read it with the cnnbatch that wrote it"
            ) from None
        raise integrity.damaged(uri, f"{place or 'it'}: {first['msg']}", _PUT_BACK) from None


def commit(index: str, storage: Storage, manifest: Manifest, etag: str | None) -> Manifest | None:
    """Make ``manifest`` the state of the index, in place of the one with ``etag``; None: there was none.

    Return it as it was written; None where somebody else has changed the index since.
    """
    uri = join(index, NAME)
    manifest = manifest.model_copy(update={"state": manifest.state + 1})
    data = manifest.model_dump_json(exclude_defaults=True).encode()
    try:
        if etag is None:
            storage.create(uri, data)
        else:
            storage.replace(uri, data, etag)
    except (AlreadyExists, Changed):
        return None
    return manifest
