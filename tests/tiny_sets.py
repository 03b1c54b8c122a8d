"""Tiny data sets in their real layouts, and archives of them."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnbatch.sources.datasets.fetching import fetch
from cnnbatch.sources.datasets.layouts import DataSet
from cnnbatch.storage import Storage
from cnnbatch.types import Shard
from tests.conftest import jpeg
from tests.servers import WebServer
from tests.sourcing import QUICK, source

Files = Mapping[str, bytes]


@dataclass
class Published:
    """A set as a server gives it: its entry with the server's addresses, and the archives by their paths."""

    entry: DataSet
    archives: dict[str, bytes]
    web: WebServer

    def fetch(self, chunk_bytes: int = 1 << 20) -> Path:
        return fetch(self.entry, Storage(QUICK), chunk_bytes=chunk_bytes)


def tar(files: Files, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: Files, mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, data)
    return buffer.getvalue()


def cifar10(counts: int = 2) -> dict[str, bytes]:
    """Return a tiny CIFAR-10 in the layout of its own archive."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files = {}
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (counts, 3072), np.uint8)
        batch = {b"data": pixels, b"labels": [number] * counts}
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    return {"cifar-10-python.tar.gz": tar(files)}


def eurosat() -> dict[str, bytes]:
    files = {f"2750/{kind}/{kind}_{n}.jpg": jpeg(n) for kind in ("Forest", "River") for n in (1, 2)}
    return {"EuroSAT.zip": zipped(files)}


def labels(url: str, split: str | None) -> dict[str, str | None]:
    found = source(url, split=split)
    refs = tuple(found.refs())
    truths = found.truth(Shard(0, refs))
    assert truths is not None
    return dict(zip((ref.key for ref in refs), truths["label"].to_pylist(), strict=True))
