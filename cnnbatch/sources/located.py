"""A set's source that knows where its copy lies: an output that was planned elsewhere is not misread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cnnbatch.errors import EnvironmentFault
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.storage import is_local, parent, redact
from cnnbatch.types import Content, Failure, Shard


@dataclass(frozen=True)
class LocatedSource(SourceWrapper):
    """The source of a copy in ``folder``.

    A job says the same wherever the copy lies, its plan does not. Images of another place would look as
    if they were gone, one by one; that is a fault of the environment, and no row's.
    """

    name: str
    folder: str

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give the source's readers.

        Raises `EnvironmentFault` for images of another place, and on a machine that lacks the folder.
        """
        if is_local(self.folder) and not os.path.isdir(self.folder):
            raise EnvironmentFault(
                f"{self.name} lies in {self.folder}, which {os.uname().nodename} does not have",
                "mount it under the same path on every machine, or name a bucket in CNNBATCH_DATA",
            )
        below = self.folder.rstrip("/") + "/"
        for ref in shard.refs:
            if not ref.uri.startswith(below):
                raise EnvironmentFault(
                    f"this output was planned with {self.name} in {redact(parent(ref.uri))}, which is now in "
                    f"{redact(self.folder)}",
                    "put the copy, or a link to it, where it was, or give a new output",
                )
        return self.source.read(shard)
