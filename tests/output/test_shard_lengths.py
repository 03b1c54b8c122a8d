"""Shards are small at both ends of a listing, so that workers begin and end together; no clock is asked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from heapq import heapify, heapreplace
from itertools import chain, repeat
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.output import plan
from cnnbatch.output.plan import SMALLEST, SmallEnds
from cnnbatch.types import ImageRef

OWN = 1000  # A task's own length, where an image costs little.
REF = ImageRef("key", "uri")
sizes = st.sampled_from([33, 64, 250, OWN])


def lengths(images: int, own: int = OWN, index: int = 0) -> list[int]:
    """Return the lengths of the shards of a listing of so many images."""
    shards = plan.shards(repeat(REF, images), SmallEnds(own), index, index)
    return [len(shard.refs) for shard in shards]


@given(st.integers(0, 3000), sizes, st.integers(0, 6000))
def test_every_ref_is_planned_once_in_order(images: int, own: int, index: int) -> None:
    refs = [ImageRef(str(number), "") for number in range(images)]
    shards = list(plan.shards(refs, SmallEnds(own), index, index))
    assert list(chain.from_iterable(shard.refs for shard in shards)) == refs
    assert [shard.index for shard in shards] == list(range(index, index + len(shards)))


@given(st.integers(1, 3000), sizes, st.data())
def test_a_listing_that_was_interrupted_goes_on_with_the_same_shards(
    images: int, own: int, data: st.DataObject
) -> None:
    refs = [ImageRef(str(number), "") for number in range(images)]
    size, first = SmallEnds(own), data.draw(st.integers(0, 2000))
    whole = list(plan.shards(refs, size, first, first))
    done = data.draw(st.integers(0, len(whole)))
    rest = refs[sum(len(shard.refs) for shard in whole[:done]) :]
    assert list(plan.shards(rest, size, first + done, first)) == whole[done:]


@given(st.integers(SMALLEST, 40_000), sizes, st.integers(0, 6000))
def test_no_shard_is_smaller_than_the_smallest(images: int, own: int, index: int) -> None:
    assert min(lengths(images, own, index)) >= SMALLEST


@given(st.integers(600, 40_000), st.sampled_from([250, OWN]), st.integers(0, 6000))
def test_both_ends_are_small(images: int, own: int, index: int) -> None:
    found = lengths(images, own, index)
    assert set(found[:8]) == set(found[-7:]) == {SMALLEST}


@given(st.integers(0, 200), st.integers(1, SMALLEST))
def test_a_task_of_short_shards_and_a_job_that_says_their_length_have_equal_ones(
    images: int, length: int
) -> None:
    equal = list(plan.cut(repeat(REF, images), lambda _: length))
    for size in (plan.shard_size("auto", length), plan.shard_size(length, OWN)):
        assert list(plan.shards(repeat(REF, images), size)) == equal


@given(st.integers(0, 40_000), sizes)
def test_no_more_refs_are_held_back_than_it_takes_to_know_the_end(images: int, own: int) -> None:
    """As many as are planned, about: the first shard waits for 32 more, and none for more than a page."""
    planned = asked = 0

    def listing() -> Iterator[ImageRef]:
        nonlocal asked
        for _ in range(images):
            asked += 1
            yield REF

    for shard in plan.shards(listing(), SmallEnds(own)):
        assert asked - planned <= min(2 * SMALLEST + 2 * planned, plan.MOST_AHEAD)
        planned += len(shard.refs)


def test_forty_million_images_make_some_5900_parts() -> None:
    left, found = 40_000_000, list[int]()
    while left:
        found.append(plan.length_before_end(plan.longest_length(len(found), OWN), left))
        left -= found[-1]
    assert 5850 < len(found) < 5950
    assert max(found) == 16_000
    assert len(lengths(1_000_000)) == 1211


def idle(shards: Sequence[int], workers: int, random_: random.Random, together: bool) -> float:
    """Return which part of their time workers idle that take the next shard whenever they are free.

    An image costs 0.5 to 1.5; ``together``: those of a shard cost the same, as in folders of large and
    small pictures.
    """
    free = [0.0] * workers
    heapify(free)
    for length in shards:
        if together:
            cost = length * random_.uniform(0.5, 1.5)
        else:
            cost = sum(random_.uniform(0.5, 1.5) for _ in range(length))
        heapreplace(free, free[0] + cost)
    return 1 - sum(free) / (workers * max(free))


@pytest.mark.parametrize(
    ("workers", "images", "together", "most"),
    [
        (2, 1500, False, 0.015),  # with equal shards 0.25
        (2, 1500, True, 0.015),
        (4, 10_000, False, 0.01),  # 0.17
        (4, 10_000, True, 0.01),
        (64, 1_000_000, True, 0.03),  # 0.05
    ],
)
def test_workers_end_together(workers: int, images: int, together: bool, most: float) -> None:
    found, random_ = lengths(images), random.Random(1)
    times = 5 if images > 100_000 else 30
    assert mean(idle(found, workers, random_, together) for _ in range(times)) < most


def test_two_workers_end_within_three_percent_of_each_other() -> None:
    found, random_ = lengths(1500), random.Random(1)
    # One works while the other idles, so that is twice the share of both their time.
    assert 2 * mean(idle(found, 2, random_, False) for _ in range(100)) < 0.03
