"""Error rates of searches as charts: by the size of the gallery, and beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import log2
from typing import TypeAlias

from markupsafe import Markup

from cnnbatch.humanize import percent
from cnnbatch.index.by_size import AtSize
from cnnbatch.index.calibrated import Calibrated
from cnnbatch.index.calibration import rate_words
from cnnbatch.index.charts import SHARES, decade, decades_from, powers
from cnnbatch.index.fitness import two_digits
from cnnbatch.report import plots
from cnnbatch.report.curves import Titled
from cnnbatch.report.template import Chart

Up = Callable[[float], float]
Interval: TypeAlias = "tuple[float | None, float | None, float | None]"
"""A share, and both ends of its interval."""
Known: TypeAlias = "Sequence[tuple[AtSize, Interval]]"


def search_charts(found: Calibrated) -> list[Titled]:
    """Return the charts of searches; none where no strangers were searched for."""
    rates = [*dict.fromkeys(one.threshold.rate for one in found.sizes)]
    by_rate = {rate: _of_rate(found.sizes, rate) for rate in rates}
    known = {rate: some for rate, some in by_rate.items() if some}
    if not known:
        return []
    return [*_misses(known), *_false_positives(known), *_detection_errors(found)]


def _misses(by_rate: dict[float, list[AtSize]]) -> Iterator[Titled]:
    """Yield the misses by the size of the gallery, each rate with thresholds for each size."""
    axis = _Sizes([one for some in by_rate.values() for one in some])
    values = {
        rate: [(one, (one.missed.share, one.missed.low, one.missed.high)) for one in some]
        for rate, some in by_rate.items()
    }
    if not (drawn := axis.drawn(values, lambda share: share)):
        return
    chart = Chart(drawn, SHARES, axis.ticks(), axis.words(), _legend(by_rate))
    yield Titled(
        "Misses by the size of the gallery",
        "FNIR at rank 1, with the threshold of each size that keeps the false positives at a rate.",
        chart,
    )


def _false_positives(by_rate: dict[float, list[AtSize]]) -> Iterator[Titled]:
    """Yield the false positives by the size of the gallery, at the thresholds of today."""
    axis = _Sizes([one for some in by_rate.values() for one in some])
    values = {
        rate: [(one, (one.found.share, one.found.low, one.found.high)) for one in some if one.found]
        for rate, some in by_rate.items()
    }
    least = min((value[0] for some in values.values() for _, value in some if value[0] > 0), default=0.1)
    decades = decades_from(least)
    if not (drawn := axis.drawn(values, lambda share: decade(share, decades))):
        return
    legend = [(kind, text.replace("at", "threshold of", 1)) for kind, text in _legend(by_rate)]
    chart = Chart(drawn, powers(decades), axis.ticks(), axis.words(), legend)
    yield Titled(
        "False positives by the size of the gallery",
        "FPIR, if the thresholds of today are kept while the index grows.",
        chart,
    )


class _Sizes:
    """The axis of sizes, which is logarithmic."""

    def __init__(self, sizes: Sequence[AtSize]) -> None:
        self._least, self._most = min(one.rows for one in sizes), max(one.rows for one in sizes)
        self._whole = max(one.rows for one in sizes if not one.is_extrapolated)
        self._beyond = self._most > self._whole

    def place(self, rows: float) -> float:
        """Return where a size lies on the axis, from 0 to 1."""
        return log2(rows / self._least) / (log2(self._most / self._least) or 1.0)

    def ticks(self) -> list[str]:
        """Return the words at even places of the axis."""
        steps = 4 if self._most > self._least else 0
        rows = [
            self._least * (self._most / self._least) ** (step / (steps or 1)) for step in range(steps + 1)
        ]
        return [two_digits(each) for each in rows]

    def words(self) -> str:
        """Say up to where it was measured."""
        if not self._beyond:
            return f"Embeddings in the gallery; measured up to {self._whole:,}, and nothing is known beyond"
        measured = f"Embeddings in the gallery; measured up to {self._whole:,} (dotted)"
        return f"{measured}, extrapolated beyond (dashed)"

    def drawn(self, values: Mapping[float, Known], up: Up) -> Markup | None:
        """Return a line for each rate over its interval, dashed where extrapolated; None without any."""
        areas: list[plots.Shape] = []
        lines: list[plots.Shape] = []
        for number, some in enumerate(values.values()):
            known = sorted(
                ((one, value) for one, value in some if value[0] is not None), key=lambda each: each[0].rows
            )
            if known:
                areas += self._band(known, number, up)
                lines += self._lines(known, number, up)
        marks = [self.place(self._whole)] if self._beyond else []
        return plots.shapes(areas, lines, marks=marks) if lines else None

    def _band(self, known: Known, number: int, up: Up) -> Iterator[plots.Shape]:
        some = [
            (self.place(one.rows), low, high)
            for one, (_, low, high) in known
            if low is not None and high is not None
        ]
        if len(some) > 1:
            points = [(x, up(high)) for x, _, high in some] + [(x, up(low)) for x, low, _ in reversed(some)]
            yield plots.Shape(f"area-line-{number}", points)

    def _lines(self, known: Known, number: int, up: Up) -> Iterator[plots.Shape]:
        points = [(one, (self.place(one.rows), up(value[0] or 0.0))) for one, value in known]
        measured = [point for one, point in points if not one.is_extrapolated]
        yield plots.Shape(f"line-{number}", measured)
        if beyond := [point for one, point in points if one.is_extrapolated]:
            yield plots.Shape(f"line-{number} beyond", [*measured[-1:], *beyond])


def _detection_errors(found: Calibrated) -> Iterator[Titled]:
    """Yield misses over false positives of searches in the whole index."""
    if not found.errors:
        return
    least = min((one.false for one in found.errors if one.false > 0), default=0.1)
    decades = decades_from(least)
    whole = max(one.rows for one in found.measured)
    known = [
        one
        for one in found.measured
        if one.rows == whole and one.found is not None and one.missed.share is not None
    ]
    dots = [
        plots.Dot(decade(one.found.share, decades), one.missed.share, _missed(one))
        for one in known
        if one.found is not None and one.missed.share is not None
    ]
    line = sorted(
        ((decade(one.false, decades), one.share) for one in found.errors), key=lambda at: (at[0], -at[1])
    )
    chart = Chart(
        plots.shapes((), [plots.Shape("line-0", line)], dots),
        SHARES,
        powers(decades),
        "; ".join(dot.title for dot in dots),
        [("line-0", f"{whole:,} embeddings"), ("dot", "operating points")],
    )
    yield Titled(
        "Misses over false positives", "FNIR over FPIR of all searches, on a logarithmic axis.", chart
    )


def _missed(one: AtSize) -> str:
    return f"{percent(one.missed.share or 0.0)} missed at {rate_words(one.threshold.rate)}"


def _of_rate(sizes: Sequence[AtSize], rate: float) -> list[AtSize]:
    """Return the sizes that have a threshold at a rate."""
    return [one for one in sizes if one.threshold.rate == rate and one.threshold.similarity is not None]


def _legend(rates: Iterable[float]) -> list[tuple[str, str]]:
    return [(f"line-{number}", f"at 1 in {1 / rate:,.0f} strangers") for number, rate in enumerate(rates)]
