"""A collection's description as a person reads it: on the terminal, and as one self-contained page.

Both say the same facts; pictures and histograms are the page's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

from cnnbatch import terminal
from cnnbatch.humanize import decimal, meaning, number, percent
from cnnbatch.images.decode import DecodeError
from cnnbatch.report import plots
from cnnbatch.report.answers import answer_report
from cnnbatch.report.answers.entry import AboutTruth, Guess
from cnnbatch.report.facts import Fact, left_out_fact, pixel_facts
from cnnbatch.report.pictures import NotShown, Picture, small
from cnnbatch.report.prediction import Prediction
from cnnbatch.report.template import Bar, Chart, template
from cnnbatch.sources.counts import Named, Spread, TruthCounts
from cnnbatch.sources.describe import Description, Opened, ShownImage, describe
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.storage.unique import Copies
from cnnbatch.terminal.console import columns, plain_console
from cnnbatch.types import Content, Failure, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Input
    from cnnbatch.types import Source
from cnnbatch.humanize import byte_size

PICTURE_SIDE = 400
MOST_CLASSES = 20
BINS = 24
MOST_STEPS = 40
_WRONG_SIZE = ("wrong size", "Their ground truth is for another size.")


class DataSetCounts(NamedTuple):
    """A data set as its publishers count it; None is what they do not say."""

    name: str
    images: int | None
    classes: int | None
    objects: int | None
    an_image: float | None


PUBLISHED = (
    DataSetCounts("ImageNet-DET", None, 200, None, 1.1),
    DataSetCounts("PASCAL VOC", None, 20, None, 2.4),
    DataSetCounts("COCO", 120_000, 80, 900_000, 7.5),
)


@dataclass(frozen=True, slots=True)
class Examples:
    """Images with one trouble: how many, and (key, message) of a few."""

    name: str
    meaning: str
    count: int
    share: float
    examples: Sequence[tuple[str, str]]


def describe_input(input: Input, images: Opened, page: str | None = None, fast: bool = False) -> None:
    """Print what the ``images`` of a job's ``input`` are, and write it to the address ``page``.

    Raises:
        UserError, EnvironmentFault: as the source and the storage do.
    """
    with Console(stderr=True).status("Reading the collection") as status:
        found = describe(
            images.source,
            images.refs,
            fast,
            lambda done: status.update(f"{number(done)} images"),
        )
    url = title(input)
    print_collection(url, found, plain_console())
    if page is not None:
        Storage(input.storage).put(
            normalize(page), page_html(url, found, pictures(images.source, found)).encode()
        )


def title(input: Input) -> str:
    """Return the address of an input, without what is secret in it."""
    if isinstance(input.url, str):
        return redact(input.url)
    return redact(input.url[0]) + (f" and {len(input.url) - 1} more" if len(input.url) > 1 else "")


# ---- the facts ----------------------------------------------------------------------------------


def facts(found: Description) -> list[Fact]:
    """Return what is known of the images themselves."""
    shapes = ", ".join(
        f"{number(found.shapes[shape])} {shape}"
        for shape in ("wide", "tall", "square")
        if found.shapes[shape]
    )
    turned = f"{number(found.turned)} JPEG turned by EXIF"
    return [
        Fact("Images", number(found.images), byte_size(int(found.file_bytes.total))),
        Fact("Formats", _ranked(found.formats.items())),
        Fact("Unreadable", _unreadable(found), "headers only were read" if found.fast else ""),
        *left_out_fact(found.left_out),
        Fact("Copies", _copies(found.copies), _groups(found.copies)),
        Fact("Width", _range(found.widths), "pixels"),
        Fact("Height", _range(found.heights), "pixels"),
        Fact("Shape", shapes or "unknown", turned if found.turned else ""),
        Fact("File", _range(found.file_bytes, byte_size)),
    ]


def truth_facts(truths: TruthCounts) -> list[Fact]:
    """Return what is known of the truth; without objects, of its labels."""
    known = f"{number(len(truths.known))} named in the ground truth" if truths.known else ""
    classes = [Fact("Classes", number(len(truths.classes)), known)] if truths.has_classes else []
    rows = [*classes, Fact("No ground truth", _images(truths.absent))]
    if truths.numbers:
        unusable = Fact("Unusable", _images(truths.misfits), "left out below" if truths.misfits.count else "")
        return [*rows, unusable, *pixel_facts(truths.pixels, truths.uncounted)]
    if not truths.an_image.count and not truths.misfits.count:
        return rows
    marks = [f"{mark} {number(count)}" for mark, count in sorted(truths.marks.items())]
    return [
        *rows,
        Fact("Without objects", _images(truths.empty)),
        Fact("Wrong size", _images(truths.misfits), "left out below" if truths.misfits.count else ""),
        Fact("Objects", number(truths.objects), ", ".join(marks)),
        Fact("An image", _range(truths.an_image), f"mean {decimal(truths.an_image.mean)}"),
        Fact("Object size", _scales(truths), "by area: below 32², below 96², above"),
    ]


def comparison(found: Description) -> list[DataSetCounts]:
    """Return the set and published ones of labels and objects; images without ground truth don't count."""
    truths = found.truths
    if truths is None or truths.numbers:
        return []
    objects = truths.objects if truths.an_image.count else None
    mean = truths.an_image.mean if truths.an_image.count else None
    return [DataSetCounts("this set", found.images, len(truths.classes), objects, mean), *PUBLISHED]


