"""A copy of an index on this machine, as it is searched: checked as it comes, and extended in place.

Vectors are one file, codes another one, and the other columns a file a segment; all of them are mapped.
The copy has the segments in the order in which they came. Where it has one that the index no longer names, it
is made anew, so that nothing stays of that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import EnvironmentFault
from cnnbatch.index import segments
from cnnbatch.index.codebook import bytes_of_codes
from cnnbatch.index.manifest import Manifest, SegmentEntry
from cnnbatch.index.objects import DamagedObject, read_segment
from cnnbatch.storage import Storage
from cnnbatch.storage.cache import cache_folder

_STATE = "state.json"
_FEW = 256
"""Rows up to which each is looked up by itself."""
_SAVED_EVERY = 64
"""Segments after which a copy that is made is kept, should the rest be stopped."""


@dataclass(frozen=True)
class LocalCopy:
    """``vectors`` (N, D) float16 and ``codes`` (N, C), mapped; ``live`` rows, which are searched.

    ``tables`` are the other columns, mapped, one a segment, whose first rows are ``starts``. ``damaged`` says
    which segments are left out, where that was asked for. All files are open, so that the copy stays as it is
    while another process makes a new one.
    """

    vectors: NDArray[np.float16]
    codes: NDArray[np.uint8] | None
    live: NDArray[np.int64]
    tables: tuple[pa.Table, ...]
    starts: NDArray[np.int64]
    damaged: tuple[str, ...] = field(default=(), kw_only=True)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return these columns of all rows, mapped."""
        return pa.concat_tables([one.select(list(names)) for one in self.tables])

    @cached_property
    def _structs(self) -> tuple[Any, ...]:
        """The tables as arrays of structs, of which rows are taken at once instead of column by column."""
        return tuple(one.to_struct_array().combine_chunks() for one in self.tables)

    def rows(self, numbers: NDArray[np.int64]) -> pa.Table:
        """Return the columns of some rows (K,), in their order."""
        return pa.Table.from_batches([pa.RecordBatch.from_struct_array(self.structs(numbers))])

    def structs(self, numbers: NDArray[np.int64]) -> Any:
        """Return some rows (K,), in their order, as an array of structs."""
        return self._few(numbers) if len(numbers) <= _FEW else self._many(numbers)

    def _few(self, numbers: NDArray[np.int64]) -> Any:
        """Return rows one by one: a slice takes 3 µs, and looking for rows in a segment 40 µs."""
        places = np.searchsorted(self.starts, numbers, "right") - 1
        within = numbers - self.starts[places]
        pairs = zip(places.tolist(), within.tolist(), strict=True)
        slices = [self._structs[place].slice(row, 1) for place, row in pairs]
        return pa.concat_arrays([self._structs[0].slice(0, 0), *slices])

    def _many(self, numbers: NDArray[np.int64]) -> Any:
        """Return rows segment by segment."""
        order = np.argsort(numbers, kind="stable")
        sought = numbers[order]
        edges = np.searchsorted(sought, self.starts)
        pieces = []
        for place, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
            if low < high:
                pieces.append(self._structs[place].take(pa.array(sought[low:high] - self.starts[place])))
        return pa.concat_arrays(pieces).take(pa.array(np.argsort(order)))


def local_copy(index: str, storage: Storage, manifest: Manifest, skip_damaged: bool = False) -> LocalCopy:
    """Return this machine's copy of an index in the state of ``manifest``, which it is brought to first.

    Raises DamagedObject for a segment that is missing or damaged, unless these are to be left out, and
    EnvironmentFault where the cache can't be written.
    """
    root, form = _root(index), _form(manifest)
    wanted = {one.name: one for one in manifest.segments if one.rows}
    with _on_disk(root), _locked(root):
        copy = _Growing.begun(root, form, wanted)
        damaged: list[str] = []
        for entry in [one for name, one in wanted.items() if name not in copy.state["segments"]]:
            try:
                copy.add(entry, read_segment(index, storage, entry))
            except DamagedObject as error:
                if not skip_damaged:
                    raise
                damaged.append(str(error).partition("\n")[0])
        if copy.unsaved:
            copy.save()
        return copy.opened(wanted, damaged)


@contextmanager
def new_copy(index: str, manifest: Manifest) -> Iterator[Callable[[SegmentEntry, pa.Table], None]]:
    """Give what adds segments to a new copy of an index on this machine, as they are made.

    `local_copy` then need not read them. Raises EnvironmentFault where the cache can't be written.
    """
    root, form = _root(index), _form(manifest)
    with _on_disk(root):
        root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        with _on_disk(root):
            copy = _Growing.empty(root, form)

        def add(entry: SegmentEntry, table: pa.Table) -> None:
            with _on_disk(root):
                copy.add(entry, table)

        yield add
        with _on_disk(root):
            copy.save()


def _root(index: str) -> Path:
    return cache_folder("indexes") / sha256(index.encode()).hexdigest()[:32]


