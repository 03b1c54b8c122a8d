"""Pictures as they are put into a page: JPEG inside URIs, all together no larger than the page may be.

Pictures that compress badly are made smaller, all alike; what even then has no room is left out, the
last of all first, and its card says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from cnnbatch.report.answers import answers_among
from cnnbatch.report.answers.entry import Swatch
from cnnbatch.report.pictures import Picture, jpeg_uri
from cnnbatch.report.prediction import DrawnView, Prediction

MOST_BYTES = 6_000_000
"""Of all pictures of a page: two million less than the page may have."""
LEVELS = ((1.0, 80), (0.75, 70), (0.5, 60))
"""Of the pictures' sides, and JPEG's quality: what is tried, one after the other."""
ACTUAL = "Actual"
TOO_LARGE = "left out, so that the page stays small"


class View(NamedTuple):
    """A picture of a card; ``name`` says which it is of several, ``text`` more of it, ``uri`` holds it.

    ``legend`` are colours that only this view has.
    """

    name: str
    uri: str
    width: int
    height: int
    text: str = ""
    legend: Sequence[Swatch] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """What was predicted of an image, and its views: several where truth is drawn, none for a ``reason``."""

    prediction: Prediction
    views: tuple[View, ...]
    reason: str | None = None

    @property
    def columns(self) -> int:
        """How many views stand beside each other: all, or what was predicted above what is true."""
        return len(self.prediction.views) or len(self.views)

    @property
    def is_drawn(self) -> bool:
        """Whether answers are drawn on its pictures, of which then nothing may be cut off."""
        return any(entry.is_drawn for entry in answers_among(self.prediction.answers).values())


def embedded(galleries: Sequence[Sequence[Picture]], most: int = MOST_BYTES) -> list[list[Card]]:
    """Return the cards of all galleries of a page, whose pictures together have at most ``most`` bytes."""
    cards: list[list[Card]] = []
    for share, quality in LEVELS:
        cards = [[_card(picture, share, quality) for picture in gallery] for gallery in galleries]
        if sum(_size(card) for gallery in cards for card in gallery) <= most:
            return cards
    return _cut(cards, most)


def _card(picture: Picture, share: float, quality: int) -> Card:
    return Card(picture.prediction, tuple(_views(picture, share, quality)), picture.reason)


def _views(picture: Picture, share: float, quality: int) -> Iterator[View]:
    if picture.image is None:
        return
    if picture.views:
        yield from _rows_of_views(picture.views, share, quality)
        return
    about = picture.prediction
    if picture.actual is None and not picture.more:
        yield _view("", picture.image, "", share, quality)
        return
    if picture.actual is not None:
        yield _view(ACTUAL, picture.actual, about.actual, share, quality)
    yield _view("Predicted", picture.image, about.predicted, share, quality)
    for more in picture.more:
        yield _view(more.name, more.image, more.text, share, quality)._replace(legend=more.legend)


def _rows_of_views(views: Sequence[DrawnView], share: float, quality: int) -> Iterator[View]:
    """Yield what was predicted, then what is true; a truth that is not known has its place, empty."""
    for one in views:
        yield _view(one.view.name, one.image, one.view.text, share, quality)
    if all(one.actual is None for one in views):
        return
    for one in views:
        if one.actual is None:
            yield View(ACTUAL, "", 0, 0, "not known")
        else:
            yield _view(ACTUAL, one.actual, one.view.truth_text, share, quality)


def _view(name: str, image: Image.Image, text: str, share: float, quality: int) -> View:
    small = _shrunk(image, share)
    return View(name, jpeg_uri(small, quality), small.width, small.height, text)


def _shrunk(image: Image.Image, share: float) -> Image.Image:
    if share == 1:
        return image
    sides = (max(1, round(share * image.width)), max(1, round(share * image.height)))
    return image.resize(sides, Image.Resampling.LANCZOS)


def _size(card: Card) -> int:
    return sum(len(view.uri) for view in card.views)


def _cut(galleries: Sequence[Sequence[Card]], most: int) -> list[list[Card]]:
    """Take the views from the cards that have no room."""
    room, kept = most, []
    for gallery in galleries:
        cards = []
        for card in gallery:
            room -= _size(card)
            cards.append(card if room >= 0 else Card(card.prediction, (), card.reason or TOO_LARGE))
        kept.append(cards)
    return kept
