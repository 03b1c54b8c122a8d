"""Files inside installed packages (``package:NAME/PATH``), read without importing the package."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NoReturn

from cnnbatch.errors import UserError
from cnnbatch.storage.contract import Entry, NotInstalled, StorageOptions, Unreadable
from cnnbatch.storage.local import LocalFiles
from cnnbatch.types import Span

_INSIDE = re.compile(r"([^/\\\0]+(/[^/\\\0]+)*)?")


class PackageFiles:
    """Package data; nothing is ever written there."""

    def __init__(self, options: StorageOptions) -> None:
        self._files = LocalFiles(options)

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Yield the files below a folder of a package."""
        root = locate(uri)
        start = root + after[len(uri) :] if after is not None and after.startswith(uri) else None
        for entry in self._files.list(root, start):
            yield replace(entry, uri=uri + entry.uri[len(root) :])

    def read(self, uri: str, span: Span | None, limit: int | None) -> bytes:
        """Return a file's bytes."""
        return self._files.read(locate(uri), span, limit)

    def head(self, uri: str) -> Entry:
        """Return a file's size and etag."""
        return replace(self._files.head(locate(uri)), uri=uri)

    def open(self, uri: str) -> BinaryIO:
        """Open a file for reading."""
        return self._files.open(locate(uri))

    def create(self, uri: str, data: bytes | Path) -> str:
        """Refuse."""
        _read_only(uri)

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Refuse."""
        _read_only(uri)

    def put(self, uri: str, data: bytes | Path) -> None:
        """Refuse."""
        _read_only(uri)

    def delete(self, uri: str) -> None:
        """Refuse."""
        _read_only(uri)

    def answers(self, uri: str) -> bool:
        """Say yes: an installed package serves."""
        return True


def locate(uri: str) -> str:
    """Return the local path of ``package:NAME/PATH``; `NotInstalled` where there is no such package.

    Nothing outside the package's own folders is named, neither by the text nor by a link in them.
    """
    name, _, inside = uri.removeprefix("package:").partition("/")
    if not name.isidentifier() or not _INSIDE.fullmatch(inside) or ".." in inside.split("/"):
        raise Unreadable(f"{uri} names no file of a package; expected package:NAME/PATH, without '..'")
    folders = _folders(name)
    if not folders:
        raise NotInstalled(
            f"the package {name!r} of {uri} is not installed here",
            f"install it, for instance pip install {name}",
        )
    paths = [os.path.join(folder, inside) if inside else folder for folder in folders]
    pairs = list(zip(map(os.path.realpath, folders), paths, strict=True))
    folder, path = next((pair for pair in pairs if os.path.exists(pair[1])), pairs[0])
    if os.path.commonpath([folder, os.path.realpath(path)]) != folder:
        raise Unreadable(f"{uri} is a link that leaves its package")
    return path


def _folders(name: str) -> list[str]:
    """Return the folders of a package, which is not imported; none where it is not installed."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # ValueError: of __main__, which has none
        return []
    return list(spec.submodule_search_locations or ()) if spec else []


def is_installed(name: str) -> bool:
    """Say whether there is a package of this name, without importing it."""
    return find_spec(name) is not None


def _read_only(uri: str) -> NoReturn:
    raise UserError(
        f"nothing can be written to {uri}: packages are read only\n  what to do: give a folder or a bucket"
    )
