"""Tar archives of images with their truth beside them, as WebDataset writes them; nothing is unpacked.

An uncompressed archive is read by byte ranges. A compressed one has none: each shard of it is
decompressed from the archive's beginning, so many small archives are better than one large.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.images.formats import JPEG_SUFFIXES, RAW_SUFFIXES, SUFFIXES
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.sources.containers import (
    PIECE_IMAGES,
    RANGE_BYTES,
    Containers,
    Piece,
    Visit,
    find,
    ranges,
    read_ahead,
    unreadable,
)
from cnnbatch.sources.files.left_out import COMPANIONS, HIDDEN, LeftOut, count, kind_of
from cnnbatch.sources.lists.source import LABEL
from cnnbatch.sources.objects import TRUTH, as_json, class_name, holds_objects, truth_table
from cnnbatch.sources.reading import MAX_BYTES
from cnnbatch.sources.recognition import TARS
from cnnbatch.sources.tar.members import DAMAGE, Member, Stream, is_gzip, members, stream
from cnnbatch.storage import Entry, Forbidden, NotFound, Storage, Unreadable, redact
from cnnbatch.storage.text import decoded
from cnnbatch.storage.unique import unique_keys
from cnnbatch.types import Content, Failure, ImageRef, Shard, Span

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

_CLASS, _COLUMNS = ".cls", ".json"
_MOST_BYTES = {_CLASS: 4 << 10, _COLUMNS: 16 << 20}
_PEEKED = 20  # samples that are looked at for what there is of truth and columns
_NAME = re.compile(r"((?:.*/)?[^/.][^/.]*)(\.[^/]*)", re.DOTALL)

_TYPES: dict[str, tuple[tuple[type, ...], pa.DataType]] = {
    "true or false": ((bool,), pa.bool_()),
    "a whole number": ((int,), pa.int64()),
    "a number": ((float, int), pa.float64()),
    "text": ((str,), pa.string()),
    "JSON": ((object,), pa.string()),
}
"""What a column of a sample's JSON may be: the Python types that fit, and Arrow's."""


@dataclass(frozen=True, slots=True)
class TarSample:
    """The members that share a path up to the first dot of the name, one behind the other in the archive.

    Where several images do, as ``photo_v1.0.jpg`` and ``photo_v1.1.jpg``, each is a sample: its class and
    columns are those that share more of the name, ``photo_v1.0.cls``, else those of all, ``photo_v1.cls``.
    """

    images: tuple[Member, ...]
    label: Member | None
    columns: Member | None

    def dictionary(self, where: str) -> dict[str, Any]:
        """Return what the sample's JSON says; nothing where it has none."""
        if self.columns is None:
            return {}
        try:
            found = json.loads(decoded(self.columns.text or b""))
        except (ValueError, RecursionError) as error:
            raise _wrong(where, self.columns, f"is not whole JSON: {error}") from None
        if not isinstance(found, dict):
            raise _wrong(where, self.columns, f"an object {{...}} was expected, got {str(found)[:50]}")
        return found

    def class_text(self, where: str) -> str | None:
        """Return what the sample's ``.cls`` says; None where it has none, or nothing in it."""
        if self.label is None:
            return None
        try:
            return decoded(self.label.text or b"").strip() or None
        except UnicodeDecodeError:
            raise _wrong(where, self.label, "a class as text in UTF-8 was expected") from None


