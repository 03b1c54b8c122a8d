"""Reads the objects that a manifest names: what is missing or damaged is named, and never searched."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.index import segments
from cnnbatch.index.codebook import Codebook
from cnnbatch.index.manifest import (
    Manifest,
    SegmentEntry,
    StoredObject,
    codebook_uri,
    persons_uri,
    segment_uri,
)
from cnnbatch.storage import NotFound, Storage, redact

_WAY_OUT = (
    "put it back as it was, build the index anew in another place, or search the rest (skip_damaged=True, "
    "--skip-damaged)"
)


class DamagedObject(UserError):
    """An object of an index that is not there, or not what was written."""


def read_segment(index: str, storage: Storage, entry: SegmentEntry) -> pa.Table:
    """Return a segment; raises DamagedObject unless its bytes are those that were written."""
    return segments.read(read_object(segment_uri(index, entry.name), storage, entry))


def read_codebook(index: str, storage: Storage, manifest: Manifest) -> Codebook | None:
    """Return the codebook; None where the index has none. Raises DamagedObject."""
    book = manifest.codebook
    if book is None:
        return None
    return Codebook.from_bytes(read_object(codebook_uri(index, book.name), storage, book))


def read_object(uri: str, storage: Storage, expected: StoredObject) -> bytes:
    """Return the bytes of an object of an index; raises DamagedObject for any others."""
    try:
        data = storage.read(uri)
    except NotFound:
        raise DamagedObject(
            f"{redact(uri)} is missing, which the index names\n  what to do: {_WAY_OUT}"
        ) from None
    if segments.checksum(data) != expected.sha256:
        raise DamagedObject(
            f"{redact(uri)} is damaged: its {len(data):,} bytes are not the {expected.bytes:,} that were "
            f"written\n  what to do: {_WAY_OUT}"
        )
    return data


def unnamed(index: str, storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Yield the addresses of segments, codebooks and tables of persons that the manifest does not name.

    They are of earlier states, or of builds that were killed.
    """
    named = {segment_uri(index, one.name) for one in manifest.segments}
    if manifest.codebook:
        named.add(codebook_uri(index, manifest.codebook.name))
    if manifest.persons:
        named.add(persons_uri(index, manifest.persons.name))
    for folder in (segment_uri(index, ""), codebook_uri(index, ""), persons_uri(index, "")):
        try:
            for entry in storage.list(folder.rpartition("/")[0]):
                if entry.uri not in named and entry.uri.endswith((".parquet", ".npy")):
                    yield entry.uri
        except NotFound:
            continue
