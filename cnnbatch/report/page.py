"""Gathers what the page shows, section by section; a section without data is None and left out.

It asks which kinds of answer there are, never which task it was, so that a new task has a report.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbatch.humanize import decimal, duration, meaning, number, percent
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.output.plan_pages import left_out_of
from cnnbatch.report import plots, ways
from cnnbatch.report.answers import answer_report, answers_among
from cnnbatch.report.answers.entry import Alarm, AnswerReport, Swatch
from cnnbatch.report.classes import MOST_OPEN
from cnnbatch.report.context import ReportContext, about_output
from cnnbatch.report.embedded import Card, embedded
from cnnbatch.report.facts import Fact, environment, headline, job_yaml, left_out_fact
from cnnbatch.report.judged import evaluation_section
from cnnbatch.report.learning import learning
from cnnbatch.report.mistakes import Mistakes, find_mistakes
from cnnbatch.report.pairs import Pair, hardest_pairs, with_one_face
from cnnbatch.report.pictures import Picture, viewer_of
from cnnbatch.report.prediction import Prediction, prediction_of
from cnnbatch.report.tally import LEAST_SURE, SAMPLE, SCORE_BINS, RankedRow, RowCounts, count, fetch
from cnnbatch.report.template import Bar, Chart, template
from cnnbatch.storage import join, redact
from cnnbatch.types import ImageRef

if TYPE_CHECKING:
    from cnnbatch.output.reader import Footer, Reader
    from cnnbatch.storage import Storage

Begin = Callable[[int], Callable[[int], None]]
Wanted = tuple[RankedRow, Alarm | None]

SHOWN = ("key", "uri", "bytes", "width", "height", "error")
"""What is read of an image that is shown, but its answers."""
PICTURE_SIDE = 400
SIDE_OF_TWO = 320
"""Where truth and prediction are two pictures, these are smaller."""
SAMPLE_OF_JUDGED = 24
"""Where there are mistakes to show, fewer are drawn by chance."""
NOTEBOOK_PICTURES, NOTEBOOK_SIDE = 6, 240
MOST_LABELS = 20
MOST_RUNS = 10
LONGEST_MESSAGE = 300


class Run(NamedTuple):
    """What one run did; ``new``, ``changed`` and ``vanished`` are what its listing found."""

    started: datetime
    images: int
    failed: int
    new: int
    changed: int
    vanished: int
    seconds: float


class FailureCode(NamedTuple):
    """The images that failed with one code; ``examples`` are keys and messages."""

    code: str
    meaning: str
    images: int
    share: float
    examples: list[tuple[str, str]]


def page_html(result: Reader, storage: Storage, begin: Begin) -> str:
    """Return the whole page of ``result``.

    ``begin`` is called with how many pictures there will be, what it returns with how many more were read.
    """
    footers, counts, runs = result.receipts(), count(result), result.runs()
    timeline = plots.timeline(_spans(footers))
    context = ReportContext(result, storage)
    way_out = f"cnnbatch evaluate {shlex.quote(redact(result.uri))} writes it anew"
    with integrity.reading(join(result.uri, "evaluation"), way_out):
        mistakes, evaluated = find_mistakes(context), evaluation_section(context)
    pairs = hardest_pairs(context, result)
    sample, least_sure, wrong, of_pairs = _galleries(result, context, counts, mistakes, pairs.shown, begin)
    return template("page.html.j2").render(
        title=_title(result.settings),
        source=_url(result.settings.get("input")),
        output=redact(result.uri),
        finished=max((footer.finished for footer in footers if footer.finished), default=None),
        headline=[
            *headline(footers, counts, timeline),
            *left_out_fact(left_out_of(Output(result.uri, storage))),
        ],
        judged=evaluated,
        problem=context.problem,
        sample=sample,
        mistakes=mistakes,
        wrong=list(zip(mistakes.shown, wrong, strict=True)),
        pairs=list(zip(pairs.shown, of_pairs[::2], of_pairs[1::2], strict=True)),
        paired=pairs,
        least_sure=least_sure,
        rows=counts.rows,
        legend=_legend(context, counts, [*sample, *least_sure, *wrong]),
        more_legends=_more_legends([*sample, *least_sure, *wrong]),
        score_name=_score_name(context),
        unit=_unit(context, counts),
        failures=_failures(result, counts),
        failed=counts.failed.total(),
        runs=list(map(_run, runs[-MOST_RUNS:])),
        run_count=len(runs),
        labels=_labels(counts),
        label_count=len(counts.labels),
        scores=_scores(counts, context),
        learning=learning(Output(result.uri, storage), context.metrics()),
        open_classes=MOST_OPEN,
        stages=_stages(footers),
        throughput=_throughput(timeline) if len(footers) > 1 else None,
        devices=ways.devices(Output(result.uri, storage)),
        mixed=[*ways.mixed(footers), *ways.on_cpu(Output(result.uri, storage))],
        environment=environment(footers),
        job=job_yaml(result.settings),
    )


def fragment_html(result: Reader) -> str:
    """Return counts and the first few pictures of ``result``, for a notebook; reads one part."""
    failed = result.failures()
    pictures: list[Picture] = []
    if len(result):
        columns = shown_columns(result.schema.names)
        rows = (row for batch in result.batches(columns, part=0) for row in batch.to_pylist())
        good = list(
            islice(((place, row) for place, row in enumerate(rows) if not row["error"]), NOTEBOOK_PICTURES)
        )
        refs = result.refs(0, [place for place, _ in good])
        about = about_output(result, result.storage)
        many = [prediction_of(row, ref, about=about) for (_, row), ref in zip(good, refs, strict=True)]
        pictures = viewer_of(result).pictures(many, NOTEBOOK_SIDE)
    return template("notebook.html.j2").render(
        title=_title(result.settings),
        output=redact(result.uri),
        rows=len(result),
        failed=failed.total(),
        codes=sorted(failed.items(), key=lambda item: (-item[1], item[0])),
        pictures=pictures,
    )


def shown_columns(names: Sequence[str]) -> list[str]:
    """Return those of the predictions' columns ``names`` that say what a picture shows."""
    wanted = {*SHOWN}
    for kind, entry in answers_among(names).items():
        wanted |= {kind, *entry.columns}
    return [name for name in names if name in wanted]


