"""Folders, globs, single files and several addresses in the job; the listing is streamed.

It is the storage's, or an inventory's.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches

import pyarrow as pa

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.images.formats import SUFFIXES, suffix_of
from cnnbatch.sources.files import globs, patterns
from cnnbatch.sources.files.companions import CompanionPairs, has_jpeg
from cnnbatch.sources.files.left_out import HIDDEN, LeftOut, in_words, kind_of
from cnnbatch.sources.inventory import INVENTORY, Inventory, require_same
from cnnbatch.sources.reading import readers
from cnnbatch.storage import (
    Entry,
    Forbidden,
    NotFound,
    Storage,
    Unreadable,
    is_local,
    normalize,
    parent,
    redact,
    without_query,
)
from cnnbatch.types import Failure, ImageRef, Shard


@dataclass(frozen=True)
class Files:
    """Image files below one or several addresses, each a folder, a glob or one file.

    Keys are paths relative to the root (of a glob: the part before its first wildcard). With several
    addresses they are the images' own addresses, and an image that two of them name comes once.
    ``suffixes`` are those of images, None for all that are known; ``left_out`` counts the other files.
    """

    storage: Storage
    urls: tuple[str, ...]
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    truth_schema: pa.Schema | None = None
    inventory: Inventory | None = None
    suffixes: frozenset[str] | None = None
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images: the job's addresses in turn, each by its UTF-8 bytes or as in the inventory."""
        if after is not None:
            require_same(after.columns, self.inventory)
        listing = self.inventory or self.storage
        columns = {INVENTORY: self.inventory.mark} if self.inventory else {}
        places = [self._place(url) for url in self.urls]
        first = 0 if after is None else _place_of(after.uri, places)
        counts = self.left_out.counts = Counter[str]()
        for number in range(first, len(places)):
            place, behind = places[number], after.uri if after and number == first else None
            for entry in place.entries(listing, behind, counts):
                self.left_out.counts = counts  # Not those of another listing of this source meanwhile.
                if not any(earlier.takes(entry.uri) for earlier in places[:number]):
                    key = redact(entry.uri) if len(places) > 1 else place.key(entry.uri)
                    yield ImageRef(key, entry.uri, etag=entry.etag, columns=columns)

    def read(self, shard: Shard) -> Iterator[Callable[[], bytes | Failure]]:
        """Give one reader an image."""
        root = None
        if len(self.urls) == 1 and shard.refs and is_local(shard.refs[0].uri):
            root = shard.refs[0].uri.removesuffix(shard.refs[0].key)
        return readers(self.storage, shard, root)

    def truth(self, shard: Shard) -> None:
        """Return nothing: files alone have no truth."""

    def _place(self, url: str) -> Folder | Single:
        address = normalize(url)
        if address.startswith(("http://", "https://")):
            return Single(address, len(self.urls) == 1)
        root, pattern = patterns.split(address, None if self.inventory else self.storage)
        if pattern is not None:
            return Folder(root, pattern, self.suffixes)
        if is_local(address) and os.path.lexists(address):
            is_folder = os.path.isdir(address)
            return Folder(address, None, self.suffixes) if is_folder else Single(address, len(self.urls) == 1)
        if suffix_of(address) in (self.suffixes or SUFFIXES) or is_local(address) or self._is_object(address):
            return Single(address, len(self.urls) == 1)
        return Folder(address, None, self.suffixes)

    def _is_object(self, address: str) -> bool:
        try:
            self.storage.head(address)
        except (NotFound, Unreadable, Forbidden):  # a store may forbid to ask for what is not there
            return False
        return True


