"""Answers to whether two photos are of one person, and to who is in photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice

import numpy as np

from cnnbatch.errors import UserError
from cnnbatch.index.identify import named_by, ranked
from cnnbatch.index.search_decision import search_decision
from cnnbatch.index.serving.answers import (
    Answer,
    Box,
    IdentifyAnswer,
    NamedFace,
    NamedPhoto,
    VerifiedFace,
    VerifyAnswer,
)
from cnnbatch.index.serving.embedder import EmbeddedPhoto
from cnnbatch.index.serving.live_index import LiveState
from cnnbatch.index.serving.questions import Identify, Refusal, Verify, refusal_of
from cnnbatch.index.serving.searching import about_photo, box_of, state_of
from cnnbatch.index.verify import FoundFace, compared, deciding, faces_of


def verify_all(
    state: LiveState, asked: Sequence[tuple[Verify, Sequence[EmbeddedPhoto]]]
) -> list[Answer | Refusal]:
    """Answer, in their order, whether pairs of photos are of one person."""
    return [_verify(state, *one) for one in asked]


def _verify(state: LiveState, question: Verify, photos: Sequence[EmbeddedPhoto]) -> Answer | Refusal:
    if "objects" not in photos[0].row:
        return Refusal(422, "the index is of whole pictures, and faces are compared\n  what to do: search it")
    decide = deciding(state.index, state.calibrated, question.rate, question.prior)
    try:
        one, other = (faces_of(photo.row, photo.name, question.face) for photo in photos)
        found = compared(one, other, question.prior, decide)
    except UserError as error:
        return refusal_of(error)
    values = asdict(found) | {"first": _face(found.first), "second": _face(found.second)}
    return VerifyAnswer(**values)


def _face(found: FoundFace) -> VerifiedFace:
    corners = dict(zip(("x1", "y1", "x2", "y2"), found.box, strict=True))
    return VerifiedFace(photo=found.photo, faces=found.faces, box=Box(**corners))


def identify_all(
    state: LiveState, asked: Sequence[tuple[Identify, Sequence[EmbeddedPhoto]]]
) -> list[Answer | Refusal]:
    """Answer, in their order, who is in photos: all faces are searched for together."""
    if not asked:
        return []
    try:
        gallery = state.gallery
    except UserError as error:
        return [refusal_of(error)] * len(asked)
    vectors = [photo.vectors for _, photos in asked for photo in photos]
    matches = iter(ranked(np.concatenate(vectors).astype(np.float32), gallery))
    answers: list[Answer | Refusal] = []
    for question, photos in asked:
        decision = search_decision(
            state.calibrated,
            state.index.uri,
            question.rate,
            question.prior,
            len(gallery),
            len(gallery.names),
        )
        named = [
            NamedPhoto(
                **about_photo(photo),
                faces=[
                    NamedFace(box=box_of(box), **named_by(some, decision))
                    for box, some in zip(photo.boxes, islice(matches, len(photo.boxes)), strict=True)
                ],
            )
            for photo in photos
        ]
        answers.append(
            IdentifyAnswer(photos=named, rate=question.rate, prior=question.prior, index=state_of(state))
        )
    return answers
