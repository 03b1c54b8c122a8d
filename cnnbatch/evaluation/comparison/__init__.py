"""Says how two outputs over the same images differ: where they agree, and by their truth which is better.

Rows are joined by key, streamed: memory is bounded but for a byte an image, which says whether it counts.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.cluster.parallel import chosen_map
from cnnbatch.errors import UserError
from cnnbatch.evaluation import Advance, Terms, judge
from cnnbatch.evaluation.comparison.agreement import (
    ClassShift,
    LabelChange,
    LabelMeasure,
    Measure,
    ObjectMeasure,
    Tally,
)
from cnnbatch.evaluation.comparison.differences import Changes, Difference, differences, read_images
from cnnbatch.evaluation.comparison.gates import Gate, broken, require_truth
from cnnbatch.evaluation.comparison.pairing import Joined, Side, open_side
from cnnbatch.evaluation.truths import Aligned
from cnnbatch.metrics import Value
from cnnbatch.storage import Storage, join, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.truth import SURE

MEASURES: Mapping[str, Callable[[Options], Measure]] = {
    "objects": lambda options: ObjectMeasure(options.iou),
    "label": lambda options: LabelMeasure(),
}
"""By the column that both outputs have, how it is compared; the first counts."""


@dataclass(frozen=True, slots=True)
class Options:
    """How outputs are compared.

    Boxes whose IoU is at least ``iou`` are the same; objects that score less than ``score_threshold`` don't
    count; ``gates`` are what the comparison must reach. Raises UserError for numbers out of range.
    """

    iou: float = 0.5
    score_threshold: float = SURE
    gates: Sequence[Gate] = ()

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise UserError(f"--iou: expected a number above 0 and at most 1, got {self.iou:g}")
        if not 0 <= self.score_threshold <= 1:
            raise UserError(f"--score-threshold: expected a number from 0 to 1, got {self.score_threshold:g}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between the outputs ``a`` and ``b``.

    ``images`` are those of both, ``only_a`` and ``only_b`` the others; ``failed_a`` counts by code what
    failed in A alone. ``what`` is the column compared, ``counts`` what the ``agreement`` stands on.
    ``metrics`` and ``changes`` are None without a truth in both. ``disagreements`` are the images to look at,
    in order.
    """

    a: Side
    b: Side
    options: Options
    what: str
    images: int
    only_a: int
    only_b: int
    failed_a: Counter[str]
    failed_b: Counter[str]
    failed_in_both: int
    agreement: Value
    counts: Mapping[str, int]
    classes: Sequence[ClassShift]
    label_changes: Sequence[LabelChange]
    metrics: Mapping[str, Difference] | None
    changes: Changes | None
    disagreements: pa.Table
    notes: Sequence[str]

    def broken(self) -> list[str]:
        """Return a sentence for each gate that is not reached.

        Raises UserError for one of an unknown metric, or of one without a value.
        """
        return list(broken(self.options.gates, self.agreement, self.metrics))

    def save(self, to: str, storage: Storage) -> None:
        """Write ``comparison.json``, ``comparison.html`` and ``disagreements.parquet`` into the folder."""
        from cnnbatch.evaluation.comparison.page import page_html
        from cnnbatch.evaluation.comparison.summary import to_json

        listed = pa.BufferOutputStream()
        pq.write_table(self.disagreements, listed)
        storage.put(join(to, "disagreements.parquet"), listed.getvalue().to_pybytes())
        storage.put(join(to, "comparison.html"), page_html(self).encode())
        storage.put(join(to, "comparison.json"), to_json(self).encode())


def compare(
    a: str,
    b: str,
    options: Options = Options(),
    storage: Storage | None = None,
    screen: Screen | None = None,
) -> Comparison:
    """Compare the outputs at ``a`` and ``b``; ``screen`` shows how far it is.

    Raises UserError where one is no output, or they have nothing in common that can be compared, or no image.
    """
    storage, screen = storage or Storage(), screen or Screen(quiet=True)
    one, other = open_side(a, storage), open_side(b, storage)
    require_truth(options.gates, one.truth is not None and other.truth is not None)
    what = comparable_column(one, other)
    tally, counted = Tally(MEASURES[what](options)), Counted(one, other)
    advance = screen.stage("compare", len(one.result) + len(other.result))
    joined = Joined(*(_told(side.rows(what, options.score_threshold), advance) for side in (one, other)))
    for first, second in joined:
        tally.add(first, second)
        counted.add(first, second)
    if not tally.images:
        raise _no_common_image(one, other)
    metrics, changes = judge_both(one, other, counted, screen)
    return Comparison(
        a=one,
        b=other,
        options=options,
        what=what,
        images=tally.images,
        only_a=joined.only_a,
        only_b=joined.only_b,
        failed_a=tally.failed_a,
        failed_b=tally.failed_b,
        failed_in_both=tally.failed_in_both,
        agreement=tally.measure.agreement(),
        counts=tally.measure.counts(),
        classes=tally.measure.shifts(),
        label_changes=tally.measure.label_changes(),
        metrics=metrics,
        changes=changes,
        disagreements=tally.disagreements(),
        notes=_notes(one, other, tally, counted, changes),
    )