def troubles(found: Description) -> list[Examples]:
    """Return what is wrong with some images, each trouble with a few of them."""
    rows = [_examples(code, meaning(code), named, found) for code, named in sorted(found.failed.items())]
    if found.truths:
        wrong = found.truths.misfits, found.truths.absent, found.truths.remarks
        made = ("unusable", "Their masks can't be used.") if found.truths.numbers else _WRONG_SIZE
        rows += [
            _examples(*made, wrong[0], found),
            _examples("without ground truth", "The ground truth does not name them.", wrong[1], found),
            _examples("ground truth left out", "Part of their ground truth can't be used.", wrong[2], found),
        ]
    copies = found.copies
    groups = [(same[0], f"again as {', '.join(same[1:])}") for same in copies.examples]
    words = "Images that repeat another byte for byte."
    rows.append(_examples("copies", words, Named(copies.images, groups), found))
    return [row for row in rows if row.count]


def _examples(name: str, words: str, named: Named, found: Description) -> Examples:
    return Examples(name, words, named.count, named.count / max(found.images, 1), named.examples)


def _unreadable(found: Description) -> str:
    codes = ((code, named.count) for code, named in found.failed.items())
    return f"{number(found.unreadable)}: {_ranked(codes)}" if found.unreadable else "none"


def _copies(copies: Copies) -> str:
    return f"{_images(Named(copies.images))}{' repeating another byte for byte' if copies.images else ''}"


def _groups(copies: Copies) -> str:
    return f"in {number(copies.groups)} group{'s' if copies.groups > 1 else ''}" if copies.groups else ""


def _images(named: Named) -> str:
    return f"{number(named.count)} image{'s' if named.count > 1 else ''}" if named.count else "none"


def _ranked(counts: Iterable[tuple[str, int]]) -> str:
    ranked = sorted(counts, key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number(count)}" for name, count in ranked) or "none"


def _plain_number(value: float) -> str:
    return f"{value:,g}" if value < 1e6 else f"{value:,.0f}"


def _range(spread: Spread, say: Callable[[float], str] = _plain_number) -> str:
    if not spread.count:
        return "unknown"
    if spread.least == spread.most:
        return f"{say(spread.least)} throughout"
    rounded = "" if spread.exact else ", to three digits"
    return f"{say(spread.least)} to {say(spread.most)}, median {say(spread.median)}{rounded}"


def _scales(truths: TruthCounts) -> str:
    total = truths.scales.total()
    shares = ((name, truths.scales[name]) for name in ("small", "medium", "large"))
    if not total:
        return "unknown"
    return ", ".join(f"{name} {number(count)} ({percent(count / total)})" for name, count in shares)


# ---- text ---------------------------------------------------------------------------------------


def print_collection(url: str, found: Description, console: Console) -> None:
    """Print the facts, the classes, the set compared with published ones, and what is wrong."""
    console.print(terminal.line(url), soft_wrap=True)
    _print_facts(facts(found), console)
    if found.truths:
        _print_facts(truth_facts(found.truths), console)
        console.print("", _class_table(found.truths), sep="\n")
        if compared := comparison(found):
            console.print("", _comparison_table(compared), sep="\n")
    for trouble in troubles(found):
        console.print(f"\n{trouble.name}: {number(trouble.count)}. {trouble.meaning}", soft_wrap=True)
        for key, words in trouble.examples:
            console.print(terminal.line(f"  {key}{': ' if words else ''}{words}"), soft_wrap=True)


def _print_facts(rows: Iterable[Fact], console: Console) -> None:
    console.print()
    for fact in rows:
        note = f" · {fact.note}" if fact.note else ""
        console.print(f"{fact.name:<17}{fact.value}{note}", soft_wrap=True)


def _class_table(truths: TruthCounts) -> Table:
    ranked, amount = _by_frequency(truths), _amount(truths)
    more = f", the {MOST_CLASSES} most frequent" if len(ranked) > MOST_CLASSES else ""
    shares = ("Share", "Mean share of an image") if truths.maps else ()
    table = columns(f"Class{more}", "Images", *((amount,) if amount else ()), *shares)
    for name, images, count in ranked[:MOST_CLASSES]:
        shown = (count / truths.pixels, truths.classes[name].shares / truths.maps) if shares else ()
        table.add_row(name, number(images), *((number(count),) if amount else ()), *map(percent, shown))
    return table


def _comparison_table(rows: Iterable[DataSetCounts]) -> Table:
    table = columns("Compared with published data sets", "Images", "Classes", "Objects", "Objects an image")
    for row in rows:
        counts = (row.images, row.classes, row.objects)
        cells = ["" if count is None else number(count) for count in counts]
        table.add_row(row.name, *cells, "" if row.an_image is None else f"{row.an_image:.1f}")
    return table


