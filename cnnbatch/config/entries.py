"""What a layer knows by name: this package's own entries, and those that installed packages bring.

A package brings one by an entry point of the group ``cnnbatch.plugins``, whose name says the layer and the
entry: ``metrics.count = "counting.metric:CountError"``. It is imported when it is asked for, so that no
command loads what it does not need; one that fails is named with its package, and all others work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from cnnbatch import terminal

GROUP = "cnnbatch.plugins"
"""The group of entry points by which a package brings entries, and lets data name its tasks and networks."""

Entry = TypeVar("Entry")


class Entries(Mapping[str, Entry]):
    """The entries of one ``layer`` by name: its ``own``, in their order, then those of installed packages.

    ``kind`` is the class that an entry is to be, or to be an instance of; a mapping's values are not checked.
    """

    def __init__(self, layer: str, own: Mapping[str, Entry], kind: type[Any]) -> None:
        self._layer, self._own, self._kind = layer, own, kind
        self._brought: dict[str, EntryPoint] | None = None
        self._loaded: dict[str, Entry] = {}
        self._failed: dict[str, str] = {}

    def __getitem__(self, name: str) -> Entry:
        if name in self._own:
            return self._own[name]
        if name not in self._loaded:
            if name not in self._points():
                raise KeyError(name)
            self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        for name in self._points():
            if name in self:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def names(self) -> list[str]:
        """Return all names, also those of entries that are not imported yet or can't be."""
        return [*self._own, *self._points()]

    def problem(self, name: str) -> str | None:
        """Return why an installed package's entry can't be used; None where it can, or there is none."""
        if name in self._own or name not in self._points() or name in self:
            return None
        return self._failed[name]

    def among(self, columns: Iterable[str]) -> list[str]:
        """Return which of the names are among ``columns``, in the order of the entries."""
        there = set(columns)
        return [name for name in self.names() if name in there and name in self]

    def _points(self) -> dict[str, EntryPoint]:
        """Return what packages bring by name, without importing it; the first of two counts."""
        if self._brought is None:
            self._brought = {}
            for name, point in _brought(self._layer):
                first = self._brought.get(name)
                if name in self._own or first is not None:
                    whose = "cnnbatch" if first is None else package_of(first)
                    _say_once(
                        f"{package_of(point)} brings {self._layer}.{name}, which {whose} has; it is left out"
                    )
                else:
                    self._brought[name] = point
        return self._brought

    def _load(self, name: str) -> None:
        """Import an entry; raises KeyError, once with words on the screen, where it can't be used."""
        if name in self._failed:
            raise KeyError(name)
        point = self._points()[name]
        try:
            found = point.load()
        except (Exception, SystemExit) as error:  # Whatever a package's module does when it is imported.
            self._fail(name, f"{point.value} cannot be imported: {type(error).__name__}: {error}")
        else:
            if isinstance(found, self._kind) or (isinstance(found, type) and issubclass(found, self._kind)):
                self._loaded[name] = found  # type: ignore[assignment]
                return
            self._fail(name, f"{point.value} is {found!r}, expected a {self._kind.__name__}")
        raise KeyError(name)

    def _fail(self, name: str, why: str) -> None:
        self._failed[name] = f"{package_of(self._points()[name])} brings {self._layer}.{name}, but {why}"
        _say_once(f"{self._failed[name]}; it is left out")


def as_instance(entry: Entry | type[Entry]) -> Entry:
    """Return an entry, where it is a class an instance of it, which takes no arguments."""
    return entry() if isinstance(entry, type) else entry


def package_of(point: EntryPoint) -> str:
    """Return the name of the installed package that an entry point is of."""
    return point.dist.name if point.dist is not None else "an installed package"


@cache
def points() -> tuple[EntryPoint, ...]:
    """Return all that installed packages bring."""
    return tuple(entry_points(group=GROUP))


def _brought(layer: str) -> Iterator[tuple[str, EntryPoint]]:
    for point in points():
        found, _, name = point.name.partition(".")
        if found == layer and name:
            yield name, point


@cache
def _say_once(text: str) -> None:
    """Say it, once a process."""
    terminal.say(text, err=True)
