"""Maps of classes in reports: laid over the picture, beside what is true and where the two differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.humanize import percent
from cnnbatch.images import class_map
from cnnbatch.images.painted import painted
from cnnbatch.metrics import Value, semantic
from cnnbatch.metrics.numbering import of_classes
from cnnbatch.output.maps import decoded
from cnnbatch.report import palette
from cnnbatch.report.answers.entry import (
    DIFFERENCE,
    WHERE,
    AboutOutput,
    AboutTruth,
    AnswerReport,
    ClassLayout,
    EvaluationTables,
    MistakeWords,
    MoreView,
    Swatch,
)
from cnnbatch.report.layers import LEFT_OUT, WRONG, difference, heat, overlaid
from cnnbatch.truth import Class, classes_of
from cnnbatch.truth.classes import BACKGROUND

NONE = 65_535
"""The number of pixels of no class, or that do not count."""

_NUMBERS = tuple(str(number) for number in range(class_map.NONE))
"""What classes are called whose names are not known."""

_MOST_WORDS = 3
_LEAST_SHARE = 0.005  # of a class that is put into words
_MOST_SWATCHES = 40
_WRONG, _LEFT_OUT = (
    Swatch(palette.css(WRONG), "wrong class"),
    Swatch(palette.css(LEFT_OUT), "not evaluated"),
)
_DIFFERENT = Swatch(palette.css(WRONG), "another class")


@dataclass(frozen=True, slots=True, eq=False)
class ShownMap:
    """A stored map, and the place among ``names`` of each of its numbers; `NONE` is no class.

    It is decoded when it is looked at, since a page has many; where it is damaged, that raises NotAMap.
    ``uncertain`` are the least certain regions of a prediction: a ``box``, and its certainty as ``score``.
    Of a ground truth only the first ``judged`` of the names count: the model does not know the others.
    """

    stored: bytes | Sequence[Mapping[str, Any]]
    size: tuple[int, int] | None
    places: NDArray[np.uint16]
    names: Sequence[str]
    uncertain: Sequence[Mapping[str, Any]] = ()
    judged: int = NONE

    def numbers(self) -> NDArray[np.uint16]:
        """Return the places of the classes, (H, W)."""
        return self.places[decoded(self.stored, self.size)]

    def pixels(self) -> Counter[str]:
        """Return how many pixels each class has."""
        counts = np.bincount(self.numbers().ravel(), minlength=NONE + 1)[: len(self.names)]
        return Counter({name: int(count) for name, count in zip(self.names, counts, strict=True) if count})


class MapReport(AnswerReport):
    """The columns ``map``, ``map_classes``, ``confidence`` and ``uncertain``."""

    columns = ("map_classes", "confidence", "uncertain")
    counted = "map_classes"
    unit = "pixels"
    score_column = "confidence"
    score_name = "mean confidence"
    is_confused = True
    is_drawn = True

    def title(self, answer: Any) -> str:
        """Return the name of this view."""
        return "Semantic segmentation"

    def opened(self, answer: Any, row: Mapping[str, Any], about: AboutOutput) -> ShownMap:
        """Return the map of any of the encodings."""
        stored = _fetched(answer, about) if isinstance(answer, str) else answer
        size = (row["height"], row["width"])
        names = about.classes or _NUMBERS
        places = _places({place: place for place in range(len(names))})
        return ShownMap(stored, size, places, names, row.get("uncertain") or ())

    def truth(self, answer: Any, about: AboutTruth) -> ShownMap:
        """Return the true map with the places of the model's classes; its own further ones come after."""
        known = {int(one.id): about.names.get(one.name) or one.name for one in classes_of(about.schema)}
        names = tuple(dict.fromkeys([*about.classes, *known.values()]))
        places = {name: place for place, name in enumerate(names)}
        of_numbers = _places({number: places[name] for number, name in known.items()})
        return ShownMap(answer, None, of_numbers, names, judged=len(about.classes) or NONE)

    def truth_of_objects(self, row: Mapping[str, Any], about: AboutTruth) -> ShownMap | None:
        """Return the class of each pixel by the masks of true objects; None where one has no mask."""
        names = {name: place for place, name in enumerate(about.classes)}
        background = next((place for name, place in names.items() if name in BACKGROUND), None)
        objects = [{**one, "label": about.names.get(one["label"]) or one["label"]} for one in row["objects"]]
        size = next((tuple(one["mask"]["size"]) for one in objects if one["mask"]), None)
        height, width = size or (row["height"], row["width"])
        if not height or not width:
            return None
        found = painted(objects, names, (height, width), background)
        places = _places({place: place for place in names.values()})
        return (
            None if found is None else ShownMap(class_map.png(found, 1), None, places, tuple(about.classes))
        )

    def paints(self, answer: ShownMap) -> Mapping[str, str]:
        """Return the colours of the map's classes."""
        return dict(zip(answer.names, map(palette.css, palette.colours(answer.names)), strict=True))

    def words(self, answer: Any) -> str:
        """Return ``road 41 %, sky 20 %``: the classes that cover most."""
        try:
            counts = _shown(answer).pixels()
        except class_map.NotAMap:
            return "a map that can't be read"
        return _words((name, count / counts.total()) for name, count in counts.most_common())

    def caption(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return the same from the row, which has it."""
        found = row.get("map_classes")
        return self.words(answer) if found is None else _of_row(found)

    def line(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return the same."""
        return self.caption(answer, row)

    def draw(self, image: Image.Image, size: tuple[int, int], answer: Any) -> Image.Image:
        """Lay the classes' colours over the picture; what is background or of no class stays as it is."""
        shown = _shown(answer)
        clear = np.array([palette.is_background(name) for name in shown.names], np.bool_)
        return overlaid(image, _small(shown.numbers(), image), palette.colours(shown.names), clear)

    def more_views(self, image: Image.Image, answer: ShownMap, truth: ShownMap | None) -> Sequence[MoreView]:
        """Return where prediction and truth differ, and where the network is least certain."""
        views = [*super().more_views(image, answer, truth)]
        if answer.uncertain and answer.size:
            drawn = heat(image, answer.size, answer.uncertain)
            views.append(MoreView("Uncertainty", drawn, "brighter is less certain"))
        return views

    def difference(self, image: Image.Image, answer: ShownMap, truth: ShownMap) -> MoreView:
        """Return where the class is wrong, and which pixels do not count."""
        truth = self.aligned(truth, answer)
        said, true = answer.numbers(), truth.numbers()
        true = np.where(true < truth.judged, true, np.uint16(NONE))
        wrong, left_out = _small(said, image) != _small(true, image), _small(true, image) == NONE
        drawn = difference(image, wrong, left_out)
        return MoreView(DIFFERENCE, drawn, _compared(said, true, truth), (_WRONG, _LEFT_OUT))

    def disagreement(self, image: Image.Image, answer: ShownMap, other: ShownMap) -> MoreView:
        """Return where the classes of the pixels differ."""
        said, others = answer.numbers(), self.aligned(other, answer).numbers()
        differs = _small(said, image) != _small(others, image)
        alike = said.shape == others.shape and percent(float((said == others).mean()))
        text = f"{alike} of the pixels have the same class" if alike else "of another size in B"
        return MoreView(DIFFERENCE, difference(image, differs), text, (_DIFFERENT,))

    def aligned(self, answer: ShownMap, other: ShownMap) -> ShownMap:
        """Return a map with the places that its classes have in another one, where they have its names."""
        if answer.names == other.names:
            return answer
        names = tuple(dict.fromkeys([*other.names, *answer.names]))
        places = np.full(NONE + 1, NONE, np.uint16)
        places[: len(answer.names)] = [names.index(name) for name in answer.names]
        return replace(answer, places=places[answer.places], names=names)

    def legend(self, answers: Iterable[ShownMap], counts: Counter[str]) -> Sequence[Swatch]:
        """Return the colours of the classes: those of most pixels first, then those that only truths have."""
        maps, paints = list(answers), dict[str, str]()
        for names in dict.fromkeys(tuple(one.names) for one in maps):
            paints |= dict(zip(names, map(palette.css, palette.colours(names)), strict=True))
        drawn = sum(map(_pixels, maps), Counter[str]())
        there = (name for name in paints if counts[name] or drawn[name])
        ranked = sorted(there, key=lambda name: (-counts[name], -drawn[name]))
        shown = [name for name in ranked[:_MOST_SWATCHES] if not palette.is_background(name)]
        return [Swatch(paints[name], name) for name in shown]

    def labels(self, answers: pa.Array[Any]) -> Counter[str]:
        """Count the pixels of all images by their classes, from ``map_classes``."""
        found: Any = pc.list_flatten(answers)
        sums: Any = pa.table({name: pc.struct_field(found, name) for name in ("label", "pixels")}).group_by(
            "label"
        )
        rows = sums.aggregate([("pixels", "sum")]).to_pylist()
        return Counter({str(row["label"]): row["pixels_sum"] or 0 for row in rows})

    def mistake_words(self, tables: EvaluationTables) -> MistakeWords:
        """Return that they are the worst."""
        lead = "The images with the lowest mIoU of their own"
        return MistakeWords(lead, "class that most pixels are missed of", "the worst first", "Worst images")

    def mistakes(self, tables: EvaluationTables) -> Iterator[pa.Table]:
        """Yield the images that are not right all over, by the mIoU that they lack."""
        for batch in tables.images([*WHERE, "missed", "mIoU"]):
            rows = pa.Table.from_batches([batch])
            score = pc.subtract(pa.scalar(1.0), rows["mIoU"])
            found = rows.select([*WHERE, "missed"]).rename_columns([*WHERE, "label"])
            yield found.append_column("score", score).filter(rows["missed"].is_valid())

    def class_layouts(self, metrics: Mapping[str, Value]) -> Sequence[ClassLayout]:
        """Return the table, which has another name where objects have theirs, too."""
        numbers = ("accuracy", "boundary_F1", "boundary_IoU")
        return (
            ClassLayout("classes", "", "Pixels", "IoU", numbers),
            ClassLayout("map_classes", "by pixels", "Pixels", "IoU", numbers),
        )


def _fetched(address: str, about: AboutOutput) -> bytes:
    """Return the file behind an address; nothing where it is gone: a report never ends for one image."""
    try:
        return about.asset(address) if about.asset else b""
    except UserError:
        return b""


def _pixels(shown: ShownMap) -> Counter[str]:
    """Return how many pixels each class has; nothing of a map that is damaged."""
    try:
        return shown.pixels()
    except class_map.NotAMap:
        return Counter()


def _compared(said: NDArray[np.uint16], true: NDArray[np.uint16], truth: ShownMap) -> str:
    """Return ``mIoU 0.61, pixel accuracy 0.83``; both maps have the places of the truth's names."""
    if said.shape != true.shape:
        return "of another size than the ground truth"
    judged = of_classes([Class(name, place) for place, name in enumerate(truth.names)], None, [NONE])
    confusion = semantic.pairs(said, true, judged)[: len(truth.names)]
    if not (total := int(confusion.sum())):
        return ""
    accuracy = int(confusion.diagonal().sum()) / total
    return f"mIoU {semantic.own_iou(confusion):.2f}, pixel accuracy {accuracy:.2f}"


def _places(of_numbers: Mapping[int, int]) -> NDArray[np.uint16]:
    """Return the place of each number that a map may have."""
    found = np.full(1 << 16, NONE, np.uint16)
    found[list(of_numbers)] = list(of_numbers.values())
    return found


def _shown(answer: Any) -> ShownMap:
    """Return a map that may be a PNG file still, as a source has it whose classes are not at hand."""
    if isinstance(answer, ShownMap):
        return answer
    return ShownMap(answer, None, _places(dict(enumerate(range(len(_NUMBERS))))), _NUMBERS)


def _small(numbers: NDArray[np.uint16], image: Image.Image) -> NDArray[np.uint16]:
    """Return a map for a small picture: the nearest pixels."""
    height, width = numbers.shape
    rows, columns = (
        np.arange(image.height) * height // image.height,
        np.arange(image.width) * width // image.width,
    )
    return numbers[np.ix_(rows, columns)]


def _of_row(classes: Sequence[Mapping[str, Any]]) -> str:
    return _words((one["label"], one["share"]) for one in classes)


def _words(shares: Iterable[tuple[str, float]]) -> str:
    ranked = [(name, share) for name, share in shares if share >= _LEAST_SHARE]
    named = (("background" if name in BACKGROUND else name, share) for name, share in ranked[:_MOST_WORDS])
    shown = [f"{name} {percent(share)}" for name, share in named]
    return ", ".join(shown) or "nothing"
