"""A comparison as text: for people on the terminal, for programs as ``comparison.json``."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console

from cnnbatch.evaluation.comparison.differences import ImageChanges, MetricDifference
from cnnbatch.evaluation.comparison.gates import AGREEMENT
from cnnbatch.evaluation.comparison.result import Comparison
from cnnbatch.metrics import Value
from cnnbatch.storage import redact
from cnnbatch.terminal.console import columns

MOST_ROWS = 10


def to_json(found: Comparison) -> str:
    """Return all numbers as strict JSON; one that is none is null."""
    metrics = {name: _both(one) for name, one in (found.metrics or {}).items()}
    data = {
        "a": redact(found.a.result.uri),
        "b": redact(found.b.result.uri),
        "images": found.images,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "failed": {"only_a": found.failed_a, "only_b": found.failed_b, "both": found.failed_in_both},
        "compared": found.measure.kind,
        **found.measure.settings(),
        AGREEMENT: _number(found.agreement),
        "counts": found.counts,
        "classes": [asdict(one) for one in found.classes],
        "label_changes": [asdict(one) for one in found.label_changes],
        "metrics": None if found.metrics is None else metrics,
        "changes": found.changes and _images(found.changes),
        "notes": found.notes,
    }
    return json.dumps(_strict(data), indent=1, allow_nan=False)


def _number(value: Value) -> dict[str, Any]:
    fields = {"value": value.value, "low": value.low, "high": value.high, "count": value.count}
    return {**fields, "reason": value.reason} if value.reason else fields


def _both(one: MetricDifference) -> dict[str, Any]:
    shift = {"difference": one.value, "low": one.low, "high": one.high}
    return {"a": _number(one.a), "b": _number(one.b), **shift}


def _images(changes: ImageChanges) -> dict[str, Any]:
    counts = {name: getattr(changes, name) for name in ("by", "better", "worse", "same", "other_truths")}
    most = {name: getattr(changes, name).to_pylist() for name in ("most_better", "most_worse")}
    return {**counts, **most}


def _strict(data: Any) -> Any:
    """Return JSON values with null for numbers that are none."""
    if isinstance(data, Mapping):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def show(found: Comparison, console: Console) -> None:
    """Print what differs, in short."""
    for line in head(found):
        console.print(line, soft_wrap=True)
    if found.metrics:
        console.print()
        console.print(_metrics(found.metrics))
    if found.changes:
        console.print(f"\n{changed(found)}", soft_wrap=True)
    console.print(f"\n{agreement(found)}", soft_wrap=True)
    if any(one.count_a != one.count_b for one in found.classes):
        console.print()
        console.print(_classes(found))
    if found.label_changes:
        console.print()
        console.print(_label_changes(found))


def head(found: Comparison) -> Iterator[str]:
    """Yield which outputs these are, how many images they share, and what failed in one alone."""
    yield f"A  {redact(found.a.result.uri)}"
    yield f"B  {redact(found.b.result.uri)}"
    yield f"{found.images:,} images in both, {found.only_a:,} only in A, {found.only_b:,} only in B"
    if found.failed_a or found.failed_b or found.failed_in_both:
        yield (
            f"failed only in A: {_codes(found.failed_a)}; only in B: {_codes(found.failed_b)}; "
            f"in both: {found.failed_in_both:,}"
        )
    yield from (f"note: {note}" for note in found.notes)


def agreement(found: Comparison) -> str:
    """Return the agreement, and what it stands on, as a line."""
    value = found.agreement
    if value.value is None:
        return f"Agreement: none, {value.reason}"
    shown = f"Agreement {value.value:.4f}" + (
        f" ({value.low:.4f} to {value.high:.4f})" if value.low is not None else ""
    )
    return f"{shown}: {found.measure.sentence()}"


def changed(found: Comparison) -> str:
    """Return how many images got better and worse, as a line."""
    changes = found.changes
    if changes is None:
        return ""
    better, worse, same = (f"{count:,}" for count in (changes.better, changes.worse, changes.same))
    return changes.score.sentence(better, worse, same)


def cells(one: MetricDifference) -> tuple[str, str, str, str]:
    """Return A, B, B - A and its interval as words; what is not known is empty."""
    numbers = ["" if value is None else f"{value:.4f}" for value in (one.a.value, one.b.value)]
    shift = "" if one.value is None else f"{one.value:+.4f}"
    interval = "" if one.low is None or one.high is None else f"{one.low:+.4f} to {one.high:+.4f}"
    return numbers[0], numbers[1], shift, interval


def score(value: float | None) -> str:
    """Return a mean score as words; empty where there is none."""
    return "" if value is None else f"{value:.3f}"


def _metrics(metrics: Mapping[str, MetricDifference]) -> Any:
    table = columns("Metric", "A", "B", "B - A", "95 % interval")
    for name, one in metrics.items():
        table.add_row(name, *cells(one))
    return table


def _classes(found: Comparison) -> Any:
    unit = found.measure.unit
    more = f", the {MOST_ROWS} largest shifts" if len(found.classes) > MOST_ROWS else ""
    has_iou = any(one.iou is not None for one in found.classes)
    last = ("IoU of A and B",) if has_iou else ("Score in A", "in B")
    table = columns(f"Class{more}", f"{unit} in A", "in B", "Shift", *last)
    for one in found.classes[:MOST_ROWS]:
        shift = f"{one.count_b - one.count_a:+,}"
        numbers = (one.iou,) if has_iou else (one.score_a, one.score_b)
        table.add_row(one.label, f"{one.count_a:,}", f"{one.count_b:,}", shift, *map(score, numbers))
    return table


def _label_changes(found: Comparison) -> Any:
    table = columns("In A", "In B", found.measure.unit, left=("In B",))
    for one in found.label_changes[:MOST_ROWS]:
        table.add_row(one.before, one.after, f"{one.count:,}")
    return table


def _codes(codes: Counter[str]) -> str:
    named = ", ".join(f"{code} {count:,}" for code, count in codes.most_common())
    return f"{codes.total():,}" + (f" ({named})" if named else "")
