"""Keeps what OpenVINO's reader made of a network, so that a machine converts it once.

Reading a network through torch takes 2 to 4 s; compiling what is kept, 0.2 to 0.5 s. That is done each time,
so that one entry serves all precisions, numbers of threads and processors, and no compiled code is loaded.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnbatch.models.network import library
from cnnbatch.storage.cache import cache_folder

MOST_BYTES = 1 << 30
"""What all entries may take; the one that was used the longest ago goes first."""

_FORM = "1"  # Another one for another conversion, or another layout of the files.
_SUFFIX = ".network"
_DIGEST_BYTES, _LENGTH_BYTES = 32, 8
_ABANDONED_S = 24 * 3600.0


def kept_or_converted(core: Any, network: str | None, convert: Callable[[], Any]) -> Any:
    """Return OpenVINO's model of a network: the kept one, or what ``convert`` returns, which is kept then.

    ``network`` is its `network_digest`; without one nothing is kept. A damaged entry is converted anew, and a
    folder that can't be written costs only the time.
    """
    if network is None:
        return convert()
    name = hashlib.sha256(
        "\n".join([_FORM, network, library("openvino"), library("torch")]).encode()
    ).hexdigest()
    path = cache_folder("openvino") / f"{name}{_SUFFIX}"
    found = _read(core, path)
    if found is None:
        found = convert()
        with suppress(OSError):
            _write(path, found)
            _remove_oldest(path.parent, path)
    return found


def _read(core: Any, path: Path) -> Any:
    """Return the model in a file; None where there is none that is whole."""
    try:
        content = memoryview(path.read_bytes())
        os.utime(path)
    except OSError:
        return None
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    length = int.from_bytes(rest[:_LENGTH_BYTES], "little")
    graph, weights = rest[_LENGTH_BYTES : _LENGTH_BYTES + length], rest[_LENGTH_BYTES + length :]
    try:
        return core.read_model(model=bytes(graph), weights=bytes(weights))
    except Exception:  # OpenVINO's own, whichever: then it is converted anew.
        return None


def _write(path: Path, model: Any) -> None:
    """Write a model whole and at once, whatever other processes write there; raises OSError."""
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="unfinished-") as folder:
        graph, weights, whole = (Path(folder, name) for name in ("graph.xml", "graph.bin", "whole"))
        try:
            openvino.save_model(model, str(graph), compress_to_fp16=False)
        except RuntimeError as error:  # What OpenVINO makes of a full disk.
            raise OSError(str(error)) from error
        rest = b"".join([graph.stat().st_size.to_bytes(_LENGTH_BYTES, "little"), graph.read_bytes()])
        values = weights.read_bytes()
        if len(rest) + len(values) > MOST_BYTES:
            return
        digest = hashlib.sha256(rest)
        digest.update(values)
        with whole.open("wb") as file:
            file.writelines([digest.digest(), rest, values])
        os.replace(whole, path)


def _remove_oldest(folder: Path, newest: Path) -> None:
    """Keep the newest entries within `MOST_BYTES`, and nothing that a process which ended left unfinished."""
    used = 0
    for path, about in sorted(_files(folder), key=lambda one: (one[0] != newest, -one[1].st_mtime)):
        used += about.st_size
        if used > MOST_BYTES:
            path.unlink(missing_ok=True)
    for left in folder.glob("unfinished-*"):
        if left.stat().st_mtime < time.time() - _ABANDONED_S:
            for file in left.iterdir():
                file.unlink(missing_ok=True)
            left.rmdir()


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # Another process has removed it.
            found.append((path, path.stat()))
    return found
