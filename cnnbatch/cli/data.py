"""``cnnbatch data list`` and ``cnnbatch data fetch``; what they need is imported when they are called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cnnbatch.cli.command import leave_with
from cnnbatch.errors import UserError
from cnnbatch.terminal import say

if TYPE_CHECKING:
    from cnnbatch.sources.datasets import Copy
    from cnnbatch.sources.datasets.layouts import DataSet

PATIENCE_S = 600.0  # for one request: slow lines are common where sets are published

app = typer.Typer(no_args_is_help=True, help="Data sets by name, as in input=dataset:cifar10.")


@app.command("list")
def list_sets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the sets that a job may name, and where their copies lie."""
    leave_with(lambda: _show_all(as_json))


@app.command("fetch", no_args_is_help=True)
def fetch_set(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a set.")],
    yes: Annotated[bool, typer.Option("--yes", help="Fetch without asking.")] = False,
) -> None:
    """Fetch a set into the cache (CNNBATCH_CACHE moves it), after saying its size and licence."""
    stopped = f"Stopped. What has come is kept; the same command continues: cnnbatch data fetch {name}"
    leave_with(lambda: _fetch_one(name, yes), stopped)


def _show_all(as_json: bool) -> int:
    from cnnbatch.sources.datasets import find
    from cnnbatch.sources.datasets.table import DATASETS
    from cnnbatch.storage import Storage

    storage = Storage()
    found = [(entry, find(entry, storage)) for entry in DATASETS.values()]
    if as_json:
        say(json.dumps([_facts(*one) for one in found], indent=2))
    else:
        _show_table(found)
    return 0


def _facts(entry: DataSet, copy: Copy | None) -> dict[str, object]:
    from cnnbatch.storage import redact

    return {
        "name": entry.name,
        "title": entry.title,
        "images": entry.images,
        "download_bytes": entry.download.size_bytes if entry.download else None,
        "licence": entry.licence,
        "homepage": entry.homepage,
        "splits": entry.splits,
        "default_split": entry.default,
        "where": redact(copy.folder) if copy else None,
    }


def _show_table(found: list[tuple[DataSet, Copy | None]]) -> None:
    from cnnbatch.storage import redact
    from cnnbatch.terminal.console import columns, plain_console

    words = ("Parts", "Licence", "Where")
    table = columns("Name", "Images", "Download", *words, left=words)
    for entry, copy in found:
        size = _size(entry.download.size_bytes) if entry.download else "none"
        where = redact(copy.folder) if copy else "not here"
        parts = ", ".join(f"{name} (unless said)" if name == entry.default else name for name in entry.splits)
        table.add_row(entry.name, f"{entry.images:,}", size, parts, entry.licence, where)
    plain_console().print(table)


def _fetch_one(name: str, yes: bool) -> int:
    from cnnbatch.sources.datasets import absent, find, named
    from cnnbatch.sources.datasets.fetching import fetch
    from cnnbatch.storage import Storage, StorageOptions, redact

    entry, storage = named(name), Storage(StorageOptions(timeout_s=PATIENCE_S))
    if copy := find(entry, storage):
        say(f"{name} is here: {redact(copy.folder)}")
        return 0
    if entry.download is None:
        raise absent(entry, storage)
    if not yes and not _agreed(entry):
        say("Nothing was fetched.")
        return 0
    with _progress(entry.download.size_bytes) as advance:
        folder = fetch(entry, storage, advance)
    say(f"{name} is here: {folder}")
    return 0


def _agreed(entry: DataSet) -> bool:
    """Say what would be fetched, and ask; without a terminal nobody can be asked."""
    from cnnbatch.sources.datasets import cached

    assert entry.download is not None
    about = (
        f"{entry.title}\n"
        f"  {entry.images:,} images, {_size(entry.download.size_bytes)} to download\n"
        f"  licence: {entry.licence} ({entry.homepage})\n"
        f"  goes to: {cached(entry)}"
    )
    if not sys.stdin.isatty():
        raise UserError(f"{about}\n  what to do: agree to it by --yes")
    say(about)
    return typer.confirm("Fetch it?")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Give what is called with each number of bytes that came; it shows on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    shown = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda more: progress.advance(task, more)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
