"""Fixtures of data sets: a server that publishes tiny ones, and a machine where none lies.

A test module takes them with ``pytest_plugins = ("tests.s3", "tests.published")``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cnnbatch.sources.datasets.layouts import Remote
from cnnbatch.sources.datasets.table import DATASETS
from tests.servers import Reply, WebServer
from tests.tiny_sets import Published


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a test an empty cache, and no folder of copies."""
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CNNBATCH_DATA", raising=False)


@pytest.fixture
def publish(web: WebServer) -> Callable[..., Published]:
    """Return a function that serves archives as those of a known set, with their own checksums."""

    def serve(name: str, archives: Mapping[str, bytes], **digests: str) -> Published:
        remotes = [
            Remote(f"{web.url()}/{file}", **(digests or {"sha256": hashlib.sha256(data).hexdigest()}))
            for file, data in archives.items()
        ]
        download = DATASETS[name].download
        assert download is not None
        entry = replace(DATASETS[name], download=replace(download, files=lambda: remotes))
        found = Published(entry, dict(archives), web)
        web.answer = lambda method, path: (
            Reply(body=found.archives[path[1:]]) if path[1:] in found.archives else Reply(404)
        )
        return found

    return serve
