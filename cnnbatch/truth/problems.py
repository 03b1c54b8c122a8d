"""What is wrong with the ground truth of an image: another size than the image's, or a part that is left out.

It travels as text, in the column ``problem``, and is told apart by how it is worded here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.truth import MAP_SCHEMA, OBJECTS, OBJECTS_SCHEMA, answer_of, table

_OTHER_SIZE = " pixels, the image has "
_PARTLY = re.compile(r"(\d+) of its (\w+) (?:is|are) left out: (.+)", re.DOTALL)


def check_sizes(truth: pa.Table, sizes: Sequence[tuple[int, int] | None]) -> pa.Table:
    """Leave out the answers for images that their ground truth or masks do not fit; ``problem`` says so.

    ``sizes`` are the (width, height) found, None where an image could not be read. Another kind of ground
    truth stays as it is.
    """
    names = set(truth.schema.names)
    if not (names.issuperset(OBJECTS_SCHEMA.names) or names.issuperset(MAP_SCHEMA.names)):
        return truth
    answer = answer_of(truth.schema)
    stated = zip(truth["width"].to_pylist(), truth["height"].to_pylist(), strict=True)
    problems = [
        _problem("its ground truth", width, height, found)
        or (mask and _problem("one of its masks", *mask[::-1], found))
        for (width, height), found, mask in zip(stated, sizes, _mask_sizes(truth[answer], sizes), strict=True)
    ]
    if not any(problems):
        return truth
    left_out = f"its {answer} {'are' if answer.endswith('s') else 'is'} left out"
    rows = [
        {**row, answer: None, "problem": f"{problem}; {left_out}"} if problem else row
        for row, problem in zip(truth.to_pylist(), problems, strict=True)
    ]
    return table(rows, truth.schema)


def _problem(what: str, width: int | None, height: int | None, found: tuple[int, int] | None) -> str | None:
    if not found or not width or not height or (width, height) == found:
        return None
    return f"{what} is for {width} x {height}{_OTHER_SIZE}{found[0]} x {found[1]}"


def partly(count: int, things: str, reason: str) -> str:
    """Return the ``problem`` of an image of whose ground truth ``things``, such as polygons, are left out."""
    return f"{count} of its {things} {'is' if count == 1 else 'are'} left out: {reason}"


def is_partly(problem: str | None) -> bool:
    """Say whether a ``problem`` of an image's ground truth is one of `partly`: the rest of it can be used."""
    return _PARTLY.fullmatch(problem or "") is not None


def left_out_of(problem: str) -> tuple[str, int]:
    """Return what of an image's ground truth is left out, by a ``problem`` of `partly`, and how much."""
    found = _PARTLY.fullmatch(problem)
    if found is None:
        return problem, 1
    return f"{found[2]} left out of the ground truth: {found[3]}", int(found[1])


def has_other_size(problem: str) -> bool:
    """Say whether a ``problem`` of an image's ground truth is that of another size."""
    return _OTHER_SIZE in problem


def _mask_sizes(
    answers: pa.ChunkedArray[Any], sizes: Sequence[tuple[int, int] | None]
) -> list[tuple[int, int] | None]:
    """Return for each image the (height, width) of a mask that is not the image's, None where all are."""
    wrong: list[tuple[int, int] | None] = [None] * len(sizes)
    if answers.type != OBJECTS:
        return wrong
    objects: Any = answers.combine_chunks()
    masks: Any = pc.struct_field(pc.list_flatten(objects), "mask")
    there = masks.is_valid()
    images = pc.list_parent_indices(objects).filter(there).to_pylist()
    shapes = pc.struct_field(masks.filter(there), "size").to_pylist()
    for image, (height, width) in zip(images, shapes, strict=True):
        found = sizes[image]
        if found is not None and found != (width, height):
            wrong[image] = (height, width)
    return wrong
