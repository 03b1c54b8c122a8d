"""What a report does with one kind of answer: the class of the entries of the layer ``report``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import pyarrow as pa
from PIL import Image

from cnnbatch.metrics import Value
from cnnbatch.output.evaluation import Evaluation

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

    score_column: ClassVar[str | None] = None
    """The column that says from 0 to 1 how sure an answer is."""

    is_drawn: ClassVar[bool] = False
    """Whether it is drawn on the picture: then what is true is a picture beside what was predicted."""

    mistakes_lead: ClassVar[str] = ""
    """What has the mistakes that are shown, as a sentence begins: ``Images with a wrong label``."""

    mistakes_by: ClassVar[str] = "class"
    """What the mistakes are filtered by."""

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

    def labels(self, answers: pa.Array[Any]) -> Counter[str]:
        """Count the images by their labels."""
        return Counter()

    def label_names(self, truth: Any) -> Iterable[str]:
        """Return the names of the classes that a ground truth has, as they come."""
        return ()

    def truth(self, answer: Any, names: Mapping[str, str | None], hidden: AbstractSet[str]) -> Any:
        """Return a ground truth as it is shown: with the model's ``names``, without ``hidden`` fields."""
        return answer

    def hidden_fields(self, column: pa.DataType | None) -> AbstractSet[str]:
        """Return the fields that a ground truth may have and this column of predictions has not."""
        return frozenset()

    def mistakes(self, tables: EvaluationTables) -> Iterator[pa.Table]:
        """Yield the images that were judged wrong: `WHERE`, ``label``, ``score``.

        With ``truths`` and ``found``, the label and its score are those of an `Alarm`.
        """
        return iter(())

    def class_layouts(self, metrics: Mapping[str, Value]) -> Sequence[ClassLayout]:
        """Return the tables of classes that an evaluation with these ``metrics`` may have."""
        return ()
