"""A copy of an index on this machine, as it is searched: checked as it comes, and extended in place.

Vectors are one file that is mapped, codes another one that is read, and the other columns a file a segment.
The copy has the segments in the order in which they came. Where it has one that the index no longer names, it
is made anew, so that nothing stays of that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
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
from cnnbatch.index.manifest import Manifest, SegmentEntry
from cnnbatch.index.objects import DamagedObject, read_segment
from cnnbatch.storage import Storage
from cnnbatch.storage.cache import cache_folder

_STATE = "state.json"
_SAVED_EVERY = 64
"""Segments after which a copy that is made is kept, should the rest be stopped."""


@dataclass(frozen=True)
class LocalCopy:
    """``vectors`` (N, D) float16, mapped; ``codes`` (N, C), in memory; ``live`` rows, which are searched.

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
        order = np.argsort(numbers, kind="stable")
        sought = numbers[order]
        edges = np.searchsorted(sought, self.starts)
        pieces = [self._structs[0].slice(0, 0)]
        for place, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
            if low < high:
                pieces.append(self._structs[place].take(pa.array(sought[low:high] - self.starts[place])))
        found = pa.concat_arrays(pieces).take(pa.array(np.argsort(order)))
        return pa.Table.from_batches([pa.RecordBatch.from_struct_array(found)])


def local_copy(index: str, storage: Storage, manifest: Manifest, skip_damaged: bool = False) -> LocalCopy:
    """Return this machine's copy of an index in the state of ``manifest``, which it is brought to first.

    Raises DamagedObject for a segment that is missing or damaged, unless these are to be left out, and
    EnvironmentFault where the cache can't be written.
    """
    root = cache_folder("indexes") / sha256(index.encode()).hexdigest()[:32]
    with _on_disk(root), _locked(root):
        state = _state(root)
        wanted = {one.name: one for one in manifest.segments if one.rows}
        code_bytes = _code_bytes(manifest)
        if state is None or not _extends(state, wanted, manifest.dimensions, code_bytes):
            state = _begin(root, manifest.dimensions, code_bytes)
        damaged: list[str] = []
        missing = [one for name, one in wanted.items() if name not in state["segments"]]
        for number, entry in enumerate(missing, 1):
            try:
                _add(root / state["folder"], state, read_segment(index, storage, entry), entry)
            except DamagedObject as error:
                if not skip_damaged:
                    raise
                damaged.append(str(error).partition("\n")[0])
            if number % _SAVED_EVERY == 0 or number == len(missing):
                _save(root, state)
        return _opened(root / state["folder"], state, wanted, tuple(damaged))


def _code_bytes(manifest: Manifest) -> int:
    """Return how long the codes are; 0 without a codebook."""
    return ((manifest.dimensions + 1) // 2 + 1) // 2 if manifest.codebook else 0


def _extends(
    state: dict[str, Any], wanted: dict[str, SegmentEntry], dimensions: int, code_bytes: int
) -> bool:
    """Say whether a copy can go on: whether all that it has is still in the index."""
    same = (state["dimensions"], state["code_bytes"]) == (dimensions, code_bytes)
    return same and all(name in wanted for name in state["segments"])


def _begin(root: Path, dimensions: int, code_bytes: int) -> dict[str, Any]:
    """Return the state of an empty copy; what was there before goes once nobody reads it."""
    name = uuid4().hex
    state = {"folder": name, "dimensions": dimensions, "code_bytes": code_bytes, "segments": {}}
    folder = root / name
    folder.mkdir()
    for file in ("vectors", "codes"):
        (folder / file).touch()
    _save(root, state)
    for old in root.iterdir():
        if old.is_dir() and old != folder:
            shutil.rmtree(old)
    return state


def _add(folder: Path, state: dict[str, Any], table: pa.Table, entry: SegmentEntry) -> None:
    """Add a segment behind those that are there; what a killed run has left behind them is written over."""
    rows = sum(state["segments"].values())
    _write_at(folder / "vectors", segments.vectors_of(table), rows)
    codes = segments.codes_of(table)
    if codes is not None:
        _write_at(folder / "codes", codes, rows)
    others = table.drop_columns([name for name in segments.BYTES if name in table.column_names])
    with (
        pa.OSFile(str(folder / f"{entry.name}.arrow"), "wb") as file,
        pa.ipc.new_file(file, others.schema) as sink,
    ):
        sink.write_table(others)
    state["segments"][entry.name] = entry.rows


def _write_at(path: Path, values: NDArray[Any], row: int) -> None:
    with path.open("r+b") as file:
        file.truncate(row * values.shape[1] * values.itemsize)
        file.seek(0, os.SEEK_END)
        file.write(np.ascontiguousarray(values).data)


def _opened(
    folder: Path, state: dict[str, Any], wanted: dict[str, SegmentEntry], damaged: tuple[str, ...]
) -> LocalCopy:
    held = state["segments"]
    starts = np.cumsum([0, *held.values()])
    total, dimensions, width = int(starts[-1]), state["dimensions"], state["code_bytes"]
    live = np.ones(total, bool)
    for name, start in zip(held, starts, strict=False):
        live[start + wanted[name].gone_rows()] = False
    vectors: NDArray[np.float16] = np.empty((0, dimensions), np.float16)
    if total:
        vectors = np.memmap(folder / "vectors", np.float16, "r", shape=(total, dimensions))
    codes = np.fromfile(folder / "codes", np.uint8, total * width).reshape(-1, width) if width else None
    tables = tuple(_mapped(folder / f"{name}.arrow") for name in held)
    return LocalCopy(vectors, codes, np.flatnonzero(live), tables, starts, damaged=damaged)


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


def _save(root: Path, state: dict[str, Any]) -> None:
    """Write the state, whole, in place of the one before, once what it says is on the disk."""
    for name in ("vectors", "codes"):
        with (root / state["folder"] / name).open("r+b") as file:
            os.fsync(file.fileno())
    unfinished = root / f"{_STATE}.new"
    unfinished.write_text(json.dumps(state))
    os.replace(unfinished, root / _STATE)


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
