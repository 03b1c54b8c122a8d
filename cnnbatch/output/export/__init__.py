"""Writes an output's predictions in the forms that other tools read.

All of it is streamed, so that no collection is too large; the price is that keys, labels and ids are read
once before, where a form needs to know them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.output.export.predictions import Options, Predictions, Tally
from cnnbatch.storage import Storage, normalize, redact

__all__ = ["FORMATS", "Options", "Summary", "export"]


@dataclass(frozen=True, slots=True)
class Format:
    """One format: its ``module``, whether it holds ``labels``, and what it has of failed images."""

    module: str
    labels: bool
    failed: str
    gone: str = "left out"


FORMATS = {
    "coco": Format("coco", labels=False, failed="the file of the images says so"),
    "voc": Format("voc", labels=False, failed="they have no file"),
    "yolo": Format("yolo", labels=False, failed="they have no file"),
    "csv": Format("csv_file", labels=True, failed="their rows say so", gone="their rows say so"),
}
"""The formats by name; a module has ``write(predictions, storage, to)``."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written where; `lines` says it."""

    format: Format
    to: str
    tally: Tally
    progress: str | None = None

    def lines(self) -> Iterator[str]:
        """Yield what was written, and everything that was not."""
        tally, objects = self.tally, f"{self.tally.objects:,} objects of "
        yield f"{objects if tally.objects else ''}{tally.images:,} images: {redact(self.to)}"
        if failed := tally.failed.total():
            codes = ", ".join(f"{code} {count:,}" for code, count in sorted((+tally.failed).items()))
            yield f"  failed: {failed:,} images ({codes}); {self.format.failed}"
        if self.progress:
            yield f"  not finished: the run has made {self.progress}; its command goes on with the rest"
        if tally.vanished:
            yield f"  gone from the input: {tally.vanished:,} images; {self.format.gone}"
        if tally.unknown:
            yield (
                f"  not in the COCO file of the truth: {tally.unknown:,} images; left out, as tools refuse "
                "results of images that the file doesn't name"
            )
        if tally.low:
            yield f"  below the threshold: {tally.low:,} objects"
        if tally.strange:
            yield f"  without a label or with numbers that are none: {tally.strange:,} objects; left out"


def export(
    output: str, format: str, to: str, options: Options | None = None, storage: Storage | None = None
) -> Summary:
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
    storage, options = storage or Storage(), options or Options()
    predictions = Predictions(output, storage, options)
    _require_fitting(predictions, format)
    import_module(f"{__name__}.{FORMATS[format].module}").write(predictions, storage, normalize(to))
    return Summary(FORMATS[format], normalize(to), predictions.tally, predictions.progress())


def _require_fitting(predictions: Predictions, format: str) -> None:
    """Refuse a format, and options, that mean nothing for the output's predictions."""
    where, options = redact(predictions.uri), predictions.options
    if not predictions.has_objects and not FORMATS[format].labels:
        raise UserError(
            f"--format {format} is for objects, and {where} has none: its columns are "
            f"{', '.join(predictions.columns)}\n"
            f"  what to do: give --format {' or '.join(name for name, one in FORMATS.items() if one.labels)}"
        )
    if options.score_threshold is not None and not 0 <= options.score_threshold <= 1:
        raise UserError(f"--score-threshold: expected a number from 0 to 1, got {options.score_threshold}")
    if options.score_threshold and not predictions.has_objects:
        raise UserError(
            f"--score-threshold is for objects, and {where} has a label an image\n  what to do: leave it out"
        )
    if options.scores and format != "yolo":
        raise UserError("--scores is for yolo: all other formats have them\n  what to do: leave it out")
