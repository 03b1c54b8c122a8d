"""Where images come from: a source streams refs in a stable order and reads any shard of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from cnnbatch.errors import UserError
from cnnbatch.storage import redact

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnbatch.job import Input
    from cnnbatch.records import Failure, ImageRef, Shard
    from cnnbatch.storage import Storage

LISTS = (".txt", ".csv", ".tsv", ".parquet")
"""Suffixes that ``format: auto`` takes for a list of addresses."""


class Source(Protocol):
    """A collection of images; small and picklable, for it travels to the actors."""

    @property
    def columns(self) -> pa.Schema:
        """Types of `ImageRef.columns`: the kept columns, and ``label`` where the truth is named."""

    @property
    def truth_schema(self) -> pa.Schema | None:
        """Columns of `truth`; None where the source has no truth."""

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images in an order that is the same in every listing, beginning behind ``after``."""

    def read(self, shard: Shard) -> Iterator[Callable[[], bytes | Failure]]:
        """Give one reader an image, in order, to be called in any thread.

        A reader returns the bytes or the image's own failure; it raises `EnvironmentFault` only.
        """

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the truth of a shard, one row a ref, in order."""


def open_source(input: Input, storage: Storage) -> Source:
    """Return the source that a job's ``input`` section describes; a mistake in it is a `UserError`."""
    if input.truth is not None:
        raise UserError(
            f"input.truth: got {input.truth!r}, but files and lists take their truth from a column only\n"
            "  what to do: give a list, and name its column in input.label"
        )
    urls = (input.url,) if isinstance(input.url, str) else tuple(input.url)
    if input.format == "list" or (input.format == "auto" and len(urls) == 1 and _is_list(urls[0])):
        from cnnbatch.sources.lists import open_list

        return open_list(input, storage)
    return _open_files(urls, input, storage)


def _is_list(url: str) -> bool:
    return redact(url).split("?")[0].lower().endswith(LISTS)


def _open_files(urls: tuple[str, ...], input: Input, storage: Storage) -> Source:
    from cnnbatch.sources.files import Files

    for field in ("key", "label", "keep"):
        if getattr(input, field):
            raise UserError(
                f"input.{field} names a column, but {redact(urls[0])} is taken for images, which have none\n"
                f"  what to do: give a list ({', '.join(LISTS)}), or input.format: list"
            )
    return Files(storage, urls)