@dataclass(frozen=True)
class Tar:
    """The images of tar archives, in their order there.

    An image's key is its path in the archive; below a folder or glob, the archive's path comes first.
    A sample's image is the member whose suffix from the first dot on is an image's; only where there is
    none, one with more dots in it counts. ``truth_in`` and the types of the kept columns, ``kinds``, are
    what the first few samples have; ``left_out`` counts what is neither image nor an image's class or JSON.
    """

    files: Containers
    truth_in: str | None = None
    kinds: tuple[tuple[str, str], ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    @property
    def columns(self) -> pa.Schema:
        """The kept columns of the samples' JSON, and the truth."""
        kept = [pa.field(name, _TYPES[kind][1]) for name, kind in self.kinds]
        known = {None: [], TRUTH: [pa.field(TRUTH, pa.string())]}
        return pa.schema([*kept, *known.get(self.truth_in, [pa.field(LABEL, pa.string())])])

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The columns of objects or of labels; the classes are not known beforehand."""
        if self.truth_in is None:
            return None
        return truth.OBJECTS_SCHEMA if self.truth_in == TRUTH else truth.LABEL_SCHEMA

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images; a member that comes twice is a `UserError` with both places."""
        found = after is not None
        counts = self.left_out.counts = Counter[str]()
        for entry in self.files.entries(after.uri if after else None):
            behind = after is None or entry.uri != after.uri
            for member, sample in _unique_images(self.files.storage, entry, counts):
                if behind:
                    found = True
                    self.left_out.counts = counts  # Not those of another listing of this source meanwhile.
                    yield self._ref(entry, member, sample)
                elif after is not None and self._key(entry.uri, member.name) == after.key:
                    behind = True
                    counts.clear()  # What came before was counted then.
            if not behind and after is not None:
                raise self.files.lost(after)
        if not found:
            raise UserError(
                f"{redact(self.files.address)}: expected images, found none\n"
                f"  what to do: check what is in it, as with tar tf; images are {' '.join(sorted(SUFFIXES))}"
            )

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image."""
        visit = Visit(self.files, shard)
        for compressed, refs in groupby(shard.refs, key=lambda ref: is_gzip(ref.uri)):
            if compressed:
                forwards = _Forwards(self.files.storage, visit)
                yield from read_ahead(_pieces(refs), forwards.fetch, 1)
            else:
                yield from read_ahead(ranges(refs), visit.fetch)

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the objects or the labels, where the archives have some."""
        if self.truth_schema is None:
            return None
        if self.truth_in == TRUTH:
            return truth_table(shard.refs, self.truth_schema)
        rows = [{"image_id": ref.key, LABEL: ref.columns[LABEL]} for ref in shard.refs]
        return truth.table(rows, self.truth_schema)

    def _ref(self, entry: Entry, image: Member, sample: TarSample) -> ImageRef:
        at = Span(image.offset, image.size)
        columns = self._columns(sample, redact(entry.uri))
        return ImageRef(self._key(entry.uri, image.name), entry.uri, at, entry.etag, columns)

    def _key(self, uri: str, name: str) -> str:
        return name if self.files.single else f"{self.files.name(uri)}/{name}"

    def _columns(self, sample: TarSample, where: str) -> dict[str, Any]:
        found = sample.dictionary(where) if self.kinds or self.truth_in in (TRUTH, LABEL) else {}
        columns = {name: _fitting(found.get(name), kind, name, sample, where) for name, kind in self.kinds}
        try:
            if self.truth_in == _CLASS:
                columns[LABEL] = sample.class_text(where)
            elif self.truth_in == LABEL:
                columns[LABEL] = class_name(found.get("label"), None)
            elif self.truth_in == TRUTH:
                columns[TRUTH] = as_json(found.get("objects"), _size(found))
        except ValueError as error:
            raise _wrong(where, sample.columns, str(error)) from None
        return columns


def open_tar(input: Input, storage: Storage) -> Tar:
    """Return the source of tar archives; looks at the first few samples. Raises `UserError`."""
    files = find(input.url, storage, TARS, "tar archives")
    entry = next(files.entries())
    where = redact(entry.uri)
    peeked = list(islice(_samples(members(storage, entry, _wanted), where, Counter()), _PEEKED))
    found = [sample.dictionary(where) for sample in peeked]
    truth_in = _truth_in(peeked, found)
    keep = tuple(dict.fromkeys(input.keep))
    _check_keep(keep, truth_in, found, where)
    return Tar(files, truth_in, tuple((name, _kind_of(name, found)) for name in keep if name != truth_in))


def _truth_in(samples: Sequence[TarSample], found: Sequence[dict[str, Any]]) -> str | None:
    """Return what of these samples is their truth: objects before a class, ``.cls`` before JSON."""
    if any(_are_objects(one.get("objects")) for one in found):
        return TRUTH
    if any(sample.label is not None for sample in samples):
        return _CLASS
    labels = [one.get("label") for one in found]
    return LABEL if any(isinstance(one, str | int) and not isinstance(one, bool) for one in labels) else None


def _are_objects(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, dict) and holds_objects(one) for one in value)
    return isinstance(value, dict) and holds_objects(value)


