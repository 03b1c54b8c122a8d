"""Whether the ground truth of the first images can be used: asked before anything is predicted or trained.

A mistake that many images have is told so before it costs anything; a single one farther behind is said in
its image's row, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.images.sizes import Size, stated_size
from cnnbatch.sources.masks.problems import remedies
from cnnbatch.truth import NO_TRUTH, answer_of
from cnnbatch.truth.problems import check_sizes
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source

CHECKED = 1000
"""Images whose ground truth is looked at."""
MOST_PIXELS = 256 << 20
"""Pixels of their masks, behind which no more are looked at: they take a second or two."""
MOST_BYTES = 256 << 20
"""What is read of their files to know their sizes."""

SAMPLED = 64
"""The same where the masks lie in one file: enough to see that it was made for pictures of other sizes."""

_AT_ONCE = 64
_READERS = 16
_SHOWN = 5

Problem = tuple[str, str]
"""The key of an image, and what is wrong with its ground truth."""


def require_sound(source: Source, shards: Iterable[Shard], checked: int = CHECKED) -> None:
    """Insist that the ground truth of the first ``checked`` images is whole, and of their sizes.

    Raises UserError that names some images, and says what to do.
    """
    refs = islice((ref for shard in shards for ref in shard.refs), checked)
    found, checks, images, pixels = list[Problem](), Checks(source), 0, 0
    while pixels < MOST_PIXELS and (some := tuple(islice(refs, _AT_ONCE))):
        shard = Shard(0, some)
        truth = source.truth(shard)
        images += len(some)
        if truth is not None:
            found += checks.problems(shard, truth)
            sides = zip(truth["width"].to_pylist(), truth["height"].to_pylist(), strict=True)
            pixels += sum((width or 0) * (height or 0) for width, height in sides)
    if found:
        raise unsound(found, f"the first {images:,} images")


class Checks:
    """Finds what is wrong with the ground truth of a source's images, and of the first with its sizes, too.

    Sizes are those of the pictures' headers, as long as no more than `MOST_BYTES` were read for them.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._images, self._bytes = CHECKED, MOST_BYTES

    def problems(self, shard: Shard, truth: pa.Table) -> list[Problem]:
        """Return what is wrong in the ground truth of the next images."""
        known: list[Any] = truth[answer_of(truth.schema)].is_valid().to_pylist()
        some = [ref for ref, is_known in zip(shard.refs, known, strict=True) if is_known][: self._images]
        sizes = self._sizes(some)
        checked = check_sizes(truth, [sizes.get(ref.key) for ref in shard.refs])
        return list(problems_of([ref.key for ref in shard.refs], checked))

    def _sizes(self, refs: Sequence[ImageRef]) -> dict[str, Size | None]:
        """Return the (width, height) of each picture, None where its header does not tell it."""
        if not refs or self._bytes <= 0:
            return {}
        with ThreadPoolExecutor(_READERS, "sizes") as pool:
            looks = list(pool.map(_look, self._source.read(Shard(0, tuple(refs)))))
        self._images -= len(refs)
        self._bytes -= sum(size_bytes for _, size_bytes in looks)
        return {ref.key: size for ref, (size, _) in zip(refs, looks, strict=True)}


def problems_of(keys: Sequence[str], truth: pa.Table) -> Iterator[Problem]:
    """Yield what is wrong with the ground truth of images that have none for that reason."""
    if "problem" not in truth.schema.names:
        return
    answers: Any = truth[answer_of(truth.schema)].is_valid().to_pylist()
    for key, known, problem in zip(keys, answers, truth["problem"].to_pylist(), strict=True):
        if problem and not known:
            yield key, problem


def unsound(found: Sequence[Problem], among: str) -> UserError:
    """Return what to raise for images whose ground truth can't be used; ``among`` says of how many."""
    lines = [f"  {key}: {problem.rpartition('; ')[0] or problem}" for key, problem in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN:,} more")
    have = "has" if len(found) == 1 else "have"
    todo = [*remedies([problem for _, problem in found])] or ["mend them"]
    return UserError(
        "\n".join(
            [
                f"of {among} {len(found):,} {have} ground truth that can't be used:",
                *lines,
                *(f"  what to do: {one}" for one in todo),
                f"  or leave the ground truth out (input.truth={NO_TRUTH})",
            ]
        )
    )


def _look(reader: Callable[[], Content | Failure]) -> tuple[Size | None, int]:
    """Return a picture's size and that of its file, in bytes."""
    content = reader()
    return (stated_size(content), len(content)) if isinstance(content, bytes) else (None, 0)
