"""The evaluation's curves as charts: precision over recall, ROC, reliability; and those of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import floor, isfinite, log10
from typing import Any, NamedTuple

import pyarrow as pa

from cnnbatch.humanize import clipped, decimal, number
from cnnbatch.metrics import Value
from cnnbatch.report import plots
from cnnbatch.report.context import ReportContext
from cnnbatch.report.numbers import kinds, share
from cnnbatch.report.template import Chart

MOST_DOTS = 200
MOST_POINTS = 300
MOST_MEASURED = 12
MOST_DECADES = 7
_QUARTERS = ("0", "0.25", "0.5", "0.75", "1")
_HALVES = ("0", "0.5", "1")
_TIMES = ("epoch", "step")


class Titled(NamedTuple):
    """A chart under its title; ``strip`` is a lower one beneath, of the same width."""

    title: str
    lead: str
    chart: Chart
    strip: Chart | None = None


def evaluation_charts(context: ReportContext, metrics: Mapping[str, Value]) -> list[Titled]:
    """Return the charts of what there are tables for."""
    found = [_precision_recall(context, metrics, *kind) for kind in kinds(metrics).items()]
    found += [_roc(context, metrics), _reliability(context)]
    return [one for one in found if one is not None]


def training_charts(table: pa.Table | None) -> list[Titled]:
    """Return a chart for each number that a training has measured over its steps or epochs."""
    if table is None or not table.num_rows:
        return []
    time = next((name for name in _TIMES if name in table.schema.names), None)
    times = table[time].to_pylist() if time else list(range(table.num_rows))
    measured = [
        field.name
        for field in table.schema
        if field.name not in _TIMES and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]
    charts = (_measured(name, time or "row", times, table[name].to_pylist()) for name in measured)
    return [chart for chart in charts if chart is not None][:MOST_MEASURED]


def _precision_recall(
    context: ReportContext, metrics: Mapping[str, Value], prefix: str, how: str
) -> Titled | None:
    """Return the mean over the classes at each IoU, and each class's own operating point."""
    table = context.table(f"{prefix}pr_curves", ["label", "iou", "recall", "precision"])
    if table is None or not table.num_rows:
        return None
    means = table.group_by(["iou", "recall"]).aggregate([("precision", "mean")]).sort_by("recall")
    lines: dict[float, list[tuple[float, float]]] = {}
    for row in means.to_pylist():
        lines.setdefault(row["iou"], []).append((row["recall"], row["precision_mean"]))
    dots = list(_operating_points(context, prefix))
    legend = [
        (f"line-{place}", f"at IoU {iou:g}, area {_metric(metrics, f'{prefix}AP{100 * iou:.0f}')}")
        for place, iou in enumerate(sorted(lines))
    ]
    legend += [("dot", "a class at its score of best F1")] if dots else []
    classes = len(table["label"].unique())
    chart = Chart(
        plot=plots.curves([lines[iou] for iou in sorted(lines)], dots),
        up=_HALVES,
        across=_QUARTERS,
        summary=_precision_summary(lines),
        legend=legend,
    )
    mean = f"Mean over {number(classes)} classes." if classes > 1 else ""
    return Titled(f"Precision over recall{', ' * bool(how)}{how}", mean, chart)


def _metric(metrics: Mapping[str, Value], name: str) -> str:
    return share(metrics[name].value if name in metrics else None)


def _operating_points(context: ReportContext, prefix: str) -> Iterator[plots.Dot]:
    columns = ["label", "truths", "threshold", "precision", "recall"]
    table = context.table(f"{prefix}classes", columns)
    if table is None:
        return
    ranked = table.sort_by([("truths", "descending"), ("label", "ascending")]).slice(0, MOST_DOTS)
    for row in ranked.to_pylist():
        if row["precision"] is not None and row["recall"] is not None:
            words = ", ".join(f"{name} {share(row[name])}" for name in columns[2:])
            yield plots.Dot(row["recall"], row["precision"], f"{clipped(row['label'])}: {words}")