def _form(manifest: Manifest) -> dict[str, int]:
    """Return what all segments of a copy have alike."""
    codes = bytes_of_codes(manifest.dimensions, manifest.lists) if manifest.codebook else 0
    return {"dimensions": manifest.dimensions, "code_bytes": codes}


@dataclass
class _Growing:
    """A copy in the folder ``root`` that segments are added to; ``tables`` are their other columns, mapped.

    ``state`` says what it has; it is written by `save`, and every few segments.
    """

    root: Path
    state: dict[str, Any]
    tables: list[pa.Table]
    unsaved: int = 0

    @classmethod
    def begun(cls, root: Path, form: Mapping[str, int], wanted: Mapping[str, SegmentEntry]) -> _Growing:
        """Return the copy that is there, if all that it has is wanted; else an empty one."""
        state = _state(root)
        if (
            state is None
            or not state.items() >= form.items()
            or not state["segments"].keys() <= wanted.keys()
        ):
            return cls.empty(root, form)
        try:
            tables = [_mapped(root / state["folder"] / f"{name}.arrow") for name in state["segments"]]
        except pa.ArrowInvalid:  # A file that was not on the disk yet when the machine lost its power.
            return cls.empty(root, form)
        return cls(root, state, tables)

    @classmethod
    def empty(cls, root: Path, form: Mapping[str, int]) -> _Growing:
        """Return an empty copy; what was there before goes once nobody reads it."""
        name = uuid4().hex
        copy = cls(root, {"folder": name, **form, "segments": {}}, [])
        folder = root / name
        folder.mkdir()
        for file in ("vectors", "codes"):
            (folder / file).touch()
        copy.save()
        for old in root.iterdir():
            if old.is_dir() and old != folder:
                shutil.rmtree(old)
        return copy

    def add(self, entry: SegmentEntry, table: pa.Table) -> None:
        """Add a segment behind those that are there; what a killed run has left there is written over."""
        folder, held = self.root / self.state["folder"], self.state["segments"]
        rows = sum(held.values())
        _write_at(folder / "vectors", segments.vectors_of(table), rows)
        codes = segments.codes_of(table)
        if codes is not None:
            _write_at(folder / "codes", codes, rows)
        others = table.drop_columns([name for name in segments.BYTES if name in table.column_names])
        path = folder / f"{entry.name}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, others.schema) as sink:
            sink.write_table(others)
        held[entry.name] = entry.rows
        self.tables.append(_mapped(path))
        self.unsaved += 1
        if self.unsaved == _SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Write the state, whole, in place of the one before, once what it says is on the disk."""
        for name in ("vectors", "codes"):
            with (self.root / self.state["folder"] / name).open("r+b") as file:
                os.fsync(file.fileno())
        unfinished = self.root / f"{_STATE}.new"
        unfinished.write_text(json.dumps(self.state))
        os.replace(unfinished, self.root / _STATE)
        self.unsaved = 0

    def opened(self, wanted: Mapping[str, SegmentEntry], damaged: Sequence[str]) -> LocalCopy:
        """Return the copy as it is searched."""
        folder, held = self.root / self.state["folder"], self.state["segments"]
        starts = np.cumsum([0, *held.values()])
        total, dimensions, width = int(starts[-1]), self.state["dimensions"], self.state["code_bytes"]
        live = np.ones(total, bool)
        for name, start in zip(held, starts, strict=False):
            live[start + wanted[name].gone_rows()] = False
        vectors = _array(folder / "vectors", np.float16, (total, dimensions))
        codes = _array(folder / "codes", np.uint8, (total, width)) if width else None
        return LocalCopy(
            vectors, codes, np.flatnonzero(live), tuple(self.tables), starts, damaged=tuple(damaged)
        )


def _write_at(path: Path, values: NDArray[Any], row: int) -> None:
    with path.open("r+b") as file:
        file.truncate(row * values.shape[1] * values.itemsize)
        file.seek(0, os.SEEK_END)
        file.write(np.ascontiguousarray(values).data)


def _array(path: Path, kind: type, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the beginning of a file as an array, mapped."""
    return np.memmap(path, kind, "r", shape=shape) if shape[0] else np.empty(shape, kind)


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _state(root: Path) -> dict[str, Any] | None:
    """Return what a copy says of itself; None where there is none, or it is not whole."""
    try:
        state: dict[str, Any] = json.loads((root / _STATE).read_bytes())
        folder, rows = root / state["folder"], sum(state["segments"].values())
        sizes = {"vectors": 2 * state["dimensions"] * rows, "codes": state["code_bytes"] * rows}
        whole = all((folder / name).stat().st_size >= size for name, size in sizes.items())
        return (
            state if whole and all((folder / f"{one}.arrow").exists() for one in state["segments"]) else None
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold a copy, so that no other process changes it meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _on_disk(root: Path) -> Iterator[None]:
    """Tell what the disk refuses as the `EnvironmentFault` that it is."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        space = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise EnvironmentFault(
            f"the copy of the index in {root} could not be written: {error.strerror}",
            "free space there, or point CNNBATCH_CACHE at a larger disk"
            if space
            else "check that disk, or point CNNBATCH_CACHE at another folder",
        ) from None
