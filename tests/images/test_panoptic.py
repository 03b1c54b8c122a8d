"""The panoptic rule against a plain transcription of it, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnbatch.images import rle
from cnnbatch.images.panoptic import Rule, Segment, Thing, segments
from tests.tiny_instances import run_lengths

Map = NDArray[np.int64]


def transcribed(
    masks: list[NDArray[np.bool_]], scores: list[float], classes: Map, stuff: set[int], rule: Rule
) -> list[tuple[NDArray[np.bool_], bool, int]]:
    """Return the segments as detectron2's ``combine_semantic_and_instance_outputs`` finds them."""
    whole = np.zeros(classes.shape, np.int64)
    found: list[tuple[NDArray[np.bool_], bool, int]] = []
    for number in sorted(range(len(masks)), key=lambda one: -scores[one]):
        if scores[number] < rule.score:
            break
        mask = masks[number]
        area = mask.sum()
        if area == 0:
            continue
        intersection = mask & (whole > 0)
        if intersection.sum() / area > rule.overlap:
            continue
        if intersection.sum() > 0:
            mask = mask & (whole == 0)
        if not mask.any():  # Which detectron2 would keep as a segment without pixels.
            continue
        found.append((mask, True, number))
        whole[mask] = len(found)
    for label in np.unique(classes):
        if label not in stuff:
            continue
        mask = (classes == label) & (whole == 0)
        if mask.sum() < rule.stuff_area or not mask.any():
            continue
        found.append((mask, False, int(label)))
        whole[mask] = len(found)
    return found


def pixels(segment: Segment) -> NDArray[np.bool_]:
    found = rle.pixels(segment.mask)
    assert found is not None
    return found


sides = st.integers(1, 12)


@given(
    sides,
    sides,
    st.integers(0, 6),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.integers(0, 20),
    st.integers(0, 10_000),
)
def test_segments_are_those_of_the_published_rule(
    height: int, width: int, count: int, overlap: float, score: float, area: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((height, width)) < rng.choice([0.0, 0.2, 0.6, 1.0]) for _ in range(count)]
    scores = rng.choice([0.1, 0.5, 0.5, 0.95], count).tolist()
    classes = rng.integers(0, 4, (height, width))
    rule = Rule(overlap, score, area)
    things = [Thing(run_lengths(mask), one) for mask, one in zip(masks, scores, strict=True)]
    found = segments(things, classes, {1, 3}, rule)
    expected = transcribed(masks, scores, classes, {1, 3}, rule)
    assert [[one.is_thing, one.number] for one in found] == [whose for _, *whose in expected]
    for one, (mask, *_) in zip(found, expected, strict=True):
        assert np.array_equal(pixels(one), mask)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        assert one.box_xyxy == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    together = np.array([pixels(one) for one in found]).reshape(-1, height, width).sum(axis=0)
    assert together.max() <= 1


def test_the_defaults_are_detectron2s() -> None:
    assert Rule() == Rule(overlap=0.5, score=0.5, stuff_area=4096)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"size": [3, 4], "counts": "~~"}, "damaged"),
        ({"size": [3, 4], "counts": "4"}, "do not fill its size"),
        (
            run_lengths(np.ones((4, 3), np.bool_)),
            r"made for \(4, 3\) \(height, width\), the map has \(3, 4\)",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segments([Thing(mask, 0.9)], np.zeros((3, 4), np.uint8), (), Rule())
