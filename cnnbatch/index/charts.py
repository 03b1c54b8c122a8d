"""A calibration as charts: how pairs are spread, and what a similarity means."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log, log10

from cnnbatch.humanize import counted, percent
from cnnbatch.index.calibrated import Calibrated
from cnnbatch.index.calibration import Calibration, rate_words
from cnnbatch.index.pair_figures import Histogram, MeasuredRatio, PairFigures
from cnnbatch.report import plots
from cnnbatch.report.curves import Titled
from cnnbatch.report.template import Chart

SHARES = ("0\u00a0%", "50\u00a0%", "100\u00a0%")
"""The words at an axis of shares."""
_MOST_DECADES = 6
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def pair_charts(found: Calibrated) -> list[Titled]:
    """Return the charts of pairs of faces; none where an older version calibrated."""
    figures = found.figures
    if figures is None:
        return []
    charts = [_spread(figures.histogram, found.pairs), _line(found.pairs, figures.ratios, figures.histogram)]
    return [*charts, _accepts(figures, found.pairs)]


def odds(ratio: float) -> str:
    """Return a likelihood ratio by its natural logarithm, as odds: 1,000 : 1."""
    power = round(ratio / log(10))
    many = f"{10 ** abs(power):,}" if abs(power) < 5 else f"10{str(abs(power)).translate(_RAISED)}"
    return "1 : 1" if not power else f"{many} : 1" if power > 0 else f"1 : {many}"


def _spread(bins: Histogram, pairs: Calibration) -> Titled:
    """Return both kinds of pairs by their similarity, each as shares of its own number."""
    shares = [[count / max(1, sum(kind)) for count in kind] for kind in (bins.genuine, bins.impostor)]
    top = max(map(max, shares))
    lines = [plots.Shape(f"line-{place}", _steps(kind, top)) for place, kind in enumerate(shares)]
    areas = [plots.Shape(f"area-{one.kind}", [(0.0, 0.0), *one.points, (1.0, 0.0)]) for one in lines]
    known = [one for one in pairs.thresholds if one.similarity is not None]
    marks = [_part(one.similarity or 0.0, bins) for one in known]
    rates = ", ".join(rate_words(one.rate) for one in known)
    chart = Chart(
        plots.shapes(areas, lines, marks=[mark for mark in marks if 0 <= mark <= 1]),
        ["0", percent(top).replace(" ", "\u00a0")],
        _ticks(bins.low, bins.high),
        f"Dotted: thresholds, at a false accept rate of {rates}" if known else "No rate has a threshold",
        [
            ("line-0", f"{pairs.genuine:,} pairs of one person"),
            ("line-1", f"{pairs.impostor:,} pairs of two"),
        ],
    )
    return Titled("Similarities", "Each kind of pair as shares of its own number.", chart)


def _line(pairs: Calibration, ratios: Sequence[MeasuredRatio], bins: Histogram) -> Titled:
    """Return the line from a similarity to the likelihood ratio, and what was measured in bins."""
    ends = [pairs.slope * similarity + pairs.offset for similarity in (bins.low, bins.high)]
    measured = [value for one in ratios for value in (one.ratio, one.low, one.high) if value is not None]
    limit = log(10) * max(1, *(floor(abs(value) / log(10)) + 1 for value in (*ends, *measured)))
    up = [odds(-limit), odds(0), odds(limit)]

    def place(similarity: float, ratio: float) -> tuple[float, float]:
        return _part(similarity, bins), (ratio + limit) / (2 * limit)

    spreads = [
        plots.Shape("spread", [place(one.similarity, one.low), place(one.similarity, one.high)])
        for one in ratios
        if one.low is not None and one.high is not None
    ]
    dots = [
        plots.Dot(*place(one.similarity, one.ratio), f"{one.start:.3f} to {one.end:.3f}: {_as_counted(one)}")
        for one in ratios
    ]
    line = plots.Shape("line-0", [place(bins.low, ends[0]), place(bins.high, ends[1])])
    legend = [("line-0", "the line"), *([("dot", "measured in a bin, with 95 % interval")] if dots else [])]
    inside = sum(one.has(pairs.slope * one.similarity + pairs.offset) for one in ratios)
    summary = (
        f"The line is within the interval of {inside} of {counted(len(ratios), 'bin')}"
        if ratios
        else "No bin has enough pairs of both kinds"
    )
    chart = Chart(plots.shapes((), [*spreads, line], dots), up, _ticks(bins.low, bins.high), summary, legend)
    return Titled(
        "What a similarity means",
        "How much likelier it is of one person than of two: the likelihood ratio, which the prior odds are "
        "multiplied by.",
        chart,
    )


def _as_counted(one: MeasuredRatio) -> str:
    return f"{one.genuine:,} pairs of one person, {one.impostor:,} of two, {odds(one.ratio)}"


def _accepts(figures: PairFigures, pairs: Calibration) -> Titled:
    """Return true accepts over false ones, with the thresholds that are kept."""
    roc = figures.roc
    decades = decades_from(min((one.false for one in roc if one.false > 0), default=0.1))
    shares = {one.rate: figures.accepted(one.rate) for one in pairs.thresholds if one.similarity is not None}
    dots = [
        plots.Dot(decade(rate, decades), share, f"{percent(share)} at {rate_words(rate)}")
        for rate, share in shares.items()
        if share is not None
    ]
    line = plots.Shape("line-0", sorted((decade(one.false, decades), one.share) for one in roc))
    chart = Chart(
        plots.shapes((), [line], dots),
        SHARES,
        powers(decades),
        f"True accepts: {'; '.join(dot.title for dot in dots)}" if dots else "No rate has a threshold",
        [("line-0", "pairs"), ("dot", "thresholds")],
    )
    return Titled("ROC of pairs", "True accepts over false accepts, on a logarithmic axis.", chart)


def _steps(shares: Sequence[float], top: float) -> list[tuple[float, float]]:
    """Return the outline of columns without gaps."""
    width = 1 / len(shares)
    return [(width * (n + end), share / top) for n, share in enumerate(shares) for end in (0, 1)]


def _part(similarity: float, bins: Histogram) -> float:
    return (similarity - bins.low) / ((bins.high - bins.low) or 1.0)


def _ticks(low: float, high: float) -> list[str]:
    return [f"{low + (high - low) * quarter / 4:.2f}" for quarter in range(5)]


def decades_from(least: float) -> int:
    """Return of how many decades up to 1 an axis is that shows a share."""
    return min(max(1, -floor(log10(least) + 1e-9)), _MOST_DECADES)


def decade(share: float, decades: int) -> float:
    """Return where a share lies on an axis of so many decades up to 1; what is less, 0 too, at its start."""
    return max(0.0, 1 + log10(share) / decades) if share > 0 else 0.0


def powers(decades: int) -> list[str]:
    """Return the words at an axis of so many decades up to 1."""
    return [f"1e-{place}" for place in range(decades, 0, -1)] + ["1"]
