"""What a report does with one kind of answer: the class of the entries of the layer ``report``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import pyarrow as pa
from PIL import Image

from cnnbatch.metrics import Value
from cnnbatch.output.evaluation import Evaluation

DIFFERENCE = "Difference"
"""The name of the view that shows where an answer and what is true differ."""

WHERE = ("key", "part", "row")
"""Columns of ``evaluation/images.parquet`` that say which row of which part an image is."""


@dataclass(frozen=True, slots=True)
class Guess:
    """One label and its score, where the task gives one."""

    label: str
    score: float | None


class Alarm(NamedTuple):
    """An image's most confident detection of what is not there; ``found`` of its ``truths`` were found."""

    label: str
    score: float
    truths: int
    found: int


class ClassLayout(NamedTuple):
    """Which columns of which table of the evaluation are shown of classes; ``main`` has a bar."""

    table: str
    how: str
    what: str
    main: str
    others: Sequence[str]


class Swatch(NamedTuple):
    """A colour of a legend, as in CSS, and what it stands for."""

    colour: str
    name: str


class MoreView(NamedTuple):
    """A further picture of an image, under its ``name``, with a line of ``text`` and its own ``legend``."""

    name: str
    image: Image.Image
    text: str = ""
    legend: Sequence[Swatch] = ()


@dataclass(frozen=True, slots=True)
class AboutOutput:
    """What an answer's row does not say: the names of the model's ``classes``, and what addresses lead to."""

    classes: Sequence[str] = ()
    asset: Callable[[str], bytes] | None = None


NOTHING_MORE = AboutOutput()


