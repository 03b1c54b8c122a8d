"""What a collection is: sizes, formats, damage, copies and truth, counted while its images stream by.

Memory does not grow with the collection but for a line a class: digests and keys wait on disk, and
numbers are counted one by one only while few of them differ, to three digits from then on.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from cnnbatch.config.input import Input
from cnnbatch.images.formats import why_refused
from cnnbatch.output import plan
from cnnbatch.sources.counts import Named, Spread, TruthCounts
from cnnbatch.sources.files.left_out import left_out_by
from cnnbatch.storage import Storage
from cnnbatch.storage.unique import Copies, contents
from cnnbatch.truth.problems import check_sizes
from cnnbatch.types import Content, Failure, ImageRef, Shard

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnbatch.images.inspect import Inspection
    from cnnbatch.types import Source

SHARD = 512  # images whose truth is read at once
READERS = 16
AHEAD = 32  # images that are read before their turn to be counted
SHOWN = 24
MOST_CLASSES_SHOWN = 1000  # of which a picture is held to choose from


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image that the page may show; those of least ``rank``, which follows from its key, are chosen.

    ``truth`` is what is true of it, as far as a picture shows that.
    """

    rank: int
    ref: ImageRef
    size: tuple[int, int]
    truth: Any = None


@dataclass
class ImageSample:
    """Images chosen by a hash of their keys, of each class as many as of any other."""

    anywhere: list[ShownImage] = field(default_factory=list)
    of_class: dict[str, list[ShownImage]] = field(default_factory=dict)

    def add(self, candidate: ShownImage, classes: Iterable[str]) -> None:
        """Hold an image if it can still be chosen."""
        _hold(self.anywhere, candidate, SHOWN)
        for name in classes:
            if name in self.of_class or len(self.of_class) < MOST_CLASSES_SHOWN:
                held = self.of_class.setdefault(name, [])
                _hold(held, candidate, -(-SHOWN // len(self.of_class)))

    def chosen(self) -> list[ShownImage]:
        """Return up to `SHOWN` images: one a class in turns, the rest from anywhere."""
        found: dict[str, ShownImage] = {}
        classes = sorted(self.of_class, key=rank)
        turns = (self.of_class[name][turn : turn + 1] for turn in range(SHOWN) for name in classes)
        for held in (*turns, self.anywhere):
            for candidate in held:
                if len(found) < SHOWN:
                    found.setdefault(candidate.ref.key, candidate)
        return sorted(found.values(), key=lambda candidate: candidate.rank)


@dataclass
class Description:
    """What is known of the images so far; ``truths`` is None where the source has no truth.

    ``failed`` are unreadable images by code; ``fast``: whether only headers were read; ``left_out``
    counts, by suffix, the files beside the images that are none.
    """

    truths: TruthCounts | None = None
    fast: bool = False
    images: int = 0
    turned: int = 0
    file_bytes: Spread = field(default_factory=Spread)
    widths: Spread = field(default_factory=Spread)
    heights: Spread = field(default_factory=Spread)
    shapes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    failed: dict[str, Named] = field(default_factory=dict)
    sample: ImageSample = field(default_factory=ImageSample)
    copies: Copies = Copies()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def add(self, ref: ImageRef, look: Inspection, truth: Mapping[str, Any] | None = None) -> None:
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

    def _add_size(self, ref: ImageRef, size: tuple[int, int], truth: Mapping[str, Any]) -> None:
        width, height = size
        self.widths.add(width)
        self.heights.add(height)
        self.shapes["wide" if width > height else "tall" if height > width else "square"] += 1
        answer = None if self.truths is None else truth.get(self.truths.kind)
        if self.truths is None or answer is None:
            self.sample.add(ShownImage(rank(ref.key), ref, size), ())
        else:
            counted = self.truths.counted
            shown = ShownImage(rank(ref.key), ref, size, counted.shown(answer))
            self.sample.add(shown, counted.classes(answer))


def describe(
    source: Source,
    refs: Iterable[ImageRef] | None = None,
    fast: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> Description:
    """Read ``refs`` of a source, else all of it, once, and return what it is.

    ``fast`` reads headers and decodes nothing; ``advance`` is called with the number of images so far.

    Raises:
        UserError, EnvironmentFault: as the source does; a full disk for temporary files, too.
    """
    schema = source.truth_schema
    found = Description(None if schema is None else TruthCounts.of(schema), fast)
    pool = ThreadPoolExecutor(READERS, "describe")
    try:
        with contents() as known:
            for shard in plan.cut(source.refs() if refs is None else refs, lambda index: SHARD):
                for ref, look, row in _inspected(source, shard, fast, pool):
                    found.add(ref, look, row)
                    if look.digest:
                        known.add(ref.key, look.digest)
                advance(found.images)
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
    """Open the source of an ``input`` and find its first image, so that mistakes are reported at once.

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


def _hold(held: list[ShownImage], candidate: ShownImage, most: int) -> None:
    """Put a candidate among the ``most`` of least rank, in order."""
    if len(held) < most or candidate.rank < held[-1].rank:
        insort(held, candidate, key=lambda one: one.rank)
        del held[most:]


def _inspected(
    source: Source, shard: Shard, fast: bool, pool: ThreadPoolExecutor
) -> Iterator[tuple[ImageRef, Inspection, Mapping[str, Any] | None]]:
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


def _rows(table: pa.Table | None, looks: Sequence[Inspection]) -> Sequence[Mapping[str, Any] | None]:
    if table is None:
        return [None] * len(looks)
    checked = check_sizes(table, [look.size for look in looks])
    return list(checked.to_pylist())


def _read(reader: Callable[[], Content | Failure], fast: bool) -> Inspection:
    from cnnbatch.images.inspect import inspect

    return inspect(reader(), fast)
