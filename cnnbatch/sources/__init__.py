"""Where images come from: a source streams refs in a stable order and reads any shard of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnbatch.job import Input
    from cnnbatch.records import Content, Failure, ImageRef, Shard
    from cnnbatch.storage import Storage


class Source(Protocol):
    """A collection of images; small and picklable, for it travels to the actors."""

    @property
    def columns(self) -> pa.Schema:
        """Types of `ImageRef.columns`: the kept columns, and the truth where the listing knows it."""

    @property
    def truth_schema(self) -> pa.Schema | None:
        """Columns of `truth`, its classes in the metadata where they are known; None: no truth."""

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images in an order that is the same in every listing, beginning behind ``after``."""

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image, in order, to be called in any thread.

        A reader returns the image, as a whole file's bytes or as a picture that decodes itself, or
        the image's own failure; it raises `EnvironmentFault` only.
        """

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the truth of a shard, one row a ref, in order."""


def open_source(input: Input, storage: Storage) -> Source:
    """Return the source that a job's ``input`` section describes; a mistake in it is a `UserError`."""
    from cnnbatch.sources.formats import open_format

    return open_format(input, storage)
