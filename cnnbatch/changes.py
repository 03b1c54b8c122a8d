"""What later listings say of images planned before: which have changed, and which are gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from cnnbatch import plan
from cnnbatch.output import Listing
from cnnbatch.plan import Change
from cnnbatch.records import Shard


class Changes:
    """The changes of several complete listings, the oldest first; one page of them in memory at a time."""

    def __init__(self, listings: Sequence[Listing]) -> None:
        self._pages = [
            (listing, number)
            for listing in listings
            for number in range((listing.complete() or {}).get("change_pages", 0))
        ]
        self._of_page = lru_cache(maxsize=1)(self._read)
        self._of_shard: dict[int, list[int]] = {}
        for place in range(len(self._pages)):
            for shard in dict.fromkeys(one.shard for one in self._of_page(place)):
                self._of_shard.setdefault(shard, []).append(place)

    @property
    def shards(self) -> frozenset[int]:
        """The numbers of the shards that have changes."""
        return frozenset(self._of_shard)

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