def _check_keep(
    keep: Sequence[str], truth_in: str | None, found: Sequence[dict[str, Any]], where: str
) -> None:
    known = list(dict.fromkeys(name for one in found for name in one))
    taken = [*ENGINE_COLUMNS.names, {TRUTH: TRUTH, _CLASS: LABEL}.get(truth_in or "")]
    for name in keep:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UserError(
                f"input.keep: the JSON of the first {len(found)} samples of {where} has no {name!r}{hint}\n"
                f"  its columns: {', '.join(known) or 'none'}"
            )
        if name in taken:
            raise UserError(
                f"input.keep: {name!r} is a column that every row or its ground truth has already\n"
                "  what to do: leave it out"
            )


def _kind_of(name: str, found: Iterable[dict[str, Any]]) -> str:
    """Return the kind of a column that the first value tells."""
    value = next((one[name] for one in found if one.get(name) is not None), "")
    return next(kind for kind, (fitting, _) in _TYPES.items() if isinstance(value, fitting))


def _fitting(value: Any, kind: str, name: str, sample: TarSample, where: str) -> Any:
    """Return a cell of a kept column in the column's type."""
    if kind == "JSON":
        return None if value is None else json.dumps(value, separators=(",", ":"))
    if value is None or kind == "text" and isinstance(value, str):
        return value
    fits = isinstance(value, _TYPES[kind][0]) and isinstance(value, bool) == (kind == "true or false")
    if not fits or (kind == "a whole number" and not -(2**63) <= value < 2**63):
        raise _wrong(
            where,
            sample.columns,
            f"column {name!r}: {kind} was expected as in the first sample, got {value!r:.100}",
        )
    return float(value) if kind == "a number" else value


def _size(found: dict[str, Any]) -> tuple[int | None, int | None]:
    width, height = found.get("width"), found.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else (None, None)


def _unique_images(
    storage: Storage, entry: Entry, counts: Counter[str]
) -> Iterator[tuple[Member, TarSample]]:
    where = redact(entry.uri)
    with unique_keys() as keys:
        for sample in _samples(members(storage, entry, _wanted), where, counts):
            for image in sample.images:
                if pair := keys.add(image.name, image.header):
                    raise _twice(storage, entry, *pair)
                yield image, sample
        if pair := keys.duplicate():
            raise _twice(storage, entry, *pair)


def _samples(found: Iterable[Member], where: str, counts: Counter[str]) -> Iterator[TarSample]:
    """Group the members; ``counts`` gets those that are no part of a sample, by suffix."""
    named = ((match[1], match[2].lower(), one) for one in found if (match := _split(one, where, counts)))
    for base, group in groupby(named, key=lambda part: part[0]):
        parts = [(suffix, member) for _, suffix, member in group]
        others = dict(parts)
        images = _images(parts)
        alone = next((member for suffix, member in parts if suffix.endswith(_CLASS)), None)
        if alone and not images:
            raise _wrong(where, alone, f"an image of its name was expected beside it, as {base}.jpg")
        used, samples = {one.header for one in images}, []
        for stem, of_stem in groupby(images, key=_stem):
            stem = stem.removeprefix(base).lower()
            label, columns = (others.get(stem + kind, others.get(kind)) for kind in (_CLASS, _COLUMNS))
            samples.append(TarSample(tuple(of_stem), label, columns))
            used |= {one.header for one in (label, columns) if one}
        for _, member in parts:
            if member.header not in used:
                count(counts, COMPANIONS if _suffix(member) in RAW_SUFFIXES else kind_of(member.name))
        yield from samples


