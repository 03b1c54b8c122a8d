"""Counts a result's rows for the report, one part after the other, in memory that doesn't grow with them.

Which images are shown follows from a hash of their keys alone, so that the same result always
gives the same page; the price is one hash a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.metrics.intervals import key_hashes
from cnnbatch.output.forgotten_rows import are_forgotten
from cnnbatch.report.answers import answers_among
from cnnbatch.report.answers.entry import AnswerReport

if TYPE_CHECKING:
    from cnnbatch.output.reader import Reader

READERS = 4
SAMPLE = 36
LEAST_SURE = 12
EXAMPLES_OF_A_CODE = 5
SCORE_BINS = 20
MOST_LABELS = 50_000
COUNTED = ("key", "error", "vanished")
"""What is counted, but the answers and their scores."""


class RankedRow(NamedTuple):
    """A row by its rank, then by where it is; the order of ranks is the order of choice."""

    rank: float
    tie: int
    part: int
    row: int


class Least:
    """The ``size`` places of least rank among all that were added."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.places: list[RankedRow] = []

    def add(self, places: Iterable[RankedRow]) -> None:
        """Keep what is least of the known and the new."""
        self.places = sorted([*self.places, *places])[: self._size]

    def add_rows(self, ranks: np.ndarray, ties: np.ndarray, part: int, rows: np.ndarray) -> None:
        """Add ``rows`` of ``part`` by their ``ranks``; only those that can stay cost anything."""
        chosen = np.lexsort((ties, ranks))[: self._size]
        if len(self.places) == self._size:
            chosen = chosen[ranks[chosen] <= self.places[-1].rank]
        self.add(RankedRow(float(ranks[i]), int(ties[i]), part, int(rows[i])) for i in chosen.tolist())


@dataclass(slots=True)
class RowCounts:
    """What is known of some parts; `merge` adds what is known of others."""

    rows: int = 0
    vanished: int = 0
    forgotten: int = 0
    scored: bool = True
    failed: Counter[str] = field(default_factory=Counter)
    labels_of: dict[str, Counter[str]] = field(default_factory=dict)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    sample: Least = field(default_factory=lambda: Least(SAMPLE))
    least_sure: Least = field(default_factory=lambda: Least(LEAST_SURE))
    examples: dict[str, Least] = field(default_factory=dict)

    @property
    def labels(self) -> Counter[str]:
        """The labels of the first kind of answer that has some."""
        return next((one for one in self.labels_of.values() if one), Counter())

    def merge(self, other: RowCounts) -> None:
        """Add what ``other`` counted; the order of merging changes nothing."""
        self.rows += other.rows
        self.vanished += other.vanished
        self.forgotten += other.forgotten
        self.scored &= other.scored
        self.failed += other.failed
        self.scores += other.scores
        for kind, counts in other.labels_of.items():
            self._count_labels(kind, counts)
        self.sample.add(other.sample.places)
        self.least_sure.add(other.least_sure.places)
        for code, least in other.examples.items():
            self.examples.setdefault(code, Least(EXAMPLES_OF_A_CODE)).add(least.places)

    def add(
        self,
        batch: pa.RecordBatch,
        part: int,
        start: int,
        answers: Mapping[str, AnswerReport] | None = None,
    ) -> None:
        """Count ``batch``, whose first row is row ``start`` of ``part``.

        ``answers`` are the kinds of answer by their names; None: those whose column it has.
        """
        self.rows += batch.num_rows
        columns: dict[str, Any] = dict(zip(batch.schema.names, batch.columns, strict=True))
        ties = key_hashes(columns["key"].to_pylist())
        rows = np.arange(start, start + batch.num_rows)
        good = np.asarray(columns["error"].is_null())
        if "vanished" in columns:
            gone = np.asarray(columns["vanished"].fill_null(False))
            self.vanished += int(gone.sum())
            good &= ~gone
        self._add_failures(columns["error"], ties, part, rows)
        self.sample.add_rows(ties[good] / 2**64, ties[good], part, rows[good])
        for kind, entry in (answers_among(columns) if answers is None else answers).items():
            if (counted := entry.counted or kind) in columns:
                self._count_labels(kind, entry.labels(columns[counted].filter(pa.array(good))))
            if entry.score_column in columns:
                self._add_scores(columns[entry.score_column], ties, part, rows, good)

    def _add_failures(self, errors: pa.StructArray, ties: np.ndarray, part: int, rows: np.ndarray) -> None:
        forgotten = are_forgotten(errors)
        self.forgotten += int(forgotten.sum())
        failed = np.flatnonzero(np.asarray(pc.is_valid(errors)) & ~forgotten)
        codes = pc.struct_field(errors, "code").take(pa.array(failed)).to_pylist()
        for code in set(codes):
            chosen = failed[[one == code for one in codes]]
            self.failed[str(code)] += len(chosen)
            least = self.examples.setdefault(str(code), Least(EXAMPLES_OF_A_CODE))
            least.add_rows(ties[chosen] / 2**64, ties[chosen], part, rows[chosen])

    def _add_scores(
        self, scores: pa.Array[Any], ties: np.ndarray, part: int, rows: np.ndarray, good: np.ndarray
    ) -> None:
        if not (pa.types.is_floating(scores.type) or pa.types.is_integer(scores.type)):
            self.scored = False
            return
        values = np.asarray(scores.cast(pa.float64()).to_numpy(zero_copy_only=False))
        good = good & np.isfinite(values)
        values = values[good]
        self.scored &= bool(((values >= 0) & (values <= 1 + 1e-6)).all())
        self.scores += np.histogram(values.clip(0, 1), SCORE_BINS, (0.0, 1.0))[0]
        self.least_sure.add_rows(values, ties[good], part, rows[good])

    def _count_labels(self, kind: str, counts: Counter[str]) -> None:
        held = self.labels_of.setdefault(kind, Counter())
        held.update(counts)
        if len(held) > 2 * MOST_LABELS:  # Free text instead of classes: the rare ones go.
            self.labels_of[kind] = Counter(dict(held.most_common(MOST_LABELS)))


def count(result: Reader) -> RowCounts:
    """Count all rows of ``result``, several parts at a time."""
    parts = range(len(result.receipts()))
    whole = RowCounts()
    if not parts:
        return whole
    names = result.schema.names
    answers = answers_among(names)
    wanted = {*COUNTED, *_answer_columns(answers)}
    columns = [name for name in names if name in wanted]
    with ThreadPoolExecutor(READERS, thread_name_prefix="counting") as pool:
        for tally in pool.map(
            lambda first: _count_parts(result, parts[first::READERS], columns, answers), range(READERS)
        ):
            whole.merge(tally)
    return whole


def fetch(result: Reader, places: Sequence[RankedRow], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows at ``places``, in order, with ``columns``; each part is opened once."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for part in sorted({place.part for place in places}):
        rows = sorted({place.row for place in places if place.part == part})
        for row, values in zip(rows, result.take(part, rows, columns), strict=True):
            found[part, row] = values
    return [found[place.part, place.row] for place in places]


def _count_parts(
    result: Reader, parts: Iterable[int], columns: Sequence[str], answers: Mapping[str, AnswerReport]
) -> RowCounts:
    tally = RowCounts()
    for part in parts:
        start = 0
        for batch in result.batches(columns, part):
            tally.add(batch, part, start, answers)
            start += batch.num_rows
    return tally


def _answer_columns(answers: Mapping[str, AnswerReport]) -> Iterator[str]:
    """Yield the columns of the answers, and of how sure they are."""
    for kind, entry in answers.items():
        yield entry.counted or kind
        if entry.score_column:
            yield entry.score_column
