"""The ``output:`` and ``evaluate:`` sections of a job: where the rows go, and how they are judged."""

from __future__ import annotations

from pydantic import Field

from cnnbatch.config.section import Place, Section, Text, Texts
from cnnbatch.storage import StorageOptions


class OutputSection(Place):
    """Where the rows go."""

    url: Text = Field(description="A folder or a bucket's prefix.")
    storage: StorageOptions = Field(
        StorageOptions(), description="Options of the storage, none of them secret."
    )


class Evaluate(Section):
    """How to judge the predictions, where the input has a truth; none of it can change a row."""

    slices: Texts = Field((), description="Kept columns, by whose values every number is given, too.")
