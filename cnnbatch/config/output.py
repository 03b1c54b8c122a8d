"""The ``output:`` and ``evaluate:`` sections of a job: where the rows go, and how they are judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cnnbatch.config.section import Place, Section, Text, Texts
from cnnbatch.storage import StorageOptions

Which = Literal["centre", "largest", "score", "all"]
"""Of several faces of a picture: the one nearest to its centre, the one with the largest box, the one with
the best score, or all of them."""


class OutputSection(Place):
    """Where the rows go."""

    url: Text = Field(description="A folder or a bucket's prefix.")
    storage: StorageOptions = Field(
        StorageOptions(), description="Options of the storage, none of them secret."
    )


class Evaluate(Section):
    """How to judge the predictions, where there is a truth; none of it can change a row."""

    slices: Texts = Field(
        (),
        description="Kept columns, by whose values every number is given, too; of faces also columns of the "
        "list that they are judged by, and pose.",
    )
    truth: Text | None = Field(
        None,
        description="Of faces: a list of pairs (a, b, same) or people (file, person), CSV, that judges them.",
    )
    face: Which = Field("centre", description="Of a list of faces: which face of a picture counts.")
    absent: Annotated[int, Field(ge=0)] = Field(
        10, description="Of a list of people: how many are absent from the gallery of an open set."
    )
    draws: Annotated[int, Field(ge=1, le=1000)] = Field(20, description="How often others are absent.")
