"""Objects in reports: drawn on the picture, counted in words, and the false positives among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cnnbatch.humanize import counted
from cnnbatch.metrics import Value
from cnnbatch.report.answers import segments
from cnnbatch.report.answers.entry import (
    WHERE,
    AboutTruth,
    Alarm,
    AnswerReport,
    ClassLayout,
    EvaluationTables,
    MistakeWords,
    MoreView,
)
from cnnbatch.report.marked import marked
from cnnbatch.report.numbers import kinds
from cnnbatch.truth import FACE, SURE

_POINT = ("threshold", "precision", "recall")
_QUALITY = {
    "size": "{:.0f} pixels",
    "blur": "blur {:.2f}",
    **{angle: angle + " {:+z.0f}°" for angle in ("yaw", "pitch", "roll")},
}
"""How the quality of a face is put into words, see `cnnbatch.images.face_quality`."""


class ObjectsReport(AnswerReport):
    """The column ``objects``: boxes, masks and keypoints."""

    is_drawn = True

    def words(self, answer: Iterable[Mapping[str, Any]]) -> str:
        """Return objects as people count them: ``2 × person, dog``, ``2 faces``; the most frequent first."""
        counts = Counter(str(one["label"]) for one in answer)
        return ", ".join(_counted(*one) for one in counts.most_common()) or "nothing"

    def caption(self, answer: Iterable[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
        """Return the objects in words, and the quality of the largest where they are faces."""
        objects = list(answer)
        return self.words(objects) + _quality([one["quality"] for one in objects if one.get("quality")])

    def line(self, answer: Iterable[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
        """Return those that are sure in words."""
        return self.words(filter(is_sure, answer))

    def shown(
        self, answer: Iterable[Mapping[str, Any]], least: float, alarm: Alarm | None
    ) -> tuple[Mapping[str, Any], ...]:
        """Return the objects from the score ``least`` on, and the false positive, marked as such."""
        return tuple(_shown(answer, float(np.float32(least)), alarm))  # As scores are, of 32 bits.

    def draw(
        self, image: Image.Image, size: tuple[int, int], answer: Iterable[Mapping[str, Any]]
    ) -> Image.Image:
        """Draw boxes, masks and keypoints."""
        return marked(image, size, answer)

    def difference(
        self,
        image: Image.Image,
        answer: Sequence[Mapping[str, Any]],
        truth: Sequence[Mapping[str, Any]],
    ) -> MoreView | None:
        """Return where segments are wrong; other objects are drawn, and counted, one by one."""
        return segments.quality(image, answer, truth) if segments.are_segments(answer, truth) else None

    def disagreement(
        self,
        image: Image.Image,
        answer: Sequence[Mapping[str, Any]],
        other: Sequence[Mapping[str, Any]],
    ) -> MoreView | None:
        """Return where the classes of segments differ."""
        return segments.disagreement(image, answer, other) if segments.are_segments(answer, other) else None

    def title(self, answer: Iterable[Mapping[str, Any]]) -> str:
        """Return the name of this view."""
        objects = list(answer)
        return (
            "Detection" if objects and not any("mask" in one for one in objects) else "Instance segmentation"
        )

    def painted(
        self, answer: Iterable[Mapping[str, Any]], paints: Mapping[str, str]
    ) -> tuple[Mapping[str, Any], ...]:
        """Return the objects with the colours of their classes."""
        return tuple({**one, "paint": paints.get(str(one["label"]))} for one in answer)

    def labels(self, answers: pa.Array[Any]) -> Counter[str]:
        """Count the images by the classes that were detected in them for sure."""
        sure = [{one["label"] for one in row or () if is_sure(one)} for row in answers.to_pylist()]
        return Counter(str(label) for labels in sure for label in labels)

    def label_names(self, truth: Iterable[Mapping[str, Any]]) -> Iterable[str]:
        """Return the classes of the objects, each once."""
        return dict.fromkeys(str(one["label"]) for one in truth)

    def truth(self, answer: Iterable[Mapping[str, Any]], about: AboutTruth) -> tuple[Mapping[str, Any], ...]:
        """Return the true objects with the model's names of their classes, without those that are left out.

        Of a ground truth that has stuff, too, only things, where no prediction says which is which.
        """
        things = [one for one in answer if "is_thing" not in about.hidden or one["is_thing"] is not False]
        labels = [about.names.get(one["label"], one["label"]) for one in things]
        named = [{**one, "label": label} for one, label in zip(things, labels, strict=True) if label]
        return tuple(
            {name: value for name, value in one.items() if name not in about.hidden} for one in named
        )

    def hidden_fields(self, column: pa.DataType | None) -> AbstractSet[str]:
        """Return the fields that no prediction has: like is compared with like."""
        of_one: Any = getattr(column, "value_type", ())
        return {"mask", "keypoints", "is_thing"} - {field.name for field in of_one}

    def mistake_words(self, tables: EvaluationTables) -> MistakeWords:
        """Return that they are false positives, or the worst by panoptic quality."""
        if _is_panoptic(tables):
            lead = "The images with the lowest panoptic quality of their own"
            return MistakeWords(
                lead, "class of the largest segment missed", "the worst first", "Worst images"
            )
        return MistakeWords("Images with a false positive at or above the score of its class's best F1")

    def mistakes(self, tables: EvaluationTables) -> Iterator[pa.Table]:
        """Yield the images with a false positive that counts, by what objects were judged foremost.

        Of segments, yield those with a missed one instead, by the panoptic quality that they lack. An alarm
        counts from the score of its class's best F1 on, and from `SURE` on where that is not known.
        """
        if _is_panoptic(tables):
            yield from _worst(tables)
            return
        prefix = self.foremost(tables)
        own = [prefix + name for name in ("mistake", "mistake_score", "truths", "found")]
        thresholds = _thresholds(tables, prefix)
        for batch in tables.images([*WHERE, *own]):
            names = [*WHERE, "label", "score", "truths", "found"]
            rows = pa.Table.from_batches([batch]).rename_columns(names)
            labels: list[Any] = rows["label"].to_pylist()
            least = [thresholds.get(label, SURE) for label in labels]
            counts: Any = pc.greater_equal(rows["score"], pa.array(least, pa.float64()))
            yield rows.filter(counts)  # Null, so left out, where an image has none.

    def foremost(self, tables: EvaluationTables) -> str:
        """Return by what objects were judged foremost: how the names of its numbers begin."""
        return next(iter(kinds(tables.evaluation.metrics) if tables.evaluation else ()), "")

    def class_layouts(self, metrics: Mapping[str, Value]) -> Sequence[ClassLayout]:
        """Return a table for each way of judging: by segments, boxes, masks or keypoints."""
        of_segments = [ClassLayout("panoptic_classes", "by segments", "Segments", "PQ", ("SQ", "RQ"))]
        of_prefixes = [
            ClassLayout(f"{prefix}classes", how, "Objects", f"{prefix}AP", (f"{prefix}AP50", *_POINT))
            for prefix, how in kinds(metrics).items()
        ]
        return [*(of_segments if _is_known(metrics, "PQ") else ()), *of_prefixes]


def _counted(label: str, count: int) -> str:
    """Return how many there are of a class, whose name is a model's, in any language; but for our own."""
    if count == 1:
        return label
    return counted(count, FACE) if label == FACE else f"{count:,} × {label}"