def _galleries(
    result: Reader,
    context: ReportContext,
    counts: RowCounts,
    mistakes: Mistakes,
    pairs: Sequence[Pair],
    begin: Begin,
) -> list[list[Card]]:
    """Return the pictures drawn by chance, those with the lowest scores, the mistakes, and those of pairs."""
    true = answer_report(context.truth_kind)
    drawn = counts.sample.places[: SAMPLE_OF_JUDGED if mistakes.shown else SAMPLE]
    sample = sorted(drawn, key=lambda place: (place.part, place.row))
    least_sure = counts.least_sure.places if counts.scored and counts.rows > SAMPLE + LEAST_SURE else []
    wanted: list[list[Wanted]] = [
        [(place, None) for place in sample],
        [(place, None) for place in least_sure],
        [(mistake.place, mistake.alarm) for mistake in mistakes.shown],
    ]
    predicted = [*(_predictions(result, context, some) for some in wanted), _of_pairs(result, context, pairs)]
    viewer, advance = viewer_of(result), begin(sum(map(len, predicted)))
    side = SIDE_OF_TWO if true and true.is_drawn else PICTURE_SIDE
    return embedded([viewer.pictures(some, side, advance) for some in predicted])


def _of_pairs(result: Reader, context: ReportContext, pairs: Sequence[Pair]) -> list[Prediction]:
    """Return the pictures of pairs, two of each; of faces with the one that was compared."""
    places = [place for pair in pairs for place in pair.places]
    faces = [face for pair in pairs for face in pair.faces or (None, None)]
    rows = fetch(result, places, shown_columns(result.schema.names) if places else [])
    return [
        prediction_of(with_one_face(row, face), ref, least=0.0, about=context.about)
        for row, face, ref in zip(rows, faces, _refs(result, places), strict=True)
    ]


def _predictions(result: Reader, context: ReportContext, wanted: Sequence[Wanted]) -> list[Prediction]:
    """Return what was predicted of some images, and what is true of them."""
    places, alarms = [place for place, _ in wanted], [alarm for _, alarm in wanted]
    columns = shown_columns(result.schema.names) if wanted else []
    rows = fetch(result, places, columns)
    found = zip(rows, _refs(result, places), context.truths(places), alarms, strict=True)
    return [prediction_of(*one, about=context.about) for one in found]


def _legend(context: ReportContext, counts: RowCounts, cards: Sequence[Card]) -> list[Swatch]:
    """Return the colours of what is drawn on the pictures, where these need a legend."""
    found: list[Swatch] = []
    for kind, entry in context.answers.items():
        answers = [card.prediction.answers[kind] for card in cards if kind in card.prediction.answers]
        truths = (card.prediction.truth for card in cards)
        known = (one.of(kind) for one in truths if one is not None)
        true = [one for one in known if one is not None]
        if answers or true:
            found += entry.legend([*answers, *true], counts.labels_of.get(kind, Counter()))
    return found


