"""Fetches a set into the cache: files are checked before anything is done with them, the folder comes last.

All is made in a hidden folder beside, which is renamed at the end; so whatever is in its place is whole.
What was downloaded stays there until then: the same command goes on behind it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cnnbatch.errors import EnvironmentFault
from cnnbatch.sources.datasets import archives, cached, is_laid_out, lists
from cnnbatch.sources.datasets.layouts import DataSet, Download, Remote
from cnnbatch.storage import Forbidden, NotFound, Storage, TooLarge, Unreadable, redact
from cnnbatch.types import Span

RECORD = "dataset.json"
"""The file in a fetched set that says where it is from, and when it came."""

CHUNK_BYTES = 8 << 20
"""What one request asks for, so that a lost connection costs little."""

_BLOCK = 1 << 20
_OTHER_WAY = "fetch it yourself from where you trust it, and name its folder in CNNBATCH_DATA"

Advance = Callable[[int], None]


def fetch(
    entry: DataSet, storage: Storage, advance: Advance = lambda more: None, chunk_bytes: int = CHUNK_BYTES
) -> Path:
    """Return the folder of a set in the cache, after fetching what is not there.

    ``advance`` is called with each number of bytes that have come.

    Raises:
        EnvironmentFault: the files can't be had, are other ones than are known, or can't be kept; or another
            process is fetching this set. Nothing is in the set's place then.
    """
    target = cached(entry)
    if entry.download is None:
        raise ValueError(f"{entry.name} has no download")
    with _kept(target), _alone(target) as work:
        if target.exists():
            _require_known(entry, target)
        else:
            found = [
                _file(remote, work / "files", storage, advance, chunk_bytes)
                for remote in entry.download.files()
            ]
            tree = _unpacked(entry, entry.download, [path for path, _ in found], work / "tree")
            _record(entry, [about for _, about in found], tree / RECORD)
            os.rename(tree, target)
        shutil.rmtree(work)
    return target


# ---- files ------------------------------------------------------------------------------------


def _file(
    remote: Remote, folder: Path, storage: Storage, advance: Advance, chunk_bytes: int
) -> tuple[Path, dict[str, str | int]]:
    """Return a checked file, and what is to be recorded of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    if path.is_file():  # From a fetch that was stopped; it is checked again, for it lay here meanwhile.
        advance(path.stat().st_size)
        os.rename(path, part)
    else:
        with _had(remote):
            _download(remote.url, part, storage, advance, chunk_bytes)
    digests = _digests(part)
    algorithm, expected = remote.digest
    if digests[algorithm] != expected:
        part.unlink()
        raise EnvironmentFault(
            f"{redact(remote.url)} is not the file that is known: expected {algorithm} {expected}, "
            f"came {digests[algorithm]}; nothing of it was used",
            f"give the same command again; if it stays so, {_OTHER_WAY}",
        )
    os.rename(part, path)
    return path, {"url": remote.url, "bytes": path.stat().st_size, **digests}


def _download(url: str, part: Path, storage: Storage, advance: Advance, chunk_bytes: int) -> None:
    """Write a file, or go on behind what there is of it."""
    size = storage.head(url).size
    with part.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
        done = file.seek(0, os.SEEK_END)
        advance(done)
        while done < size:
            data = _chunk(url, done, min(chunk_bytes, size - done), storage)
            if not data:
                raise Unreadable(f"{redact(url)} ends after {done:,} of {size:,} bytes")
            file.write(data)
            file.flush()  # So that what has come survives a kill.
            done += len(data)
            advance(len(data))


def _chunk(url: str, start: int, length: int, storage: Storage) -> bytes:
    """Return some bytes of a file; of a server that knows no ranges, all from ``start`` on."""
    try:
        return storage.read(url, Span(start, length), limit=length)
    except TooLarge:
        return storage.read(url)[start:]


def _digests(path: Path) -> dict[str, str]:
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            for one in sums.values():
                one.update(block)
    return {name: one.hexdigest() for name, one in sums.items()}


# ---- the folder -------------------------------------------------------------------------------


def _unpacked(entry: DataSet, download: Download, files: Sequence[Path], tree: Path) -> Path:
    """Return the set's folder, made anew of its files."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    for path in files:
        archives.unpack(path, tree)
    for name in download.inner:
        archives.unpack(tree / name, tree)
        (tree / name).unlink()
    try:
        if download.lists is not None:
            lists.write(tree, download.lists(tree))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise _otherwise(entry, f": {error}") from None
    if not is_laid_out(entry.layouts[0], str(tree), Storage()):
        raise _otherwise(entry, f"; expected {entry.layouts[0].words}")
    return tree


def _require_known(entry: DataSet, target: Path) -> None:
    if not any(is_laid_out(layout, str(target), Storage()) for layout in entry.layouts):
        raise EnvironmentFault(
            f"{target} is in the way: it holds something else than {entry.name}", "move it elsewhere"
        )


def _otherwise(entry: DataSet, what: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the files of {entry.name} hold something else than was known of them{what}", _OTHER_WAY
    )


def _record(entry: DataSet, files: Sequence[dict[str, str | int]], path: Path) -> None:
    about = {
        "name": entry.name,
        "title": entry.title,
        "licence": entry.licence,
        "homepage": entry.homepage,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
    }
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """Give the hidden folder that a set is made in, to one process at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".{target.name}.unfinished"
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentFault(
                f"another process is fetching {target.name} into {target.parent}", "wait until it is done"
            ) from None
        work.mkdir(exist_ok=True)
        yield work


@contextmanager
def _had(remote: Remote) -> Iterator[None]:
    """Turn what is one address's own into a fault: there is no other way to its file."""
    try:
        yield
    except (NotFound, Forbidden, Unreadable) as error:
        raise EnvironmentFault(f"{redact(remote.url)} can't be fetched: {error}", _OTHER_WAY) from None


@contextmanager
def _kept(target: Path) -> Iterator[None]:
    """Turn an error of the disk into a fault."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{target} could not be written: {error.strerror or error}",
            "free space there, or name another place in CNNBATCH_CACHE",
        ) from None
