"""The report of an index: what it holds, how well it is searched, and how often it is wrong.

It is as self-contained as that of an output. Error rates are those of ``calibration.json`` and
``evaluation.json``; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from cnnbatch.humanize import byte_size, counted, duration, number, percent
from cnnbatch.index import charts, size_charts
from cnnbatch.index.by_size import AtSize
from cnnbatch.index.calibrated import Calibrated, read_calibrated
from cnnbatch.index.calibration import Threshold, rate_words
from cnnbatch.index.figures import evaluation_of
from cnnbatch.index.fitness import fitness, support
from cnnbatch.index.manifest import Manifest
from cnnbatch.index.persons.shown import shown_persons
from cnnbatch.index.search import Index
from cnnbatch.index.shown_pairs import ShownPairs, shown_pairs
from cnnbatch.metrics import Value
from cnnbatch.report.facts import Fact
from cnnbatch.report.numbers import Number, groups, meanings, share
from cnnbatch.report.template import template
from cnnbatch.storage import Allowed, join, redact

NAME = "report.html"
_NOT_RATES = ("bytes", "build_seconds", "refine", "failed_pairs", "pairs", "pictures_left_out")
_LARGE = 1_000_000
"""Embeddings of an index for which it is said how many strangers are needed, unless there are more."""


class ThresholdRow(NamedTuple):
    """A false accept rate of pairs; ``reason`` says why it has no threshold, and what it would need."""

    rate: str
    similarity: str
    interval: str
    accepted: str
    reason: str


class Cell(NamedTuple):
    """A threshold of searches, and what it misses; each with its interval. Or why there is none."""

    similarity: str
    interval: str
    missed: str
    missed_interval: str
    reason: str


class SizeRow(NamedTuple):
    """A size of the gallery, with a cell for each rate."""

    rows: str
    people: str
    is_extrapolated: bool
    is_whole: bool
    cells: Sequence[Cell | None]


def write_index_report(index: Index, allow: Collection[Allowed] = ()) -> str:
    """Write ``report.html`` of an index in place of an older one; return its address.

    ``allow`` is what an index that others may have written may name pictures of. Raises UserError for a
    calibration that is damaged, or of another network.
    """
    uri = join(index.uri, NAME)
    index.storage.put(uri, page_html(index, allow).encode())
    return uri


def page_html(index: Index, allow: Collection[Allowed] = ()) -> str:
    """Return the whole page."""
    manifest = index.manifest
    found = read_calibrated(index.uri, index.storage, manifest.space)
    evaluation = evaluation_of(manifest)
    persons = shown_persons(index, allow)
    hardest = found.figures.hardest if found is not None and found.figures is not None else ()
    rates = {
        name: value
        for name, value in evaluation.metrics.items()
        if name not in _NOT_RATES and not (index.is_exact and name.startswith("recall"))
    }
    return template("index.html.j2").render(
        output=redact(index.uri),
        written=datetime.now(UTC),
        headline=[*_headline(manifest), *([persons.fact] if persons is not None else [])],
        persons=persons,
        numbers=_numbers(rates),
        meanings=meanings(rates),
        people=manifest.people,
        pictures=evaluation.metrics["pairs"].count if "pairs" in evaluation.metrics else 0,
        calibrated=found,
        outgrown=None if found is None else found.outgrown(len(index)),
        rows=len(index),
        pair_charts=[] if found is None else charts.pair_charts(found),
        thresholds=[] if found is None else [_threshold_row(one, found) for one in found.pairs.thresholds],
        size_charts=[] if found is None else size_charts.search_charts(found),
        fitness=[] if found is None else [*_fitness(found, len(index))],
        rates=[] if found is None else [f"1 in {1 / rate:,.0f}" for rate in _rates(found)],
        sizes=[] if found is None else [*_sizes(found)],
        pairs=shown_pairs(index, hardest, allow) if hardest else ShownPairs(),
        facts=[*_facts(manifest)],
    )


def _headline(manifest: Manifest) -> Iterator[Fact]:
    gone = sum(one.rows - one.live for one in manifest.segments)
    yield Fact("Embeddings", number(manifest.live), f"{number(gone)} gone" if gone else "")
    yield Fact("Size", byte_size(manifest.bytes), counted(len(manifest.segments), "segment"))
    yield Fact("First build", duration(manifest.build_seconds))
    if manifest.codebook is None:
        yield Fact("Search", "exact", f"up to {number(manifest.exact_below)} embeddings")
    elif manifest.recall is not None:
        yield Fact("Recall@10", f"{manifest.recall.at_10:.4f}", counted(manifest.recall.probes, "probe"))
    if manifest.verification is not None and (rate := manifest.verification.metrics["EER"]).value is not None:
        yield Fact("EER", percent(rate.value))


def _numbers(metrics: dict[str, Value]) -> list[Number]:
    """Return the numbers of the evaluation that have a value, or a reason of their own."""
    return [one for group in groups(metrics) for one in group.numbers]


def _threshold_row(one: Threshold, found: Calibrated) -> ThresholdRow:
    accepted = None if found.figures is None else found.figures.accepted(one.rate)
    return ThresholdRow(
        rate_words(one.rate),
        "" if one.similarity is None else f"{one.similarity:.4f}",
        _interval(one.low, one.high, 4),
        "" if accepted is None else share(accepted),
        one.reason or "",
    )


def _rates(found: Calibrated) -> list[float]:
    return [*dict.fromkeys(one.threshold.rate for one in found.sizes)]


def _fitness(found: Calibrated, rows: int) -> Iterator[str]:
    for rate in _rates(found):
        yield fitness(found.sizes, rate)
        if (ends := support(found.sizes, rate, max(_LARGE, rows))) is not None:
            yield ends


def _sizes(found: Calibrated) -> Iterator[SizeRow]:
    """Yield what is known of each size, the smallest first."""
    by_size: dict[int, dict[float, AtSize]] = {}
    for one in sorted(found.sizes, key=lambda each: each.rows):
        by_size.setdefault(one.rows, {})[one.threshold.rate] = one
    for rows, of_rates in by_size.items():
        first = next(iter(of_rates.values()))
        cells = [_cell(of_rates[rate]) if rate in of_rates else None for rate in _rates(found)]
        people = number(first.people) if first.people else ""
        is_whole = rows == max(one.rows for one in found.measured)
        yield SizeRow(number(rows), people, first.is_extrapolated, is_whole, cells)


def _cell(one: AtSize) -> Cell:
    limit, missed = one.threshold, one.missed
    return Cell(
        "" if limit.similarity is None else f"{limit.similarity:.4f}",
        _interval(limit.low, limit.high, 4),
        "" if missed.share is None else percent(missed.share),
        ""
        if missed.low is None or missed.high is None
        else f"{percent(missed.low)} to {percent(missed.high)}",
        limit.reason or "",
    )


def _interval(low: float | None, high: float | None, places: int) -> str:
    return "" if low is None or high is None else f"{low:.{places}f} to {high:.{places}f}"


def _facts(manifest: Manifest) -> Iterator[Fact]:
    """Yield what the index is made of."""
    space = manifest.embedding_space
    yield Fact("Network", space.network)
    yield Fact("Weights", space.weights)
    yield Fact("Embedding", f"{space.dimensions} numbers{', with mirror images' if space.mirror else ''}")
    yield Fact("Kept columns", ", ".join(manifest.kept) or "none")
    yield Fact("People", f"by {manifest.people}" if manifest.people else "not named")
    for reason, count in manifest.left_out().items():
        yield Fact("Left out", number(count), reason)
    for one in manifest.outputs:
        yield Fact("Output", redact(one.url))
