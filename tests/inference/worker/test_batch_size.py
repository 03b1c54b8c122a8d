"""Every input is attempted until it went through, whatever the memory; and the size grows back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.inference.worker.batch_size import BatchSize


class Memory:
    """A device that holds ``room`` inputs at once, but none of those that are too large; it notes passes."""

    def __init__(self, room: int, too_large: frozenset[int] = frozenset()) -> None:
        self.room = room
        self.too_large = too_large
        self.passed: list[int] = []
        self.sizes: list[int] = []
        self.refused = 0

    def attempt(self, start: int, stop: int) -> str | None:
        inputs = range(start, stop)
        self.sizes.append(len(inputs))
        if len(inputs) > self.room or self.too_large & set(inputs):
            self.refused += 1
            return "no room"
        self.passed += inputs
        return None

    def batch(self, size: BatchSize, count: int) -> list[int]:
        """Attempt a batch; return the places that fit not even alone."""
        self.passed = []
        return [place for place, _ in size.each(count, self.attempt)]


@given(
    st.integers(1, 40),
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 40), st.frozensets(st.integers(0, 39), max_size=3)),
        max_size=20,
    ),
    st.integers(1, 5),
)
def test_every_input_goes_through_once_and_in_order(
    limit: int, batches: list[tuple[int, int, frozenset[int]]], patience: int
) -> None:
    size = BatchSize(limit, patience)
    for room, count, too_large in batches:
        memory = Memory(room, too_large)
        refused = memory.batch(size, count)
        assert refused == sorted(place for place in too_large if place < count)
        assert memory.passed == [place for place in range(count) if place not in too_large]
        assert max(memory.sizes) <= limit
        assert 1 <= size.size <= limit


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_a_size_grows_back_once_there_is_room(limit: int, room: int, patience: int) -> None:
    size = BatchSize(limit, patience)
    Memory(room).batch(size, limit)
    free = Memory(limit)
    # While there was no room each failure doubled the patience, to at most twice what went through; the
    # second growth restores it.
    for _ in range(2 * max(patience, 2 * limit) + patience * limit.bit_length()):
        free.batch(size, limit)
    assert size.size == limit
    assert free.refused == 0


@given(st.integers(2, 64), st.data())
def test_the_size_that_works_is_kept_and_larger_ones_are_tried_ever_more_seldom(
    limit: int, data: st.DataObject
) -> None:
    size, memory = BatchSize(limit, patience=4), Memory(data.draw(st.integers(1, limit - 1)))
    for _ in range(200):
        memory.batch(size, limit)
    # Halvings at first, then one each time that the patience, which doubles, has run out.
    assert memory.refused <= limit.bit_length() + len(memory.sizes).bit_length()


def test_one_input_that_is_too_large_does_not_make_later_batches_small() -> None:
    size = BatchSize(16)
    Memory(16).batch(size, 16)
    assert Memory(16, frozenset({5})).batch(size, 16) == [5]
    assert size.size == 16


def test_a_size_that_lasts_restores_the_patience() -> None:
    size = BatchSize(8, patience=3)
    tight = Memory(4)
    for _ in range(20):
        tight.batch(size, 8)
    roomy = Memory(8)
    for _ in range(200):
        roomy.batch(size, 8)
    Memory(4).batch(size, 8)  # Two batches of four: one less than the patience.
    assert size.size == 4
    Memory(4).batch(size, 4)
    assert size.size == 8


def test_a_short_batch_says_nothing_of_a_full_one() -> None:
    size = BatchSize(8, patience=3)
    Memory(4).batch(size, 8)
    for _ in range(50):
        Memory(4).batch(size, 3)
    assert size.size == 4


def test_the_reason_is_handed_on() -> None:
    assert list(BatchSize(4).each(1, lambda start, stop: "too large")) == [(0, "too large")]
    assert not BatchSize(4).has_fitted()