def _quality(faces: Sequence[Mapping[str, float | None]]) -> str:
    """Return the quality of the largest face as it follows on the faces in words; nothing without any."""
    if not faces:
        return ""
    largest = max(faces, key=lambda one: one["size"] or 0)
    known = [form.format(value) for name, form in _QUALITY.items() if (value := largest[name]) is not None]
    return f"{': ' if len(faces) == 1 else '; the largest: '}{', '.join(known)}"


def _is_panoptic(tables: EvaluationTables) -> bool:
    return tables.evaluation is not None and _is_known(tables.evaluation.metrics, "PQ")


def _is_known(metrics: Mapping[str, Value], name: str) -> bool:
    return name in metrics and metrics[name].value is not None


def _worst(tables: EvaluationTables) -> Iterator[pa.Table]:
    """Yield the images of which a segment was missed, by the panoptic quality that they lack."""
    for batch in tables.images([*WHERE, "segment_missed", "PQ"]):
        rows = pa.Table.from_batches([batch])
        score = pc.subtract(pa.scalar(1.0), rows["PQ"])
        found = rows.select([*WHERE, "segment_missed"]).rename_columns([*WHERE, "label"])
        yield found.append_column("score", score).filter(rows["segment_missed"].is_valid())


def is_sure(one: Mapping[str, Any], least: float = SURE) -> bool:
    """Say whether a detected object is shown and counted: what has no score is truth."""
    return one["score"] is None or one["score"] >= least


def _shown(
    objects: Iterable[Mapping[str, Any]], least: float, alarm: Alarm | None
) -> Iterator[Mapping[str, Any]]:
    for one in objects:
        if alarm and (one["label"], one["score"]) == (alarm.label, alarm.score):
            yield {**one, "alarm": True}
        elif is_sure(one, least):
            yield one


def _thresholds(tables: EvaluationTables, prefix: str) -> dict[str, float]:
    """Return the score of the best F1 of each class that has one."""
    known = tables.table(f"{prefix}classes", ["label", "threshold"])
    rows = [] if known is None else known.to_pylist()
    return {row["label"]: row["threshold"] for row in rows if row["threshold"] is not None}
