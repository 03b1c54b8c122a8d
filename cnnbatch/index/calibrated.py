"""What was calibrated of an index, as it is kept beside it: ``calibration.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cnnbatch.errors import UserError
from cnnbatch.index.by_size import AtSize, Missed
from cnnbatch.index.calibration import Calibration, Point, Threshold, rate_words
from cnnbatch.index.fitness import fitness
from cnnbatch.index.manifest import GROWN
from cnnbatch.index.pair_figures import PairFigures
from cnnbatch.output import integrity
from cnnbatch.storage import NotFound, Storage, join, redact

NAME = "calibration.json"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What similarities mean in an index that had ``rows`` rows of the embedding space ``space``.

    ``pairs`` is of two faces, ``sizes`` of searches, empty where no absent probes were given: those that were
    measured, and larger ones that are extrapolated. ``figures`` show what it was measured by, ``errors`` are
    FNIR over FPIR of the whole index. ``known_by`` is a list of pairs, or what names people; ``strangers``
    are photos of ``stranger_people``.
    """

    rows: int
    space: dict[str, Any]
    pairs: Calibration
    sizes: tuple[AtSize, ...] = ()
    figures: PairFigures | None = None
    errors: tuple[Point, ...] = ()
    known_by: str = ""
    strangers: int = 0
    stranger_people: int = 0

    @property
    def measured(self) -> Sequence[AtSize]:
        """The sizes of galleries that were measured."""
        return [one for one in self.sizes if not one.is_extrapolated]

    def search_threshold(self, rate: float, rows: int, people: int | None = None) -> Threshold:
        """Return the similarity that a candidate needs in a search of ``rows`` rows of ``people`` at a rate.

        It is that of the least gallery measured that is at least as large, or of the whole where it has grown
        by less than a tenth since. Without one the reason says what to do. Nothing decides by what is
        extrapolated.
        """
        of_rate = [one for one in self.measured if one.threshold.rate == rate]
        if not of_rate:
            return Threshold(rate, None, reason=self._unmeasured(rate))
        fitting = [one for one in of_rate if _fits(one, rows, people)]
        if not fitting:
            return Threshold(rate, None, reason=_outgrown(of_rate[0], rows, people))
        return min(fitting, key=lambda one: one.rows).threshold

    def outgrown(self, rows: int) -> str | None:
        """Return what is to be said where an index of so many rows has grown by a tenth since; else None."""
        if rows <= GROWN * self.rows:
            return None
        return (
            f"error rates were measured with {self.rows:,} embeddings, and now there are {rows:,}: give "
            "cnnbatch calibrate again"
        )

    def _unmeasured(self, rate: float) -> str:
        if not self.measured:
            return "searches are not calibrated: give cnnbatch calibrate with --absent"
        rates = ", ".join(dict.fromkeys(f"{one.threshold.rate:g}" for one in self.measured))
        return f"searches are calibrated at the rates {rates}, not at {rate:g}"


def _fits(one: AtSize, rows: int, people: int | None) -> bool:
    """Say whether a gallery was as large as one of so many rows and people, where the latter are known."""
    has_people = people is None or not one.people or one.people * GROWN >= people
    return one.rows * GROWN >= rows and has_people


def _outgrown(whole: AtSize, rows: int, people: int | None) -> str:
    of = "" if people is None or not whole.people else f" of {people:,} people"
    was = f" of {whole.people:,} people" if of else ""
    return (
        f"searches were calibrated with {whole.rows:,} embeddings{was}, and now there are {rows:,}{of}: "
        "give cnnbatch calibrate with --absent again"
    )


def put_calibrated(index: str, storage: Storage, found: Calibrated) -> None:
    """Keep what was calibrated beside an index, in place of what was there."""
    storage.put(join(index, NAME), TypeAdapter(Calibrated).dump_json(found, indent=1))


def read_calibrated(index: str, storage: Storage, space: Mapping[str, Any]) -> Calibrated | None:
    """Return what was calibrated of an index with embeddings of a ``space``; None where nothing was.

    Raises UserError where it is damaged, or of another network's embeddings.
    """
    uri = join(index, NAME)
    try:
        data = storage.read(uri)
    except NotFound:
        return None
    try:
        found = TypeAdapter(Calibrated).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        way_out = "delete that file, and calibrate the index again"
        raise integrity.damaged(uri, f"{place or 'it'}: {first['msg']}", way_out) from None
    if found.space != space:
        raise UserError(
            f"{redact(uri)} was measured with embeddings of {found.space.get('network')}, and the index has "
            f"those of {space.get('network')}, or of other weights\n  what to do: calibrate it again"
        )
    return found


def lines(found: Calibrated, rows: int) -> Iterator[str]:
    """Yield what was calibrated of an index that now has so many rows, for people."""
    pairs = found.pairs
    failed = f", {pairs.failed:,} without a face in each picture" if pairs.failed else ""
    yield f"{pairs.genuine:,} pairs of one person, {pairs.impostor:,} of two{failed}"
    yield f"  cost of the likelihood ratios: {pairs.cost:.4f} bits (0: always right, 1: they say nothing)"
    for one in pairs.thresholds:
        yield f"  false accept rate {rate_words(one.rate)}: {_threshold(one)}"
    if found.sizes:
        yield f"searches for {found.strangers:,} photos of {found.stranger_people:,} people who are absent"
    for at in found.sizes:
        extrapolated = ", extrapolated" if at.is_extrapolated else ""
        size = f"{at.rows:,} embeddings{extrapolated}, false positive rate {rate_words(at.threshold.rate)}"
        yield f"  {size}: {_threshold(at.threshold)}{_missed(at.missed)}"
    for rate in dict.fromkeys(at.threshold.rate for at in found.sizes):
        yield fitness(found.sizes, rate)
    if (outgrown := found.outgrown(rows)) is not None:
        yield outgrown


def _threshold(one: Threshold) -> str:
    if one.similarity is None:
        return f"none: {one.reason}"
    return f"similarity {one.similarity:.4f}{_interval(one.low, one.high)}"


def _missed(one: Missed) -> str:
    return "" if one.share is None else f"; misses {100 * one.share:.1f} %{_interval(one.low, one.high, 100)}"


def _interval(low: float | None, high: float | None, scale: float = 1) -> str:
    if low is None or high is None:
        return ""
    places = 1 if scale > 1 else 4
    return f" ({scale * low:.{places}f} to {scale * high:.{places}f})"
