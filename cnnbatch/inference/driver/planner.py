"""Lists the input into plan pages in a thread of its own, while other shards are already predicted.

The pages on storage are the queue between listing and prediction, so neither waits for the other
and the driver holds one page whatever the size of the collection. A later listing adds what is new
as further shards, and notes of the planned images which have changed and which are gone.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from cnnbatch.config.input import Input
from cnnbatch.output import integrity, plan
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten_rows import Forgetting
from cnnbatch.output.plan_pages import LEFT_OUT, Changes, Listing, listings_of, page_file
from cnnbatch.output.relisting import Planned, PlannedImage
from cnnbatch.sources.files.left_out import LeftOutBefore, left_out_by
from cnnbatch.sources.reachable import some_are_there
from cnnbatch.storage import Storage, redact
from cnnbatch.storage.scratch import on_disk
from cnnbatch.types import ImageRef, Shard, Source

WAIT_S = 0.2
_READERS = 16


@dataclass(frozen=True, slots=True)
class ListingOptions:
    """What a run looks for in an input that is planned: ``new`` and changed images, ``prune``: gone ones.

    ``some``: where nothing is planned yet, whether any of the first images is there.
    """

    new: bool = False
    prune: bool = False
    some: bool = False


@dataclass(frozen=True, slots=True)
class _Page:
    listing: Listing
    number: int
    images: int
    first: int
    last: int


class Planner:
    """Makes or continues the plan; `shards` reads it as it grows.

    ``images`` counts what is planned so far; ``complete`` says that this is all; ``found`` are the
    counts of what this run's listing found. ``shard_size`` is the task's. Of what is suppressed by
    ``forgetting``, only what stands for it is planned and given.
    """

    def __init__(
        self,
        output: Output,
        source: Source,
        chosen: Input,
        shard_size: int,
        options: ListingOptions | None = None,
        forgetting: Forgetting | None = None,
    ) -> None:
        self._source = source
        self._forgetting = forgetting or Forgetting()
        self._chosen = chosen
        self._size = plan.shard_size(chosen.shard_size, shard_size)
        self._options = options or ListingOptions()
        self._changed = threading.Condition()
        self._stopped = False
        self._fault: Exception | None = None
        listings = listings_of(output)
        self._listing = self._choose(output, listings)
        self._current = None if self._listing is None else self._listing.name
        self._done = [listing for listing in listings if listing.name != self._current]
        self._changes: tuple[int, Changes] | None = None
        self._pages = _all_pages(listings)
        self.images = sum(page.images for page in self._pages)
        self.complete = self._listing is None
        self.found: dict[str, Any] = {}
        self._left_out_before = Counter[str]()  # By the part of this listing that an earlier run made.
        self.skipped = 0
        self._thread = threading.Thread(target=self._run, name="listing", daemon=True)

    def _choose(self, output: Output, listings: list[Listing]) -> Listing | None:
        """Return the listing that is to be made or gone on with; None where the plan is all there is."""
        if not listings:
            return Listing(output, "00000")
        if listings[-1].complete() is None:
            return listings[-1]
        if self._options.new or _is_larger(self._chosen, listings[-1]):
            return Listing(output, f"{len(listings):05}")
        return None

    @property
    def is_new(self) -> bool:
        """Whether nothing is planned yet."""
        return not self._pages and not self.complete

    def start(self) -> None:
        """Go on listing behind the last planned image, unless the plan is complete."""
        if not self.complete:
            self._thread.start()

    def stop(self) -> None:
        """End the listing after the page under way; the next run goes on from there."""
        self._stopped = True
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def wait_for(self, images: int, timeout_s: float | None = None) -> bool:
        """Wait for ``images`` in the plan, for its end or the time; say whether there are that many."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.images >= images or self.complete or self._fault is not None, timeout_s
            )
            self._raise_fault()
            return self.images >= images

    def count_shards(self) -> int | None:
        """Return how many shards the plan has; None while it grows."""
        return self._last_shard() + 1 if self.complete else None

    def shards(self, finished: Collection[int] = ()) -> Iterator[Shard | None]:
        """Yield the planned shards but for the finished ones, whose images are ``skipped``.

        They come in order; while an input that is planned is looked at anew, what is new comes first, and
        the others as they are then. None is yielded whenever the listing has to be waited for. Raises
        what ended the listing, once the shards before it were given.
        """
        older = 0 if self.complete else sum(page.listing.name != self._current for page in self._pages)
        page = older
        self.skipped = sum(one.images for one in self._pages if not _left(one, finished))
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has, page), WAIT_S)
                known, ended = len(self._pages), self.complete or self._fault is not None
            if page < known:
                yield from self._unfinished(self._pages[page], finished)
                page += 1
            elif ended:
                self._raise_fault()
                break
            else:
                yield None
        for early in self._pages[:older]:
            yield from self._unfinished(early, finished)

    def changes(self) -> Changes:
        """Return what all complete listings together say of images planned before."""
        if self._changes is None or self._changes[0] != len(self._done):
            self._changes = len(self._done), Changes(self._done)
        return self._changes[1]

    def some(self, indices: Collection[int]) -> Iterator[Shard]:
        """Yield the shards of these numbers as they are after all changes, in order."""
        for page in self._pages:
            if here := [index for index in range(page.first, page.last + 1) if index in indices]:
                yield from map(self._as_it_is, page.listing.read(page.number, here))

    def _as_it_is(self, shard: Shard) -> Shard:
        """Return a planned shard after all changes, without what is forgotten."""
        return self._forgetting.shard(self.changes().apply(shard))

    def note_applied(self) -> None:
        """Note that the changes of all listings are in the parts: the next run need not look."""
        for listing in self._done:
            if (listing.complete() or {}).get("change_pages") and not listing.applied():
                listing.settle()

    def _unfinished(self, page: _Page, finished: Collection[int]) -> Iterator[Shard]:
        left = _left(page, finished)
        if not left:  # Counted before the first shard.
            return
        shards = page.listing.read(page.number, left)
        self.skipped += page.images - sum(len(shard.refs) for shard in shards)
        yield from map(self._as_it_is, shards)

    def _has(self, page: int) -> bool:
        return page < len(self._pages) or self.complete or self._fault is not None

    def _raise_fault(self) -> None:
        if self._fault:
            raise self._fault

    def _last_shard(self) -> int:
        return self._pages[-1].last if self._pages else -1

    def _run(self) -> None:
        try:
            if self._listing is not None:
                self._list(self._listing)
        except Exception as fault:  # Handed to the thread that asks for shards, which raises it.
            self._fault = fault
        with self._changed:
            self._changed.notify_all()

    def _list(self, listing: Listing) -> None:
        began = self.images
        whole = self._list_again(listing) if self._done else self._list_first(listing)
        if not whole:
            return
        self.found["new"] = self.images - began
        if any(self.found.values()) or self._says_more(listing):
            chosen = {"limit": self._chosen.limit, "sample": self._chosen.sample}
            counts: dict[str, Any] = {"images": self.images, **chosen, **self.found}
            if left_out := self._left_out():
                counts["left_out"] = dict(left_out)
            listing.finish(counts)
            self._done.append(listing)
        self.complete = True

    def _says_more(self, listing: Listing) -> bool:
        """Say whether a listing that found nothing keeps its record: the first, a begun or a larger one."""
        begun = any(page.listing.name == listing.name for page in self._pages)
        return not self._done or begun or _is_larger(self._chosen, self._done[-1])

    def _list_first(self, listing: Listing) -> bool:
        """Plan what the source has, behind what is planned already; say whether that is all."""
        last = listing.last_ref()
        if last is not None and last.is_forgotten:
            return self._list_what_is_missing(listing)
        self._left_out_before = Counter() if last is None else listing.left_out()
        limit = None if self._chosen.limit is None else max(0, self._chosen.limit - self.images)
        stream = self._source.refs(last)
        try:
            refs = LeftOutBefore(plan.select(stream, self._chosen.sample, limit), self._source)
            if last is not None or not self._options.some:
                return self._plan(listing, map(self._forgetting.ref, refs), refs)
            where = self._chosen.url if isinstance(self._chosen.url, str) else "the input"
            there = some_are_there(iter(refs), Storage(self._chosen.storage), redact(where))
            return self._plan(listing, map(self._forgetting.ref, there), refs)
        finally:
            if isinstance(stream, Generator):  # Where it is left early, its temporary files go now.
                stream.close()

    def _list_what_is_missing(self, listing: Listing) -> bool:
        """Go on with a first listing whose last image is forgotten, so that no source can go on behind it."""
        with on_disk("the table of the planned images"):
            new = LeftOutBefore(self._planned().compare(self._selected(), False), self._source)
            return self._plan(listing, new, new)

    def _selected(self) -> Iterator[ImageRef]:
        """Yield all images of the source that the job takes, as they are planned."""
        refs = plan.select(self._source.refs(), self._chosen.sample, self._chosen.limit)
        return map(self._forgetting.ref, refs)

    def _list_again(self, listing: Listing) -> bool:
        """Plan what the source has and the plan has not, and note what became of the others."""
        with on_disk("the table of the planned images"):
            planned = self._planned()
            refs = _Counted(self._selected())
            new = LeftOutBefore(planned.compare(refs, self._options.new), self._source)
            if not self._plan(listing, new, new):
                return False
            if self._options.prune and (self._chosen.limit is None or refs.count < self._chosen.limit):
                planned.note_vanished()
            self._write_changes(listing, planned)
        return True

    def _planned(self) -> Planned:
        planned = Planned(self._source.columns)
        for page in self._pages:
            planned.add(self._images(page))
        planned.index()
        for changes in self.changes().pages():
            planned.apply(changes)
        return planned

    def _images(self, page: _Page) -> Iterator[PlannedImage]:
        """Yield the images of a page as they are planned."""
        some = bool(self._forgetting.forgotten)
        table = page.listing.table(page.number, ["shard", "key", "etag", *(["uri"] if some else [])])
        columns: list[list[Any]] = [table[name].to_pylist() for name in ("key", "etag", "shard")]
        counts: Any = table["shard"].value_counts().field("counts").to_pylist()
        images = map(PlannedImage, *columns, chain.from_iterable(range(count) for count in counts))
        return map(self._as_planned, images, table["uri"].to_pylist()) if some else images

    def _as_planned(self, image: PlannedImage, uri: str | None) -> PlannedImage:
        ref = self._forgetting.ref(ImageRef(image.key, uri or "", None, image.etag))
        return image._replace(key=ref.key, etag=ref.etag, gone=ref.is_forgotten)

    def _plan(self, listing: Listing, refs: Iterable[ImageRef], left_out: LeftOutBefore) -> bool:
        """Add ``refs`` as shards; say whether that was not stopped."""
        began, index = self.images, self._last_shard() + 1
        mine = [page for page in self._pages if page.listing.name == self._current]
        first = mine[0].first if mine else index
        shards = plan.shards(refs, self._size, index, first)
        for number, page in enumerate(plan.pages(shards, len(mine)), len(mine)):
            planned = self.images - began + sum(len(shard.refs) for shard in page)
            self._write(listing, number, page, self._left_out_before + left_out.counts(planned))
            if self._stopped:
                return False
        return True

    def _write(self, listing: Listing, number: int, page: list[Shard], left_out: Counter[str]) -> None:
        table = plan.page_table(page, self._source.columns)
        if left_out:  # Where this page ends, so that another run can go on counting.
            table = table.replace_schema_metadata({LEFT_OUT: json.dumps(left_out)})
        listing.write(number, page_file(table))
        images = sum(len(shard.refs) for shard in page)
        with self._changed:
            self._pages.append(_Page(listing, number, images, page[0].index, page[-1].index))
            self.images += images
            self._changed.notify_all()

    def _left_out(self) -> Counter[str]:
        """Return what this listing has passed over so far, by suffix."""
        return self._left_out_before + left_out_by(self._source)

    def _write_changes(self, listing: Listing, planned: Planned) -> None:
        counts = {"changed": 0, "vanished": 0}
        stream, page = planned.changes(), 0
        while some := list(islice(stream, plan.REFS_IN_A_PAGE)):
            listing.write_changes(page, page_file(plan.change_table(some, self._source.columns)))
            page += 1
            gone = sum(one.ref is None for one in some)
            counts["vanished"] += gone
            counts["changed"] += len(some) - gone
        self.found |= {**counts, "change_pages": page}


