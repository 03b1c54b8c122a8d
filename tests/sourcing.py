"""What the tests of sources share: files to read, a source on them, and its readers called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnbatch.config.input import Input
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage, StorageOptions
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source

QUICK = StorageOptions(timeout_s=2, retries=0)


def source(url: str | Sequence[str], storage: Storage | None = None, **fields: Any) -> Source:
    address = url if isinstance(url, str) else tuple(url)
    return open_source(Input(url=address, **fields), storage or Storage(QUICK))


def keys(url: str | Sequence[str], storage: Storage | None = None, **fields: Any) -> list[str]:
    return [ref.key for ref in source(url, storage, **fields).refs()]


def fill(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def read(found: Source, refs: Sequence[ImageRef] | None = None) -> list[Content | Failure]:
    shard = Shard(0, tuple(found.refs()) if refs is None else tuple(refs))
    return [reader() for reader in found.read(shard)]


def failure(result: Content | Failure) -> tuple[str, str]:
    assert isinstance(result, Failure)
    return result.stage, result.code


def listed(folder: Path, text: str, suffix: str = ".txt") -> str:
    path = folder / f"list{suffix}"
    path.write_text(text, encoding="utf-8")
    return str(path)
