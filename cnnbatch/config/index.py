"""The sections of a job of kind ``index``: which outputs, and how they are searched."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cnnbatch.config.section import Count, Place, Section, Share, Text, Texts
from cnnbatch.storage import StorageOptions


class IndexInput(Place):
    """Whose embeddings are indexed."""

    url: Text | Annotated[Texts, Field(min_length=1)] = Field(
        description="An output with embeddings, or several of one network: of the jobs faces and embed, or "
        "of any with task.embedding=true."
    )
    storage: StorageOptions = Field(
        StorageOptions(), description="Options of the storage, none of them secret."
    )

    @property
    def urls(self) -> tuple[str, ...]:
        """The outputs."""
        return (self.url,) if isinstance(self.url, str) else self.url


class IndexSection(Section):
    """How the index is made; of one that exists only ``recall``, ``match`` and ``people`` may change."""

    keep: Texts | None = Field(
        None, description="Columns of the outputs that each row keeps; else those that the first one kept."
    )
    recall: Share = Field(
        0.98,
        description="The share of the 10 nearest that approximate search has to find, or the build fails.",
    )
    match: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None, description="The cosine from which two are one person: the recall of these is measured, too."
    )
    people: Text | None = Field(
        None,
        description="Who is in the pictures: a kept column, or folder. How well they are told apart is then "
        "measured, as EER and TAR@FAR.",
    )
    exact_below: Count = Field(
        20_000, description="Up to how many rows a search compares all vectors, without a codebook."
    )
    lists: Annotated[int, Field(ge=0, le=65_536)] = Field(
        0,
        description="Inverted lists, of which a search scans as many as the recall takes; 0: none, every "
        "search scans all codes. They may pay beyond ten million rows.",
    )
    segment_rows: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        8192, description="Rows of one segment, at most."
    )
