"""The page of a comparison: what two outputs say of the same pictures, side by side where they differ most.

It is as self-contained as the report; its numbers are those of ``comparison.json``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from cnnbatch.evaluation.comparison.pairing import Side
from cnnbatch.evaluation.comparison.result import Comparison
from cnnbatch.evaluation.comparison.summary import agreement, cells, changed, score, to_json
from cnnbatch.humanize import number
from cnnbatch.report.answers import answers_among
from cnnbatch.report.answers.entry import DIFFERENCE, Guess, MoreView, Swatch
from cnnbatch.report.context import about_output
from cnnbatch.report.facts import Fact
from cnnbatch.report.page import PICTURE_SIDE, shown_columns
from cnnbatch.report.pictures import Picture, viewer_of
from cnnbatch.report.prediction import Prediction, drawn, prediction_of
from cnnbatch.report.tally import RankedRow, fetch
from cnnbatch.report.template import template
from cnnbatch.storage import Storage, join, redact

PICTURES = 24
MOST_FAILED = 6
"""Pictures of images that failed in only one output, so that there is room for others."""
MOST_ROWS = 20

_TITLES = {"key": "Image", "truth": "Ground truth", "a": "A", "b": "B"}


class Caption(NamedTuple):
    """What stands below a picture, of one output or of both: ``text`` where there are no guesses to list."""

    name: str
    guesses: Sequence[Guess]
    text: str


class Pair(NamedTuple):
    """What both outputs say of an image, and where they differ: a picture for each caption.

    One picture serves all captions where nothing is drawn on it.
    """

    key: str
    pictures: Sequence[Picture]
    captions: Sequence[Caption]
    legend: Sequence[Swatch] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page: ``names`` are its columns, ``rows`` words; ``more`` rows are not shown."""

    title: str
    lead: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: int = 0

    @property
    def id(self) -> str:
        """The title as an anchor of the page."""
        return self.title.lower().replace(" ", "-")


def save(found: Comparison, to: str, storage: Storage) -> None:
    """Write ``comparison.json``, ``comparison.html`` and ``disagreements.parquet`` into the folder ``to``."""
    listed = pa.BufferOutputStream()
    pq.write_table(found.disagreements, listed)
    storage.put(join(to, "disagreements.parquet"), listed.getvalue().to_pybytes())
    storage.put(join(to, "comparison.html"), page_html(found).encode())
    storage.put(join(to, "comparison.json"), to_json(found).encode())


def page_html(found: Comparison) -> str:
    """Return the whole page."""
    shown = pairs(found)
    return template("comparison.html.j2").render(
        names=_names(found),
        outputs=[redact(side.result.uri) for side in (found.a, found.b)],
        images=found.images,
        headline=_headline(found),
        pairs=shown,
        legend=_legend(found, shown),
        more_legends={DIFFERENCE: dict.fromkeys(swatch for pair in shown for swatch in pair.legend)},
        drawn=found.measure.drawn,
        listed=found.disagreements.num_rows,
        tables=list(_tables(found)),
        notes=found.notes,
    )


def pairs(found: Comparison) -> list[Pair]:
    """Return what both say of the images that differ most; pictures are from A's input, else B's."""
    listed = found.disagreements
    failed: Any = pc.or_(listed["code_a"].is_valid(), listed["code_b"].is_valid())
    some = listed.filter(failed).slice(0, MOST_FAILED)
    rows = [*some.to_pylist(), *listed.filter(pc.invert(failed)).slice(0, PICTURES - len(some)).to_pylist()]
    least = found.options.score_threshold
    sides = [
        list(_predictions(side, rows, name, least, found.measure.kind))
        for side, name in ((found.a, "a"), (found.b, "b"))
    ]
    pictures = viewer_of(found.a.result).pictures(sides[0], PICTURE_SIDE, draw=False)
    other = viewer_of(found.b.result)
    for place, picture in enumerate(pictures):
        if picture.image is None:
            pictures[place] = other.picture(sides[1][place], PICTURE_SIDE, draw=False)
    texts = map(found.measure.texts, rows)
    return [
        _pair(picture, both, said, found.measure.drawn)
        for picture, *both, said in zip(pictures, *sides, texts, strict=True)
    ]


def _pair(picture: Picture, both: Sequence[Prediction], texts: tuple[str, str], draws: bool) -> Pair:
    first, second = both[0], _aligned(*both)
    captions = [_caption(*one) for one in zip("AB", both, texts, strict=True)]
    if not draws or picture.image is None:
        return Pair(first.key, [_drawn(picture, first)], captions)
    views = list(_disagreements(picture.image, first, second))
    pictures = [*(_drawn(picture, one) for one in (first, second))]
    pictures += [replace(picture, image=one.image) for one in views]
    captions += [Caption(one.name, (), one.text) for one in views]
    return Pair(first.key, pictures, captions, [swatch for one in views for swatch in one.legend])


def _caption(name: str, one: Prediction, text: str) -> Caption:
    """Return what one output says; ``text`` counts where the report has no words of its own."""
    return Caption(name, () if one.problem else one.ranked, one.caption or text)


def _aligned(first: Prediction, second: Prediction) -> Prediction:
    """Return the second with the colours of the first."""
    entries = answers_among(second.answers)
    answers = {
        kind: entries[kind].aligned(answer, first.answers[kind]) if kind in first.answers else answer
        for kind, answer in second.answers.items()
    }
    return replace(second, answers=answers)


def _disagreements(image: Image.Image, first: Prediction, second: Prediction) -> Iterator[MoreView]:
    """Yield where the two differ, of kinds of answer that show it."""
    for kind, entry in answers_among(first.answers).items():
        if kind in second.answers:
            view = entry.disagreement(image, first.answers[kind], second.answers[kind])
            yield from () if view is None else (view,)


