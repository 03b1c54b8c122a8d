"""CIFAR-10 as its authors give it: the binary version, or the one for Python, whose pickles run no code.

Labels are read while the pictures are listed. A pickle has no ranges: a shard reads its files whole.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.sources.containers import Containers, Piece, Visit, opened, ranges, read_ahead, unreadable
from cnnbatch.sources.lists.source import LABEL
from cnnbatch.storage import (
    Entry,
    Forbidden,
    NotFound,
    Storage,
    TooLarge,
    Unreadable,
    join,
    normalize,
    redact,
)
from cnnbatch.storage.text import decoded
from cnnbatch.types import Content, Failure, ImageRef, Row, Shard, Span

if TYPE_CHECKING:
    from torch import Tensor

    from cnnbatch.config.input import Input

SIDE = 32
PIXELS_BYTES = 3 * SIDE * SIDE
RECORD_BYTES = 1 + PIXELS_BYTES
"""A record of the binary version: the label, then the planes of red, green and blue."""

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}

_META = "batches.meta"
_BLOCK = 1024 * RECORD_BYTES
_MOST_BYTES = 32 << 20  # of one pickle; the official ones have 31 million


@dataclass(frozen=True, slots=True)
class RawPicture:
    """One picture of 32 x 32 pixels as its three planes."""

    planes: bytes

    @property
    def size_bytes(self) -> int:
        """The bytes of the pixels."""
        return len(self.planes)

    def decode(
        self, least: Callable[[tuple[int, int]], tuple[int, int] | None]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return the pixels, uint8 (3, 32, 32), channels-last as a decoded file's are."""
        import torch

        planes = torch.frombuffer(bytearray(self.planes), dtype=torch.uint8).view(3, SIDE, SIDE)
        return planes.permute(1, 2, 0).contiguous().permute(2, 0, 1), (SIDE, SIDE)


@dataclass(frozen=True)
class Cifar10:
    """The pictures of some of the files, in the files' order; keys are ``FILE#NUMBER``."""

    files: Containers
    names: tuple[str, ...]
    binary: bool
    classes: tuple[str, ...]
    columns: pa.Schema = field(default_factory=lambda: pa.schema([(LABEL, pa.string())]))

    @property
    def truth_schema(self) -> pa.Schema:
        """One label a picture, and the ten classes."""
        classes = [truth.Class(name, number) for number, name in enumerate(self.classes)]
        return truth.with_classes(truth.LABEL_SCHEMA, classes)

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the pictures."""
        uris = [join(self.files.root, name) for name in self.names]
        if after is not None and after.uri not in uris:
            raise self.files.lost(after)
        start = uris.index(after.uri) if after else 0
        for name, entry in zip(self.names[start:], map(self.files.head, uris[start:]), strict=True):
            for number, label in enumerate(self._labels(entry)):
                if after is None or entry.uri != after.uri or number > self._number(after):
                    at = Span(number * RECORD_BYTES, RECORD_BYTES) if self.binary else Row(number)
                    columns = {LABEL: self.classes[label]}
                    yield ImageRef(f"{name}#{number}", entry.uri, at, entry.etag, columns)

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader a picture."""
        visit = Visit(self.files, shard)
        if self.binary:
            return read_ahead(ranges(shard.refs), lambda piece: _records(visit, piece))
        files = (list(refs) for _, refs in groupby(shard.refs, key=lambda ref: ref.uri))
        return read_ahead(files, lambda piece: _rows(self.files.storage, visit, piece), 1)

    def truth(self, shard: Shard) -> pa.Table:
        """Return the labels."""
        rows = [{"image_id": ref.key, LABEL: ref.columns[LABEL]} for ref in shard.refs]
        return truth.table(rows, self.truth_schema)

    def _number(self, ref: ImageRef) -> int:
        return ref.at.offset // RECORD_BYTES if isinstance(ref.at, Span) else _row(ref)

    def _labels(self, entry: Entry) -> Iterator[int]:
        labels: Iterable[object] = self._binary_labels(entry) if self.binary else self._python_labels(entry)
        for number, label in enumerate(labels):
            if not isinstance(label, int) or not 0 <= label < len(CLASSES):
                raise _wrong(entry.uri, f"record {number:,} has the label {label}, expected 0 to 9")
            yield label

    def _binary_labels(self, entry: Entry) -> Iterator[int]:
        if entry.size == 0 or entry.size % RECORD_BYTES:
            raise _wrong(entry.uri, f"has {entry.size:,} bytes, expected a multiple of {RECORD_BYTES:,}")
        with opened(self.files.storage, entry.uri) as file:
            for _ in range(0, entry.size, _BLOCK):
                yield from file.read(_BLOCK)[::RECORD_BYTES]

    def _python_labels(self, entry: Entry) -> list[int]:
        if entry.size > _MOST_BYTES:
            raise _wrong(entry.uri, f"has {entry.size:,} bytes, expected at most {_MOST_BYTES:,}")
        with opened(self.files.storage, entry.uri) as file:
            return _batch(file.read(), entry.uri)[0]


def open_cifar10(input: Input, storage: Storage) -> Cifar10:
    """Return the source of a folder with CIFAR-10's own files; without ``input.split`` all, train first."""
    if not isinstance(input.url, str):
        raise UserError(
            f"input.url: CIFAR-10 is one folder, got {len(input.url)} addresses\n"
            "  what to do: give the folder that holds data_batch_1"
        )
    if input.split not in (None, *SPLITS):
        raise UserError(
            f"input.split: CIFAR-10 has {' and '.join(SPLITS)}, got {input.split!r}\n"
            "  what to do: give one of them, or leave it out for both"
        )
    root = normalize(input.url)
    stems = SPLITS[str(input.split)] if input.split else (*SPLITS["train"], *SPLITS["test"])
    binary = _is_binary(storage, root, stems)
    names = tuple(f"{stem}.bin" for stem in stems) if binary else stems
    files = Containers(storage, root, (), "CIFAR-10's files", root)
    return Cifar10(files, names, binary, _classes(storage, root, binary))