def _amount(truths: TruthCounts) -> str:
    """Return what of a class is counted beside images; empty where that is nothing."""
    return "Pixels" if truths.maps else "Objects" if truths.objects else ""


def _by_frequency(truths: TruthCounts) -> list[tuple[str, int, int]]:
    """Return (class, images, objects or pixels), the most frequent first."""
    counted = [
        (name, count.images, count.pixels if truths.maps else count.objects)
        for name, count in truths.classes.items()
    ]
    return sorted(counted, key=lambda row: (-row[2], -row[1], row[0]))


# ---- the page -----------------------------------------------------------------------------------


def page_html(url: str, found: Description, shown: Sequence[Picture]) -> str:
    """Return the page."""
    truths = found.truths
    classes = _by_frequency(truths) if truths else []
    return template("collection.html.j2").render(
        url=url,
        images=found.images,
        headline=_headline(found),
        pictures=shown,
        facts=facts(found),
        truth_facts=truth_facts(truths) if truths else [],
        classes=[_bar(row, classes[0]) for row in classes[:MOST_CLASSES]],
        class_count=len(classes),
        amount=(_amount(truths) if truths else "") or "Objects",
        class_rows=classes[:1000] if len(classes) > MOST_CLASSES else [],
        comparison=comparison(found),
        charts=list(_charts(found)),
        troubles=troubles(found),
    )


def _headline(found: Description) -> list[Fact]:
    rows = [
        Fact("Images", number(found.images)),
        Fact("Unreadable", number(found.unreadable), link="troubles" if found.unreadable else ""),
        Fact("Copies", number(found.copies.images)),
        Fact("Bytes", byte_size(found.file_bytes.total)),
    ]
    truths = found.truths
    if truths and truths.has_classes:
        rows.append(Fact("Classes", number(len(truths.classes))))
    if truths and truths.an_image.count:
        rows += [
            Fact("Objects", number(truths.objects)),
            Fact("Objects an image", decimal(truths.an_image.mean)),
        ]
    return rows


def _bar(row: tuple[str, int, int], first: tuple[str, int, int]) -> Bar:
    amount, most = (row[2], first[2]) if first[2] else (row[1], first[1])
    return Bar(row[0], amount, amount / most)


def _charts(found: Description) -> Iterator[tuple[str, Chart]]:
    """Yield histograms with their titles; numbers that are all alike have none."""
    spreads = {"Width, in pixels": found.widths, "Height, in pixels": found.heights}
    if found.truths:
        spreads["Side of objects (the root of their area), in pixels"] = found.truths.sides
    for name, spread in spreads.items():
        if spread.most > max(spread.least, 1.0):
            yield name, _log_chart(spread)
    if found.truths and found.truths.an_image.most > 0:
        yield "Objects an image", _step_chart(found.truths.an_image)


def _log_chart(spread: Spread) -> Chart:
    counts, edges = spread.histogram(BINS), spread.edges(4)
    return Chart(
        plot=plots.columns(counts),
        up=["0", number(max(counts))],
        across=[_plain_number(round(edge)) for edge in edges],
        summary=f"{_range(spread)}; bins in equal ratios",
    )


def _step_chart(spread: Spread) -> Chart:
    step = -(-int(spread.most + 1) // MOST_STEPS)
    counts = [0] * -(-int(spread.most + 1) // step)
    for value, count in spread.counts.items():
        counts[min(int(value) // step, len(counts) - 1)] += count
    return Chart(
        plot=plots.columns(counts),
        up=["0", number(max(counts))],
        across=["0", number(int(spread.most))],
        summary=f"{_range(spread)}, mean {decimal(spread.mean)}",
    )


# ---- pictures -----------------------------------------------------------------------------------


def pictures(source: Source, found: Description) -> list[Picture]:
    """Return the chosen images, small, with what is true of them; reads each of them again."""
    chosen = found.sample.chosen()
    readers = source.read(Shard(0, tuple(candidate.ref for candidate in chosen)))
    schema = source.truth_schema
    about = None if schema is None else AboutTruth(schema, {})
    kind = found.truths.kind if found.truths else None
    return [_picture(one, kind, about, reader()) for one, reader in zip(chosen, readers, strict=True)]


def _picture(
    shown: ShownImage, kind: str | None, known: AboutTruth | None, content: Content | Failure
) -> Picture:
    entry = answer_report(kind)
    answer = entry.truth(shown.truth, known) if entry and known and shown.truth is not None else None
    names = list(entry.label_names(answer)) if entry and answer is not None else []
    width, height = shown.size
    about = Prediction(
        shown.ref.key,
        redact(shown.ref.uri),
        (height, width),
        caption=next(iter(names), ""),
        ranked=tuple(Guess(name, None) for name in names),
    )
    try:
        image = small(content, PICTURE_SIDE)
        drawn = entry.draw(image, shown.size, answer) if entry and answer is not None else image
        return Picture(about, drawn)
    except (NotShown, DecodeError) as reason:
        return Picture(about, None, str(reason))
