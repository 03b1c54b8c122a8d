"""A set's source that knows where its copy lies: an output that was planned elsewhere is not misread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from cnnbatch.errors import EnvironmentFault
from cnnbatch.storage import is_local, parent, redact
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source


@dataclass(frozen=True)
class Placed:
    """The source of a copy in ``folder``.

    A job says the same wherever the copy lies, its plan does not. Images of another place would look as
    if they were gone, one by one; that is a fault of the environment, and no row's.
    """

    source: Source
    name: str
    folder: str

    @property
    def columns(self) -> pa.Schema:
        """The columns of the source itself."""
        return self.source.columns

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The truth's columns of the source itself."""
        return self.source.truth_schema

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images."""
        return self.source.refs(after)

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

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the source's truth."""
        return self.source.truth(shard)
