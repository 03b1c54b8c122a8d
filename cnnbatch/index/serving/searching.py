"""Answers to searches: those of one k and one condition are searched together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index.search import unit_queries
from cnnbatch.index.search_decision import SearchDecision, search_decision
from cnnbatch.index.serving.answers import (
    Answer,
    Box,
    Decision,
    IndexState,
    Match,
    Query,
    SearchAnswer,
    SearchedPhoto,
    VectorAnswer,
)
from cnnbatch.index.serving.embedder import EmbeddedPhoto
from cnnbatch.index.serving.live_index import LiveState
from cnnbatch.index.serving.questions import Refusal, Search, refusal_of
from cnnbatch.storage import redact

Asked = tuple[Search, Sequence[EmbeddedPhoto]]
NO_FACE = "no face was found"
_OWN = ("query", "rank", "id", "key", "output", "part", "row", "box", "similarity")


def search_all(state: LiveState, asked: Sequence[Asked]) -> list[Answer | Refusal]:
    """Answer searches, in their order."""
    answers: dict[int, Answer | Refusal] = {}
    together: dict[tuple[int, str | None], dict[int, NDArray[np.float32]]] = {}
    for place, (search, photos) in enumerate(asked):
        try:
            together.setdefault((search.k, search.where), {})[place] = _vectors(state, search, photos)
        except UserError as error:
            answers[place] = refusal_of(error)
    for (k, where), vectors in together.items():
        try:
            found = _found(state, [*vectors.values()], k, where)
        except UserError as error:
            answers |= dict.fromkeys(vectors, refusal_of(error))
            continue
        answers |= {
            place: _answer(state, *asked[place], rows) for place, rows in zip(vectors, found, strict=True)
        }
    return [answers[place] for place in range(len(asked))]


def _vectors(state: LiveState, search: Search, photos: Sequence[EmbeddedPhoto]) -> NDArray[np.float32]:
    """Return what is searched for (Q, D); raises UserError for what is no vector."""
    dimensions = state.index.manifest.dimensions
    if search.vectors is not None:
        return unit_queries(search.vectors, dimensions)
    return np.concatenate([np.empty((0, dimensions), np.float32), *(one.vectors for one in photos)])


def _found(
    state: LiveState, vectors: Sequence[NDArray[np.float32]], k: int, where: str | None
) -> list[list[list[dict[str, Any]]]]:
    """Return of each of several searches, for each of its queries, the rows that were found."""
    table = state.index.search(np.concatenate(vectors), k, where, state.skip_damaged)
    queries: list[list[dict[str, Any]]] = [[] for _ in range(sum(map(len, vectors)))]
    for row in table.to_pylist():
        queries[row["query"]].append(row)
    ends = np.cumsum([0, *map(len, vectors)])
    return [queries[start:stop] for start, stop in zip(ends, ends[1:], strict=False)]


def _answer(
    state: LiveState,
    search: Search,
    photos: Sequence[EmbeddedPhoto],
    found: Sequence[Sequence[dict[str, Any]]],
) -> Answer:
    index = state.index
    decides = search_decision(state.calibrated, index.uri, search.rate, search.prior, len(index))
    threshold = decides.threshold
    decision = Decision(
        rate=search.rate, threshold=threshold.similarity, prior=search.prior, reason=threshold.reason
    )
    matches = [[_match(row, decides) for row in rows] for rows in found]
    if search.vectors is not None:
        queries = [Query(box=None, matches=some) for some in matches]
        return VectorAnswer(queries=queries, decision=decision, index=state_of(state))
    remaining = iter(matches)
    answered = [
        SearchedPhoto(
            **about_photo(photo),
            queries=[Query(box=box_of(box), matches=next(remaining)) for box in photo.boxes],
        )
        for photo in photos
    ]
    return SearchAnswer(photos=answered, decision=decision, index=state_of(state))


def _match(row: Mapping[str, Any], decides: SearchDecision) -> Match:
    similarity = row["similarity"]
    where = urlencode({"id": row["id"], "output": redact(row["output"])})
    return Match(
        rank=row["rank"],
        id=row["id"],
        key=row["key"],
        output=redact(row["output"]),
        box=box_of(row["box"]),
        kept={name: _in_json(value) for name, value in row.items() if name not in _OWN},
        similarity=similarity,
        probability=decides.probability(similarity),
        same=decides.accepts(similarity),
        picture=f"picture?{where}",
    )


def about_photo(photo: EmbeddedPhoto) -> dict[str, Any]:
    """Return what every answer says of a photo."""
    row = photo.row
    empty = photo.error is None and not photo.boxes
    return {
        "name": photo.name,
        "width": row["width"],
        "height": row["height"],
        "error": photo.error,
        "reason": NO_FACE if empty else None,
    }


def state_of(state: LiveState) -> IndexState:
    """Return which state of the index answers."""
    return IndexState(state=state.index.manifest.state, embeddings=len(state.index))


def box_of(box: Mapping[str, float] | None) -> Box | None:
    """Return a box as answers have it."""
    return None if box is None else Box(**box)


def _in_json(value: Any) -> Any:
    """Return a value of a kept column as JSON has it: numbers that are not finite are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | time):
        return value.isoformat()
    return value if isinstance(value, str | int | bool | None) else str(value)
