"""``evaluation.json``: every number with its interval and the count that it stands on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnbatch.errors import UserError
from cnnbatch.humanize import number
from cnnbatch.metrics import Value
from cnnbatch.output import integrity
from cnnbatch.storage import NotFound, Storage, join, redact

Metrics = Mapping[str, Value]

OF_VIEWS = ("AP", "mIoU", "mask_AP")
"""The first number of each view, where a row has boxes, a map and masks."""

_INSTEAD_OF_BOXES = ("keypoint_AP", "mask_AP")
"""What is said of objects that have more than boxes: the most specific first, as in the report."""

_PLURAL = re.compile(r"(?<=[a-z])s(?= )")
"""What a reason lacks where it counts one thing: it begins with these, as in ``true objects of no area``."""

VERSION = 1
"""The newest version of ``evaluation.json`` that can be read; a file that says none is of the first."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an output is worth by its truth.

    ``images`` are those with a truth, ``failed`` those of them without a prediction. ``truth`` is the folder
    of the truth's parts, ``aliases`` the model's names of its classes. ``slices`` are by column and value.
    ``notes`` count by reason what was left out, or counts in a way that one may not expect.
    """

    task: str
    images: int
    failed: int
    truth: str
    metrics: Metrics
    slices: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str | None] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of ``evaluation.json``; a number that is none is null."""
        slices = {
            column: {value: _plain(metrics) for value, metrics in values.items()}
            for column, values in self.slices.items()
        }
        data = {"task": self.task, "images": self.images, "failed": self.failed, "truth": self.truth}
        data |= {"aliases": dict(self.aliases)} if self.aliases else {}
        data |= {"metrics": _plain(self.metrics), "slices": slices, "notes": dict(self.notes)}
        return json.dumps(data, indent=1, allow_nan=False)


def read_evaluation(uri: str, storage: Storage) -> Evaluation | None:
    """Return what ``evaluation.json`` of the output at ``uri`` says; None where there is none.

    Raises UserError where it is damaged, or of a newer version.
    """
    place = join(uri, "evaluation.json")
    try:
        read = storage.read(place)
    except NotFound:
        return None
    _require_version(place, read)
    data = integrity.record("evaluation", place, read)
    slices = {
        column: {value: _values(metrics) for value, metrics in values.items()}
        for column, values in data.get("slices", {}).items()
    }
    return Evaluation(**{**data, "metrics": _values(data["metrics"]), "slices": slices})


def _require_version(place: str, read: bytes) -> None:
    """Refuse a newer version; what is no record at all is for others to name."""
    try:
        found = json.loads(read)
    except (ValueError, RecursionError):
        return
    version = found.get("version", VERSION) if isinstance(found, dict) else VERSION
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{redact(place)} is of version {version}, but this cnnbatch reads version {VERSION}\n"
            "  what to do: read it with the newer cnnbatch that wrote it, or write it anew with "
            "cnnbatch evaluate and this output"
        )


def _values(metrics: Mapping[str, Any]) -> dict[str, Value]:
    return {name: Value(**value) for name, value in metrics.items()}


def _plain(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Return the metrics as JSON values; ``reason`` only where there is one."""
    found = {}
    for name, value in metrics.items():
        fields = {key: _finite(getattr(value, key)) for key in ("value", "low", "high", "count")}
        found[name] = {**fields, "reason": value.reason} if value.reason else fields
    return found


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_evaluation(uri: str, storage: Storage, evaluation: Evaluation, tables: Path) -> None:
    """Write ``evaluation.json`` and the local folder of its ``tables``; those of an earlier one go."""
    folder, names = join(uri, "evaluation"), {path.name for path in tables.glob("*.parquet")}
    for name in sorted(names):
        storage.put(join(folder, name), tables / name)
    storage.put(join(uri, "evaluation.json"), evaluation.to_json().encode())
    try:
        entries = [*storage.list(folder)]
    except NotFound:
        return
    for entry in entries:
        name = entry.uri.removeprefix(f"{folder}/")
        if name.endswith(".parquet") and "/" not in name and name not in names:
            storage.delete(entry.uri)


def headlines(evaluation: Evaluation) -> list[str]:
    """Return the main one of the numbers with a value as a line for people; of several views, each one's."""
    known = {name: value for name, value in evaluation.metrics.items() if value.value is not None}
    has_views = evaluation.metrics.keys() >= {*OF_VIEWS}
    names = [name for name in known if name in OF_VIEWS] if has_views else _main(list(known))
    shown = {name: known[name] for name in names} or {"judged": Value(None, reason="no ground truth")}
    return [f"{f'{name}:':7} {_words(value)}" for name, value in shown.items()]


def _main(names: Sequence[str]) -> Sequence[str]:
    """Return the first of the numbers' names; of objects by what they have the most specific of."""
    specific = [name for name in _INSTEAD_OF_BOXES if name in names] if "AP" in names[:1] else []
    return [*specific, *names][:1]


def lines(evaluation: Evaluation) -> Iterator[str]:
    """Yield the numbers as lines for people."""
    yield f"{evaluation.images:,} images with ground truth, {evaluation.failed:,} of them failed"
    width = max(map(len, evaluation.metrics), default=0)
    for name, value in evaluation.metrics.items():
        yield f"  {name:{width}}  {_words(value)}"
    for note in notes(evaluation):
        yield f"  note: {note}"


def notes(evaluation: Evaluation, most: int | None = None) -> Iterator[str]:
    """Yield what was counted beside the numbers, ``most`` of it, the most frequent first."""
    ranked = sorted(evaluation.notes.items(), key=lambda note: (-note[1], note[0]))
    for reason, count in ranked[:most]:
        yield f"{number(count)} {_PLURAL.sub('', reason, count=1) if count == 1 else reason}"
    if most is not None and len(ranked) > most:
        yield f"and {number(len(ranked) - most)} more in evaluation.json"


def _words(value: Value) -> str:
    if value.value is None:
        return f"none: {value.reason}"
    interval = f" ({value.low:.4f} to {value.high:.4f})" if value.low is not None else ""
    return f"{value.value:.4f}{interval}, {value.count:,}"
