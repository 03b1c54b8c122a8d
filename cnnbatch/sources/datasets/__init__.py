"""Data sets by name: ``input=dataset:NAME`` is read from the copy that lies here, whatever its layout.

Nothing else knows of them: where a source is opened, its input becomes one that names files. So a job, and
what may change its rows, say the same wherever the copy lies. Only ``cnnbatch data fetch`` downloads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.sources.datasets.layouts import DataSet, DataSetLayout, SplitReading
from cnnbatch.sources.datasets.table import DATASETS
from cnnbatch.sources.files import globs
from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, join, normalize, redact
from cnnbatch.storage.cache import cache_folder

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

PREFIX = "dataset:"
"""How an address begins that names a set."""

ENVIRONMENT = "CNNBATCH_DATA"
"""The variable that names a folder, or a bucket, of copies."""

_PEEKED = 200  # names of a folder among which a mark with a wildcard is looked for


@dataclass(frozen=True)
class Copy:
    """A set as it lies here: ``folder`` is an address, ``layout`` how its files lie there."""

    entry: DataSet
    folder: str
    layout: DataSetLayout

    def reading(self, split: str | Sequence[str] | None) -> SplitReading:
        """Return how a part is read, or several of a format that reads several; None is the set's own choice.

        Raises `UserError` for no such part, and for several that don't lie together.
        """
        if split is not None and not isinstance(split, str):
            readings = [self.reading(one) for one in split]
            if len({replace(one, split=None) for one in readings}) == 1 and readings[0].split:
                return replace(readings[0], split=tuple(split))
            raise UserError(
                f"input.split: the parts of {PREFIX}{self.entry.name} in {redact(self.folder)} lie apart, "
                f"got {' and '.join(split)}\n  what to do: run a job for each"
            )
        if split in self.layout.readings:
            return self.layout.readings[split]
        names = self.layout.splits
        near = nearest(split or "", names)
        parts = f"has the parts {', '.join(names)}" if names else "is not divided"
        raise UserError(
            f"input.split: {PREFIX}{self.entry.name} in {redact(self.folder)} {parts}, got {split!r}"
            f"{f'; did you mean {near}?' if near else ''}\n"
            "  what to do: give one of them, or leave it out"
        )


def named(name: str, sets: Mapping[str, DataSet] = DATASETS) -> DataSet:
    """Return the set of a name. Raises `UserError` that has the nearest one and all of them."""
    if name in sets:
        return sets[name]
    near = nearest(name, sets)
    raise UserError(
        f"there is no data set {name!r}{f'; did you mean {near}?' if near else ''}\n"
        f"  known names: {', '.join(sorted(sets))}"
    )


@dataclass(frozen=True)
class Located:
    """An input that names the files of a set, all of them below ``folder``."""

    input: Input
    name: str
    folder: str


def resolve(input: Input, storage: Storage, sets: Mapping[str, DataSet] = DATASETS) -> Located | None:
    """Return ``input`` with the files of the set in the place of its name; None where it names no set.

    What the job says of format, key, label and truth counts more than what the set says: with another
    format, or a truth of its own, the set only says where its images are.

    Raises:
        UserError: there is no such set or part, or no copy of it here.
    """
    urls = [input.url] if isinstance(input.url, str) else list(input.url)
    if not any(url.startswith(PREFIX) for url in urls):
        return None
    if len(urls) > 1:
        raise UserError(
            f"input.url: a data set is a whole input, got {len(urls)} addresses\n"
            "  what to do: run a job for each"
        )
    name, mark, part = urls[0].removeprefix(PREFIX).partition("#")
    entry = named(name, sets)
    copy = find(entry, storage)
    if copy is None:
        raise absent(entry, storage)
    return Located(_as_files(input, copy, mark + part), f"{PREFIX}{name}", copy.folder)


def find(entry: DataSet, storage: Storage) -> Copy | None:
    """Return the first copy of a set that lies here: in ``CNNBATCH_DATA``, then in the cache."""
    for place in places(entry):
        for layout in entry.layouts:
            if is_laid_out(layout, place, storage):
                return Copy(entry, place, layout)
    return None


def places(entry: DataSet) -> list[str]:
    """Return the addresses where a set may lie, in the order in which they are looked at."""
    root = os.environ.get(ENVIRONMENT)
    names = dict.fromkeys([entry.name, *entry.folders]) if root else ()
    return [*(join(normalize(root or ""), name) for name in names), str(cached(entry))]


def cached(entry: DataSet) -> Path:
    """Return the folder that fetching fills, beside that of weights; ``CNNBATCH_CACHE`` moves it."""
    return cache_folder("data").absolute() / entry.name


def is_laid_out(layout: DataSetLayout, folder: str, storage: Storage) -> bool:
    """Say whether a folder has all marks of a layout."""
    return all(_has(folder, mark, storage) for mark in layout.marks)


def absent(entry: DataSet, storage: Storage) -> UserError:
    """Return the error for a set that lies nowhere: where it was looked for, and the ways on."""
    lines = [f"input.url: the data set {entry.name} ({entry.title}) is not here"]
    lines += [f"  looked at: {redact(place)}, {_found(place, storage)}" for place in places(entry)]
    if not os.environ.get(ENVIRONMENT):
        lines.append(f"  {ENVIRONMENT} is not set")
    lines += [f"  {head} {text}" for head, text in zip(("what to do:", "or:"), _ways(entry), strict=False)]
    return UserError("\n".join(lines))


def _ways(entry: DataSet) -> Iterator[str]:
    """Yield what can be done about a set that is not here."""
    if entry.download is not None:
        size = f"{entry.download.size_bytes / 1e6:,.0f} MB"
        yield f"cnnbatch data fetch {entry.name}   ({size}; licence: {entry.licence})"
    names = " or ".join(dict.fromkeys([*entry.folders, entry.name]))
    source = "" if entry.download else f"; it comes from {entry.homepage}"
    layouts = "\n      or ".join(layout.words for layout in entry.layouts)
    yield f"set {ENVIRONMENT}=DIR, where DIR has a folder {names} with\n         {layouts}{source}"


def _as_files(input: Input, copy: Copy, suffix: str) -> Input:
    reading = copy.reading(input.split)
    url = join(copy.folder, reading.url) if reading.url else copy.folder
    changes: dict[str, Any] = {"url": url + suffix, "split": reading.split}
    if input.truth is None and input.format in ("auto", reading.format, *reading.others):
        patches = suffix.startswith("#patches")
        truth = reading.masks if patches else reading.truth
        changes["truth"] = join(copy.folder, truth) if truth else None
        if not patches:
            format = reading.format if input.format == "auto" else input.format
            changes |= {"format": format, "key": input.key or reading.key}
            changes["label"] = input.label or reading.label
            changes["ignore"] = input.ignore or reading.ignore
    return input.model_copy(update=changes)


def _has(folder: str, mark: str, storage: Storage) -> bool:
    """Say whether a folder has a file or a folder of this path."""
    if "*" in mark:
        names = (entry.uri[len(folder) :].lstrip("/") for entry in islice(_files(folder, storage), _PEEKED))
        return any(globs.compiled(mark).fullmatch(name) for name in names)
    uri = join(folder, mark)
    try:
        storage.head(uri)
    except (NotFound, Unreadable):  # it may be a folder, which no storage has a head for
        return next(_files(uri, storage), None) is not None
    except Forbidden:
        return False
    return True


def _files(folder: str, storage: Storage) -> Iterator[Any]:
    """Yield the files below a folder; none of one that is not there."""
    try:
        yield from storage.list(folder)
    except (NotFound, Forbidden, Unreadable):
        return


def _found(place: str, storage: Storage) -> str:
    empty = next(_files(place, storage), None) is None
    return "where there is nothing" if empty else "which holds something else than is described below"
