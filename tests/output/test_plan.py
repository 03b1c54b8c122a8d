"""Planning is pure: any listing gives shards that hold every ref once, in order."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.output import plan
from cnnbatch.types import ImageRef, Row, Shard, Span

places = st.one_of(
    st.none(),
    st.builds(Span, st.integers(0, 2**40), st.integers(1, 2**30)),
    st.builds(Row, st.integers(0, 2**40)),
)
FIELDS: list[pa.Field[Any]] = [pa.field("label", pa.string()), pa.field("taken", pa.int64())]
COLUMNS = pa.schema(FIELDS)


@st.composite
def listings(draw: st.DrawFn) -> list[ImageRef]:
    keys = draw(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=60))
    return [
        ImageRef(
            key,
            f"s3://bucket/{key}",
            draw(places),
            draw(st.none() | st.text(max_size=5)),
            {
                "label": draw(st.none() | st.text(max_size=5)),
                "taken": draw(st.none() | st.integers(0, 2**40)),
            },
        )
        for key in keys
    ]


@given(listings(), st.integers(1, 9), st.integers(0, 3000))
def test_shards_hold_every_ref_once_in_order(refs: list[ImageRef], first: int, index: int) -> None:
    shards = list(plan.cut(refs, lambda number: plan.shard_length(number, first), index))
    assert list(chain.from_iterable(shard.refs for shard in shards)) == refs
    assert [shard.index for shard in shards] == list(range(index, index + len(shards)))
    assert all(len(shard.refs) == plan.shard_length(shard.index, first) for shard in shards[:-1])


@given(listings(), st.integers(1, 9), st.integers(0, 60))
def test_a_listing_that_was_interrupted_goes_on_with_the_same_shards(
    refs: list[ImageRef], first: int, done: int
) -> None:
    def length(number: int) -> int:
        return plan.shard_length(number, first)

    whole = list(plan.cut(refs, length))
    kept = whole[: min(done, len(whole))]
    rest = refs[sum(len(shard.refs) for shard in kept) :]
    assert kept + list(plan.cut(rest, length, len(kept))) == whole


@given(listings(), st.integers(1, 9))
def test_pages_give_the_shards_back(refs: list[ImageRef], first: int) -> None:
    shards = list(plan.cut(refs, lambda _: first))
    tables = [plan.page_table(page, COLUMNS) for page in plan.pages(shards)]
    assert list(chain.from_iterable(plan.page_shards(table) for table in tables)) == shards


@given(st.lists(st.integers(1, 40_000), max_size=80))
def test_a_page_is_bounded(lengths: list[int]) -> None:
    ref = ImageRef("key", "uri")
    shards = [Shard(index, (ref,) * length) for index, length in enumerate(lengths)]
    pages = list(plan.pages(shards))
    assert list(chain.from_iterable(pages)) == shards
    for page in pages:
        assert len(page) == 1 or sum(len(shard.refs) for shard in page) <= plan.REFS_IN_A_PAGE


@given(st.sets(st.text(), max_size=200), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_sample_holds_the_smaller(keys: set[str], one: float, other: float) -> None:
    small, large = sorted([one, other])
    assert {key for key in keys if plan.is_sampled(key, small)} <= {
        key for key in keys if plan.is_sampled(key, large)
    }


def test_a_sample_has_the_size_that_was_asked_for() -> None:
    assert 0.23 < sum(plan.is_sampled(str(number), 0.25) for number in range(10_000)) / 10_000 < 0.27


def test_the_limit_counts_sampled_images() -> None:
    refs = [ImageRef(str(number), "") for number in range(100)]
    assert len(list(plan.select(refs, 0.5, 10))) == 10
    assert list(plan.select(refs, 1.0, None)) == refs


def test_forty_million_images_make_some_5600_parts() -> None:
    lengths = [plan.shard_length(index, 1000) for index in range(5600)]
    assert lengths[0] == lengths[999] == 1000
    assert max(lengths) == 16_000
    assert all(a <= b for a, b in pairwise(lengths))
    assert sum(lengths[:5500]) < 40_000_000 < sum(lengths)


@given(listings(), st.integers(1, 5))
def test_a_digest_tells_shards_apart(refs: list[ImageRef], first: int) -> None:
    shards = list(plan.cut(refs, lambda _: first))
    assert len({plan.digest(shard) for shard in shards}) == len(shards)
    assert all(plan.digest(Shard(shard.index + 1, shard.refs)) == plan.digest(shard) for shard in shards)
