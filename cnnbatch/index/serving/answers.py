"""The answers in JSON; their fields and sentences are also what the OpenAPI page says of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class Box(_Answer):
    """A box in pixels of the upright picture."""

    x1: float
    y1: float
    x2: float
    y2: float


class PhotoError(_Answer):
    """Why a photo could not be read, decoded or embedded."""

    stage: str
    code: str
    message: str


class IndexState(_Answer):
    """The state of the index that answered."""

    state: Annotated[int, Field(description="Greater by one after each change.")]
    embeddings: int


class Decision(_Answer):
    """What similarities were compared with."""

    rate: Annotated[float, Field(description="The share of strangers who may be taken for somebody.")]
    threshold: Annotated[float | None, Field(description="The least similarity that is accepted.")]
    prior: Annotated[float, Field(description="How probable a match is before its similarity is known.")]
    reason: Annotated[str | None, Field(description="Why there is no threshold.")]


class Match(_Answer):
    """A face, or a picture, of the index."""

    rank: int
    id: Annotated[str, Field(description="KEY, or KEY#i for the i-th face of a picture.")]
    key: str
    output: Annotated[str, Field(description="The address of the output that it comes from.")]
    box: Annotated[Box | None, Field(description="Null of whole pictures.")]
    kept: Annotated[dict[str, Any], Field(description="The columns that the index keeps.")]
    similarity: Annotated[float, Field(description="The cosine.")]
    probability: Annotated[
        float | None, Field(description="Of one person; null where nothing is calibrated.")
    ]
    same: Annotated[bool | None, Field(description="Whether it is accepted; null where nothing decides.")]
    picture: Annotated[str, Field(description="Where its crop is, below this server.")]


class Query(_Answer):
    """What was searched for, and what was found, the most similar first."""

    box: Annotated[Box | None, Field(description="The face in the photo; null of whole pictures.")]
    matches: list[Match]


class _Photo(_Answer):
    name: str
    width: int | None
    height: int | None
    error: PhotoError | None
    reason: Annotated[str | None, Field(description="Why nothing was searched for.")]


class SearchedPhoto(_Photo):
    """A photo, and what was found for each face, from left to right, or for the whole picture."""

    queries: list[Query]


class SearchAnswer(_Answer):
    """What was found for photos, in their order."""

    photos: list[SearchedPhoto]
    decision: Decision
    index: IndexState


class VectorAnswer(_Answer):
    """What was found for vectors, in their order."""

    queries: list[Query]
    decision: Decision
    index: IndexState


class VerifiedFace(_Answer):
    """The face of a photo that was compared, one of ``faces``."""

    photo: str
    faces: int
    box: Box


class VerifyAnswer(_Answer):
    """How alike two faces are, and whether they are of one person."""

    first: VerifiedFace
    second: VerifiedFace
    similarity: Annotated[float, Field(description="The cosine.")]
    distance: Annotated[float, Field(description="Euclidean, of the embeddings as the network gives them.")]
    probability: Annotated[
        float | None, Field(description="Of one person; null where nothing is calibrated.")
    ]
    prior: float
    same: Annotated[bool | None, Field(description="Null where nothing decides.")]
    reason: Annotated[str, Field(description="What the decision rests on, or why there is none.")]


class PersonMatch(_Answer):
    """A person who may be meant, by the face that is most alike."""

    person: str
    id: str
    similarity: float


class NamedFace(_Answer):
    """A face, and who it is."""

    box: Box | None
    person: Annotated[str | None, Field(description="Null where it is nobody who is known, or undecided.")]
    is_known: Annotated[bool | None, Field(description="Null where nothing decides: see reason.")]
    similarity: float
    probability: float | None
    threshold: float | None
    reason: str | None
    matches: list[PersonMatch]


class NamedPhoto(_Photo):
    """A photo, and its faces from left to right."""

    faces: list[NamedFace]


class IdentifyAnswer(_Answer):
    """Who is in photos, in their order."""

    photos: list[NamedPhoto]
    rate: float
    prior: float
    index: IndexState


Answer = SearchAnswer | VectorAnswer | VerifyAnswer | IdentifyAnswer


class About(_Answer):
    """What is served."""

    index: IndexState
    of: Annotated[str, Field(description="faces, or pictures.")]
    network: str
    dimensions: int
    kept: Annotated[dict[str, str], Field(description="Columns that a condition may name, and their types.")]
    verify_rates: Annotated[list[float], Field(description="False accept rates with a threshold.")]
    search_rates: Annotated[list[float], Field(description="False positive identification rates with one.")]
    damaged: Annotated[list[str], Field(description="Segments that are left out.")]
    problem: Annotated[str | None, Field(description="Why a newer state could not be taken over.")]
