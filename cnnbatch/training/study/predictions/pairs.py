"""The same pairs of faces in every case: as the embedder was given them, and how far apart they are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from cnnbatch.output.chosen_faces import chosen_faces
from cnnbatch.output.folder import Output
from cnnbatch.output.reader import Reader
from cnnbatch.report.pairs import in_words
from cnnbatch.report.pictures import jpeg_uri
from cnnbatch.report.tally import RankedRow, fetch
from cnnbatch.storage import NotFound
from cnnbatch.training.study.predictions.cases import JudgedCase

MOST = 4
"""Pairs of one person, and of two people."""
SIDE, QUALITY = 112, 80

_COLUMNS = ("a", "b", "same", "score", "row_a", "row_b", "face_a", "face_b")


@dataclass(frozen=True, slots=True)
class PairInCase:
    """A pair in one case: its ``crops`` are JPEG URIs, empty where a picture has no face."""

    label: str
    crops: tuple[str, str]
    distance: str
    accepted: bool
    is_right: bool


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A pair of the pictures ``first`` and ``second`` in all cases, in their order."""

    same: bool
    first: str
    second: str
    cases: Sequence[PairInCase]


def shown_pairs(cases: Sequence[JudgedCase]) -> list[ShownPair]:
    """Return pairs that are spread evenly from the closest to the farthest of the first case.

    None where a case was judged by other pairs, or has no crops.
    """
    judged = [one for one in map(_judged, cases) if one is not None]
    if not judged or len(judged) < len(cases) or not all(one.has_pairs_of(judged[0]) for one in judged):
        return []
    rows = [row for same in (True, False) for row in _spread(judged[0].table, same)]
    columns = [one.shown(rows) for one in judged]
    pairs = zip(judged[0].table.take(rows).to_pylist(), zip(*columns, strict=True), strict=True)
    return [ShownPair(row["same"], row["a"], row["b"], of_pair) for row, of_pair in pairs]


def _spread(table: pa.Table, same: bool) -> list[int]:
    """Return the places of a few pairs of one kind that have a score, the most alike first."""
    scores = np.array([score.as_py() if score.is_valid else np.nan for score in table["score"]])
    there = np.flatnonzero((table["same"].to_numpy() == same) & ~np.isnan(scores))
    ranked = there[np.argsort(-scores[there], kind="stable")]
    places = (np.arange(MOST) + 0.5) / MOST * len(ranked)
    return list(dict.fromkeys(int(row) for row in ranked[places.astype(int)])) if len(ranked) else []


@dataclass(frozen=True)
class _JudgedPairs:
    """The pairs of one case, and from which score on one is accepted."""

    case: JudgedCase
    result: Reader
    table: pa.Table
    threshold: float

    def has_pairs_of(self, other: _JudgedPairs) -> bool:
        """Say whether both were judged by the same pairs."""
        return all(self.table[name].equals(other.table[name]) for name in ("a", "b", "same"))

    @property
    def are_cosines(self) -> bool:
        """Whether scores are cosines, not distances below 0."""
        return (pc.max(self.table["score"]).as_py() or 0.0) > 0

    def shown(self, rows: Sequence[int]) -> list[PairInCase]:
        """Return some of its pairs."""
        found = self.table.take(rows).to_pylist()
        faces = [(row[f"row_{side}"], row[f"face_{side}"]) for row in found for side in "ab"]
        crops = self._crops(faces)
        pairs = zip(found, crops[::2], crops[1::2], strict=True)
        return [self._shown(row, (one, other)) for row, one, other in pairs]

    def _shown(self, row: dict[str, Any], crops: tuple[str, str]) -> PairInCase:
        score = row["score"]
        accepted = score is not None and score >= self.threshold
        return PairInCase(
            self.case.label,
            crops,
            "no face" if score is None else in_words(score, self.are_cosines),
            accepted,
            accepted == row["same"],
        )

    def _crops(self, faces: Sequence[tuple[int, int | None]]) -> list[str]:
        """Return the crops of faces, each given by its row in the output and its place in the row."""
        ends = np.cumsum([footer.rows for footer in self.result.receipts()])
        parts = np.searchsorted(ends, [row for row, _ in faces], side="right")
        starts = np.append(0, ends)
        places = [
            RankedRow(0.0, 0, int(part), row - int(starts[part]))
            for (row, _), part in zip(faces, parts, strict=True)
        ]
        rows = fetch(self.result, places, ["objects", "width", "height"])
        found = [self._face(row, number) for row, (_, number) in zip(rows, faces, strict=True)]
        return ["" if face is None else _small(self.case.output, face["crop"]) for face in found]

    def _face(self, row: dict[str, Any], number: int | None) -> dict[str, Any] | None:
        """Return the face that was compared or, where the other picture has none, the one that counts."""
        if number is not None:
            face: dict[str, Any] = row["objects"][number]
            return face
        counts = chosen_faces(row, self.case.trial.job.evaluate.face)
        return counts[0][1] if counts else None


def _judged(case: JudgedCase) -> _JudgedPairs | None:
    result = Reader(case.output.uri, case.output.storage)
    objects: Any = result.schema.field("objects").type if "objects" in result.schema.names else None
    if objects is None or objects.value_type.get_field_index("crop") < 0:
        return None
    pairs, roc = (
        _table(case.output, "pairs", _COLUMNS),
        _table(case.output, "roc", ("threshold", "far", "tar")),
    )
    if pairs is None or roc is None:
        return None
    return _JudgedPairs(case, result, pairs, _equal_error(roc))


def _equal_error(roc: pa.Table) -> float:
    """Return the threshold at which both errors are the most alike."""
    errors: Any = pc.abs(pc.subtract(pc.add(roc["far"], roc["tar"]), 1.0))
    row = int(np.nanargmin(errors.to_numpy()))
    return float(roc["threshold"][row].as_py())


def _table(output: Output, name: str, columns: Sequence[str]) -> pa.Table | None:
    try:
        with output.storage.open(output.path("evaluation", f"{name}.parquet")) as file:
            return pq.read_table(file, columns=list(columns))
    except NotFound:
        return None


def _small(output: Output, address: str) -> str:
    with Image.open(io.BytesIO(output.asset(address))) as image:
        image.thumbnail((SIDE, SIDE))
        return jpeg_uri(image.convert("RGB"), QUALITY)
