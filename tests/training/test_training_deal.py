"""An epoch is a permutation; its steps are the same whoever takes them, and together they are all of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.training.data import shuffle as deal

images = st.integers(1, 300)
batches = st.integers(1, 64)


def hashes(count: int) -> deal.Hashes:
    return deal.key_hashes(f"album/{number}.jpg" for number in range(count))


@given(images, batches, st.sampled_from([1, 2, 4]), st.integers(0, 5), st.booleans())
def test_workers_share_no_image_and_leave_none_out(
    count: int, batch: int, world: int, epoch: int, contained: bool
) -> None:
    runs = np.arange(count) // 7 if contained else None
    places = deal.order(hashes(count), 3, epoch, runs)
    dealt = [deal.dealt(deal.cut(places, batch), rank, world) for rank in range(world)]
    assert len({len(steps) for steps in dealt}) == 1
    together = np.concatenate([np.concatenate(steps) for steps in dealt])
    assert sorted(together.tolist()) == list(range(count))
    for steps in zip(*dealt, strict=True):
        sizes = [len(one) for one in steps]
        assert sum(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1


@given(images, batches, st.sampled_from([2, 4]))
def test_a_step_has_the_same_images_whoever_takes_them(count: int, batch: int, world: int) -> None:
    places = deal.order(hashes(count), 0, 1)
    steps = deal.cut(places, batch)
    alone = deal.dealt(steps, 0, 1)
    together = zip(*(deal.dealt(steps, rank, world) for rank in range(world)), strict=True)
    for one, several in zip(alone, together, strict=True):
        assert one.tolist() == np.concatenate(several).tolist()


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=120),
    st.integers(2, 40),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_balanced_steps_have_pairs_of_their_classes_and_each_image_once(
    classes: list[int], batch: int, pictures: int, epoch: int
) -> None:
    numbers = np.array(classes)
    steps = deal.balanced(hashes(len(classes)), numbers, 1, epoch, batch, pictures)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(classes)))
    assert len(steps) == len(deal.balanced(hashes(len(classes)), numbers, 1, epoch + 1, batch, pictures))
    several = {one for one in classes if classes.count(one) > 1}
    for step in steps:
        found = numbers[step].tolist()
        assert not {one for one in several if found.count(one) == 1}
        assert len(steps) == 1 or len(found) >= 2


def test_balanced_steps_have_as_many_images_of_a_class_as_asked() -> None:
    classes = np.repeat(np.arange(20), 10)
    steps = deal.balanced(hashes(200), classes, 0, 0, 25, 5)
    for step in steps:
        assert np.unique(classes[step], return_counts=True)[1].tolist() == [5] * 5
    assert (
        len(
            {
                tuple(step)
                for epoch in range(3)
                for step in deal.balanced(hashes(200), classes, 0, epoch, 25, 5)
            }
        )
        == 24
    )


def test_each_epoch_and_seed_has_an_order_of_its_own() -> None:
    many = hashes(1000)
    orders = [deal.order(many, seed, epoch).tolist() for seed in range(2) for epoch in range(3)]
    assert len({tuple(one) for one in orders}) == 6
    # By chance a thousand places agree in one: two orders are as good as independent.
    assert np.mean(np.array(orders[0]) == np.array(orders[1])) < 0.01
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 0.15


def test_an_image_keeps_its_place_among_the_others_when_more_come() -> None:
    few, more = deal.order(hashes(100), 1, 1), deal.order(hashes(200), 1, 1)
    assert few.tolist() == [place for place in more if place < 100]


def test_runs_of_a_container_stay_together_within_the_buffer() -> None:
    count = 3 * deal.BUFFER
    runs = np.arange(count) // deal.RUN
    places = deal.order(hashes(count), 0, 0, runs)
    for start in range(0, count, deal.BUFFER):
        window = places[start : start + deal.BUFFER]
        found, sizes = np.unique(runs[window], return_counts=True)
        assert len(found) == deal.BUFFER // deal.RUN
        assert set(sizes.tolist()) == {deal.RUN}
        assert np.any(np.diff(window) < 0)


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 0), (1, 2), (2, 1)])
def test_mixing_tells_numbers_and_their_order_apart(numbers: tuple[int, ...]) -> None:
    some = hashes(64)
    others = [one for one in [(0,), (1,), (0, 0), (1, 2), (2, 1)] if one != numbers]
    assert len(set(deal.mixed(some, *numbers).tolist())) == 64
    for other in others:
        assert not np.intersect1d(deal.mixed(some, *numbers), deal.mixed(some, *other)).size


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(2, 80), st.integers(2, 5))
def test_some_images_of_classes_are_together_with_others_of_their_class(
    classes: list[int], most: int, each: int
) -> None:
    numbers = np.array(classes)
    places = deal.of_classes(hashes(len(classes)), numbers, most, each)
    assert places.tolist() == sorted({*places.tolist()})
    assert len(places) == min(most, len(classes))
    taken = Counter(numbers[places].tolist())
    cut = [number for number, count in taken.items() if count % each and count < classes.count(number)]
    assert len(cut) <= 1  # The last group alone may be cut.
    if any(count > each for count in taken.values()):
        assert {*taken} == {*classes}  # No class has a second group before every class has its first.