@dataclass(frozen=True, slots=True)
class AboutTruth:
    """What is known of a ground truth but its rows.

    ``names`` lead from its classes to the model's ``classes``; ``hidden`` are fields that are not shown.
    """

    schema: pa.Schema
    names: Mapping[str, str | None]
    classes: Sequence[str] = ()
    hidden: AbstractSet[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MistakeWords:
    """What is said of the mistakes that are shown.

    ``title`` is over them; ``lead`` is a sentence's beginning that says what has them, as in ``Images with a
    wrong label``, ``order`` in what order they are shown, and ``by`` what they can be filtered by.
    """

    lead: str
    by: str = "class"
    order: str = "the most confident first"
    title: str = "Most confident errors"


class EvaluationTables(Protocol):
    """What there is of an evaluation, as an entry reads it."""

    @property
    def evaluation(self) -> Evaluation | None:
        """What ``evaluation.json`` says."""

    def table(self, name: str, columns: Sequence[str]) -> pa.Table | None:
        """Return these columns of a table; None where it does not have them."""

    def images(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all images, some at a time; none where these columns are not there."""


class AnswerReport:
    """One kind of answer in reports, in notebooks and on the terminal.

    A new kind has to say its `words`; all else has a default. ``answer`` is a value of its column.
    """

    columns: ClassVar[Sequence[str]] = ()
    """Columns of the predictions that say more of it than its own."""

    counted: ClassVar[str | None] = None
    """The column whose values `labels` counts, where that is not its own."""

    unit: ClassVar[str] = "images"
    """What `labels` and the confusion matrix count."""

    score_column: ClassVar[str | None] = None
    """The column that says from 0 to 1 how sure an answer is."""

    score_name: ClassVar[str] = "best score"
    """What that column has of an image, in words."""

    is_confused: ClassVar[bool] = False
    """Whether an evaluation counts which of its classes is taken for which."""

    is_drawn: ClassVar[bool] = False
    """Whether it is drawn on the picture: then what is true is a picture beside what was predicted."""

    def opened(self, answer: Any, row: Mapping[str, Any], about: AboutOutput) -> Any:
        """Return an answer as all other methods take it; ``row`` is all of its row."""
        return answer

    def words(self, answer: Any) -> str:
        """Return an answer in words: what was predicted, and what is true."""
        return str(answer)

    def caption(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return what was predicted in words, under a picture; ``row`` is all of its row."""
        return self.words(answer)

    def predicted(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return what was predicted in words, as it stands beside what is true."""
        return self.caption(answer, row)

    def line(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return what was predicted in words, on a terminal."""
        return self.caption(answer, row)

    def ranked(self, row: Mapping[str, Any]) -> Sequence[Guess]:
        """Return the labels of a row with their scores, the best first; none where it has no such."""
        return ()

    def is_right(self, answer: Any, truth: Any) -> bool | None:
        """Say whether an answer is the true one; None where that is no yes or no."""
        return None

    def shown(self, answer: Any, least: float, alarm: Alarm | None) -> Any:
        """Return what is shown of a prediction: of objects those from the score ``least`` on."""
        return answer

    def draw(self, image: Image.Image, size: tuple[int, int], answer: Any) -> Image.Image:
        """Draw an answer on a small picture, whose original has ``size`` (width, height); return it."""
        return image

    def aligned(self, answer: Any, other: Any) -> Any:
        """Return an answer so that it has the colours of another one, which is shown beside it."""
        return answer

    def title(self, answer: Any) -> str:
        """Return what its picture is called, where a row has several answers that are drawn."""
        return ""

    def paints(self, answer: Any) -> Mapping[str, str]:
        """Return the colours of classes, as in CSS, that others in the same row are to have, too."""
        return {}

    def painted(self, answer: Any, paints: Mapping[str, str]) -> Any:
        """Return an answer that is drawn in the colours of another one in the same row."""
        return answer

    def more_views(self, image: Image.Image, answer: Any, truth: Any | None) -> Sequence[MoreView]:
        """Return what else is shown beside an answer and what is true, on copies of the small picture."""
        view = None if truth is None else self.difference(image, answer, truth)
        return () if view is None else (view,)

    def difference(self, image: Image.Image, answer: Any, truth: Any) -> MoreView | None:
        """Return where an answer is not what is true, on a copy of the small picture; None: not drawn."""
        return None

    def disagreement(self, image: Image.Image, answer: Any, other: Any) -> MoreView | None:
        """Return where the answers of two outputs differ, on a copy of the small picture; None: not drawn."""
        return None

    def legend(self, answers: Iterable[Any], counts: Counter[str]) -> Sequence[Swatch]:
        """Return the colours of some answers and of what is true; ``counts`` are the `labels` of all."""
        return ()

    def labels(self, answers: pa.Array[Any]) -> Counter[str]:
        """Count the images, or another ``unit``, by their labels."""
        return Counter()

    def label_names(self, truth: Any) -> Iterable[str]:
        """Return the names of the classes that a ground truth has, as they come."""
        return ()

    def truth(self, answer: Any, about: AboutTruth) -> Any:
        """Return a ground truth as it is shown: with the model's names, without hidden fields."""
        return answer

    def truth_of_objects(self, row: Mapping[str, Any], about: AboutTruth) -> Any | None:
        """Return what is true by a row of a ground truth of ``objects``; None where that does not say it."""
        return None

    def hidden_fields(self, column: pa.DataType | None) -> AbstractSet[str]:
        """Return the fields that a ground truth may have and this column of predictions has not."""
        return frozenset()

    def mistake_words(self, tables: EvaluationTables) -> MistakeWords:
        """Return what is said of the mistakes."""
        return MistakeWords("Images with a mistake")

    def mistakes(self, tables: EvaluationTables) -> Iterator[pa.Table]:
        """Yield the images that were judged wrong: `WHERE`, ``label``, ``score``.

        Those of the highest score are shown first. With ``truths`` and ``found``, the label and its score are
        those of an `Alarm`.
        """
        return iter(())

    def class_layouts(self, metrics: Mapping[str, Value]) -> Sequence[ClassLayout]:
        """Return the tables of classes that an evaluation with these ``metrics`` may have."""
        return ()
