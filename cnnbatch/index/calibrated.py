"""What was calibrated of an index, as it is kept beside it: ``calibration.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cnnbatch.errors import UserError
from cnnbatch.index.by_size import AtSize, Missed
from cnnbatch.index.calibration import Calibration, Threshold
from cnnbatch.index.manifest import GROWN
from cnnbatch.output import integrity
from cnnbatch.storage import NotFound, Storage, join, redact

NAME = "calibration.json"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What similarities mean in an index that had ``rows`` rows of the embedding space ``space``.

    ``pairs`` is of two faces, ``sizes`` of searches, empty where no absent probes were given.
    """

    rows: int
    space: dict[str, Any]
    pairs: Calibration
    sizes: tuple[AtSize, ...] = ()

    def search_threshold(self, rate: float, rows: int) -> Threshold:
        """Return the similarity that a candidate needs in a search of ``rows`` rows at a rate.

        It is that of the least gallery measured that is at least as large, or of the whole where it has grown
        by less than a tenth since. Without one the reason says what to do.
        """
        of_rate = [one for one in self.sizes if one.threshold.rate == rate]
        if not of_rate:
            return Threshold(rate, None, reason=self._unmeasured(rate))
        fitting = [one for one in of_rate if one.rows * GROWN >= rows]
        if not fitting:
            return Threshold(
                rate,
                None,
                reason=f"searches were calibrated with {of_rate[0].rows:,} embeddings, and now there are "
                f"{rows:,}: give cnnbatch calibrate with --absent again",
            )
        return min(fitting, key=lambda one: one.rows).threshold

    def _unmeasured(self, rate: float) -> str:
        if not self.sizes:
            return "searches are not calibrated: give cnnbatch calibrate with --absent"
        rates = ", ".join(dict.fromkeys(f"{one.threshold.rate:g}" for one in self.sizes))
        return f"searches are calibrated at the rates {rates}, not at {rate:g}"


def put_calibrated(index: str, storage: Storage, found: Calibrated) -> None:
    """Keep what was calibrated beside an index, in place of what was there."""
    storage.put(join(index, NAME), json.dumps(asdict(found), indent=1).encode())


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


def lines(found: Calibrated) -> Iterator[str]:
    """Yield what was calibrated, for people."""
    pairs = found.pairs
    failed = f", {pairs.failed:,} without a face in each picture" if pairs.failed else ""
    yield f"{pairs.genuine:,} pairs of one person, {pairs.impostor:,} of two{failed}"
    yield f"  cost of the likelihood ratios: {pairs.cost:.4f} bits (0: always right, 1: they say nothing)"
    for one in pairs.thresholds:
        yield f"  false accept rate {one.rate:g}: {_threshold(one)}"
    for at in found.sizes:
        size = f"{at.rows:,} embeddings, false positive rate {at.threshold.rate:g}"
        yield f"  {size}: {_threshold(at.threshold)}{_missed(at.missed)}"


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
