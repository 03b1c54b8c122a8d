"""What a row predicts of its image, in words and to be drawn, beside what is true of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from cnnbatch.report.answers import answer_report, answers_among
from cnnbatch.report.answers.entry import NOTHING_MORE, AboutOutput, Alarm, Guess, MoreView
from cnnbatch.truth import SURE
from cnnbatch.types import ImageRef


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of an image: an answer of one kind."""

    kind: str
    answer: Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted of an image; ``size`` is (height, width), ``ref`` where it lies.

    ``caption`` stands under the picture alone, ``predicted`` beside the ``actual``, ``ranked`` are labels
    with their scores. ``answers`` are by kind what is shown of them. ``truth`` and ``alarm`` are known of
    images that were judged; ``right`` is None where that is not known, or no yes or no.
    """

    key: str
    uri: str
    size: tuple[int, int] | None = None
    caption: str = ""
    ranked: tuple[Guess, ...] = ()
    predicted: str = ""
    actual: str = ""
    is_compared: bool = False
    """Whether ``actual`` and ``predicted`` are words to put beside each other, not two pictures."""
    right: bool | None = None
    problem: str | None = None
    answers: Mapping[str, Any] = field(default_factory=dict)
    ref: ImageRef | None = None
    truth: Truth | None = None
    alarm: Alarm | None = None


def prediction_of(
    row: Mapping[str, Any],
    ref: ImageRef | None = None,
    truth: Truth | None = None,
    alarm: Alarm | None = None,
    least: float = SURE,
    about: AboutOutput = NOTHING_MORE,
) -> Prediction:
    """Return what ``row`` predicts, by the kinds of answer that its columns have.

    Where it has several, that of the ``truth`` or else the first is put into words. Of objects those from
    the score ``least`` on count.
    """
    entries = {kind: one for kind, one in answers_among(row).items() if row[kind] is not None}
    answers = {
        kind: one.shown(one.opened(row[kind], row, about), least, alarm) for kind, one in entries.items()
    }
    main = truth.kind if truth and truth.kind in entries else next(iter(entries), None)
    error, true = row.get("error"), answer_report(truth.kind if truth else None)
    problem = f"{error['code']}: {error['message']}" if error else None
    caption = entries[main].caption(answers[main], row) if main else ""
    height, width = row.get("height"), row.get("width")
    is_compared = truth is not None and truth.kind == main and not entries[main].is_drawn
    return Prediction(
        key=row["key"],
        uri=row["uri"],
        size=(height, width) if height and width else None,
        caption=problem or caption,
        ranked=next((ranked for one in entries.values() if (ranked := tuple(one.ranked(row)))), ()),
        predicted=entries[main].predicted(answers[main], row) if main else problem or "",
        actual=true.words(truth.answer) if truth and true else "",
        is_compared=is_compared,
        right=entries[main].is_right(row[main], truth.answer) if truth and main and is_compared else None,
        problem=problem,
        answers=answers,
        ref=ref,
        truth=truth,
        alarm=alarm,
    )


def drawn(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Draw on a small picture what was predicted; return it."""
    return _with(image, prediction.size, prediction.answers)


def drawn_truth(image: Image.Image, prediction: Prediction) -> Image.Image | None:
    """Draw on a copy of a small picture what is true; None where that is not drawn."""
    truth = prediction.truth
    entry = answer_report(truth.kind if truth else None)
    if truth is None or entry is None or not entry.is_drawn or prediction.size is None:
        return None
    return _with(image.copy(), prediction.size, {truth.kind: truth.answer})


def more_views(image: Image.Image, prediction: Prediction) -> list[MoreView]:
    """Return what else is shown of a small picture."""
    truth = prediction.truth
    return [
        view
        for kind, entry in answers_among(prediction.answers).items()
        for view in entry.more_views(
            image, prediction.answers[kind], truth.answer if truth and truth.kind == kind else None
        )
    ]


def _with(image: Image.Image, size: tuple[int, int] | None, answers: Mapping[str, Any]) -> Image.Image:
    if size is not None:
        for kind, entry in answers_among(answers).items():
            image = entry.draw(image, size[::-1], answers[kind])
    return image
