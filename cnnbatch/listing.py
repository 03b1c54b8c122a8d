"""Lists the input into plan pages in a thread of its own, while other shards are already predicted.

The pages on storage are the queue between listing and prediction, so neither waits for the other
and the driver holds one page whatever the size of the collection.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from functools import partial

import pyarrow.parquet as pq

from cnnbatch import plan
from cnnbatch.job import Input
from cnnbatch.output import Listing
from cnnbatch.records import Shard
from cnnbatch.sources import Source

WAIT_S = 0.2


class Planner:
    """Makes or continues one listing's plan; `shards` reads it as it grows.

    ``images`` counts what is planned so far; ``complete`` says that this is all.
    """

    def __init__(self, listing: Listing, source: Source, chosen: Input, first_shard: int) -> None:
        self._listing = listing
        self._source = source
        self._chosen = chosen
        self._first = first_shard if chosen.shard_size == "auto" else chosen.shard_size
        self._changed = threading.Condition()
        self._stopped = False
        self._fault: Exception | None = None
        self._pages = listing.count_pages()
        self.images = sum(listing.count_images(page) for page in range(self._pages))
        self.complete = listing.complete() is not None
        self._thread = threading.Thread(target=self._run, name="listing", daemon=True)

    def start(self) -> None:
        """Go on listing behind the last planned image, unless the plan is complete."""
        if not self.complete:
            self._thread.start()

    def stop(self) -> None:
        """End the listing after the page under way; the next run goes on from there."""
        self._stopped = True
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def wait_for(self, images: int) -> bool:
        """Wait until ``images`` are planned or the plan is complete; say whether there are that many."""
        with self._changed:
            self._changed.wait_for(lambda: self.images >= images or self.complete or self._fault is not None)
            self._raise_fault()
            return self.images >= images

    def count_shards(self) -> int | None:
        """Return how many shards the plan has; None while it grows."""
        return self._listing.last_ref()[0] + 1 if self.complete else None

    def shards(self) -> Iterator[Shard | None]:
        """Yield the planned shards in order, and None whenever the listing has to be waited for.

        Raises what ended the listing, once the shards before it were given.
        """
        page = 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has, page), WAIT_S)
                known, ended = self._pages, self.complete or self._fault is not None
            if page < known:
                yield from self._listing.read(page)
                page += 1
            elif ended:
                self._raise_fault()
                return
            else:
                yield None

    def _has(self, page: int) -> bool:
        return page < self._pages or self.complete or self._fault is not None

    def _raise_fault(self) -> None:
        if self._fault:
            raise self._fault

    def _run(self) -> None:
        try:
            self._list()
        except Exception as fault:  # Handed to the thread that asks for shards, which raises it.
            self._fault = fault
        with self._changed:
            self._changed.notify_all()

    def _list(self) -> None:
        index, last = self._listing.last_ref()
        limit = None if self._chosen.limit is None else max(0, self._chosen.limit - self.images)
        refs = plan.select(self._source.refs(last), self._chosen.sample, limit)
        shards = plan.cut(refs, lambda number: plan.shard_length(number, self._first), index + 1)
        for page in plan.pages(shards, self._pages):
            self._write(page)
            if self._stopped:
                return
        self._listing.finish(
            {"images": self.images, "limit": self._chosen.limit, "sample": self._chosen.sample}
        )
        self.complete = True

    def _write(self, page: list[Shard]) -> None:
        buffer = io.BytesIO()
        pq.write_table(plan.page_table(page, self._source.columns), buffer, compression="zstd")
        self._listing.write(self._pages, buffer.getvalue())
        with self._changed:
            self._pages += 1
            self.images += sum(len(shard.refs) for shard in page)
            self._changed.notify_all()
