"""What a collection is: sizes, formats, damage, copies and truth, counted while its images stream by.

Memory does not grow with the collection but for a line a class: digests and keys wait on disk, and
numbers are counted one by one only while few of them differ, to three digits from then on.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Any

from cnnbatch.config.input import Input
from cnnbatch.images.formats import why_refused
from cnnbatch.output import plan
from cnnbatch.sources.files.left_out import left_out_by
from cnnbatch.storage import Storage
from cnnbatch.storage.unique import Copies, contents
from cnnbatch.truth import check_sizes, classes_of
from cnnbatch.types import Content, Failure, ImageRef, Shard

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnbatch.images.inspect import Inspection
    from cnnbatch.types import Source

SHARD = 512  # images whose truth is read at once
READERS = 16
AHEAD = 32  # images that are read before their turn to be counted
MOST_DISTINCT = 1 << 16
EXAMPLES = 5
SHOWN = 24
MOST_CLASSES_SHOWN = 1000  # of which a picture is held to choose from
MOST_DRAWN = 60
SMALL, MEDIUM = 32**2, 96**2
"""COCO's bounds between small, medium and large objects, in square pixels."""

Row = Mapping[str, Any]


@dataclass
class Spread:
    """How often each number came.

    Once `MOST_DISTINCT` differ, new ones are rounded to three digits, and ``exact`` is False.
    """

    counts: Counter[float] = field(default_factory=Counter)
    count: int = 0
    total: float = 0
    least: float = math.inf
    most: float = -math.inf
    exact: bool = True

    def add(self, value: float) -> None:
        """Count one number, 0 or above."""
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        if value not in self.counts and len(self.counts) >= MOST_DISTINCT:
            value, self.exact = float(f"{value:.3g}"), False
        self.counts[value] += 1

    @property
    def mean(self) -> float:
        """The mean, 0 of nothing."""
        return self.total / self.count if self.count else 0.0

    @property
    def median(self) -> float:
        """The middle number, or the mean of the two in the middle; 0 of nothing."""
        values = sorted(self.counts)
        ends = list(accumulate(self.counts[value] for value in values))
        middle = [
            next((value for value, end in zip(values, ends, strict=True) if end > place), 0.0)
            for place in ((self.count - 1) // 2, self.count // 2)
        ]
        return sum(middle) / 2

    def edges(self, bins: int) -> list[float]:
        """Return the edges of ``bins`` bins in equal ratios, from the least number, or 1, to the most."""
        low, high = self._ends()
        return [low * (high / low) ** (n / bins) for n in range(bins + 1)]

    def histogram(self, bins: int) -> list[int]:
        """Return how many numbers lie in each of the bins of `edges`; what is below is in the first."""
        low, high = self._ends()
        width = math.log(high / low) / bins or 1.0
        counts = [0] * bins
        for value, count in self.counts.items():
            counts[min(int(math.log(max(value, low) / low) / width), bins - 1)] += count
        return counts

    def _ends(self) -> tuple[float, float]:
        return max(self.least, 1.0), max(self.most, 1.0)


@dataclass
class Named:
    """How many images, and the first few of them: their keys with what there is to say of each."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, words: str = "") -> None:
        """Count one image."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append((key, words))


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that the page may show; those of least ``rank``, which follows from its key, are chosen.

    ``objects`` are the first `MOST_DRAWN` rows of its truth that have a box.
    """

    rank: int
    ref: ImageRef
    size: tuple[int, int]
    label: str | None = None
    objects: tuple[Row, ...] = ()


@dataclass
class Sample:
    """Images chosen by a hash of their keys, of each class as many as of any other."""

    anywhere: list[Candidate] = field(default_factory=list)
    of_class: dict[str, list[Candidate]] = field(default_factory=dict)

    def add(self, candidate: Candidate, classes: Iterable[str]) -> None:
        """Hold an image if it can still be chosen."""
        _hold(self.anywhere, candidate, SHOWN)
        for name in classes:
            if name in self.of_class or len(self.of_class) < MOST_CLASSES_SHOWN:
                held = self.of_class.setdefault(name, [])
                _hold(held, candidate, -(-SHOWN // len(self.of_class)))

    def chosen(self) -> list[Candidate]:
        """Return up to `SHOWN` images: one a class in turns, the rest from anywhere."""
        found: dict[str, Candidate] = {}
        classes = sorted(self.of_class, key=rank)
        turns = (self.of_class[name][turn : turn + 1] for turn in range(SHOWN) for name in classes)
        for held in (*turns, self.anywhere):
            for candidate in held:
                if len(found) < SHOWN:
                    found.setdefault(candidate.ref.key, candidate)
        return sorted(found.values(), key=lambda candidate: candidate.rank)


@dataclass
class ClassCount:
    """How many images have a class, and how many objects are of it."""

    images: int = 0
    objects: int = 0


@dataclass
class Truths:
    """What the truth says: ``known`` are the classes that the source lists, ``classes`` those that occur.

    ``an_image`` spreads objects an image, of images with truth; ``sides`` the square roots of objects'
    areas in pixels, as the truth states them (COCO's are those of masks), else of their boxes.
    ``misfits`` are images of another size than their truth was made for: their objects count nowhere.
    """

    known: tuple[str, ...] = ()
    classes: dict[str, ClassCount] = field(default_factory=dict)
    an_image: Spread = field(default_factory=Spread)
    sides: Spread = field(default_factory=Spread)
    scales: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    empty: Named = field(default_factory=Named)
    absent: Named = field(default_factory=Named)
    misfits: Named = field(default_factory=Named)

    @property
    def objects(self) -> int:
        """How many objects there are."""
        return int(self.an_image.total)

    def add(self, key: str, row: Row) -> None:
        """Count the truth of one image, a row as `cnnbatch.truth` has it."""
        found = row.get("label") if "label" in row else row.get("objects")
        if row.get("problem"):
            self.misfits.add(key, row["problem"])
        elif found is None:
            self.absent.add(key)
        elif isinstance(found, str):
            self._class(found).images += 1
        else:
            self._add_objects(key, found)

    def _add_objects(self, key: str, objects: Sequence[Row]) -> None:
        self.an_image.add(len(objects))
        if not objects:
            self.empty.add(key)
        for name in {str(one["label"]) for one in objects}:
            self._class(name).images += 1
        for one in objects:
            self._class(str(one["label"])).objects += 1
            self.marks.update(mark for mark in ("crowd", "difficult", "ignore") if one.get(mark))
            self._add_area(area(one))

    def _add_area(self, pixels: float | None) -> None:
        if pixels is not None:
            self.scales["small" if pixels < SMALL else "medium" if pixels < MEDIUM else "large"] += 1
            self.sides.add(math.sqrt(max(pixels, 0.0)))

    def _class(self, name: str) -> ClassCount:
        return self.classes.setdefault(name, ClassCount())


@dataclass
class Description:
    """What is known of the images so far; ``truths`` is None where the source has no truth.

    ``failed`` are unreadable images by code; ``fast``: whether it was looked at headers alone; ``left_out``
    counts, by suffix, the files beside the images that are none.
    """

    truths: Truths | None = None
    fast: bool = False
    images: int = 0
    turned: int = 0
    file_bytes: Spread = field(default_factory=Spread)
    widths: Spread = field(default_factory=Spread)
    heights: Spread = field(default_factory=Spread)
    shapes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    failed: dict[str, Named] = field(default_factory=dict)
    sample: Sample = field(default_factory=Sample)
    copies: Copies = Copies()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def add(self, ref: ImageRef, look: Inspection, truth: Row | None = None) -> None:
        """Count one image with the row of its truth."""
        self.images += 1
        self.turned += look.turned
        if look.failure:
            words = why_refused(look.failure.code, look.failure.message, ref.key, ref.uri)
            self.failed.setdefault(look.failure.code, Named()).add(ref.key, words)
        if look.format:
            self.file_bytes.add(look.size_bytes)
            self.formats[look.format] += 1
        if self.truths is not None and truth is not None:
            self.truths.add(ref.key, truth)
        if look.size:
            self._add_size(ref, look.size, truth or {})

    @property
    def unreadable(self) -> int:
        """How many images have no pixels."""
        return sum(named.count for named in self.failed.values())

    def _add_size(self, ref: ImageRef, size: tuple[int, int], truth: Row) -> None:
        width, height = size
        self.widths.add(width)
        self.heights.add(height)
        self.shapes["wide" if width > height else "tall" if height > width else "square"] += 1
        objects = tuple(one for one in truth.get("objects") or () if one["box"])
        label = truth.get("label")
        classes = [label] if label else sorted({str(one["label"]) for one in objects})
        self.sample.add(Candidate(rank(ref.key), ref, size, label, objects[:MOST_DRAWN]), classes)


def describe(
    source: Source,
    refs: Iterable[ImageRef] | None = None,
    fast: bool = False,
    told: Callable[[int], None] = lambda images: None,
) -> Description:
    """Read ``refs`` of a source, else all of it, once, and return what it is.

    ``fast`` reads headers and decodes nothing; ``told`` is called with the number of images so far.

    Raises:
        UserError, EnvironmentFault: as the source does; a full disk for temporary files, too.
    """
    schema = source.truth_schema
    truths = None if schema is None else Truths(tuple(one.name for one in classes_of(schema)))
    found = Description(truths, fast)
    pool = ThreadPoolExecutor(READERS, "describe")
    try:
        with contents() as known:
            for shard in plan.cut(source.refs() if refs is None else refs, lambda index: SHARD):
                for ref, look, row in _looked(source, shard, fast, pool):
                    found.add(ref, look, row)
                    if look.digest:
                        known.add(ref.key, look.digest)
                told(found.images)
            found.copies = known.copies()
            found.left_out = left_out_by(source)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


@dataclass(frozen=True, slots=True)
class Opened:
    """A source, and the images of it that are to be described."""

    source: Source
    refs: Iterable[ImageRef]


def opened(chosen: Input) -> Opened:
    """Open the source of an ``input`` and find its first image, so that mistakes are told at once.

    Raises:
        UserError, EnvironmentFault: as the source does.
    """
    from cnnbatch.sources import open_source

    source = open_source(chosen, Storage(chosen.storage))
    refs = plan.select(source.refs(), chosen.sample, chosen.limit)
    return Opened(source, chain(list(islice(refs, 1)), refs))


def rank(text: str) -> int:
    """Return a number below 2^64 that follows from ``text`` and looks like chance."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def area(one: Row) -> float | None:
    """Return an object's area in square pixels: as stated, else of its box; None without either."""
    stated, box = one.get("area"), one.get("box")
    if stated is not None or box is None:
        return None if stated is None else float(stated)
    return float((box["x2"] - box["x1"]) * (box["y2"] - box["y1"]))


def _hold(held: list[Candidate], candidate: Candidate, most: int) -> None:
    """Put a candidate among the ``most`` of least rank, in order."""
    if len(held) < most or candidate.rank < held[-1].rank:
        insort(held, candidate, key=lambda one: one.rank)
        del held[most:]


def _looked(
    source: Source, shard: Shard, fast: bool, pool: ThreadPoolExecutor
) -> Iterator[tuple[ImageRef, Inspection, Row | None]]:
    """Yield a shard's images in order, each with its truth, whose objects fit the image or are left out."""
    truth = pool.submit(source.truth, shard)
    waiting: deque[Future[Inspection]] = deque()
    looks: list[Inspection] = []
    for reader in source.read(shard):
        waiting.append(pool.submit(_read, reader, fast))
        if len(waiting) == AHEAD:
            looks.append(waiting.popleft().result())
    looks += [look.result() for look in waiting]
    yield from zip(shard.refs, looks, _rows(truth.result(), looks), strict=True)


def _rows(table: pa.Table | None, looks: Sequence[Inspection]) -> Sequence[Row | None]:
    if table is None:
        return [None] * len(looks)
    checked = check_sizes(table, [look.size for look in looks])
    return list(checked.to_pylist())


def _read(reader: Callable[[], Content | Failure], fast: bool) -> Inspection:
    from cnnbatch.images.inspect import inspect

    return inspect(reader(), fast)
