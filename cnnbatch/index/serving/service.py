"""All that answers about an index, in one process: a replica is one, and so is a test."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.index.identify import Named
from cnnbatch.index.originals import Originals
from cnnbatch.index.serving.answers import About, Answer
from cnnbatch.index.serving.comparing import identify_all, verify_all
from cnnbatch.index.serving.embedder import EmbeddedPhoto, PhotoEmbedder
from cnnbatch.index.serving.live_index import LiveIndex, LiveState
from cnnbatch.index.serving.questions import (
    Identify,
    Question,
    Refusal,
    Search,
    Verify,
    WantedPicture,
    refusal_of,
)
from cnnbatch.index.serving.searching import search_all, state_of
from cnnbatch.storage import Allowed, Storage, redact

SIDE = 256
"""Pixels of a crop's longer side."""

_ANSWER_ALL: Mapping[type, Callable[[LiveState, list[Any]], list[Answer | Refusal]]] = {
    Search: search_all,
    Verify: verify_all,
    Identify: identify_all,
}
_ORIGINALS_S = 60.0  # An original that could not be read may be there a minute later.
_QUALITY = 88


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What is served, and how: see `cnnbatch serve`."""

    index: str
    named: Named = Named()
    refresh_s: float = 10.0
    skip_damaged: bool = False
    allow: Collection[Allowed] = ()
    cpus: int = 1
    own_process: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """How many replicas there are, and what each answers at once: ``batch`` questions, waited for so long."""

    service: ServiceOptions
    replicas: int = 1
    batch: int = 16
    batch_wait_s: float = 0.01
    plugins: tuple[str, ...] = ()


class Service:
    """Answers about an index. Raises UserError or EnvironmentFault where it can't be served."""

    def __init__(self, options: ServiceOptions) -> None:
        storage = Storage()
        self._allow = options.allow
        self.live = LiveIndex(options.index, storage, options.named, options.refresh_s, options.skip_damaged)
        index = self.live.now.index
        self._embedder = PhotoEmbedder(index.uri, index.manifest, options.cpus, options.own_process)
        self._crops = threading.Lock()
        self._originals: tuple[float, Originals] | None = None

    def answers(self, questions: Sequence[Question]) -> list[Answer | Refusal]:
        """Answer questions, in their order: all photos are embedded together, all searches made together."""
        state = self.live.now
        try:
            asked = [*zip(questions, self._embedded(questions), strict=True)]
            found: dict[int, Answer | Refusal] = {
                place: refused for place, one in enumerate(asked) if (refused := _unreadable(*one))
            }
            for kind, answer_all in _ANSWER_ALL.items():
                chosen = {
                    place: one
                    for place, one in enumerate(asked)
                    if isinstance(one[0], kind) and place not in found
                }
                found |= dict(zip(chosen, answer_all(state, [*chosen.values()]), strict=True))
        except (UserError, EnvironmentFault) as error:
            return [refusal_of(error)] * len(questions)
        return [found[place] for place in range(len(questions))]

    def picture(self, wanted: WantedPicture) -> bytes | Refusal:
        """Return the crop of a row that the index has, a JPEG file; of no other picture."""
        state = self.live.now
        copy = state.index.copy(state.skip_damaged)
        places = np.flatnonzero(pc.equal(copy.columns(["id"])["id"], pa.scalar(wanted.id)).to_numpy())
        rows = state.index.addressed(copy.rows(np.intersect1d(places, copy.live))).to_pylist()
        if wanted.output is not None:
            rows = [row for row in rows if redact(row["output"]) == wanted.output]
        if not rows:
            return Refusal(404, "the index has nothing of that id")
        with self._crops:
            crop = self._opened_originals().crop(rows[0], SIDE)
        if crop is None:
            return Refusal(404, "the picture can't be read from here")
        file = io.BytesIO()
        crop.convert("RGB").save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()

    def about(self) -> About:
        """Say what the index is now."""
        state = self.live.now
        index, found = state.index, state.calibrated
        measured = [] if found is None else [one.threshold for one in found.measured]
        pairs = [] if found is None else found.pairs.thresholds
        return About(
            index=state_of(state),
            of="faces" if self._embedder.column == "objects" else "pictures",
            network=index.space.network,
            dimensions=index.manifest.dimensions,
            kept=index.manifest.kept,
            verify_rates=[one.rate for one in pairs if one.similarity is not None],
            search_rates=[*dict.fromkeys(one.rate for one in measured if one.similarity is not None)],
            damaged=[*index.damaged()] if state.skip_damaged else [],
            problem=self.live.problem,
        )

    def close(self) -> None:
        """End its threads."""
        self.live.close()
        self._embedder.close()

    def _embedded(self, questions: Sequence[Question]) -> list[list[EmbeddedPhoto]]:
        """Return the photos of each question."""
        photos = [photo for one in questions for photo in one.photos]
        embedded = iter(self._embedder.embed(photos) if photos else ())
        return [[next(embedded) for _ in one.photos] for one in questions]

    def _opened_originals(self) -> Originals:
        now, index = time.monotonic(), self.live.now.index
        if self._originals is None or now - self._originals[0] > _ORIGINALS_S:
            self._originals = now, Originals(index.uri, index.storage, self._allow)
        return self._originals[1]


class InThisProcess:
    """The backend that is a service of this process: every question is a batch of its own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()

    async def ask(self, question: Question) -> Answer | Refusal:
        """Answer a question."""
        async with self._turn:
            (found,) = await asyncio.to_thread(self._service.answers, [question])
        return found

    async def picture(self, wanted: WantedPicture) -> bytes | Refusal:
        """Return a crop."""
        return await asyncio.to_thread(self._service.picture, wanted)

    async def about(self) -> About | Refusal:
        """Say what the index is now."""
        return await asyncio.to_thread(self._service.about)


def _unreadable(question: Question, photos: Sequence[EmbeddedPhoto]) -> Refusal | None:
    """Return a refusal where no photo of a question can be read, or not both of two to compare."""
    failed = [one for one in photos if one.error is not None]
    if not failed or (len(failed) < len(photos) and not isinstance(question, Verify)):
        return None
    lines = "\n  ".join(f"{one.name}: {one.error['message']}" for one in failed if one.error is not None)
    return Refusal(422, f"photos that can't be read:\n  {lines}\n  what to do: send others")
