"""Masks of objects as run lengths: what torchvision pastes and pycocotools writes, string by string."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cnnbatch.images import class_map, pasted_masks, rle
from cnnbatch.images.limits import LIMITS
from cnnbatch.images.pasted_masks import pasted
from tests.memory import peak_bytes

Floats = NDArray[np.float32]


def reference(masks: Floats, boxes: Floats, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Paste each mask in full, and have pycocotools encode it."""
    whole = paste_masks_in_image(torch.from_numpy(masks[:, None]), torch.from_numpy(boxes), size)
    return [encoded((one[0] > 0.5).numpy()) for one in whole]


def encoded(inside: NDArray[np.bool_]) -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def blobs(count: int, seed: int = 0, side: int = 28) -> Floats:
    """Return masks with outlines as networks have them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((count, 1, 5, 5), generator=generator)
    found: Floats = torch.sigmoid(4 * interpolate(coarse, size=(side, side), mode="bicubic"))[:, 0].numpy()
    return found


def boxes_in(size: tuple[int, int], count: int, seed: int = 0, beyond: float = 0.0) -> Floats:
    """Return boxes of all sizes, which reach beyond the picture by this part of it at most."""
    rng, (height, width) = np.random.default_rng(seed), size
    corners = np.sort(rng.uniform(-beyond, 1 + beyond, (count, 2, 2)), axis=1) * [width, height]
    return corners.reshape(-1, 4).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _fused() -> None:
    """Skip where torch's kernel does not multiply and add in one step: its last bit is another one there."""
    mask = np.random.default_rng(0).random((1, 30, 30), np.float32)
    whole = interpolate(torch.from_numpy(mask[None]), size=(91, 77), mode="bilinear")[0, 0].numpy()
    across, down = pasted_masks._side(30, 77), pasted_masks._side(30, 91)
    ((_, columns),) = pasted_masks._columns(mask[0], across, 91)
    weights = down.of_first[:, None], down.of_second[:, None]
    if not np.array_equal(
        pasted_masks._between(columns.T[down.first], columns.T[down.second], *weights), whole
    ):
        pytest.skip("torch's bilinear kernel rounds otherwise on this processor")


@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(0, 10_000))
@settings(max_examples=60)
def test_they_equal_torchvisions_pasted_and_pycocotools_encoded(size: tuple[int, int], seed: int) -> None:
    masks, boxes = blobs(6, seed), boxes_in(size, 6, seed)
    assert pasted(masks, boxes, size) == reference(masks, boxes, size)


@pytest.mark.slow
def test_they_equal_in_a_large_picture() -> None:
    size = (1500, 2000)
    masks = np.concatenate([blobs(20), np.random.default_rng(0).random((3, 28, 28), np.float32)])
    boxes = boxes_in(size, 23)
    assert pasted(masks, boxes, size) == reference(masks, boxes, size)


