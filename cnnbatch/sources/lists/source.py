"""Lists of addresses, as text, CSV or Parquet: streamed, so that any length fits in memory.

To go on behind an image a list is read again from its beginning, since nothing marks its place in the file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.images import redaction
from cnnbatch.sources.lists.backslashes import Backslashes
from cnnbatch.sources.lists.rows import ADDRESS, Form, form_of
from cnnbatch.sources.reading import readers
from cnnbatch.storage import (
    Allowed,
    Forbidden,
    NotFound,
    Storage,
    Unreadable,
    is_local,
    join,
    normalize,
    parent,
    redact,
    scheme,
)
from cnnbatch.storage.unique import unique_keys
from cnnbatch.types import Failure, ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

LABEL = "label"
"""The name of the truth's column, whatever the list calls it."""

_ENGINE = ("key", "uri", "etag", "bytes", "width", "height", "error", "vanished")
_NAMES = "uri url path file filename file_name filepath file_path image_uri image_url image_path image_file"
_ADDRESS_NAMES = [*_NAMES.split(), "image", "img", "img_path", "img_url", "src", "address", "location"]


@dataclass(frozen=True)
class ListColumns:
    """Which columns of a list are read: its own names."""

    address: str
    key: str | None = None
    label: str | None = None
    keep: tuple[str, ...] = ()

    def all(self) -> list[str]:
        """Return each name once."""
        return list(dict.fromkeys(name for name in (self.address, self.key, self.label, *self.keep) if name))


@dataclass(frozen=True)
class ListSource:
    """Images that a list names, in its order.

    An image's key is the list's key column, else its address without any signature. Relative addresses
    are relative to the list's folder.
    """

    storage: Storage
    url: str
    form: Form
    names: ListColumns
    columns: pa.Schema
    truth_schema: pa.Schema | None
    allow: tuple[Allowed, ...] = ()

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images; a key that comes twice is a `UserError` with both places."""
        behind = after is None
        any_row = False
        with unique_keys() as keys:
            for place, cells in self._rows():
                any_row = True
                ref = self._ref(place, cells)
                if pair := keys.add(ref.key, place):
                    raise self._twice(*pair)
                if behind:
                    yield ref
                elif after is not None and ref.key == after.key:
                    behind = True
            if pair := keys.duplicate():
                raise self._twice(*pair)
        if not behind and after is not None:
            raise self._lost(after)
        if not any_row and after is None:
            raise UserError(f"{redact(self.url)} holds no address\n  what to do: give one address a line")

    def read(self, shard: Shard) -> Iterator[Callable[[], bytes | Failure]]:
        """Give one reader an image; a relative path that leaves the list's folder is refused.

        So is an address beyond the reach of a list that is not the person's own.
        """
        images = self._images
        for ref, reader in zip(shard.refs, readers(images, shard, None, listed=True), strict=True):
            yield partial(_outside, ref) if ref.uri.startswith(self._outside) else reader

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the column `LABEL`, where the job names one."""
        if self.truth_schema is None:
            return None
        labels = [ref.columns[LABEL] for ref in shard.refs]
        return pa.table({LABEL: pa.array(labels, pa.string())}, schema=self.truth_schema)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with opened(self.storage, self.url) as file:
            yield from self.form.rows(file, self.names.all(), redact(self.url))

    def _ref(self, place: int, cells: dict[str, Any]) -> ImageRef:
        uri = self._address(cells[self.names.address])
        columns = {name: cells[name] for name in self.names.keep}
        if self.names.label is not None:
            label = cells[self.names.label]
            columns[LABEL] = None if label is None or label == "" else str(label)
        return ImageRef(self._key(place, cells, uri), uri, etag=self._etag(uri), columns=columns)

    def _etag(self, uri: str) -> str | None:
        """Return the etag of a local file, which costs no request; it also tells that it was there."""
        if not uri or not is_local(uri) or uri.startswith(self._outside):
            return None
        try:
            return self._images.head(uri).etag
        except (NotFound, Forbidden, Unreadable, UserError):
            return None

    @cached_property
    def _images(self) -> Storage:
        """The storage as this list may use it; it travels with the list, whose own host it knows."""
        return self.storage.for_list(self.url, self.allow)

    @cached_property
    def _backslashes(self) -> Backslashes:
        return Backslashes(self._images)

    @cached_property
    def _folder(self) -> str:
        return parent(self.url)

    @cached_property
    def _outside(self) -> str:
        return join(self._folder, "..") + "/"

    def _key(self, place: int, cells: dict[str, Any], uri: str) -> str:
        if self.names.key is None:
            return redact(uri) if uri else f"{posixpath.basename(redact(self.url))}#{place}"
        key = cells[self.names.key]
        if key is None or str(key) == "":
            raise UserError(
                f"{redact(self.url)}, {self.form.place} {place}: the key column {self.names.key!r} is empty\n"
                "  what to do: give every image a key, or leave input.key out"
            )
        return str(key)

    def _address(self, cell: Any) -> str:
        """Return the full address of a cell; one that is none stays as it is and fails when it is read."""
        text = str(cell).strip() if cell is not None else ""
        if not text or "\0" in text:
            return ""
        if scheme(text) or text.startswith(("/", "~/", "file:")):
            with suppress(UserError):
                return normalize(text)
            return text
        uri = join(self._folder, posixpath.normpath(text))
        if "\\" not in text or self._backslashes.belong_to(uri):
            return uri
        return join(self._folder, posixpath.normpath(text.replace("\\", "/")))

    def _lost(self, after: ImageRef) -> UserError:
        return UserError(
            f"{redact(self.url)} no longer holds {after.key!r}, behind which the listing goes on\n"
            "  what to do: give the list as it was, or a new output"
        )

    def _twice(self, first: int, second: int) -> UserError:
        place, cells = next(islice((row for row in self._rows() if row[0] == first), 1))
        key = self._key(place, cells, self._address(cells[self.names.address]))
        where = f"{redact(self.url)}: {self.form.place}s {first:,} and {second:,} have the same"
        if self.names.key is None:
            return UserError(
                f"{where} address {key!r}\n  what to do: remove one, or name a key column in input.key"
            )
        return UserError(f"{where} {self.names.key} {key!r}\n  what to do: give each image a key of its own")


