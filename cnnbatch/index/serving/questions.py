"""What clients ask, as it travels to a replica, and refusals; nothing here needs Ray or HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cnnbatch.config.output import Which
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.index.identify import RATE
from cnnbatch.index.serving.answers import About, Answer


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo that a client sent: what it is called, and its file."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Search:
    """What in the index is most similar to photos, or to vectors (Q, D)?"""

    photos: tuple[Photo, ...] = ()
    vectors: tuple[tuple[float, ...], ...] | None = None
    k: int = 10
    where: str | None = None
    rate: float = RATE
    prior: float = 0.5


@dataclass(frozen=True, slots=True)
class Verify:
    """Are two photos of one person?"""

    photos: tuple[Photo, Photo]
    rate: float = 1e-3
    prior: float = 0.5
    face: Which = "largest"


@dataclass(frozen=True, slots=True)
class Identify:
    """Who is in photos?"""

    photos: tuple[Photo, ...]
    rate: float = RATE
    prior: float = 0.5


Question = Search | Verify | Identify


@dataclass(frozen=True, slots=True)
class WantedPicture:
    """The crop of what has this ``id`` in the index; ``output`` says in which of its outputs."""

    id: str
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no answer: the status of HTTP, and what was expected, what came and what to do."""

    status: int
    detail: str


def refusal_of(error: UserError | EnvironmentFault) -> Refusal:
    """Return a person's mistake as one of the client, a fault of the environment as one that passes."""
    return Refusal(422 if isinstance(error, UserError) else 503, str(error))


class Backend(Protocol):
    """What answers questions: replicas, or a service of this process."""

    async def ask(self, question: Question) -> Answer | Refusal:
        """Answer a question, together with others that come at the same time."""

    async def picture(self, wanted: WantedPicture) -> bytes | Refusal:
        """Return a crop, a JPEG file."""

    async def about(self) -> About | Refusal:
        """Say what the index is now; a refusal says why nothing can be answered."""