class _Counted:
    """Counts what passes."""

    def __init__(self, refs: Iterable[ImageRef]) -> None:
        self._refs = refs
        self.count = 0

    def __iter__(self) -> Iterator[ImageRef]:
        for ref in self._refs:
            self.count += 1
            yield ref


def _all_pages(listings: Sequence[Listing]) -> list[_Page]:
    """Return the pages of all listings, the oldest first; the listings are read side by side."""
    with ThreadPoolExecutor(_READERS, "listings") as pool:
        summaries = list(pool.map(Listing.summaries, listings))
    pages = [
        _Page(listing, number, *summary)
        for listing, of_listing in zip(listings, summaries, strict=True)
        for number, summary in enumerate(of_listing)
    ]
    _require_consecutive(pages)
    return pages


def _require_consecutive(pages: Sequence[_Page]) -> None:
    """Refuse pages that have lost shards, or hold some twice."""
    expected = 0
    for page in pages:
        if page.first != expected or page.last < page.first:
            uri = page.listing.page(page.number)
            why = f"expected the shards from {expected} on, got {page.first} to {page.last}"
            raise integrity.damaged(uri, why, integrity.PUT_BACK)
        expected = page.last + 1


def _left(page: _Page, finished: Collection[int]) -> list[int]:
    """Return the shards of a page that are not finished."""
    return [index for index in range(page.first, page.last + 1) if index not in finished]


def _is_larger(chosen: Input, listing: Listing) -> bool:
    """Say whether the job asks for more images than a finished listing took."""
    limit, sample = listing.chosen()
    more = limit is not None and (chosen.limit is None or chosen.limit > limit)
    return more or chosen.sample > sample
