"""File names with backslashes: on Windows they are paths, elsewhere a name may hold one of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, is_local


@dataclass
class Backslashes:
    """Decides by what is there: a file whose name has the backslashes is the one that is meant.

    Each local name is looked for; of those in a store only the first, which tells for the others, since
    each would cost a request.
    """

    storage: Storage
    _in_store: bool | None = None

    def belong_to(self, uri: str) -> bool:
        """Say whether the backslashes of an address are its own, and no slashes."""
        if is_local(uri):
            return os.path.lexists(uri)
        if self._in_store is None:
            self._in_store = self._is_there(uri)
        return self._in_store

    def _is_there(self, uri: str) -> bool:
        try:
            self.storage.head(uri)
        except (NotFound, Forbidden, Unreadable):
            return False
        return True
