"""The sections of the kinds of job ``search``, ``identify``, ``verify`` and ``group``, which ask an index."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cnnbatch.config.section import Place, Section, Text
from cnnbatch.storage import StorageOptions

Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class IndexPlace(Place):
    """Which index is meant."""

    url: Text = Field(
        description="The folder or the bucket's prefix of an index, as cnnbatch run index made it."
    )
    storage: StorageOptions = Field(
        StorageOptions(), description="Options of the storage, none of them secret."
    )


class _Searching(Section):
    """What searches have in common."""

    where: Text | None = Field(
        None, description="Only rows of the index that fulfil a condition on kept columns are searched."
    )
    rate: Rate = Field(
        1e-2, description="The share of strangers who may be taken for somebody; it has to be calibrated."
    )
    prior: Probability = Field(0.5, description="How probable a best match is before it is seen.")
    itself: bool = Field(
        False, description="Whether a row of the index that is the picture itself is a match of it."
    )


class SearchSection(_Searching):
    """How a collection is searched for."""

    k: Annotated[int, Field(ge=1, le=1_000)] = Field(10, description="How many matches each embedding gets.")


class IdentifySection(_Searching):
    """How the faces of a collection are named."""

    gallery: Text | None = Field(
        None,
        description="Photos of the people who may be there, in a folder a person, or an output that has "
        "their embeddings; else the names of the index.",
    )
    people: Text | None = Field(
        None,
        description="Whose names count: persons, those of cnnbatch persons; a column of the index; folder, "
        "that of each picture. Else persons where one has a name, index.people of the build, or folder.",
    )
    matches: Annotated[int, Field(ge=1, le=100)] = Field(
        5, description="How many people are ranked for each face."
    )
    truth: Text | None = Field(
        None,
        description="Who truly is in each picture: a column of the input, or folder; it judges the names.",
    )


class VerifySection(Section):
    """Which pairs of a collection are compared, and how they are decided about."""

    pairs: Text = Field(description="A CSV file with the columns a and b, and same where it is known.")
    rate: Rate = Field(1e-3, description="The false accept rate that is decided at; it has to be calibrated.")
    prior: Probability = Field(0.5, description="The share of pairs that are of one person.")
    face: Literal["largest", "centre", "score"] = Field(
        "largest", description="Which of several faces of a picture counts."
    )


class GroupSection(Section):
    """How the faces of an index are grouped into persons."""

    similarity: Cosine | None = Field(
        None,
        description="The mean cosine with a person's faces from which a face is of that person; else as "
        "before, or as calibrated at a false accept rate of 1e-4.",
    )
    unsure: Cosine | None = Field(
        None,
        description="The cosine from which a face that joins nobody is unsure; else as before, or at 1e-3.",
    )
    anew: bool = Field(
        False, description="Group all faces again, and not only those that are not of a person yet."
    )
    evaluate: Text | None = Field(
        None,
        description="Change nothing, and say how well the people are found whom this column of the index "
        "names (folder: of their pictures), at this and other similarities.",
    )