def _legend(found: Comparison, some: Sequence[Pair]) -> list[Swatch]:
    """Return the colours of what is drawn, where they need a legend."""
    counts = Counter({one.label: one.count_a + one.count_b for one in found.classes})
    answers: dict[str, list[Any]] = {}
    for picture in (picture for pair in some for picture in pair.pictures):
        for kind, answer in picture.prediction.answers.items():
            answers.setdefault(kind, []).append(answer)
    entries = answers_among(answers)
    return [swatch for kind, entry in entries.items() for swatch in entry.legend(answers[kind], counts)]


def _drawn(picture: Picture, one: Prediction) -> Picture:
    """Return the picture with what one output has found."""
    image = None if picture.image is None else drawn(picture.image.copy(), one)
    return replace(picture, prediction=one, image=image)


def _predictions(
    side: Side, rows: Sequence[Mapping[str, Any]], name: str, least: float, kind: str
) -> Iterator[Prediction]:
    """Yield what an output says of each image, with the objects that the comparison counts."""
    parts = list(side.parts)
    places = [RankedRow(0.0, 0, parts.index(row[f"part_{name}"]), row[f"row_{name}"]) for row in rows]
    columns = _shown(side.result.schema.names, kind)
    about = about_output(side.result, side.storage)
    for place, row in zip(places, fetch(side.result, places, columns), strict=True):
        ref = side.result.refs(place.part, [place.row])[0]
        yield prediction_of(row, ref, least=least, about=about)


def _shown(names: Sequence[str], kind: str) -> list[str]:
    """Return the columns that say what a picture shows; of several that are drawn, the ``kind`` compared."""
    drawn_ones = {name for name, one in answers_among(names).items() if one.is_drawn}
    apart = drawn_ones - {kind} if kind in drawn_ones else ()
    return shown_columns([name for name in names if name not in apart])


def _names(found: Comparison) -> list[str]:
    """Return the models of both outputs, or the names of their folders where these tell more."""
    results = [side.result for side in (found.a, found.b)]
    tasks = [result.settings.get("task") for result in results]
    models = [str(task["model"]) for task in tasks if isinstance(task, dict) and "model" in task]
    folders = [redact(result.uri).rpartition("/")[2] for result in results]
    return models if len(set(models)) == 2 else folders


def _headline(found: Comparison) -> list[Fact]:
    value = found.agreement.value
    facts = [
        Fact("Agreement", "none" if value is None else f"{100 * value:.1f} %"),
        Fact("Images in both", number(found.images)),
        Fact("Only in A", number(found.only_a)),
        Fact("Only in B", number(found.only_b)),
    ]
    if found.changes:
        facts += [
            Fact("Better in B", number(found.changes.better)),
            Fact("Worse in B", number(found.changes.worse)),
        ]
    for name, codes in (("A", found.failed_a), ("B", found.failed_b)):
        if codes:
            facts.append(Fact(f"Failed only in {name}", number(codes.total()), link="failures"))
    return facts


def _tables(found: Comparison) -> Iterator[Table]:
    """Yield the tables that have rows."""
    unit = found.measure.unit
    if found.metrics:
        yield Table(
            "Metrics",
            changed(found),
            ("Metric", "A", "B", "B − A", "95 % interval"),
            [(name, *cells(one)) for name, one in found.metrics.items()],
        )
    yield _classes(found) if found.classes else _counts(found)
    if found.label_changes:
        rows = [(one.before, one.after, number(one.count)) for one in found.label_changes]
        yield _cut("Labels that changed", found.measure.changes_lead, ("In A", "In B", unit), rows)
    yield from _changes(found)
    if found.failed_a or found.failed_b:
        codes = sorted(found.failed_a.keys() | found.failed_b.keys())
        rows = [(code, number(found.failed_a[code]), number(found.failed_b[code])) for code in codes]
        yield Table("Failures", "Images that failed in only one of the two.", ("Code", "In A", "In B"), rows)


def _classes(found: Comparison) -> Table:
    unit = found.measure.unit
    has_iou = any(one.iou is not None for one in found.classes)
    last = ("IoU of A and B",) if has_iou else ("Mean score in A", "in B")
    return _cut(
        "Classes",
        agreement(found) + ". The largest shifts first.",
        ("Class", f"{unit} in A", f"{unit} in B", "Shift", *last),
        [
            (one.label, number(one.count_a), number(one.count_b), f"{one.count_b - one.count_a:+,}")
            + ((score(one.score_a), score(one.score_b)) if one.iou is None else (score(one.iou),))
            for one in found.classes
        ],
    )


def _counts(found: Comparison) -> Table:
    """Return what the agreement of a kind without classes stands on."""
    rows = [(name.replace("_", " "), number(count)) for name, count in found.counts.items()]
    return Table("Agreement", f"{agreement(found)}.", ("Counted", "Number"), rows)


def _changes(found: Comparison) -> Iterator[Table]:
    changes = found.changes
    if changes is None:
        return
    for title, rows in (("Worse in B", changes.most_worse), ("Better in B", changes.most_better)):
        if rows.num_rows:
            names = [name for name in rows.schema.names if name != "weight"]
            words = [[_word(row[name]) for name in names] for row in rows.to_pylist()]
            yield Table(title, changes.score.lead, [_TITLES.get(name, name) for name in names], words)


def _word(value: str | float | None) -> str:
    return f"{value:.3f}" if isinstance(value, float) else value or "nothing"


def _cut(title: str, lead: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(title, lead, names, rows[:MOST_ROWS], max(len(rows) - MOST_ROWS, 0))