def test_boxes_may_reach_beyond_the_picture() -> None:
    size = (90, 130)
    boxes = boxes_in(size, 40, beyond=0.4)
    reaching = (boxes[:, :2] < [130, 90]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    boxes = boxes[reaching]
    assert pasted(blobs(len(boxes)), boxes, size) == reference(blobs(len(boxes)), boxes, size)


@pytest.mark.parametrize(
    "beyond", [(140, 5, 200, 60), (-90, 5, -20, 60), (5, 95, 60, 180), (131, 91, 190, 180)]
)
def test_nothing_is_inside_of_a_box_beside_the_picture(beyond: tuple[int, ...]) -> None:
    (found,) = pasted(np.ones((1, 28, 28), np.float32), np.array([beyond], np.float32), (90, 130))
    assert found == encoded(np.zeros((90, 130), np.bool_))


HALF = np.float32(0.5)
PLATEAUS = {
    "exactly the threshold": HALF,
    "just above": np.nextafter(HALF, np.float32(1)),
    "just below": np.nextafter(HALF, np.float32(0)),
    "full": np.float32(1),
    "empty": np.float32(0),
}


@pytest.mark.parametrize("value", PLATEAUS.values(), ids=[*PLATEAUS])
@pytest.mark.parametrize(
    "box", [(0, 0, 200, 150), (20.3, 10.7, 180.2, 149.9), (50, 60, 51, 61), (3, 3, 9, 90)]
)
def test_flat_masks_are_rounded_alike(value: np.float32, box: tuple[float, ...]) -> None:
    masks = np.full((1, 28, 28), value, np.float32)
    noise = np.random.default_rng(0).integers(-2, 3, (1, 28, 28)) * np.float32(6e-8)
    boxes = np.array([box], np.float32)
    for some in (masks, masks + noise.astype(np.float32)):
        assert pasted(some, boxes, (150, 200)) == reference(some, boxes, (150, 200))


def test_masks_of_other_sides_and_of_steps_equal_too() -> None:
    size = (70, 110)
    for side in (1, 2, 14, 56):
        masks = (blobs(5, side=max(4, side))[:, :side, :side] > 0.5).astype(np.float32)
        boxes = boxes_in(size, 5, side)
        assert pasted(masks, boxes, size) == reference(masks, boxes, size)


def test_few_columns_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pasted(blobs(5), boxes_in((200, 300), 5), (200, 300))
    monkeypatch.setattr(pasted_masks, "_AT_ONCE", 1000)
    assert pasted(blobs(5), boxes_in((200, 300), 5), (200, 300)) == whole


def test_no_mask_is_held_at_the_size_of_the_picture() -> None:
    size = (6000, 8000)
    boxes = np.array([[0, 0, 8000, 6000]], np.float32)
    masks = blobs(1)
    limit = size[0] * size[1] // 4  # A quarter of a byte a pixel; floats would be sixteen times that.
    assert peak_bytes(lambda: pasted(masks, boxes, size), limit) < limit


def test_no_masks_are_none() -> None:
    assert pasted(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (5, 6)) == []


# Run lengths


@given(st.lists(st.lists(st.integers(0, 2**31), min_size=1, max_size=40), max_size=5))
def test_run_lengths_are_written_as_pycocotools_writes_them(masks: list[list[int]]) -> None:
    masks = [[runs[0], *(run % 5000 + 1 for run in runs[1:])] for runs in masks]  # Only the first may be 0.
    expected = [
        coco.frPyObjects({"size": [sum(runs), 1], "counts": runs}, sum(runs), 1)["counts"].decode()
        for runs in masks
    ]
    assert rle.compressed([np.array(runs, np.int64) for runs in masks]) == expected


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_pixels_come_back_from_edges(height: int, width: int, seed: int) -> None:
    inside = np.random.default_rng(seed).random((height, width)) < 0.5
    edges = np.flatnonzero(np.diff(inside.T.ravel(), prepend=False))
    (mask,) = rle.from_edges([edges], (height, width))
    assert mask == encoded(inside)
    found = rle.pixels(mask)
    assert found is not None
    assert np.array_equal(found, inside)


@pytest.mark.parametrize(
    "counts", ["", "0", "~~~~", "`", "PPPPPPPPP1", "é1", "\x00\x01", "_1" * 5, "4O4", "1" + "PP" * 4 + "0"]
)
def test_damaged_run_lengths_are_none(counts: str) -> None:
    assert rle.pixels({"size": [4, 3], "counts": counts}) is None


def test_a_mask_may_be_as_large_as_a_picture_that_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    (mask,) = rle.from_edges([np.array([1, 3])], (4, 3))
    monkeypatch.setattr(rle, "MOST_PIXELS", 12)
    assert rle.pixels(mask) is not None
    monkeypatch.setattr(rle, "MOST_PIXELS", 11)
    assert rle.pixels(mask) is None
    with pytest.raises(class_map.NotAMap, match="or these are more than 11"):
        class_map.from_runs([{"class": 0, "mask": mask}], (4, 3))
    monkeypatch.undo()
    assert LIMITS.max_pixels == rle.MOST_PIXELS