def _images(parts: Sequence[tuple[str, Member]]) -> list[Member]:
    """Return the images of a sample; a raw file beside a JPEG of its name is that picture's companion."""
    plain = [member for suffix, member in parts if suffix in SUFFIXES]
    images = plain or [member for _, member in parts if _suffix(member) in SUFFIXES]
    jpegs = {_stem(one) for one in images if _suffix(one) in JPEG_SUFFIXES}
    return [one for one in images if _suffix(one) not in RAW_SUFFIXES or _stem(one) not in jpegs]


def _suffix(member: Member) -> str:
    return posixpath.splitext(member.name)[1].lower()


def _stem(member: Member) -> str:
    return posixpath.splitext(member.name)[0]


def _split(member: Member, where: str, counts: Counter[str]) -> re.Match[str] | None:
    """Split a path at the first dot of the name; None for what is no file of a sample, which is counted."""
    match = _NAME.fullmatch(member.name)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in member.name.split("/"))
    if match is None or hidden:
        if not member.kind:
            count(counts, HIDDEN if hidden else kind_of(member.name))
        return None
    if member.kind and _suffix(member) in SUFFIXES and member.kind != "a folder":
        raise _wrong(
            where,
            member,
            f"an image was expected, it is {member.kind}",
            "write the archive with tar --dereference --hard-dereference",
        )
    return None if member.kind else match


def _wanted(name: str) -> int:
    """Return how many bytes of a member to read while listing."""
    match = _NAME.fullmatch(name)
    return _MOST_BYTES.get(posixpath.splitext(match[2].lower())[1] or match[2].lower(), 0) if match else 0


def _pieces(refs: Iterable[ImageRef]) -> Iterator[Piece]:
    """Cut refs into pieces of a few images and, but for single larger ones, a few megabytes."""
    piece: list[ImageRef] = []
    held = 0
    for ref in refs:
        size = ref.at.length if isinstance(ref.at, Span) else 0
        if piece and (len(piece) == PIECE_IMAGES or held + size > RANGE_BYTES or piece[0].uri != ref.uri):
            yield piece
            piece, held = [], 0
        piece.append(ref)
        held += size
    if piece:
        yield piece


class _Forwards:
    """Compressed archives of one `read`, in one thread: each decompressed once, in order."""

    def __init__(self, storage: Storage, visit: Visit) -> None:
        self._storage, self._visit = storage, visit
        self._uri = ""
        self._file: Stream | None = None

    def fetch(self, piece: Piece) -> list[Content | Failure]:
        """Return the bytes of each image."""
        return [self._visit.problem(ref) or self._image(ref) for ref in piece]

    def _image(self, ref: ImageRef) -> Content | Failure:
        at = ref.at
        if not isinstance(at, Span) or at.length > MAX_BYTES:
            return Failure("read", "too_large", f"at most {MAX_BYTES:,} bytes are read, got {at}")
        try:
            data = self._part(ref.uri, at)
        except DAMAGE as error:
            return unreadable(ref, str(error))
        except (NotFound, Forbidden, Unreadable) as error:
            return self._visit.blame(ref, error)
        return data if len(data) == at.length else unreadable(ref, "ends before the end of this image")

    def _part(self, uri: str, at: Span) -> bytes:
        if self._file is None or self._uri != uri:
            self._file, self._uri = stream(self._storage, self._storage.head(uri)), uri
        self._file.seek(at.offset)
        return self._file.read(at.length)


def _twice(storage: Storage, entry: Entry, first: int, second: int) -> UserError:
    where = redact(entry.uri)
    name = next(one.name for one in members(storage, entry, lambda _: 0) if one.header == first)
    return UserError(
        f"{where}: the headers at bytes {first:,} and {second:,} have the same name {name!r}\n"
        "  what to do: write the archive again, with each file once"
    )


def _wrong(where: str, member: Member | None, what: str, mend: str = "mend or remove it") -> UserError:
    name = f", {member.name!r}" if member else ""
    return UserError(f"{where}{name}: {what}\n  what to do: {mend}")
