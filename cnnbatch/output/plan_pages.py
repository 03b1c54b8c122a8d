"""The pages of a plan, listing by listing, and what later listings say of images planned before."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch.errors import OutputHeld, UserError
from cnnbatch.output import integrity, plan
from cnnbatch.output.folder import READERS, Output
from cnnbatch.output.plan import Change
from cnnbatch.storage import AlreadyExists, NotFound, redact
from cnnbatch.types import ImageRef, Shard

_OPEN = 16  # pages in memory; most nights fill a small part of one
_PAGE = re.compile(r"(\d{5,})\.parquet$")
_LISTING = re.compile(r"\d+/")
LEFT_OUT = b"left_out"
"""Metadata of a page: what the listing has passed over up to there, by suffix."""


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
        with ThreadPoolExecutor(READERS, "pages") as pool:
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
        self.output.storage.put(self.changes_page(page), data)

    def changes(self, page: int) -> list[Change]:
        """Return a page of changes."""
        uri = self.changes_page(page)
        with self._opened(uri) as file:
            integrity.require_columns(pq.read_schema(file), plan.CHANGE_COLUMNS)
            return list(plan.table_changes(pq.read_table(file)))

    def changed_shards(self, page: int) -> set[int]:
        """Return the numbers of the shards that a page of changes is about."""
        uri = self.changes_page(page)
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

    def changes_pages(self) -> list[str]:
        """Return the URIs of the pages of changes that are there, also of a listing that was interrupted."""
        names = self.output.names("/".join(self.folder))
        return [self.output.path(*self.folder, name) for name in sorted(names) if name.startswith("changes-")]

    def changes_page(self, page: int) -> str:
        """Return the URI of a page of changes."""
        return self.output.path(*self.folder, f"changes-{page:05}.parquet")


class Changes:
    """The changes of several complete listings, the oldest first; a few pages of them in memory.

    ``pending`` are the shards with changes that may not be in their parts yet.
    """

    def __init__(self, listings: Sequence[Listing]) -> None:
        with ThreadPoolExecutor(READERS, "changes") as pool:
            counts = list(pool.map(_change_pages, listings))
            self._pages = [
                (listing, number)
                for listing, count in zip(listings, counts, strict=True)
                for number in range(count)
            ]
            shards = list(pool.map(lambda page: page[0].changed_shards(page[1]), self._pages))
            applied = list(pool.map(lambda page: page[0].applied(), self._pages))
        self._of_page = lru_cache(maxsize=_OPEN)(self._read)
        self._of_shard: dict[int, list[int]] = {}
        for place, of_page in enumerate(shards):
            for shard in of_page:
                self._of_shard.setdefault(shard, []).append(place)
        self.pending = frozenset().union(
            *(of_page for of_page, done in zip(shards, applied, strict=True) if not done)
        )

    def apply(self, shard: Shard) -> Shard:
        """Return ``shard`` as it is after all changes; raises UserError where these do not fit it."""
        for place in self._of_shard.get(shard.index, ()):
            changes = [one for one in self._of_page(place) if one.shard == shard.index]
            listing, number = self._pages[place]
            with integrity.reading(listing.changes_page(number)):
                shard = plan.changed(shard, changes)
        return shard

    def pages(self) -> Iterator[Sequence[Change]]:
        """Yield all changes, a page at a time, the oldest first."""
        yield from map(self._of_page, range(len(self._pages)))

    def _read(self, place: int) -> Sequence[Change]:
        listing, number = self._pages[place]
        return listing.changes(number)


def page_file(table: pa.Table) -> bytes:
    """Return a page as it is written."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _change_pages(listing: Listing) -> int:
    return int((listing.complete() or {}).get("change_pages", 0))


def listings_of(output: Output) -> list[Listing]:
    """Return the listings that an output stands on, the oldest first."""
    names = {name.split("/")[0] for name in output.names("_job/plan") if _LISTING.match(name)}
    return [Listing(output, name) for name in sorted(names)]


def left_out_of(output: Output) -> dict[str, int]:
    """Return what an output's last finished listing passed over, by suffix: files that are no images."""
    counts = [found for listing in listings_of(output) if (found := listing.complete())]
    return dict(counts[-1].get("left_out", {})) if counts else {}


def _missing(uri: str) -> UserError:
    return UserError(f"{redact(uri)} is missing, a page of the plan\n  what to do: {integrity.PUT_BACK}")
