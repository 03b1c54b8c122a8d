"""Says how two outputs over the same images differ: where they agree, and by their truth which is better.

Rows are joined by key, streamed: memory is bounded but for a byte an image, which says whether it counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.cluster.parallel import chosen_map
from cnnbatch.errors import UserError
from cnnbatch.evaluation import Advance, Terms, judge
from cnnbatch.evaluation.comparison.agreement import CommonImages
from cnnbatch.evaluation.comparison.differences import (
    ImageChanges,
    MetricDifference,
    differences,
    read_images,
)
from cnnbatch.evaluation.comparison.gates import require_truth
from cnnbatch.evaluation.comparison.measure import ImageScore, Measure
from cnnbatch.evaluation.comparison.measures import MEASURES
from cnnbatch.evaluation.comparison.options import CompareOptions
from cnnbatch.evaluation.comparison.pairing import Joined, Side, open_side
from cnnbatch.evaluation.comparison.result import Comparison
from cnnbatch.evaluation.truths import Aligned
from cnnbatch.report.context import about_output
from cnnbatch.storage import Storage, redact
from cnnbatch.terminal.screen import Screen

__all__ = ["CompareOptions", "Comparison", "ImageScore", "Measure", "compare"]


def compare(
    a: str,
    b: str,
    options: CompareOptions | None = None,
    storage: Storage | None = None,
    screen: Screen | None = None,
) -> Comparison:
    """Compare the outputs at ``a`` and ``b``; ``screen`` shows how far it is.

    Raises UserError where one is no output, or they have nothing in common that can be compared, or no image.
    """
    options, storage, screen = options or CompareOptions(), storage or Storage(), screen or Screen(quiet=True)
    one, other = open_side(a, storage), open_side(b, storage)
    require_truth(options.gates, one.truth is not None and other.truth is not None)
    measure = measure_of(one, other, options)
    common, judged = CommonImages(measure), JudgedRows(one, other)
    advance = screen.stage("compare", len(one.result) + len(other.result))
    joined = Joined(*(_advancing(side.rows(measure), advance) for side in (one, other)))
    for first, second in joined:
        common.add(first, second)
        judged.add(first, second)
    if not common.images:
        raise _no_common_image(one, other)
    metrics, changes = judge_both(one, other, judged, measure, screen)
    return Comparison(
        a=one,
        b=other,
        options=options,
        measure=measure,
        images=common.images,
        only_a=joined.only_a,
        only_b=joined.only_b,
        failed_a=common.failed_a,
        failed_b=common.failed_b,
        failed_in_both=common.failed_in_both,
        agreement=measure.agreement(),
        counts=measure.counts(),
        classes=measure.shifts(),
        label_changes=measure.label_changes(),
        metrics=metrics,
        changes=changes,
        disagreements=common.disagreements(),
        notes=_notes(one, other, common, judged, changes),
    )


def _advancing(rows: Iterable[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    """Yield batches, and call ``advance`` with the number of their images."""
    for batch in rows:
        yield batch
        advance(batch.num_rows)


def measure_of(a: Side, b: Side, options: CompareOptions) -> Measure:
    """Return how the answers of both outputs are compared.

    Raises UserError where they have no kind of answer in common that can be.
    """
    kinds = comparable_kinds(a, b)
    if options.column is not None and options.column not in kinds and kinds:
        raise UserError(
            f"--column: expected one of {', '.join(kinds)}, which both outputs have, got {options.column!r}"
        )
    if kinds:
        kind = options.column or kinds[0]
        columns = [side.result.schema.field(kind).type for side in (a, b)]
        found = MEASURES[kind].of(kind, options, columns)
        found.about = about_output(a.result, a.storage), about_output(b.result, b.storage)
        return found
    lines = [f"  {redact(side.result.uri)} has {', '.join(side.result.schema.names)}" for side in (a, b)]
    raise UserError(
        "expected two outputs of one task, with labels, boxes of objects or maps in both:\n"
        + "\n".join(lines)
        + "\n  what to do: compare outputs of the same task"
    )


def comparable_kinds(a: Side, b: Side) -> list[str]:
    """Return the columns of both outputs that can be compared, in the order of `MEASURES`."""
    schemas = [side.result.schema for side in (a, b)]
    return [
        kind
        for kind in MEASURES.among(schemas[0].names)
        if kind in schemas[1].names and all(MEASURES[kind].fits(one.field(kind).type) for one in schemas)
    ]


class JudgedRows:
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
    a: Side, b: Side, judged: JudgedRows, measure: Measure, screen: Screen
) -> tuple[Mapping[str, MetricDifference] | None, ImageChanges | None]:
    """Judge both outputs anew, by the images that count; None where their truth can't judge them.

    Nothing is written into the outputs.
    """
    if not judged.images:
        return None, None
    advance = screen.stage("evaluate", 2 * judged.images)
    with tempfile.TemporaryDirectory(prefix="cnnbatch-") as folder:
        found = []
        for side, rows, name in zip((a, b), judged.rows, "ab", strict=True):
            place = Path(folder, name)
            place.mkdir()
            truth = Aligned(side.truth, 0) if side.truth else None
            apply = chosen_map(judged.images, "auto")
            terms = Terms(slices=(), aliases=side.aliases, truth=truth, only=rows)
            found.append(judge(side.result.uri, side.storage, place, terms, apply, advance))
        if found[0] is None or found[1] is None:
            return None, None
        a_images, b_images = (Path(folder, name, "images.parquet") for name in "ab")
        images = read_images(a_images, b_images, measure)
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


def _notes(
    a: Side, b: Side, common: CommonImages, judged: JudgedRows, changes: ImageChanges | None
) -> list[str]:
    """Say what one may not expect."""
    inputs = [_input(side) for side in (a, b)]
    notes = [f"A has read {_shown(inputs[0])}, B {_shown(inputs[1])}"] if inputs[0] != inputs[1] else []
    counts = {
        "images have another etag in B: the picture has changed between the two": common.other_etags,
        "images have ground truth in only one of the outputs; they are not evaluated": judged.one_truth,
        "images have another ground truth in B": changes.other_truths if changes else 0,
        **common.measure.excluded,
    }
    others = [kind for kind in comparable_kinds(a, b) if kind != common.measure.kind]
    if others:
        compared, more = common.measure.kind, " or ".join(others)
        notes.append(f"the column {compared} is compared; --column NAME compares {more} instead")
    return notes + [f"{count:,} {words}" for words, count in counts.items() if count]


def _input(side: Side) -> Any:
    settings = side.result.settings.get("input")
    return settings.get("url") if isinstance(settings, dict) else settings


def _shown(url: Any) -> str:
    return redact(url) if isinstance(url, str) else f"{len(url):,} addresses" if url else "an unknown input"
