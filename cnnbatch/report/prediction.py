"""What a row predicts of its image, in words and to be drawn, beside what is true of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from cnnbatch.report.answers import answer_report, answers_among
from cnnbatch.report.answers.entry import (
    NOTHING_MORE,
    AboutOutput,
    Alarm,
    AnswerReport,
    Guess,
    MoreView,
)
from cnnbatch.truth import SURE
from cnnbatch.types import ImageRef


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of an image: an answer of one kind; ``others`` say the same as answers of other kinds."""

    kind: str
    answer: Any
    others: Mapping[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> Any | None:
        """Return the answer of a kind; None where it is not known."""
        return self.answer if kind == self.kind else self.others.get(kind)


@dataclass(frozen=True, slots=True)
class View:
    """One of several answers that are drawn each on a picture of its own; ``truth`` is None if not known."""

    kind: str
    name: str
    answer: Any
    text: str
    truth: Any | None
    truth_text: str


@dataclass(frozen=True, slots=True)
class DrawnView:
    """The picture of a `View`, and that of its truth where it is known."""

    view: View
    image: Image.Image
    actual: Image.Image | None


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
    views: tuple[View, ...] = ()
    """Where it has several answers that are drawn, each of them."""


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
        views=_views(entries, answers, row, truth),
    )


def _views(
    entries: Mapping[str, AnswerReport],
    answers: Mapping[str, Any],
    row: Mapping[str, Any],
    truth: Truth | None,
) -> tuple[View, ...]:
    """Return the answers that are drawn, where there are several."""
    found = []
    for kind, entry in entries.items():
        if entry.is_drawn:
            answer, true = answers[kind], truth.of(kind) if truth else None
            words = "" if true is None else entry.words(true)
            found.append(View(kind, entry.title(answer), answer, entry.predicted(answer, row), true, words))
    return tuple(found) if len(found) > 1 else ()


def drawn(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Draw on a small picture what was predicted; return it, or several beside each other."""
    if prediction.views:
        return side_by_side([one.image for one in drawn_views(image, prediction)])
    return _with(image, prediction.size, prediction.answers)


def drawn_views(image: Image.Image, prediction: Prediction) -> list[DrawnView]:
    """Draw each of several answers on a copy of a small picture: a class has one colour in all of them."""
    known = answers_among(one.kind for one in prediction.views)
    paints = {
        name: paint for one in prediction.views for name, paint in known[one.kind].paints(one.answer).items()
    }

    def draw(kind: str, answer: Any) -> Image.Image:
        entry = known[kind]
        own = entry.painted(answer, paints) if paints else answer
        size = prediction.size
        return image.copy() if size is None else entry.draw(image.copy(), size[::-1], own)

    return [
        DrawnView(one, draw(one.kind, one.answer), None if one.truth is None else draw(one.kind, one.truth))
        for one in prediction.views
    ]


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one size beside each other."""
    whole = Image.new("RGB", (sum(one.width for one in images), images[0].height), "white")
    for place, one in enumerate(images):
        whole.paste(one, (place * one.width, 0))
    return whole


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
