"""Parts of pictures as images: the objects of a truth or of an earlier output, and patches of one class.

A picture is read and decoded once for all of its regions in a shard; the price is that the listing
reads the truth, so that every region is known before the first is predicted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from math import ceil, floor
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.truth import BOX, OBJECT_LABEL, Class
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 256  # images whose truth is asked for together

_LABEL = "label"
_COLUMNS: list[pa.Field[Any]] = [
    pa.field("image", pa.string()),
    pa.field("box", BOX),
    pa.field("box_score", pa.float32()),
    pa.field("size", pa.list_(pa.int32())),
]
ANSWER = "objects"
"""The kind of answer that has regions, and its column."""

KEPT = ("image", "box", "box_score")
"""What a job may keep of a region: its picture's key, its place there, its score where it was predicted."""


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a picture, by its number there; ``size`` is the picture's (height, width) where it is told."""

    number: int
    box: Mapping[str, float]
    label: str | None
    score: float | None = None
    size: tuple[int, int] | None = None


class Regions(Protocol):
    """Where regions come from; small and picklable."""

    @property
    def source(self) -> Source:
        """What reads the pictures."""

    @property
    def classes(self) -> Sequence[Class] | None:
        """The classes of the ground truth, as far as they are known; None where regions were predicted."""

    def pairs(self) -> Iterator[tuple[ImageRef, Sequence[Region]]]:
        """Stream the pictures with their regions, in an order that is the same in every listing."""


@dataclass(frozen=True)
class RegionImages:
    """Every region of ``regions`` as an image: its key is the picture's and its number, ``photo.jpg#3``."""

    regions: Regions

    @property
    def columns(self) -> pa.Schema:
        """What is known of a region, and its label by a name that says whose word it is."""
        return pa.schema([pa.field(self._label, pa.string()), *_COLUMNS])

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The label of a region is its class, unless a model said so."""
        classes = self.regions.classes
        return None if classes is None else truth.with_classes(truth.LABEL_SCHEMA, classes)

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the regions; to go on behind one, the truth is read again from the beginning."""
        behind, found = after is None, False
        for ref, regions in self.regions.pairs():
            for region in regions:
                found = True
                one = _ref(ref, region, self._label)
                if behind:
                    yield one
                elif after is not None and one.key == after.key:
                    behind = True
        if not found:
            lower = ", or give a lower input.min_score" if self.regions.classes is None else ""
            raise UserError(
                "input.url: expected pictures with boxes or patches, found none in the whole input\n"
                f"  what to do: look at what it has with `cnnbatch describe`{lower}"
            )

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader a region; those of one picture share its bytes and its pixels."""
        groups = [list(group) for _, group in groupby(shard.refs, key=lambda ref: ref.columns["image"])]
        pictures = Shard(shard.index, tuple(_picture(group[0]) for group in groups))
        for group, reader in zip(groups, self.regions.source.read(pictures), strict=True):
            shared = _Shared(reader)
            for ref in group:
                yield partial(_cut, shared, ref)

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return ``image_id``, which is the key, and ``label``; None where regions were predicted.

        Raises UserError for a plan of an earlier version, which has predicted labels as ground truth.
        """
        schema = self.truth_schema
        if schema is not None:
            rows = [{"image_id": ref.key, "label": ref.columns[_LABEL]} for ref in shard.refs]
            return truth.table(rows, schema)
        if any(_LABEL in ref.columns for ref in shard.refs):
            raise begun_earlier()
        return None

    @property
    def _label(self) -> str:
        return OBJECT_LABEL if self.regions.classes is None else _LABEL


@dataclass(frozen=True)
class TruthBoxes:
    """The objects of a source with box truth; crowds are no single objects, and left out."""

    source: Source

    @property
    def classes(self) -> Sequence[Class]:
        """The source's classes."""
        schema = self.source.truth_schema
        return () if schema is None else truth.classes_of(schema)

    def pairs(self) -> Iterator[tuple[ImageRef, Sequence[Region]]]:
        """Stream the images with their objects."""
        refs = self.source.refs()
        while some := tuple(islice(refs, _AT_ONCE)):
            table = self.source.truth(Shard(0, some))
            assert table is not None
            for ref, objects in zip(some, table[ANSWER].to_pylist(), strict=True):
                yield ref, regions_of(objects)


def regions_of(objects: Sequence[Mapping[str, Any]] | None) -> list[Region]:
    """Return objects of a truth or a prediction as regions, numbered by their place among all objects."""
    return [
        Region(number, one["box"], one["label"], one.get("score"))
        for number, one in enumerate(objects or ())
        if one["box"] is not None and not one.get("crowd")
    ]


def begun_earlier() -> UserError:
    """Return what to raise for an output in which predicted labels are ground truth."""
    return UserError(
        "this output was begun by an earlier version of cnnbatch, which took the labels of predicted objects "
        "for ground truth\n  what to do: give a new output"
    )


def _ref(ref: ImageRef, region: Region, label: str) -> ImageRef:
    columns = {
        label: region.label,
        "image": ref.key,
        "box": dict(region.box),
        "box_score": region.score,
        "size": None if region.size is None else list(region.size),
    }
    return replace(ref, key=f"{ref.key}#{region.number}", columns=columns)


def _picture(ref: ImageRef) -> ImageRef:
    return replace(ref, key=ref.columns["image"])


class _Shared:
    """One picture for several regions: read by whoever asks first, decoded by whoever asks first."""

    def __init__(self, reader: Callable[[], Content | Failure]) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._content: Content | Failure | None = None
        self._pixels: tuple[Tensor, tuple[int, int]] | None = None

    def read(self) -> Content | Failure:
        """Return the whole picture as it is stored, or why it can't be read."""
        with self._lock:
            if self._content is None:
                self._content = self._reader()
            return self._content

    def decode(self) -> tuple[Tensor, tuple[int, int]]:
        """Return the whole picture's pixels and size; raises DecodeError."""
        from cnnbatch.images.decode import decode, full

        content = self.read()
        assert not isinstance(content, Failure)
        with self._lock:
            if self._pixels is None:
                self._pixels = decode(content) if isinstance(content, bytes) else content.decode(full)
            return self._pixels


def _cut(shared: _Shared, ref: ImageRef) -> Content | Failure:
    content = shared.read()
    if isinstance(content, Failure):
        return content
    size = len(content) if isinstance(content, bytes) else content.size_bytes
    return Cut(shared, ref.columns["box"], ref.columns.get("size"), size)


@dataclass(frozen=True, slots=True)
class Cut:
    """A region that was read: a `cnnbatch.types.Decodable`."""

    shared: _Shared
    box: Mapping[str, float]
    made_for: Sequence[int] | None
    size_bytes: int

    def decode(self, least: object) -> tuple[Tensor, tuple[int, int]]:
        """Return the pixels that the box touches; raises DecodeError where it lies outside its picture."""
        from cnnbatch.images.decode import DecodeError

        pixels, (height, width) = self.shared.decode()
        if self.made_for is not None and tuple(self.made_for) != (height, width):
            made = f"{self.made_for[1]} x {self.made_for[0]}"
            raise DecodeError("undecodable", f"the mask has {made} pixels, its picture {width} x {height}")
        top, bottom = max(0, floor(self.box["y1"])), min(height, ceil(self.box["y2"]))
        left, right = max(0, floor(self.box["x1"])), min(width, ceil(self.box["x2"]))
        if top >= bottom or left >= right:
            place = list(self.box.values())
            raise DecodeError("undecodable", f"its box {place} is outside its picture of {width} x {height}")
        return pixels[:, top:bottom, left:right], (bottom - top, right - left)