@dataclass(frozen=True)
class Folder:
    """The images below ``root``; with ``pattern``, those whose path below the root it matches.

    ``suffixes`` are those of images, None for all that are known.
    """

    root: str
    pattern: str | None = None
    suffixes: frozenset[str] | None = None

    def entries(
        self, storage: Storage | Inventory, after: str | None, counts: Counter[str]
    ) -> Iterator[Entry]:
        """Stream the images, and count other files; a folder without any image is a `UserError`."""
        found = after is not None
        before = Counter(counts)
        try:
            for entry in self._images(storage, after, counts):
                found = True
                yield entry
        except NotFound:
            raise _absent(self.root) from None
        except Unreadable as error:
            raise _unreadable(error) from None
        except Forbidden as error:
            raise EnvironmentFault(
                f"the input may not be listed: {error}", "give the right to list it"
            ) from None
        if not found:
            raise self._without_images(counts - before)

    def _images(
        self, storage: Storage | Inventory, after: str | None, counts: Counter[str]
    ) -> Iterator[Entry]:
        # Whoever names suffixes gets them all; and an inventory has no order in which to find pairs.
        named = self.suffixes is not None or (self.pattern is not None and globs.names_suffix(self.pattern))

        def asked(stem: str) -> bool:
            return has_jpeg(storage.list(self.root, f"{stem}."), stem, self.takes)

        pairs = CompanionPairs(counts, asked, after, finds=not named and not isinstance(storage, Inventory))
        for entry in storage.list(self.root, after):
            if self.takes(entry.uri):
                yield from pairs.take(entry, "")
            elif reason := self._reason(entry.uri):
                yield from pairs.take(entry, reason)
        yield from pairs.end()

    def _reason(self, uri: str) -> str:
        """Return how a file that is no image is counted; not at all where the pattern does not match it."""
        path = self._path(uri)
        if not path or path.endswith("/"):
            return ""
        if self._is_hidden(path):
            return HIDDEN
        matches = self.pattern is None or globs.compiled(self.pattern).fullmatch(path) is not None
        return kind_of(path) if matches else ""

    def _path(self, uri: str) -> str:
        prefix = self.root.rstrip("/") + "/" if not self.root.endswith("://") else self.root
        return uri.removeprefix(prefix) if uri.startswith(prefix) else ""

    def _is_hidden(self, path: str) -> bool:
        hidden = "/." in path or path.startswith(".")
        asked = self.pattern is not None and ("/." in self.pattern or self.pattern.startswith("."))
        return hidden and not asked

    def takes(self, uri: str) -> bool:
        """Say whether ``uri`` is one of the images, by its text alone."""
        path, pattern = self._path(uri), self.pattern
        if not path or self._is_hidden(path):
            return False
        if pattern is not None and not globs.compiled(pattern).fullmatch(path):
            return False
        known = suffix_of(path) in (self.suffixes or SUFFIXES)
        return known or (pattern is not None and globs.names_suffix(pattern))

    def key(self, uri: str) -> str:
        """Return the path below the root."""
        return uri[len(self.root) :].lstrip("/")

    def _without_images(self, others: Counter[str]) -> UserError:
        wanted = f"files that match {self.pattern}" if self.pattern else "images"
        return UserError(
            f"input.url: expected {wanted} below {redact(self.root)}, found {in_words(others) or 'no file'}\n"
            "  what to do: give another folder, a pattern that names the suffix, input.suffixes, or a list of"
            f" addresses; images are {' '.join(sorted(self.suffixes or SUFFIXES))}"
        )


@dataclass(frozen=True)
class Single:
    """One file; ``required``: all that the job names, so its absence is the user's mistake and no row."""

    uri: str
    required: bool

    def entries(
        self, storage: Storage | Inventory, after: str | None, counts: Counter[str]
    ) -> Iterator[Entry]:
        """Yield the file, once; nothing is left out of one."""
        if after is not None:
            return
        entry = Entry(self.uri, 0, None)
        if self.required or is_local(self.uri):
            try:
                entry = storage.head(self.uri)
            except NotFound:
                if self.required:
                    raise _absent(self.uri) from None
            except Unreadable as error:
                if self.required:
                    raise _unreadable(error) from None
            except Forbidden:
                pass  # reading it will say so in its row
        yield entry

    def takes(self, uri: str) -> bool:
        """Say whether ``uri`` is the file."""
        return uri == self.uri

    def key(self, uri: str) -> str:
        """Return the file's name."""
        return posixpath.basename(without_query(redact(uri)).rstrip("/")) or redact(uri)


def _place_of(uri: str, places: list[Folder | Single]) -> int:
    for number, place in enumerate(places):
        if place.takes(uri):
            return number
    raise UserError(
        f"input.url no longer names {redact(uri)}, after which the listing goes on\n"
        "  what to do: give the input it began with, or a new output"
    )


def _unreadable(error: Unreadable) -> UserError:
    return UserError(f"input.url: {error}\n  what to do: check the address")


def _absent(uri: str) -> UserError:
    near: list[str] = []
    if is_local(uri) and os.path.isdir(parent(uri)):
        near = get_close_matches(posixpath.basename(uri), os.listdir(parent(uri)), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(
        f"input.url: there is no file or folder {redact(uri)}{hint}\n  what to do: check the address"
    )
