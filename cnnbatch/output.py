"""The output folder's own records: identity, settings, plan pages and which parts are finished.

Whatever is decided once for an output is an object put create-only, so that two runs can't decide
differently; nothing is kept in memory that the folder doesn't say.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch import integrity, plan
from cnnbatch.errors import OutputHeld, UserError
from cnnbatch.plan import Change
from cnnbatch.records import ImageRef, Shard
from cnnbatch.storage import AlreadyExists, NotFound, Storage, join, redact

PART = re.compile(r"part-(\d{8})\.parquet$")
_PAGE = re.compile(r"(\d{5,})\.parquet$")
_LISTING = re.compile(r"\d+/")
_SUSPECT = re.compile(r"(\d+)\.json$")
_READERS = 16
_BEFORE: Mapping[str, Any] = {"decoder_revision": 1}  # What an older identity is, which does not say it.
_NAMES: Mapping[str, str] = {"decoder_revision": "the decoder's revision"}  # As a person reads them.
FOOTER_KEY = b"cnnbatch"
LEFT_OUT = b"left_out"
"""Metadata of a page: what the listing has passed over up to there, by suffix."""


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

    def finished(self) -> set[int]:
        """Return the numbers of the shards whose part exists: the only record of what is done."""
        return {int(found[1]) for name in self.names("predictions") if (found := PART.search(name))}

    def footer(self, index: int) -> dict[str, Any]:
        """Return what the footer of part ``index`` says: fingerprint, digest, versions, receipt."""
        uri = self.part(index)
        with self.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
            metadata = pq.read_metadata(file).metadata or {}
            footer: dict[str, Any] = json.loads(metadata[FOOTER_KEY])
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

        Raises UserError where it does not say what a record of that name says.
        """
        uri = self.path("_job", f"{name}.json")
        try:
            data = self.storage.read(uri)
        except NotFound:
            return None
        return integrity.record(name, uri, data)

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
        known = self.decided("identity")
        if known is None:
            return
        if found := differences(known, identity):
            raise UserError(
                f"{redact(self.uri)} was made by another job, and one output never mixes two:\n"
                + "\n".join(found)
                + "\n  what to do: choose another output, or give the job that made this one"
                f" ({redact(self.path('_job', 'job.yaml'))})"
            )

    def footers(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the footers of many parts, in order, read side by side."""
        with ThreadPoolExecutor(_READERS, "footers") as pool:
            stream = iter(indices)
            while some := list(islice(stream, 64 * _READERS)):
                yield from pool.map(self.footer, some)

    def listings(self) -> list[Listing]:
        """Return the listings that this output stands on, the oldest first."""
        names = {name.split("/")[0] for name in self.names("_job/plan") if _LISTING.match(name)}
        return [Listing(self, name) for name in sorted(names)]

    def left_out(self) -> dict[str, int]:
        """Return what the last finished listing passed over, by suffix: files that are no images."""
        counts = [found for listing in self.listings() if (found := listing.complete())]
        return dict(counts[-1].get("left_out", {})) if counts else {}

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


class Listing:
    """One listing's plan: pages that are only ever added, then perhaps changes, then ``complete``."""

    def __init__(self, output: Output, name: str) -> None:
        self.output = output
        self.name = name
        self.folder = ("_job", "plan", name)
        self._counts: dict[str, Any] | None = None

    def complete(self) -> dict[str, Any] | None:
        """Return the counts of a finished listing, which stay as they are; None while it is under way."""
        self._counts = self._counts or self.output.decided(f"plan/{self.name}/complete")
        return self._counts

    def chosen(self) -> tuple[int | None, float]:
        """Return the limit and the sample of a finished listing."""
        with integrity.reading(self.output.path(*self.folder, "complete.json"), integrity.DELETE):
            counts = self.complete() or {}
            return counts["limit"], counts["sample"]

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Say that no page follows."""
        self.output.decide(f"plan/{self.name}/complete", counts)

    def applied(self) -> bool:
        """Say whether a run has seen to it that all its changes are in the parts."""
        return self.output.decided(f"plan/{self.name}/applied") is not None

    def settle(self) -> None:
        """Say that all its changes are in the parts."""
        self.output.decide(f"plan/{self.name}/applied", {})

    def count_pages(self) -> int:
        """Return how many pages there are; raises UserError where one among them is missing."""
        names = self.output.names("/".join(self.folder))
        numbers = {int(found[1]) for name in names if (found := _PAGE.match(name))}
        if lacking := set(range(len(numbers))) - numbers:
            raise _missing(self.page(min(lacking)))
        return len(numbers)

    def read(self, page: int, wanted: Collection[int] | None = None) -> list[Shard]:
        """Return the shards of page ``page``, or those of some numbers."""
        table = self.table(page)
        if wanted is not None:
            table = table.filter(pc.is_in(table["shard"], pa.array(wanted, pa.int32())))
        with integrity.reading(self.page(page)):
            return list(plan.page_shards(table))

    def table(self, page: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return page ``page`` as a table of `plan.PAGE_COLUMNS`, or of some of them."""
        uri = self.page(page)
        with self._opened(uri) as file:
            integrity.require_columns(pq.read_schema(file), plan.PAGE_COLUMNS)
            return pq.read_table(file, columns=None if columns is None else list(columns))

    def summaries(self) -> list[tuple[int, int, int]]:
        """Return of each page the number of images, its first shard's and its last shard's number."""
        with ThreadPoolExecutor(_READERS, "pages") as pool:
            return list(pool.map(self._summary, range(self.count_pages())))

    def _summary(self, page: int) -> tuple[int, int, int]:
        uri = self.page(page)
        with self._opened(uri) as file:
            parquet = pq.ParquetFile(file)
            integrity.require_columns(parquet.schema_arrow, plan.PAGE_COLUMNS)
            metadata = parquet.metadata
            groups = [
                metadata.row_group(number).column(0).statistics for number in range(metadata.num_row_groups)
            ]
            ends: list[Any] = [(group.min, group.max) for group in groups if group is not None]
            return metadata.num_rows, min(first for first, _ in ends), max(last for _, last in ends)

    def write_changes(self, page: int, data: bytes) -> None:
        """Add a page of changes; of an interrupted listing the next one writes it anew."""
        self.output.storage.put(self._changes(page), data)

    def changes(self, page: int) -> list[Change]:
        """Return a page of changes."""
        uri = self._changes(page)
        with self._opened(uri) as file:
            integrity.require_columns(pq.read_schema(file), plan.CHANGE_COLUMNS)
            return list(plan.table_changes(pq.read_table(file)))

    def changed_shards(self, page: int) -> set[int]:
        """Return the numbers of the shards that a page of changes is about."""
        uri = self._changes(page)
        with self._opened(uri) as file:
            integrity.require_columns(pq.read_schema(file), plan.CHANGE_COLUMNS)
            shards: list[Any] = pq.read_table(file, columns=["shard"])["shard"].unique().to_pylist()
            return set(shards)

    def write(self, page: int, data: bytes) -> None:
        """Add page ``page``; raises OutputHeld where another run has added it."""
        try:
            self.output.storage.create(self.page(page), data)
        except AlreadyExists:
            raise OutputHeld(f"another run is listing the input for {redact(self.output.uri)}") from None

    def last_ref(self) -> ImageRef | None:
        """Return the last planned image; None where nothing is planned."""
        pages = self.count_pages()
        return self.read(pages - 1)[-1].refs[-1] if pages else None

    def left_out(self) -> Counter[str]:
        """Return what the listing has passed over up to its last page, by suffix."""
        with self._opened(self.page(self.count_pages() - 1)) as file:
            metadata = pq.read_schema(file).metadata or {}
            return Counter(json.loads(metadata.get(LEFT_OUT, b"{}")))

    @contextmanager
    def _opened(self, uri: str) -> Iterator[BinaryIO]:
        """Open a page; raises UserError where it is missing, or what is read from it is damaged."""
        try:
            file = self.output.storage.open(uri)
        except NotFound:
            raise _missing(uri) from None
        with file, integrity.reading(uri):
            yield file

    def page(self, page: int) -> str:
        """Return the URI of page ``page``."""
        return self.output.path(*self.folder, f"{page:05}.parquet")

    def _changes(self, page: int) -> str:
        return self.output.path(*self.folder, f"changes-{page:05}.parquet")


_OF_A_JOB = ("task.", "input.", "train.")


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


def _missing(uri: str) -> UserError:
    return UserError(f"{redact(uri)} is missing, a page of the plan\n  what to do: {integrity.PUT_BACK}")
