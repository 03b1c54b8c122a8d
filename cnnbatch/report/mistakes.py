"""Chooses the mistakes to show, the most confident first, from the evaluation's rows of all images.

Half of them are the most confident of all, the others the most confident of each class in turn, so that
a filter by class finds something; of each class no more are held than are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics.intervals import key_hashes
from cnnbatch.metrics.objects import Labels, ranks
from cnnbatch.report.answers.entry import Alarm, MistakeWords
from cnnbatch.report.context import ReportContext
from cnnbatch.report.tally import RankedRow

MOST = 40

_CANDIDATE = np.dtype(
    [
        ("rank", np.float64),
        ("tie", np.uint64),
        ("label", np.int64),
        ("part", np.int64),
        ("row", np.int64),
        ("truths", np.int64),  # -1 where labels were judged.
        ("found", np.int64),
    ]
)


class Mistake(NamedTuple):
    """An image that was judged wrong: its place among the predictions, and its class.

    For a label the class is the true one; for objects that of the false positive ``alarm``; for maps and
    segments it is the one that is missed most.
    """

    place: RankedRow
    label: str
    alarm: Alarm | None


@dataclass(slots=True)
class Mistakes:
    """The mistakes of an output: how many images have one, what is said of them, and those to show."""

    images: int = 0
    words: MistakeWords = field(default_factory=lambda: MistakeWords(""))
    shown: list[Mistake] = field(default_factory=list)

    @property
    def classes(self) -> list[tuple[str, int]]:
        """The classes of those shown and how many there are of each, the most frequent first."""
        counts = Counter(mistake.label for mistake in self.shown)
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def find_mistakes(context: ReportContext) -> Mistakes:
    """Return the mistakes of the images that did not fail; none where nothing says which they are."""
    parts = {shard: part for part, shard in enumerate(context.shards)}
    labels, found, held = Labels(), Mistakes(), np.empty(0, _CANDIDATE)
    for entry in context.answers.values():
        if found.images:
            break  # Of several answers the first that has mistakes is shown.
        for rows in entry.mistakes(context):
            found.words = entry.mistake_words(context)
            found.images += rows.num_rows
            held = _least(np.concatenate([held, _candidates(rows, labels, parts)]))
    found.shown = [_mistake(held[at], labels.names) for at in _chosen(held)]
    return found


def _candidates(rows: pa.Table, labels: Labels, parts: dict[int, int]) -> NDArray[Any]:
    """Return rows as candidates; an image of a part that is gone is none."""
    made = np.empty(rows.num_rows, _CANDIDATE)
    made["rank"] = -np.nan_to_num(rows["score"].to_numpy())
    keys: list[Any] = rows["key"].to_pylist()
    made["tie"] = key_hashes(keys)
    made["label"] = labels.numbers(rows["label"].combine_chunks())
    made["part"] = [parts.get(shard, -1) for shard in rows["part"].to_numpy().tolist()]
    made["row"] = rows["row"].to_numpy()
    for name in ("truths", "found"):
        made[name] = rows[name].to_numpy() if name in rows.schema.names else -1
    return made[made["part"] >= 0]


def _least(held: NDArray[Any]) -> NDArray[Any]:
    """Return the `MOST` of least rank of each class, by class."""
    held = held[np.lexsort((held["tie"], held["rank"], held["label"]))]
    return held[ranks(held["label"]) < MOST]


def _chosen(held: NDArray[Any]) -> list[int]:
    """Return which of the candidates, which lie by class, are shown, in the order to show them."""
    order = np.lexsort((held["tie"], held["rank"]))
    turn = ranks(held["label"])
    turn[order[: MOST // 2]] = -1
    first = np.lexsort((held["tie"], held["rank"], turn))[:MOST]
    wanted = np.isin(order, first)
    return [int(at) for at in order[wanted]]


def _mistake(one: Any, names: Sequence[str]) -> Mistake:
    label, truths = names[one["label"]], int(one["truths"])
    place = RankedRow(float(one["rank"]), int(one["tie"]), int(one["part"]), int(one["row"]))
    alarm = Alarm(label, -place.rank, truths, int(one["found"])) if truths >= 0 else None
    return Mistake(place, label, alarm)
