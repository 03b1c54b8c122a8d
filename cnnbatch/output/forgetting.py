"""Forgets in one output what a command has suppressed there: objects are rewritten, later the old ones go.

Between the two lies the search for what is left. A command that was killed gives the same again: what is to
be done follows from its entries, and each object that it has rewritten says so, and what it was before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from cnnbatch.output.folder import Output
from cnnbatch.output.forgetting_parts import rewrite_shard
from cnnbatch.output.forgetting_plan import rewrite_changes, rewrite_page
from cnnbatch.output.forgotten import Forgotten, weights_of
from cnnbatch.output.forgotten_rows import Forgetting
from cnnbatch.output.plan_pages import Changes, Listing, listings_of
from cnnbatch.output.rewriting import Command, Touched

__all__ = ["Rewritten", "Touched", "erase", "rewrite"]

_THREADS = 4


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a command has rewritten in an output, and the assets that no row points to any more.

    ``shards`` are those whose parts have lost something.
    """

    objects: tuple[Touched, ...] = ()
    shards: frozenset[int] = frozenset()

    def also(self, objects: Iterable[Touched]) -> Rewritten:
        """Return this with more objects, such as those of a report."""
        return replace(self, objects=(*self.objects, *objects))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for a journal."""
        return {"objects": [asdict(one) for one in self.objects], "shards": sorted(self.shards)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Rewritten:
        """Return what `to_json` was called of."""
        return cls(tuple(Touched(**one) for one in said["objects"]), frozenset(said["shards"]))


def rewrite(output: Output, name: str, shards: Collection[int] | None = None) -> Rewritten:
    """Take all that the command ``name`` has suppressed out of an output's parts, plan and ground truth.

    ``shards`` are the numbers of those that may have it; None: any, so that all keys are hashed. The old
    objects live on as old versions where the storage keeps such, and assets as they are, until `erase`. The
    evaluation and the report are not touched. The caller holds the output's lock.

    Raises UserError where an object is damaged, OutputHeld where somebody else has changed one meanwhile.
    """
    command = Command(output, name, Forgetting(Forgotten.read(output).of(name), weights_of(output)))
    listings = listings_of(output)
    changes = Changes([one for one in listings if one.complete() is not None])
    touched, places = list[Touched](), dict[int, Mapping[int, str]]()
    left = output.finished() if shards is None else output.finished() & {*shards}
    with ThreadPoolExecutor(_THREADS, "forgetting") as pool:
        for listing, page, inside in _pages(listings, shards):
            planned = listing.read(page, inside)
            states = [(one, changes.apply(one)) for one in planned]
            for index, found in zip(
                inside, pool.map(partial(rewrite_shard, command), inside, states), strict=True
            ):
                touched += found.touched
                places |= {index: found.places} if found.touched else {}
            touched += rewrite_page(command, listing, page, places, inside)
            left -= {*inside}
        for index, found in zip(left, pool.map(partial(rewrite_shard, command), left), strict=True):
            touched += found.touched  # Of parts that no plan tells of.
            places |= {index: found.places} if found.touched else {}
    for listing in listings:
        touched += rewrite_changes(command, listing, places, shards)
    if places:
        output.undecide("failed")  # What was forgotten counts among the failures no more.
    return Rewritten(tuple(touched), frozenset(places))


def erase(output: Output, rewritten: Rewritten) -> None:
    """Remove the assets that no row points to, and every old version of what was rewritten.

    Raises StillThere where the storage keeps one of them, after all others are gone.
    """
    for one in rewritten.objects:
        if one.after is None:
            output.storage.delete(one.uri)


def _pages(
    listings: Sequence[Listing], shards: Collection[int] | None
) -> Iterator[tuple[Listing, int, list[int]]]:
    """Yield the pages that have some of ``shards``, and which; None: all."""
    for listing in listings:
        for page, (_, first, last) in enumerate(listing.summaries()):
            inside = [index for index in range(first, last + 1) if shards is None or index in shards]
            if inside:
                yield listing, page, inside
