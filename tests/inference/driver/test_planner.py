"""The plan as the listing goes: its first page comes early, and an interruption moves no cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cnnbatch.config.input import Input
from cnnbatch.inference.driver.planner import ListingOptions, Planner
from cnnbatch.output import plan
from cnnbatch.output.folder import Output
from cnnbatch.output.plan import SmallEnds
from cnnbatch.output.plan_pages import listings_of
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef, Shard

OWN = 600  # The task's shards, so that the small ones at the beginning are soon over.


class Listed:
    """A source that has so many images, and tells ``told`` before each one it lists."""

    columns = pa.schema([])

    def __init__(self, images: int, told: Callable[[int], None] = lambda _: None) -> None:
        self.keys = [f"{number:06}" for number in range(images)]
        self._told = told

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        for number, key in enumerate(self.keys):
            if after is None or key > after.key:
                self._told(number)
                yield ImageRef(key, key)


def planner_of(source: Any, out: Path, options: ListingOptions | None = None, **chosen: Any) -> Planner:
    return Planner(Output(str(out), Storage()), source, Input(url="unused", **chosen), OWN, options)


def listed(planner: Planner) -> list[Shard]:
    """Run a listing to its end, or to where it is stopped; return all shards planned so far."""
    planner.start()
    planner._thread.join()
    planner._raise_fault()
    pages = [page.listing.read(page.number) for page in planner._pages]
    return list(chain.from_iterable(pages))


def stopping_behind(planner: Planner, pages: int, monkeypatch: pytest.MonkeyPatch) -> Planner:
    write = planner._write

    def write_and_stop(listing: Any, number: int, *rest: Any) -> None:
        write(listing, number, *rest)
        planner._stopped = number + 1 >= pages

    monkeypatch.setattr(planner, "_write", write_and_stop)
    return planner


def test_the_first_page_does_not_wait_for_more_than_64_refs_and_no_more_than_two_pages_are_held(
    tmp_path: Path,
) -> None:
    held: dict[int, int] = {}
    planner = planner_of(
        Listed(60_000, lambda number: held.update({number: number - planner.images})), tmp_path
    )
    listed(planner)
    assert planner.images == 60_000
    assert held[63] == 63
    assert (
        held[64] == 32
    )  # Pages grow, so up to five times as many as are planned have come before the next one.
    assert all(number <= 5 * (number - refs) + 64 for number, refs in held.items() if number < 1000)
    assert plan.REFS_IN_A_PAGE < max(held.values()) <= plan.REFS_IN_A_PAGE + plan.MOST_AHEAD


@pytest.mark.parametrize("images", [200, 3000])
def test_a_listing_that_is_stopped_behind_any_page_goes_on_with_the_same_shards(
    images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, Any] = {"limit": images - 5, "sample": 0.9}
    whole = listed(planner_of(Listed(images), tmp_path / "whole", **chosen))
    assert sum(len(shard.refs) for shard in whole) == pytest.approx(0.9 * images, rel=0.1)
    stops = len(listings_of(Output(str(tmp_path / "whole"), Storage()))[0].summaries())
    for pages in range(1, stops):
        out = tmp_path / str(pages)
        begun = listed(stopping_behind(planner_of(Listed(images), out, **chosen), pages, monkeypatch))
        assert begun == whole[: len(begun)] != whole
        assert listed(planner_of(Listed(images), out, **chosen)) == whole


def test_a_later_listing_adds_shards_with_small_ends_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ListingOptions(new=True)
    first = listed(planner_of(Listed(2000), tmp_path / "out"))
    begun = stopping_behind(planner_of(Listed(5000), tmp_path / "out", new), 3, monkeypatch)
    assert len(listed(begun)) == len(first) + 7
    both = listed(planner_of(Listed(5000), tmp_path / "out", new))
    refs = [ref for shard in both for ref in shard.refs]
    assert [ref.key for ref in refs] == Listed(5000).keys
    later = list(plan.shards(refs[2000:], SmallEnds(OWN), len(first), len(first)))
    assert both == first + later
    assert {len(shard.refs) for shard in later[:8] + later[-7:]} == {32}


def test_a_job_that_says_how_long_shards_are_gets_these(tmp_path: Path) -> None:
    shards = listed(planner_of(Listed(250), tmp_path, shard_size=100))
    assert [len(shard.refs) for shard in shards] == [100, 100, 50]