def open_list(input: Input, storage: Storage) -> ListSource:
    """Return the source of a list; reads its header only. Raises `UserError`."""
    if not isinstance(input.url, str):
        raise UserError(
            f"input.url: one list was expected, got {len(input.url)}\n  what to do: join them into one"
        )
    url = normalize(input.url)
    form = form_of(url)
    with opened(storage, url) as file:
        schema = form.header(file, redact(url))
    names = _columns(input, schema, redact(url))
    kept = [pa.field(name, _plain(schema.field(name).type)) for name in names.keep]
    truth = pa.schema([(LABEL, pa.string())]) if names.label else None
    found = ListSource(storage, url, form, names, pa.schema([*kept, *(truth or ())]), truth, input.allow)
    found._images  # noqa: B018 - made here, where the list was just read from its host
    return found


@contextmanager
def opened(storage: Storage, url: str) -> Iterator[BinaryIO]:
    """Open a list; that it cannot be read is the user's mistake."""
    try:
        with storage.open(url) as file:
            yield file
    except (NotFound, Forbidden, Unreadable) as error:
        raise UserError(
            f"the list {redact(url)} cannot be read: {error}\n  what to do: check the address"
        ) from None


def _columns(input: Input, schema: pa.Schema, where: str) -> ListColumns:
    """Match the job's names with the list's; every mistake says which names there are."""
    for field, names in (("key", [input.key]), ("label", [input.label]), ("keep", list(input.keep))):
        for name in filter(None, names):
            _known(field, name, schema, where)
    keep = tuple(name for name in dict.fromkeys(input.keep) if not (name == input.label == LABEL))
    for name in keep:
        if name in _ENGINE or (name == LABEL and input.label is not None):
            raise UserError(
                f"input.keep: {name!r} is a column that every row has already\n"
                f"  what to do: leave it out, or rename it in {where}"
            )
    used = {input.key, input.label, *keep}
    return ListColumns(_address_column(schema, used, where), input.key, input.label, keep)


def _known(field: str, name: str, schema: pa.Schema, where: str) -> None:
    count = schema.names.count(name)
    if count == 1:
        return
    if schema.names == [ADDRESS]:
        raise UserError(
            f"input.{field}: {where} is a plain list, without columns\n  what to do: make it a CSV file"
        )
    near = nearest(name, schema.names)
    hint = f"; did you mean {near!r}?" if near and not count else ""
    found = "two columns" if count else "no column"
    raise UserError(
        f"input.{field}: {where} has {found} {name!r}{hint}\n  its columns: {redaction.columns(schema.names)}"
    )


def _address_column(schema: pa.Schema, used: set[str | None], where: str) -> str:
    """Return the column that holds the addresses: by its name, else the only one that is left."""
    texts = [field.name for field in schema if _is_text(field.type)]
    if texts == [ADDRESS]:
        return ADDRESS
    by_name = {name.lower(): name for name in texts if texts.count(name) == 1}
    for name in _ADDRESS_NAMES:
        if name in by_name:
            return by_name[name]
    left = [name for name in texts if name not in used]
    if len(left) == 1 and len(texts) > 1:
        return left[0]
    raise UserError(
        f"{where}: a column of addresses was expected, named {', '.join(_ADDRESS_NAMES[:4])} or the like; "
        f"its columns: {redaction.columns(schema.names)}\n"
        "  what to do: name it so in the first line; a list without columns is a .txt file"
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    plain = _plain(kind)
    return pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain)


def _outside(ref: ImageRef) -> Failure:
    return Failure(
        "read",
        "forbidden",
        f"{redact(ref.uri)} leaves the folder of its list; give it as an absolute address",
    )