def _more_legends(cards: Sequence[Card]) -> dict[str, dict[Swatch, None]]:
    """Return the colours of further views, by these views' names."""
    found: dict[str, dict[Swatch, None]] = {}
    for view in (view for card in cards for view in card.views if view.legend):
        found.setdefault(view.name, {}).update(dict.fromkeys(view.legend))
    return found


def _refs(result: Reader, places: Sequence[RankedRow]) -> list[ImageRef | None]:
    """Return where the images at ``places`` lie; the plan is read once a part."""
    found: dict[RankedRow, ImageRef | None] = {}
    for part in sorted({place.part for place in places}):
        here = [place for place in places if place.part == part]
        found |= zip(here, result.refs(part, [place.row for place in here]), strict=True)
    return [found[place] for place in places]


def _title(settings: Mapping[str, Any]) -> Fact:
    task = settings.get("task")
    task = task if isinstance(task, dict) else {}
    name = task.get("name") or settings.get("kind") or "cnnbatch"
    return Fact(str(name), str(task.get("model", "")))


def _url(section: Any) -> str:
    url = section.get("url") if isinstance(section, dict) else section
    if isinstance(url, list | tuple):
        return f"{len(url):,} addresses" if len(url) > 1 else redact(str(url[0])) if url else ""
    return redact(str(url)) if url else ""


def _spans(footers: Iterable[Footer]) -> list[plots.PartSpan]:
    return [
        plots.PartSpan(footer.started, footer.finished, footer.rows)
        for footer in footers
        if footer.started and footer.finished
    ]


def _failures(result: Reader, counts: RowCounts) -> list[FailureCode]:
    total = counts.failed.total()
    return [
        FailureCode(
            code, meaning(code), number, number / total, _examples(result, counts.examples[code].places)
        )
        for code, number in sorted(counts.failed.items(), key=lambda item: (-item[1], item[0]))
    ]


def _examples(result: Reader, places: Sequence[RankedRow]) -> list[tuple[str, str]]:
    rows = fetch(result, places, ["key", "error"])
    return [(row["key"], (row["error"]["message"] or "")[:LONGEST_MESSAGE]) for row in rows]


def _run(record: Mapping[str, Any]) -> Run:
    found = record["found"]
    return Run(
        started=datetime.fromisoformat(record["started"]),
        images=record["images"],
        failed=sum(record["failed"].values()),
        new=found.get("new", 0),
        changed=found.get("changed", 0),
        vanished=found.get("vanished", 0),
        seconds=record["seconds"],
    )


def _labels(counts: RowCounts) -> list[Bar]:
    ranked = sorted(counts.labels.items(), key=lambda item: (-item[1], item[0]))[:MOST_LABELS]
    return [Bar(label, amount, amount / ranked[0][1]) for label, amount in ranked]


def _scores(counts: RowCounts, context: ReportContext) -> Chart | None:
    bins = counts.scores.tolist()
    if not counts.scored or sum(bins) < 2:
        return None
    sure = sum(bins[SCORE_BINS // 2 :]) / sum(bins)
    return Chart(
        plot=plots.columns(bins),
        up=["0", number(max(bins))],
        across=["0 %", "25 %", "50 %", "75 %", "100 %"],
        summary=f"{percent(sure)} of the images have a {_score_name(context)} of one half or more",
    )


def _unit(context: ReportContext, counts: RowCounts) -> str:
    """Return what the labels that are shown count."""
    counted = (context.answers[kind].unit for kind, labels in counts.labels_of.items() if labels)
    return next(counted, AnswerReport.unit)


def _score_name(context: ReportContext) -> str:
    scored = (one.score_name for one in context.answers.values() if one.score_column)
    return next(scored, AnswerReport.score_name)


def _stages(footers: Iterable[Footer]) -> list[Bar]:
    seconds: dict[str, float] = {}
    for footer in footers:
        for stage, spent in footer.receipt.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    total = sum(seconds.values())
    return [Bar(stage, spent, spent / total) for stage, spent in seconds.items() if spent > 0]


def _throughput(timeline: plots.Timeline | None) -> Chart | None:
    if timeline is None:
        return None
    top = plots.nice_top(float(timeline.rates.max()))
    return Chart(
        plot=plots.area(timeline.rates.tolist(), top, timeline.pauses, timeline.mean),
        up=["0", decimal(top / 2), decimal(top)],
        across=[duration(timeline.seconds * quarter / 4) for quarter in range(5)],
        summary=_throughput_summary(timeline),
    )


def _throughput_summary(timeline: plots.Timeline) -> str:
    text = f"{decimal(timeline.mean)} images a second on average (dashed)"
    if timeline.pauses:
        text += f"; {len(timeline.pauses)} pause{'s' if len(timeline.pauses) > 1 else ''} left out (dotted)"
    return text
