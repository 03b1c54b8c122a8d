"""What an output must not answer about any more: hashes of keys, boxes and models, never a key or a vector.

An output and an index keep it alike, below ``_job/forgotten/``. Every later run reads it, which costs one
listing where nothing was forgotten.
"""

from __future__ import annotations

import hmac
import io
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress as ignored
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.storage import AlreadyExists, NotFound, redact
from cnnbatch.truth import BOX

FOLDER = "forgotten"
VERSION = 1
_SECRET = f"{FOLDER}/secret"
_ENTRY = re.compile(r"entries/([0-9a-f]{32})\.parquet$")
_UNFINISHED = re.compile(r"unfinished-([0-9a-f]{32})\.json$")
_OBJECT = re.compile(r"(.+)#\d+", re.DOTALL)  # The key of a region: its picture's key and its number there.
_LOST = "put it back as it was: without it forgotten photos would come back"
_FIELDS: list[pa.Field[Any]] = [
    pa.field("hmac", pa.string(), nullable=False),
    pa.field("box", BOX),
    pa.field("model", pa.string()),
]
_COLUMNS = pa.schema(_FIELDS)

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the upright original."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """One entry: the photo whose key has this ``hmac`` or, with a ``box``, one object that it shows.

    ``model`` is the weights' hash in the identity of the output that found the object. ``command`` is the
    name of the command that it is of, where it was read.
    """

    hmac: str
    box: Box | None = None
    model: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Forgotten:
    """All entries of one place, and the ``secret`` that its keys are hashed with, where it has any."""

    secret: bytes | None = field(default=None, repr=False)
    entries: Sequence[Suppression] = ()

    @classmethod
    def read(cls, output: Output) -> Forgotten:
        """Return what an output or an index keeps; one listing where that is nothing."""
        return _read(output, [*output.names(f"_job/{FOLDER}")])

    def of(self, command: str) -> Forgotten:
        """Return the entries of one command alone."""
        return Forgotten(self.secret, tuple(one for one in self.entries if one.command == command))

    @property
    def commands(self) -> list[str]:
        """The names of the commands that have entries here, in order."""
        return sorted({one.command for one in self.entries})

    def __bool__(self) -> bool:
        """Say whether there is any entry."""
        return bool(self.entries)

    def hmac(self, key: str) -> str:
        """Return the HMAC-SHA256 of a key, 64 hexadecimal digits."""
        assert self.secret is not None
        return key_hmac(self.secret, key)

    def is_whole(self, key: str, model: str | None = None) -> bool:
        """Say whether the photo ``key`` is forgotten as a whole.

        It is where an entry says so, of itself or of the picture that it is a region of. With ``model``, it
        also is where an object of it was found by another model, whose boxes may be others.
        """
        found = self._whole(key) or (
            (region := _OBJECT.fullmatch(key)) is not None and self._whole(region[1])
        )
        return found or (model is not None and any(one.model != model for one in self._objects(key)))

    def boxes(self, key: str, model: str) -> NDArray[np.float64]:
        """Return the boxes of a photo's forgotten objects that ``model`` found: (K, 4) as xyxy, each once."""
        boxes = {one.box for one in self._objects(key) if one.model == model}
        return np.array(sorted(box for box in boxes if box), np.float64).reshape(-1, 4)

    def names(self, key: str) -> bool:
        """Say whether any entry is about the photo ``key`` or an object of it."""
        return self.is_whole(key) or bool(self._objects(key))

    def _whole(self, key: str) -> bool:
        return bool(self.entries) and self.hmac(key) in self._wholes

    def _objects(self, key: str) -> Sequence[Suppression]:
        return self._of_photo.get(self.hmac(key), ()) if self._of_photo else ()

    @cached_property
    def _wholes(self) -> frozenset[str]:
        return frozenset(one.hmac for one in self.entries if one.box is None)

    @cached_property
    def _of_photo(self) -> dict[str, list[Suppression]]:
        found: dict[str, list[Suppression]] = {}
        for one in self.entries:
            if one.box is not None:
                found.setdefault(one.hmac, []).append(one)
        return found


