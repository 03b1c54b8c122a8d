"""An index that is asked while it grows: a newer state takes its place once it is ready, and nobody waits.

A thread looks for a newer state. It opens that beside the one that answers, so that for a moment the codes of
both are in memory. Where it can't be opened, the state that there was goes on to answer.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.index import calibrated as calibrations
from cnnbatch.index import manifest as manifests
from cnnbatch.index.calibrated import Calibrated, read_calibrated
from cnnbatch.index.gallery import Gallery
from cnnbatch.index.identify import Named, gallery_of
from cnnbatch.index.search import Index, open_index
from cnnbatch.storage import NotFound, Storage, join, normalize

Etags = tuple[str | None, str | None]
"""Of the manifest and of what was calibrated; None of what is not there."""


@dataclass(frozen=True)
class LiveState:
    """A state of the index, opened and searched once; ``folder`` is the gallery of a folder, if any."""

    index: Index
    calibrated: Calibrated | None
    etags: Etags
    named: Named
    folder: Gallery | None
    skip_damaged: bool

    @cached_property
    def gallery(self) -> Gallery:
        """Whom faces may be; raises UserError where nobody is known."""
        if self.folder is not None:
            return self.folder
        return gallery_of(self.index, self.named, self.skip_damaged)


class LiveIndex:
    """The index at ``uri``, in the newest state that could be opened, looked for every ``refresh_s``."""

    def __init__(
        self, uri: str, storage: Storage, named: Named, refresh_s: float, skip_damaged: bool = False
    ) -> None:
        self._uri, self._storage, self._named = normalize(uri), storage, named
        self._refresh_s, self._skip_damaged = refresh_s, skip_damaged
        self._folder = gallery_of(open_index(uri, storage), named) if named.gallery else None
        self.now = self._opened(self._etags())
        self.problem: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="refresh", daemon=True)
        self._thread.start()

    def refresh(self) -> bool:
        """Take over a newer state, if there is one that can be opened; say whether there was."""
        try:
            etags = self._etags()
            is_newer = etags != self.now.etags
            if is_newer:
                self.now = self._opened(etags)
            self.problem = None
        except (UserError, EnvironmentFault) as error:
            self.problem = str(error)
            return False
        return is_newer

    def close(self) -> None:
        """Look for no newer state any more."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._refresh_s):
            self.refresh()

    def _etags(self) -> Etags:
        return self._etag(manifests.NAME), self._etag(calibrations.NAME)

    def _etag(self, name: str) -> str | None:
        try:
            return self._storage.head(join(self._uri, name)).etag
        except NotFound:
            return None

    def _opened(self, etags: Etags) -> LiveState:
        """Return the state that the index has now; its codes are read, and it was searched once."""
        index = open_index(self._uri, self._storage)
        index.search(np.ones(index.manifest.dimensions), 1, skip_damaged=self._skip_damaged)
        calibrated = read_calibrated(index.uri, self._storage, index.manifest.space)
        return LiveState(index, calibrated, etags, self._named, self._folder, self._skip_damaged)