def _is_binary(storage: Storage, root: str, stems: Sequence[str]) -> bool:
    for suffix in (".bin", ""):
        if any(_is_there(storage, join(root, stem + suffix)) for stem in stems):
            return suffix == ".bin"
    raise UserError(
        f"input.url: {redact(root)} holds neither {stems[0]}.bin nor {stems[0]}\n"
        "  what to do: unpack cifar-10-binary.tar.gz or cifar-10-python.tar.gz, and give the folder inside"
    )


def _is_there(storage: Storage, uri: str) -> bool:
    try:
        storage.head(uri)
    except (NotFound, Forbidden, Unreadable):
        return False
    return True


def _classes(storage: Storage, root: str, binary: bool) -> tuple[str, ...]:
    """Return the names of the classes that lie beside the pictures; CIFAR-10's own where none do."""
    uri = join(root, f"{_META}.txt" if binary else _META)
    try:
        data = storage.read(uri, limit=_MOST_BYTES)
    except (NotFound, Forbidden, Unreadable, TooLarge):
        return CLASSES
    lines = decoded(data, "replace").splitlines() if binary else _unpickled(data, uri).get("label_names")
    texts = [_text(line).strip() for line in lines] if isinstance(lines, list) else []
    names = tuple(filter(None, texts))
    if len(names) != len(CLASSES):
        raise _wrong(uri, f"has {len(names)} classes, expected {len(CLASSES)}")
    return names


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _records(visit: Visit, piece: Piece) -> list[Content | Failure]:
    found = visit.fetch(piece)
    return [one if isinstance(one, Failure) else RawPicture(one[1:]) for one in found]


def _rows(storage: Storage, visit: Visit, piece: Piece) -> list[Content | Failure]:
    """Read the pictures of one pickle."""
    failure = visit.problem(piece[0])
    if failure is None:
        try:
            labels, pixels = _batch(storage.read(piece[0].uri, limit=_MOST_BYTES), piece[0].uri)
        except (NotFound, Forbidden, Unreadable) as error:
            failure = visit.blame(piece[0], error)
        except (UserError, TooLarge) as error:
            failure = unreadable(piece[0], str(error))
    if failure is not None:
        return [failure] * len(piece)
    starts = [_row(ref) * PIXELS_BYTES for ref in piece]
    return [RawPicture(pixels[start : start + PIXELS_BYTES]) for start in starts]


def _row(ref: ImageRef) -> int:
    if not isinstance(ref.at, Row):
        raise TypeError(f"{ref.key}: expected a row, got {ref.at}")
    return ref.at.index


def _batch(data: bytes, uri: str) -> tuple[list[int], bytes]:
    """Return the labels of a pickle, and its pixels, one picture behind the other."""
    found = _unpickled(data, uri)
    labels, pixels = found.get("labels"), found.get("data")
    if not isinstance(labels, list) or not isinstance(pixels, _Array) or not labels:
        raise _wrong(uri, f"holds {', '.join(map(str, found))}; expected CIFAR-10's `labels` and `data`")
    if pixels.shape != (len(labels), PIXELS_BYTES):
        raise _wrong(uri, f"holds {len(labels):,} labels for pixels of the shape {pixels.shape}")
    return labels, pixels.data


# ---- pickles, of which nothing is run ---------------------------------------------------------


class _Array:
    """Stands in for numpy's array: bytes with a shape, so that no code of numpy's sees a strange state."""

    shape: tuple[int, ...] = ()
    data: bytes = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or dtype.code not in (b"u1", "u1") or by_columns:
            raise pickle.UnpicklingError("expected an array of bytes, row by row")
        if not isinstance(data, bytes) or len(shape) != 2 or shape[0] * shape[1] != len(data):
            raise pickle.UnpicklingError(f"expected the bytes of an array of the shape {shape}")
        self.shape, self.data = shape, data


class _Dtype:
    """Stands in for numpy's type of an array's elements."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Take no notice: the order of a single byte means nothing."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"expected bytes as latin1, got {encoding!r}")
    return text.encode("latin1")


_ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for Python 2
}


class _Arrays(pickle._Unpickler):
    """Admits arrays and plain values. In Python, not C: there four bytes may ask for gigabytes of memo."""

    def __init__(self, data: bytes, uri: str) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._uri = uri

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a name; any other could run code."""
        if (module, name) not in _ADMITTED:
            raise _wrong(
                self._uri,
                f"asks for {module}.{name}, which CIFAR-10's files do not; it may run code, and was not run",
                "fetch the file again from where you trust it",
            )
        return _ADMITTED[module, name]


def _unpickled(data: bytes, uri: str) -> dict[str, Any]:
    """Return a pickled dictionary, its keys as text whatever Python wrote it."""
    try:
        found = _Arrays(data, uri).load()
        return {_text(key): value for key, value in found.items()}
    except UserError:
        raise
    except Exception as error:  # Damaged bytes are opcodes, which fail in every way there is.
        raise _wrong(uri, f"is no whole pickle of a dictionary: {type(error).__name__}: {error}") from None


def _wrong(uri: str, what: str, mend: str = "fetch the file again") -> UserError:
    return UserError(f"{redact(uri)} {what}\n  what to do: {mend}")
