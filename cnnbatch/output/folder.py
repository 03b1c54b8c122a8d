"""The output folder's own records: identity, settings, plan pages and which parts are finished.

Whatever is decided once for an output is an object put create-only, so that two runs can't decide
differently; nothing is kept in memory that the folder doesn't say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.output import integrity
from cnnbatch.storage import AlreadyExists, NotFound, Storage, join, redact

PART = re.compile(r"part-(\d{8})\.parquet$")
_BELOW = re.compile(r"[^/\\:\x00-\x1f]+(/[^/\\\x00-\x1f]+)*")  # neither absolute nor of another storage
_SUSPECT = re.compile(r"(\d+)\.json$")
_BEFORE: Mapping[str, Any] = {"decoder_revision": 1}  # What an older identity is, which does not say it.
_NAMES: Mapping[str, str] = {"decoder_revision": "the decoder's revision"}  # As a person reads them.
FOOTER_KEY = b"cnnbatch"
READERS = 16
"""Threads that read an output's objects side by side."""


class Output:
    """One output folder at ``uri``; every method reads or writes it, none caches."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri = uri
        self.storage = storage

    def path(self, *parts: str) -> str:
        """Return the URI of an object below the folder."""
        return join(self.uri, *parts)

    def part(self, index: int) -> str:
        """Return the URI of shard ``index``'s predictions."""
        return self.path("predictions", f"part-{index:08}.parquet")

    def truth(self, index: int) -> str:
        """Return the URI of shard ``index``'s truth."""
        return self.path("_job", "truth", f"part-{index:08}.parquet")

    def asset(self, address: str) -> bytes:
        """Return the object that a row's ``address`` below the folder stands for.

        Raises UserError where the address leads elsewhere, or to nothing.
        """
        way_out = f"what to do: make {redact(self.uri)} anew; its rows and its objects do not fit together"
        if not _BELOW.fullmatch(address) or ".." in address.split("/"):
            raise UserError(f"expected the address of an object in the output, got {address!r}\n  {way_out}")
        try:
            return self.storage.read(self.path(*address.split("/")))
        except NotFound:
            raise UserError(
                f"{redact(self.path(address))} is missing, which a row names\n  {way_out}"
            ) from None

    def finished(self) -> set[int]:
        """Return the numbers of the shards whose part exists: the only record of what is done."""
        return {int(found[1]) for name in self.names("predictions") if (found := PART.search(name))}

    def footer(self, index: int) -> dict[str, Any]:
        """Return what the footer of part ``index`` says: fingerprint, digest, versions, receipt."""
        uri = self.part(index)
        with integrity.reading(uri, integrity.MAKE_AGAIN):
            _, footer = read_footer(self.storage, uri)
            footer["digest"], footer["receipt"]["failed"].keys()
        return footer

    def decide(self, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``value`` as ``_job/NAME.json`` unless that is there already; return what it says now."""
        try:
            self.storage.create(self.path("_job", f"{name}.json"), json.dumps(value, indent=1).encode())
        except AlreadyExists:
            return self.decided(name) or {}
        return dict(value)

    def decided(self, name: str) -> dict[str, Any] | None:
        """Return what ``_job/NAME.json`` says; None where nothing was decided yet.

        Raises UserError where it does not say what a record of that name says, or a newer version wrote it.
        """
        uri = self.path("_job", f"{name}.json")
        try:
            data = self.storage.read(uri)
        except NotFound:
            return None
        try:
            return integrity.record(name, uri, data)
        except integrity.NewerVersion:
            raise
        except UserError:
            self.require_known_version("training/identity", "study")
            raise

    def require_known_version(self, *more: str) -> None:
        """Raise UserError where ``_job/identity.json``, or one ``more`` record, is of a newer version."""
        for name in ("identity", *more):
            uri = self.path("_job", f"{name}.json")
            with suppress(NotFound):
                integrity.require_known_version(uri, _json(self.storage.read(uri)))

    def settings(self) -> dict[str, Any]:
        """Return how each kind of device runs, by its key."""
        return {name: self.decided(f"settings/{name}") for name in self._records("settings")}

    def undecide(self, *names: str) -> None:
        """Forget ``_job/NAME.json``, whether it is there or not, and what is in the folder of that name."""
        for name in names:
            self.storage.delete(self.path("_job", f"{name}.json"))
            for inner in [*self.names(f"_job/{name}")]:
                self.storage.delete(self.path("_job", name, inner))

    def require_identity(self, identity: Mapping[str, Any]) -> None:
        """Refuse ``identity`` where the folder was made by another one.

        ``identity`` may be a part of the whole: only what it names is compared. Raises UserError
        with every difference.
        """
        head = f"{redact(self.uri)} was made by another job, and one output never mixes two:"
        job = redact(self.path("_job", "job.yaml"))
        way_out = f"choose another output, or give the job that made this one ({job})"
        require_same(head, self.decided("identity"), identity, way_out)

    def footers(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the footers of many parts, in order, read side by side."""
        with ThreadPoolExecutor(READERS, "footers") as pool:
            stream = iter(indices)
            while some := list(islice(stream, 64 * READERS)):
                yield from pool.map(self.footer, some)

    def runs(self) -> list[dict[str, Any]]:
        """Return the records of all runs, in no order."""
        records = (self.decided(f"runs/{name}") for name in self._records("runs"))
        return [record for record in records if record and "started" in record]

    def suspects(self) -> set[int]:
        """Return the shards that an inline run was at when its process ended."""
        return {int(found[1]) for name in self.names("_job/suspects") if (found := _SUSPECT.match(name))}

    def suspect(self, index: int) -> str:
        """Return the URI of the note that an inline run is at shard ``index``."""
        return self.path("_job", "suspects", f"{index}.json")

    def _records(self, folder: str) -> list[str]:
        """Return the names of the records in a folder below ``_job/``."""
        names = self.names(f"_job/{folder}")
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def names(self, folder: str) -> Iterator[str]:
        """Yield the paths of all objects below ``folder``, relative to it; none where there are none."""
        root = self.path(*folder.split("/"))
        try:
            for entry in self.storage.list(root):
                yield entry.uri[len(root) + 1 :]
        except NotFound:
            return


def read_footer(storage: Storage, part: str) -> tuple[pq.FileMetaData, dict[str, Any]]:
    """Return Parquet's metadata of a part, and what its footer says; that is empty where it has none of ours.

    Raises UserError where it is damaged, or a newer version wrote it.
    """
    with storage.open(part) as file, integrity.reading(part, integrity.MAKE_AGAIN):
        metadata = pq.read_metadata(file)
        footer = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
        integrity.require_known_version(part, footer)
        return metadata, footer


def _json(data: bytes) -> Any:
    """Return a JSON value; None of what is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


_OF_A_JOB = ("task.", "input.", "train.")


def require_same(head: str, known: Mapping[str, Any] | None, fields: Mapping[str, Any], way_out: str) -> None:
    """Refuse what another job has made: raises UserError with ``head``, every difference and the way out."""
    if known is not None and (found := differences(known, fields)):
        raise UserError("\n".join([head, *found, f"  what to do: {way_out}"]))


def differences(known: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """Return a line for each of a job's ``fields`` that is another one in what an output has ``known``.

    Fields of a job that only the output has count, too; the others may be all that is known so far.
    """
    names = [*fields, *(name for name in known if name.startswith(_OF_A_JOB) and name not in fields)]
    known = {**_BEFORE, **known}
    return [
        f"  {_NAMES.get(name, name)}: the output has {known.get(name)!r}, this job has {fields.get(name)!r}"
        for name in names
        if known.get(name) != fields.get(name)
    ]
