"""What later listings say of images planned before: which have changed, and which are gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from cnnbatch import plan
from cnnbatch.output import Listing
from cnnbatch.plan import Change
from cnnbatch.records import Shard

_READERS = 16
_OPEN = 16  # pages in memory; most nights fill a small part of one


class Changes:
    """The changes of several complete listings, the oldest first; a few pages of them in memory.

    ``pending`` are the shards with changes that may not be in their parts yet.
    """

    def __init__(self, listings: Sequence[Listing]) -> None:
        with ThreadPoolExecutor(_READERS, "changes") as pool:
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
        """Return ``shard`` as it is after all changes."""
        for place in self._of_shard.get(shard.index, ()):
            changes = [one for one in self._of_page(place) if one.shard == shard.index]
            shard = plan.changed(shard, changes)
        return shard

    def pages(self) -> Iterator[Sequence[Change]]:
        """Yield all changes, a page at a time, the oldest first."""
        yield from map(self._of_page, range(len(self._pages)))

    def _read(self, place: int) -> Sequence[Change]:
        listing, number = self._pages[place]
        return listing.changes(number)


def _change_pages(listing: Listing) -> int:
    return int((listing.complete() or {}).get("change_pages", 0))
