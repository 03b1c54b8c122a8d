"""A class for every pixel from objects with masks, against a loop over the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.images.painted import VOID, painted
from tests.tiny_instances import run_lengths

NUMBERS = {"cat": 3, "dog": 300}


def one(label: str, mask: Any, **fields: Any) -> dict[str, Any]:
    return {"label": label, "mask": run_lengths(np.array(mask, np.bool_)), "is_thing": None, **fields}


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.booleans(), st.integers(0, 1000))
def test_each_pixel_is_of_the_class_of_its_objects(
    height: int, width: int, count: int, whole: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = [str(rng.choice(["cat", "dog", "bird"])) for _ in range(count)]
    masks = [rng.random((height, width)) < 0.4 for _ in range(count)]
    objects = [
        one(label, mask, is_thing=True if whole else None) for label, mask in zip(labels, masks, strict=True)
    ]
    found = painted(objects, NUMBERS, (height, width), background=7)
    assert found is not None
    for place in np.ndindex(height, width):
        here = {NUMBERS.get(label, VOID) for label, mask in zip(labels, masks, strict=True) if mask[place]}
        open_ = VOID if whole and objects else 7
        assert found[place] == (open_ if not here else here.pop() if len(here) == 1 else VOID)


def test_what_is_to_be_ignored_and_what_has_no_background_is_void() -> None:
    objects = [one("cat", [[1, 0, 0]]), one("dog", [[0, 1, 0]], ignore=True)]
    found = painted(objects, NUMBERS, (1, 3))
    assert found is not None
    assert found.tolist() == [[3, VOID, VOID]]


@pytest.mark.parametrize(
    "mask",
    [
        None,
        {"size": [1, 4], "counts": "13"},
        {"size": [1, 3], "counts": "\x7f"},
        {"size": [1, 3], "counts": "1"},
    ],
)
def test_an_object_without_a_usable_mask_leaves_the_picture_unknown(mask: Any) -> None:
    assert painted([one("cat", [[1, 0, 0]]), {"label": "dog", "mask": mask}], NUMBERS, (1, 3), 0) is None
