"""Writes an output's predictions in the forms that other tools read.

All of it is streamed, so that no collection is too large; the price is that keys, labels and ids are read
once before, where a form needs to know them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cnnbatch.config.entries import Entries
from cnnbatch.errors import UserError
from cnnbatch.humanize import counted, nearest
from cnnbatch.output.export.chips import Chips
from cnnbatch.output.export.coco import CocoResults
from cnnbatch.output.export.csv_file import CsvTable
from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.panoptic import CocoPanoptic
from cnnbatch.output.export.pictures import Pictures
from cnnbatch.output.export.predictions import ExportCounts, ExportOptions, Predictions
from cnnbatch.output.export.voc import VocTree
from cnnbatch.output.export.yolo import YoloLabels
from cnnbatch.output.forgotten import require_whole
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.truth import FACE

__all__ = ["FORMATS", "ExportFormat", "ExportOptions", "ExportSummary", "export"]

FORMATS: Entries[type[ExportFormat]] = Entries(
    "export",
    {
        "coco": CocoResults,
        "voc": VocTree,
        "yolo": YoloLabels,
        "csv": CsvTable,
        "panoptic": CocoPanoptic,
        "pictures": Pictures,
        "chips": Chips,
    },
    ExportFormat,
)
"""The formats by name."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written where; `lines` says it. ``others`` are the answers that could be written instead."""

    format: type[ExportFormat]
    to: str
    counts: ExportCounts
    progress: str | None = None
    others: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """Yield what was written, and everything that was not."""
        counts = self.counts
        objects = f"{counted(counts.objects, 'object')} of " if counts.objects else ""
        yield f"{objects}{counted(counts.images, 'image')}: {redact(self.to)}"
        if self.others:
            yield f"  not written: {', '.join(self.others)}; --column NAME writes one of them instead"
        if failed := counts.failed.total():
            codes = ", ".join(f"{code} {count:,}" for code, count in sorted((+counts.failed).items()))
            yield f"  failed: {counted(failed, 'image')} ({codes}); {self.format.failed}"
        if self.progress:
            yield f"  not finished: the run has made {self.progress}; its command goes on with the rest"
        yield from (
            f"  {why}: {counted(count, noun)}{rest}" for why, count, noun, rest in self._left_out() if count
        )

    def _left_out(self) -> Iterator[tuple[str, int, str, str]]:
        """Yield why something was not written, how many of what, and what there is instead."""
        counts, format = self.counts, self.format
        yield "forgotten", counts.forgotten, "image", "; left out"
        yield "gone from the input", counts.vanished, "image", f"; {format.gone}"
        tools = "; left out, as tools refuse results of images that the file doesn't name"
        yield "not in the COCO file of the ground truth", counts.unknown, "image", tools
        yield "gone, damaged or too large", counts.unread, "image", "; they have no picture"
        yield "without a face", counts.faceless, "image", "; they have no file"
        yield "of stuff, not of things", counts.stuff, "segment", "; --format panoptic has them"
        yield "damaged, or of another size than the image", counts.bad_masks, "mask", f"; {format.bad_masks}"
        yield "empty, or covered by others", counts.hidden, "segment", "; left out"
        yield "below the threshold", counts.low, "object", ""
        yield "without a label or with numbers that are none", counts.strange, "object", "; left out"


def export(
    output: str, format: str, to: str, options: ExportOptions | None = None, storage: Storage | None = None
) -> ExportSummary:
    """Write the predictions of the output at ``output`` to ``to``, any address that can be written.

    ``format`` is one of `FORMATS`. Nothing that is there already is overwritten.

    Raises:
        UserError: there is no such output or format, the format can't hold its predictions, or ``to``
            holds something.
        EnvironmentFault: the storage or the local disk refuses.
    """
    if format not in FORMATS:
        near = nearest(format, FORMATS)
        meant = f"; did you mean {near}?" if near else ""
        raise UserError(f"--format: expected one of {', '.join(FORMATS)}, got {format!r}{meant}")
    storage, options = storage or Storage(), options or ExportOptions()
    predictions = Predictions(output, storage, options)
    require_whole(predictions.output)
    predictions.with_stuff = FORMATS[format].stuff
    _require_fitting(predictions, format)
    predictions.column, predictions.others = _chosen(predictions, format)
    _require_meaning(predictions, format)
    if options.score_threshold is None and not options.hide:  # A face that is hardly one is hidden, too.
        predictions.options = replace(options, score_threshold=FORMATS[format].least_score)
    FORMATS[format]().write(predictions, storage, normalize(to))
    others = () if FORMATS[format].any_column else predictions.others
    return ExportSummary(FORMATS[format], normalize(to), predictions.counts, predictions.progress(), others)


def _chosen(predictions: Predictions, format: str) -> tuple[str, list[str]]:
    """Return the column that is written, and those that could be written instead."""
    held, asked = FORMATS[format].held(predictions.columns), predictions.options.column
    if asked is not None and asked not in held:
        where = redact(predictions.uri)
        if not held:
            raise UserError(
                f"--column: {where} has no answers that --format {format} tells apart\n"
                "  what to do: leave it out"
            )
        raise UserError(
            f"--column: expected one of {', '.join(held)}, got {asked!r}: of these --format {format} can "
            f"write one, in {where}"
        )
    column = asked or next(iter(held), "")
    return column, [name for name in held if name != column]


def _require_fitting(predictions: Predictions, format: str) -> None:
    """Refuse a format that means nothing for the output's predictions."""
    where, chosen, columns = redact(predictions.uri), FORMATS[format], predictions.columns
    if not chosen.holds(columns):
        able = (name for name, one in FORMATS.items() if one.holds(columns))
        raise UserError(
            f"--format {format} is for {' or '.join(chosen.kinds)}, and {where} has none: its columns are "
            f"{', '.join(columns)}\n"
            f"  what to do: give --format {' or '.join(able)}"
        )


def _require_meaning(predictions: Predictions, format: str) -> None:
    """Refuse options that mean nothing for what is written."""
    where, options, chosen = redact(predictions.uri), predictions.options, FORMATS[format]
    if options.score_threshold is not None and not 0 <= options.score_threshold <= 1:
        raise UserError(f"--score-threshold: expected a number from 0 to 1, got {options.score_threshold}")
    if options.score_threshold and predictions.column not in chosen.one_by_one:
        raise UserError(
            f"--score-threshold is for {' or '.join(chosen.one_by_one)}, and {where} has none\n"
            "  what to do: leave it out"
        )
    if options.hide and (format != "pictures" or FACE not in predictions.model().names):
        raise UserError(
            f"--hide-faces {options.hide} is for --format pictures of an output that has found faces\n"
            "  what to do: leave it out, or find the faces first: cnnbatch run faces"
        )
    if options.face != "centre" and format != "chips":
        raise UserError(
            "--face is for --format chips: which face of a picture counts\n  what to do: leave it out"
        )
    if options.scores and not chosen.may_lack_scores:
        able = (name for name, one in FORMATS.items() if one.may_lack_scores)
        raise UserError(
            f"--scores is for {' or '.join(able)}: all other formats have them\n  what to do: leave it out"
        )
