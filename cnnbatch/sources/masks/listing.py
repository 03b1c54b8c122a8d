"""The masks of pictures, found while the pictures are listed: both listings pass side by side.

Both come in the order of their paths, so a mask is met about when its picture is, and neither listing is
held. Only names that begin alike may come in another order, as ``a1_mask.png`` does behind
``a10_mask.png``; they are kept until their turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.images.formats import SUFFIXES, suffix_of
from cnnbatch.sources.files.left_out import count
from cnnbatch.sources.masks.places import MaskPlaces
from cnnbatch.storage import Entry, Forbidden, NotFound, Storage, Unreadable, join, redact

WITHOUT_PICTURE = "masks of no picture"

_LEAST_HELD = 64  # before it is looked which of them can still be asked for


class MaskListing:
    """The masks of one ``folder`` of some places, asked for in the order of the pictures from ``first`` on.

    Those that no picture asks for are counted in ``counts``.
    """

    def __init__(
        self, storage: Storage, places: MaskPlaces, folder: str, first: str | None, counts: Counter[str]
    ) -> None:
        self._places, self._counts = places, counts
        self._root = join(places.root, folder) if folder else places.root
        after = None if first is None else join(self._root, places.first(first))
        self._paths = self._listed(_entries(storage, self._root, after, required=not places.beside))
        self.first = self._next = next(self._paths, None)
        """The path of the first mask that was listed, for messages; None where there is none."""
        self._held: dict[str, list[str]] = {}
        self._asked = set[str]()
        self._most = _LEAST_HELD

    def of(self, name: str) -> list[str]:
        """Return the paths, below the folder, of the masks of a picture."""
        behind = _order(self._places.behind(name))
        while self._next is not None and _order(self._next) < behind:
            self._held.setdefault(self._places.name_of(self._next) or "", []).append(self._next)
            self._next = next(self._paths, None)
        if len(self._held) > self._most:
            self._drop_before(name)
            self._most = max(_LEAST_HELD, 2 * len(self._held))
        found = self._held.get(name, [])
        self._asked.update([name] if found else [])
        return found

    def close(self) -> None:
        """Count what is left."""
        for name in list(self._held):
            self._drop(name)
        for _ in chain([] if self._next is None else [self._next], self._paths):
            count(self._counts, WITHOUT_PICTURE)

    def _drop_before(self, name: str) -> None:
        """Drop what no picture behind the one of a ``name`` asks for."""
        now = _order(f"{name}.")
        for other in list(self._held):
            if _order(f"{other}.") < now and not name.startswith(f"{other}."):
                self._drop(other)

    def _drop(self, name: str) -> None:
        paths = self._held.pop(name)
        if name in self._asked:
            self._asked.remove(name)
            return
        for _ in paths:
            count(self._counts, WITHOUT_PICTURE)

    def _listed(self, entries: Iterator[Entry]) -> Iterator[str]:
        """Yield the paths of masks, but for hidden ones."""
        for entry in entries:
            path = entry.uri[len(self._root) :].lstrip("/")
            hidden = path.startswith(".") or "/." in path
            if not hidden and suffix_of(path) in SUFFIXES and self._places.name_of(path) is not None:
                yield path


def _entries(storage: Storage, folder: str, after: str | None, required: bool) -> Iterator[Entry]:
    try:
        yield from storage.list(folder, after)
    except NotFound:
        if not required:
            return
        raise UserError(
            f"input.truth: there is no folder of masks {redact(folder)}\n"
            "  what to do: give the folder that has a PNG file for each picture, called as it"
        ) from None
    except Unreadable as error:
        raise UserError(f"input.truth: {error}\n  what to do: check the address") from None
    except Forbidden as error:
        raise EnvironmentFault(
            f"the masks may not be listed: {error}", "give the right to list them"
        ) from None


def _order(path: str) -> bytes:
    """Return what listings are ordered by."""
    return path.encode("utf-8", "surrogateescape")
