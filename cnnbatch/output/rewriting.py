"""Replaces objects of an output from which something was forgotten; each says by whom, and what it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.errors import OutputHeld
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten_rows import Forgetting
from cnnbatch.storage import Changed, NotFound, redact

_MARK = b"forgotten"


@dataclass(frozen=True, slots=True)
class Touched:
    """An object of an output with its SHA-256 before and after; ``after`` is None where it is to go."""

    uri: str
    before: str
    after: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """A command that forgets in ``output``: its ``name``, and what it suppresses there."""

    output: Output
    name: str
    forgetting: Forgetting

    def replace(self, uri: str, data: bytes | Path, etag: str) -> None:
        """Put an object over the one with ``etag``; raises OutputHeld where that is another one by now."""
        try:
            self.output.storage.replace(uri, data, etag)
        except Changed:
            raise OutputHeld(f"{redact(uri)} was changed by another run while it was rewritten") from None

    def rewrite_table(
        self,
        uri: str,
        change: Callable[[pa.Table], pa.Table | None],
        file_of: Callable[[pa.Table], bytes],
    ) -> list[Touched]:
        """Replace a table by what ``change`` makes of it, None: it stays; ``file_of`` writes it.

        Nothing of an object that is not there. One that this command has changed before is told of again.
        """
        try:
            etag, data = self.output.storage.head(uri).etag or "", self.output.storage.read(uri)
        except NotFound:
            return []
        with integrity.reading(uri):
            table = pq.read_table(pa.BufferReader(data))
            kept = table.schema.metadata or {}
            marks: Mapping[str, str] = json.loads(kept.get(_MARK, b"{}"))
        if self.name in marks:
            return [Touched(uri, marks[self.name], sha256(data))]
        changed = change(table)
        if changed is None:
            return []
        mark = json.dumps({**marks, self.name: sha256(data)}).encode()
        new = file_of(changed.replace_schema_metadata({**kept, _MARK: mark}))
        self.replace(uri, new, etag)
        return [Touched(uri, sha256(data), sha256(new))]


def sha256(data: bytes) -> str:
    """Return the SHA-256 of an object."""
    return hashlib.sha256(data).hexdigest()