def key_hmac(secret: bytes, key: str) -> str:
    """Return the HMAC-SHA256 of a key, 64 hexadecimal digits."""
    return hmac.digest(secret, key.encode("utf-8", "surrogatepass"), "sha256").hex()


def secret_of(output: Output) -> bytes:
    """Return the secret that a place's keys are hashed with, 32 random bytes; made where there is none."""
    made = {"version": VERSION, "secret": secrets.token_hex(32)}
    return bytes.fromhex((output.decided(_SECRET) or output.decide(_SECRET, made))["secret"])


def weights_of(output: Output) -> str:
    """Return the hash of the weights that found an output's objects; "" where nothing says so yet."""
    return str((output.decided("identity") or {}).get("weights") or "")


def suppress(output: Output, name: str, entries: Iterable[Suppression], index: str) -> None:
    """Suppress ``entries`` in an output or an index from now on; given again, it changes nothing.

    ``name`` is the command's, 32 hexadecimal digits. Until `finish` is called, `require_whole` refuses the
    place, and says that the command for ``index``, an address, goes on.
    """
    unfinished = {"version": VERSION, "index": index}
    output.decide(f"{FOLDER}/unfinished-{name}", unfinished)
    with ignored(AlreadyExists):
        output.storage.create(output.path("_job", FOLDER, "entries", f"{name}.parquet"), _file(entries))


def finish(output: Output, name: str) -> None:
    """Note that all that the command ``name`` suppressed is gone from this place."""
    output.storage.delete(output.path("_job", FOLDER, f"unfinished-{name}.json"))


def unfinished(output: Output) -> list[str]:
    """Return the names of the commands that have not ended in this place."""
    names = output.names(f"_job/{FOLDER}")
    return sorted(found[1] for name in names if (found := _UNFINISHED.match(name)))


def require_whole(output: Output) -> Forgotten:
    """Return what is forgotten, as `Forgotten.read`.

    Raises UserError where that is under way, or was interrupted: until then the place holds what it must not.
    """
    names = [*output.names(f"_job/{FOLDER}")]
    for name in names:
        if _UNFINISHED.match(name):
            index = (output.decided(f"{FOLDER}/{name.removesuffix('.json')}") or {}).get("index", "INDEX")
            raise UserError(
                f"{redact(output.uri)}: photos are being forgotten here, or that was interrupted\n"
                f"  what to do: let it end; if it was interrupted, `cnnbatch forget {redact(index)}` goes on "
                "with it"
            )
    return _read(output, names)


def _read(output: Output, names: Sequence[str]) -> Forgotten:
    commands = [found[1] for name in names if (found := _ENTRY.match(name))]
    if not commands:
        return Forgotten()
    kept = output.decided(_SECRET)
    if kept is None:
        uri = output.path("_job", f"{_SECRET}.json")
        raise integrity.damaged(
            uri, "it is missing, and the keys of what is forgotten are hashed with it", _LOST
        )
    entries = [entry for name in sorted(commands) for entry in _entries(output, name)]
    return Forgotten(bytes.fromhex(kept["secret"]), tuple(entries))


def _entries(output: Output, name: str) -> list[Suppression]:
    uri = output.path("_job", FOLDER, "entries", f"{name}.parquet")
    try:
        data = output.storage.read(uri)
    except NotFound:
        raise integrity.damaged(uri, "it is missing", _LOST) from None
    with integrity.reading(uri, _LOST):
        table = pq.read_table(io.BytesIO(data))
        integrity.require_columns(table.schema, _COLUMNS)
        return [
            Suppression(row["hmac"], row["box"] and tuple(row["box"].values()), row["model"], name)
            for row in table.to_pylist()
        ]


def _file(entries: Iterable[Suppression]) -> bytes:
    sides = [side.name for side in BOX]
    rows = [
        {"hmac": one.hmac, "box": one.box and dict(zip(sides, one.box, strict=True)), "model": one.model}
        for one in entries
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), sink)
    return sink.getvalue()
