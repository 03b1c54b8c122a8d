"""Tiles: every logit is that of the whole input where the network does not see beyond half the overlap."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnbatch.models.resizing import Box, Normalized
from cnnbatch.models.segmenter import own_size, stride_of
from cnnbatch.models.tiles import Span, TiledLogits, Tiling
from cnnbatch.models.views import Views
from tests import tiny_segmenter

SEEN = 15  # pixels, by a logit of the network of convolutions: 7 each way


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    overlap = draw(st.integers(0, 40))
    tile = 32 * draw(st.integers(-(-(2 * overlap + 32) // 32), 6))
    return Tiling(tile, overlap, draw(st.sampled_from([1, 2, 4, 8, 32])))


@given(tilings(), st.integers(1, 700))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_a_side_and_their_weights_add_up_to_one(tiling: Tiling, side: int) -> None:
    spans = tiling.spans(side)
    assert spans[0][0] == 0
    assert spans[-1][1] == side
    assert all(start % 32 == 0 and stop - start <= tiling.tile for start, stop in spans)
    for one, other in zip(spans, spans[1:], strict=False):
        assert one[0] < other[0]
        assert one[1] - other[0] >= 2 * tiling.overlap
    total = torch.zeros(-(-side // tiling.stride))
    for span, weights in zip(spans, tiling.weights(spans), strict=True):
        total[slice(*tiling.places(span))] += weights
        _assert_nothing_near_an_inner_edge(span, weights, tiling, side)
    assert torch.allclose(total, torch.ones(()))


def _assert_nothing_near_an_inner_edge(span: Span, weights: Tensor, tiling: Tiling, side: int) -> None:
    for place, weight in enumerate(weights.tolist()):
        centre = span[0] + (place + 0.5) * tiling.stride
        near_start = span[0] > 0 and centre - span[0] < tiling.overlap / 2
        near_stop = span[1] < side and span[1] - centre < tiling.overlap / 2
        assert not (weight and (near_start or near_stop))


class Runs:
    """The network of convolutions on tiles, whose shapes are noted."""

    def __init__(self, views: Views) -> None:
        segmenter = tiny_segmenter.convolutions()
        self.module: nn.Module = segmenter.module.eval()
        self.normalized = Normalized(segmenter.resizing, "cpu")
        self.views = views
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tiles: Tensor, pictures: Sequence[Box]) -> Tensor:
        self.shapes.append(tuple(tiles.shape))
        with torch.inference_mode():
            return torch.cat(self.views.logits(self.module, self.normalized(tiles, pictures)), 1)


def picture(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (200, 300), (97, 411), (30, 500)])
def test_logits_are_those_of_the_whole_input(size: tuple[int, int], flips: bool) -> None:
    if flips and size[1] % 4:
        pytest.skip("a mirrored input's logits lie elsewhere where its width is no multiple of the stride")
    run, pixels = Runs(Views(flips=flips)), picture(*size)
    box = (0, 0, *size)
    expected = run(pixels[None], [box])[0]
    run.shapes.clear()
    tiled = TiledLogits(pixels, box, run, Tiling(96, SEEN + 1, 4, at_once=3))
    assert tiled.size == tuple(expected.shape[1:])
    found, at = [], 0
    while at < tiled.size[0]:
        found.append(tiled.rows(at, min(at + 5, tiled.size[0])))
        at += 5
    assert torch.allclose(torch.cat(found, 1), expected, atol=1e-3)
    assert all(max(shape[2:]) <= 96 and shape[0] <= 3 for shape in run.shapes)


@pytest.mark.parametrize("first", [1, 17, 40, 60, 99])
def test_the_first_rows_may_never_be_asked_for(first: int) -> None:
    """As where the input is larger than the picture, or a small picture lies in the midst of its canvas."""
    run, pixels = Runs(Views()), picture(400, 100)
    box = (0, 0, 400, 100)
    expected = run(pixels[None], [box])[0]
    tiled = TiledLogits(pixels, box, run, Tiling(96, SEEN + 1, 4))
    for start in range(first, 100, 37):
        assert torch.allclose(tiled.rows(start, start + 1), expected[:, start : start + 1], atol=1e-3)


def test_too_small_an_overlap_shows() -> None:
    run, pixels = Runs(Views()), picture(200, 200)
    expected = run(pixels[None], [(0, 0, 200, 200)])[0]
    found = TiledLogits(pixels, (0, 0, 200, 200), run, Tiling(64, 0, 4)).rows(0, 50)
    assert not torch.allclose(found, expected, atol=1e-3)


def test_what_is_padding_in_the_whole_is_padding_in_a_tile() -> None:
    run, pixels = Runs(Views()), picture(160, 192)
    box = (0, 0, 101, 130)
    expected = run(pixels[None], [box])[0]
    found = TiledLogits(pixels, box, run, Tiling(96, 16, 4)).rows(0, 40)
    assert torch.allclose(found, expected, atol=1e-3)


def test_no_more_than_a_row_of_tiles_is_held() -> None:
    run = Runs(Views())
    tiled = TiledLogits(picture(1000, 100), (0, 0, 1000, 100), run, Tiling(96, 16, 4))
    held = []
    for row in range(250):
        tiled.rows(row, row + 1)
        assert tiled._held is not None
        held.append(tiled._held.shape[1])
    assert max(held) <= (96 + 32) // 4
    assert len(run.shapes) == 2 * len(Tiling(96, 16, 4).spans(1000))


def test_the_stride_is_the_networks() -> None:
    assert stride_of(tiny_segmenter.convolutions(), 96) == 4
    assert stride_of(tiny_segmenter.colours(), 96) == 1
    assert own_size().divisor == 1
