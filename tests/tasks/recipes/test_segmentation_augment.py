"""A picture and its map stay together, whatever is drawn; what is drawn has the limits of the job."""

from __future__ import annotations

from math import log
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d

from cnnbatch.config.train import Augment
from cnnbatch.tasks.recipes import segmentation_augment as augment
from cnnbatch.tasks.recipes.segmentation_losses import IGNORED

WIDE = Augment(scale=(0.4, 2.5), aspect=0.3)
FILL = torch.tensor([9, 9, 9], dtype=torch.uint8)


def blocks(size: tuple[int, int], seed: int) -> tuple[torch.Tensor, Any]:
    """Return a picture of large blocks whose colour is 60 times the class of its map."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 4, (-(-size[0] // 24), -(-size[1] // 24)))
    places = np.kron(coarse, np.ones((24, 24)))[: size[0], : size[1]].astype(np.int16)
    return torch.from_numpy((60 * places).astype(np.uint8)).expand(3, -1, -1), places


@given(st.integers(30, 120), st.integers(30, 120), st.integers(0, 1000))
def test_a_picture_and_its_map_move_together(height: int, width: int, seed: int) -> None:
    pixels, places = blocks((height, width), seed)
    window = augment.window((height, width), (height, width), (64, 80), WIDE, Random(seed))
    picture, numbers = window.picture(pixels, FILL, antialias=True), window.map(places, IGNORED)
    assert picture.shape == (3, 64, 80)
    assert numbers.shape == (64, 80)
    inside = numbers != IGNORED
    assert bool((picture[0][~inside] == 9).all())
    expected = 60 * numbers
    differs = (picture[0].int() - expected).abs() > 6
    near = numbers[None].float()  # Between two blocks colours mix, at most a few pixels wide.
    edge = (max_pool2d(near, 9, 1, 4) != -max_pool2d(-near, 9, 1, 4))[0]
    assert not bool((differs & inside & ~edge).any())


@given(st.integers(20, 300), st.integers(20, 300), st.integers(0, 10_000))
def test_windows_lie_inside_and_keep_their_scale(height: int, width: int, seed: int) -> None:
    window = augment.window((height, width), (height, width), (64, 80), WIDE, Random(seed))
    for side, have in ((window.rows, height), (window.columns, width)):
        assert 0 <= side.start <= side.start + side.length <= have
        assert 0 <= side.offset <= side.offset + side.resized <= side.whole
        assert side.length == have or side.resized == side.whole
    scales = [side.resized / side.length for side in (window.rows, window.columns)]
    limit = 1.3**0.5
    if min(window.rows.length, window.columns.length) > 16:
        assert all(0.4 / limit * 0.93 <= scale <= 2.5 * limit * 1.07 for scale in scales)
        assert 1 / 1.3 * 0.9 <= scales[0] / scales[1] <= 1.3 * 1.1


def test_scales_are_log_uniform() -> None:
    draw = Random(0)
    found = [
        augment.window((1000, 1000), (1000, 1000), (100, 100), WIDE, draw).rows.length for _ in range(3000)
    ]
    scales = np.log(100 / np.array(found))
    assert abs(np.mean(scales) - (log(0.4) + log(2.5)) / 2) < 0.04
    assert abs(np.std(scales) - (log(2.5) - log(0.4)) / 12**0.5) < 0.04


def test_nothing_by_chance_is_the_picture_itself() -> None:
    pixels, places = blocks((48, 72), 0)
    window = augment.window((48, 72), (48, 72), (48, 72), Augment(flip=False), Random(0))
    assert torch.equal(window.picture(pixels, FILL, antialias=True), pixels)
    assert np.array_equal(window.map(places, IGNORED).numpy(), places)


def test_half_of_the_windows_are_mirrored() -> None:
    pixels, places = blocks((48, 72), 0)
    both = [augment.window((48, 72), (48, 72), (48, 72), Augment(), Random(seed)) for seed in range(200)]
    mirrored = next(one for one in both if one.mirrored)
    assert torch.equal(mirrored.picture(pixels, FILL, antialias=True), pixels.flip(2))
    assert np.array_equal(mirrored.map(places, IGNORED).numpy(), places[:, ::-1])
    assert 70 < sum(one.mirrored for one in both) < 130


def test_a_map_of_another_size_than_the_picture_is_sampled_where_it_lies() -> None:
    pixels, places = blocks((96, 144), 3)
    window = augment.window((96, 144), (96, 144), (64, 80), WIDE, Random(5))
    twice = np.repeat(np.repeat(places, 2, 0), 2, 1)
    assert torch.equal(window.map(places, IGNORED), window.map(twice, IGNORED))
    assert pixels.shape[1:] == places.shape