def _precision_summary(lines: Mapping[float, Sequence[tuple[float, float]]]) -> str:
    """Say how precise it is where half of the objects are found."""
    words = []
    for iou, line in sorted(lines.items()):
        precision = next((y for x, y in line if x >= 0.5), 0.0)
        words.append(f"{share(precision)} at IoU {iou:g}")
    return f"Where half of the objects are found, the precision is {' and '.join(words)}"


def _roc(context: ReportContext, metrics: Mapping[str, Value]) -> Titled | None:
    """Return true accepts over false accepts, whose axis is logarithmic."""
    table = context.table("roc", ["threshold", "far", "tar"])
    if table is None or not table.num_rows:
        return None
    rows = [row for row in table.to_pylist() if row["far"] is not None and row["tar"] is not None]
    least = min((row["far"] for row in rows if row["far"] > 0), default=0.1)
    decades = min(max(1, -floor(log10(least) + 1e-9)), MOST_DECADES)
    known = [
        (name.partition("=")[2], value.value)
        for name, value in metrics.items()
        if name.startswith("TAR@FAR=") and value.value is not None
    ]
    area = f"area {_metric(metrics, 'AUC')}"
    dots = [
        plots.Dot(_decade(float(far), decades), tar, f"TAR {share(tar)} at FAR {far}") for far, tar in known
    ]
    chart = Chart(
        plot=plots.curves([sorted((_decade(row["far"], decades), row["tar"]) for row in rows)], dots),
        up=_HALVES,
        across=[f"1e-{place}" for place in range(decades, 0, -1)] + ["1"],
        summary="; ".join(dot.title for dot in dots) or area,
        legend=[("line-0", area), *([("dot", "operating points")] if dots else [])],
    )
    return Titled("ROC", "True accepts over false accepts, on a logarithmic axis.", chart)


def _decade(far: float, decades: int) -> float:
    """Return where a rate lies on an axis of so many decades up to 1; what is less, 0 too, at its start."""
    return max(0.0, 1 + log10(far) / decades) if far > 0 else 0.0


def _reliability(context: ReportContext) -> Titled | None:
    """Return accuracy by confidence, bin by bin, and how many images are in each."""
    table = context.table("calibration", ["low", "high", "count", "confidence", "accuracy"])
    rows = [] if table is None else table.to_pylist()
    total = sum(row["count"] for row in rows)
    if not total:
        return None
    titles = [
        f"score {row['low']:.2f} to {row['high']:.2f}: {number(row['count'])} images,"
        f" accuracy {share(row['accuracy'])}, mean score {share(row['confidence'])}"
        for row in rows
    ]
    confidence, accuracy = (
        sum(row["count"] * row[name] for row in rows if row["count"]) / total
        for name in ("confidence", "accuracy")
    )
    how = "overconfident" if confidence > accuracy else "underconfident"
    summary = f"On average it is {how}: mean score {share(confidence)}, accuracy {share(accuracy)}"
    counts = [row["count"] for row in rows]
    chart = Chart(plots.shares([row["accuracy"] for row in rows], titles), _HALVES, _QUARTERS, summary)
    strip = Chart(plots.columns(counts), ("0", number(max(counts))), (), "Images by score")
    return Titled(
        "Calibration",
        "Accuracy of the images in each bin of scores; on the dashed line the score is the accuracy.",
        chart,
        strip,
    )


def _measured(name: str, time: str, times: Sequence[Any], values: Sequence[Any]) -> Titled | None:
    """Return the course of one number; None where it has fewer than two values."""
    known = [
        (float(moment), float(value))
        for moment, value in zip(times, values, strict=True)
        if moment is not None and value is not None and isfinite(value)
    ]
    if len(known) < 2:
        return None
    some = known[:: -(-len(known) // MOST_POINTS)]
    (begin, _), (end, last) = known[0], known[-1]
    low, high = min(value for _, value in known), max(value for _, value in known)
    line = [
        ((moment - begin) / ((end - begin) or 1), (value - low) / ((high - low) or 1))
        for moment, value in some
    ]
    chart = Chart(
        plot=plots.curves([line]),
        up=[decimal(low), decimal(high)],
        across=[decimal(begin), f"{time} {decimal(end)}"],
        summary=f"{decimal(last)} at the end, between {decimal(low)} and {decimal(high)}",
    )
    return Titled(name, "", chart)