def _told(rows: Iterable[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    """Yield batches, and tell of their images."""
    for batch in rows:
        yield batch
        advance(batch.num_rows)


def comparable_column(a: Side, b: Side) -> str:
    """Return the column that both outputs have. Raises UserError where they are of different tasks."""
    common = [name for name in a.compares() if name in b.compares()]
    if common:
        return common[0]
    lines = [f"  {redact(side.result.uri)} has {', '.join(side.result.schema.names)}" for side in (a, b)]
    raise UserError(
        "expected two outputs of one task, with labels or with boxes of objects in both:\n"
        + "\n".join(lines)
        + "\n  what to do: compare outputs of the same task"
    )


class Counted:
    """Which rows of each part are judged: those of images that both outputs have, with a truth in both."""

    def __init__(self, a: Side, b: Side) -> None:
        self.images = self.one_truth = 0
        self.rows = tuple(
            {index: np.zeros(footer.rows, np.bool_) for index, footer in side.parts.items()}
            for side in (a, b)
        )

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch) -> None:
        """Take images in, row beside row."""
        known = [batch["truth"].to_numpy(zero_copy_only=False) for batch in (a, b)]
        both = known[0] & known[1]
        self.images += int(both.sum())
        self.one_truth += int((known[0] ^ known[1]).sum())
        for masks, batch in zip(self.rows, (a, b), strict=True):
            _mark(masks, batch["part"].to_numpy()[both], batch["row"].to_numpy()[both])


def _mark(masks: Mapping[int, NDArray[np.bool_]], parts: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    for part in np.unique(parts).tolist():
        masks[part][rows[parts == part]] = True


def judge_both(
    a: Side, b: Side, counted: Counted, screen: Screen
) -> tuple[Mapping[str, Difference] | None, Changes | None]:
    """Judge both outputs anew, by the images that count; None where their truth can't judge them.

    Nothing is written into the outputs.
    """
    if not counted.images:
        return None, None
    advance = screen.stage("evaluate", 2 * counted.images)
    with tempfile.TemporaryDirectory(prefix="cnnbatch-") as folder:
        found = []
        for side, rows, name in zip((a, b), counted.rows, "ab", strict=True):
            place = Path(folder, name)
            place.mkdir()
            truth = Aligned(side.truth, 0) if side.truth else None
            apply = chosen_map(counted.images, "auto")
            terms = Terms(slices=(), aliases=side.aliases, truth=truth, only=rows)
            found.append(judge(side.result.uri, side.storage, place, terms, apply, advance))
        if found[0] is None or found[1] is None:
            return None, None
        images = read_images(*(Path(folder, name, "images.parquet") for name in "ab"))
    shifts = differences(found[0], found[1], images.outcomes if images else {})
    return shifts, images.changes() if images else None


def _no_common_image(a: Side, b: Side) -> UserError:
    firsts = [next(iter(side.result.batches(["key"])))["key"][0] for side in (a, b) if len(side.result)]
    shown = " and ".join(repr(key.as_py()) for key in firsts)
    return UserError(
        f"{redact(a.result.uri)} and {redact(b.result.uri)} have no image in common: no key is in both"
        + (f"; their first are {shown}" if shown else "")
        + "\n  what to do: give outputs over the same collection; keys are paths relative to the input's root"
    )


def _notes(a: Side, b: Side, tally: Tally, counted: Counted, changes: Changes | None) -> list[str]:
    """Say what one may not expect."""
    inputs = [_input(side) for side in (a, b)]
    notes = [f"A has read {_shown(inputs[0])}, B {_shown(inputs[1])}"] if inputs[0] != inputs[1] else []
    counts = {
        "images have another etag in B: the picture has changed between the two": tally.other_etags,
        "images have a truth in only one of the outputs; they are not judged": counted.one_truth,
        "images have another truth in B": changes.other_truths if changes else 0,
        **tally.measure.excluded,
    }
    return notes + [f"{count:,} {words}" for words, count in counts.items() if count]


def _input(side: Side) -> Any:
    settings = side.result.settings.get("input")
    return settings.get("url") if isinstance(settings, dict) else settings


def _shown(url: Any) -> str:
    return redact(url) if isinstance(url, str) else f"{len(url):,} addresses" if url else "an unknown input"
