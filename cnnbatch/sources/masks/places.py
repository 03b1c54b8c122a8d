"""Where the masks of a picture lie, told by its name, which is its path without the suffix."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from functools import cached_property

from cnnbatch.errors import UserError
from cnnbatch.storage import parent, redact

NAME = "{name}"
"""What stands for a picture's name in ``input.truth``."""

ANNOT = "annot"
"""What SegNet's tutorial adds to the name of a folder of pictures to call that of their masks."""

ANY_SUFFIX = ".*"

_BEFORE_SUFFIX = re.compile("[\0-.]")  # Characters that come no later than the dot of a suffix.


@dataclass(frozen=True)
class MaskPlaces:
    """Masks are called ``before``, the picture's name, ``after``, below the folder ``root``.

    ``*`` in ``after`` stands for anything without ``/``, and without ``_`` unless a folder has the picture's
    name: there may be pictures ``a`` and ``a_1``. ``beside``: each folder of pictures, ``train``, has its own
    folder of masks, ``trainannot``, and what is said above is so in that one.
    """

    root: str
    before: str = ""
    after: str = ANY_SUFFIX
    beside: bool = False

    def folder(self, key: str) -> str:
        """Return the folder below the root in which a picture's masks are looked for."""
        return key.partition("/")[0] + ANNOT if self.beside else ""

    def name(self, key: str) -> str:
        """Return the name of a picture in that folder."""
        return stem_of(key.partition("/")[2] if self.beside else key)

    def name_of(self, path: str) -> str | None:
        """Return the name of the picture that a file of that folder is a mask of; None where it is none."""
        found = self._pattern.fullmatch(path)
        return None if found is None else found[1]

    def first(self, name: str) -> str:
        """Return what no mask of this picture, or of one behind it, comes before."""
        folder, last = posixpath.split(name)
        return self.before + posixpath.join(folder, _BEFORE_SUFFIX.split(last)[0])

    def behind(self, name: str) -> str:
        """Return what comes behind all masks of a picture."""
        return f"{self.before}{name}{chr(ord(self.after[0]) + 1)}"

    def holds(self, uri: str, key: str) -> bool:
        """Say whether a file among the pictures is a mask by its place: below a folder of masks."""
        if self.beside:
            return key.partition("/")[0].endswith(ANNOT)
        inside = len(self.root) >= len(uri) - len(key)  # The masks' folder is one of the pictures' folders.
        return inside and uri.startswith(f"{self.root}/")

    @property
    def several(self) -> bool:
        """Whether a picture may have several masks."""
        return self.after != ANY_SUFFIX and "*" in self.after

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        anything = "[^/]*" if self.after.startswith("/") else "[^/_]*"
        parts = map(re.escape, self.after.split("*"))
        after = r"\.[^./]+" if self.after == ANY_SUFFIX else anything.join(parts)
        return re.compile(f"{re.escape(self.before)}(.+){after}", re.DOTALL)


def places_of(truth: str) -> MaskPlaces:
    """Return where masks lie by ``input.truth``: the address of a folder, or a pattern with ``{name}`` in it.

    Raises UserError for a pattern that does not tell what masks are called.
    """
    if NAME not in truth:
        return MaskPlaces(truth)
    folder = parent(f"{truth.partition(NAME)[0]}x")
    before, _, after = truth[len(folder) :].lstrip("/").partition(NAME)
    if NAME in after or "*" in truth.partition(NAME)[0] or "." not in posixpath.basename(after):
        raise UserError(
            f"input.truth: expected what the mask of a picture is called, with {NAME} once and a suffix, got "
            f"{redact(truth)}\n  what to do: give it as in masks/{NAME}_mask.png or masks/{NAME}/*.png"
        )
    return MaskPlaces(folder, before, after)


def stem_of(path: str) -> str:
    """Return a path without the suffix of its last part."""
    return posixpath.splitext(path)[0]
