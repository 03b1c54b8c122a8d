"""Judges embeddings by classes: all pairs of pictures, of one class or of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from cnnbatch.metrics import Evaluated, Metric, Piece, Schemas, embeddings
from cnnbatch.output.embeddings import EmbeddingSpace, space_of
from cnnbatch.truth import answer_of
from cnnbatch.types import Map


class EmbeddingMetric(Metric):
    """Verification over all pairs; the columns are those of embeddings that say how they are compared."""

    answer = "label"
    less_is_better: ClassVar[tuple[str, ...]] = ("EER", "failed_pairs")

    def applies(self, schemas: Schemas) -> bool:
        """Say whether the predictions have embeddings and the ground truth has classes."""
        return answer_of(schemas.truth) == self.answer and _space(schemas.predictions) is not None

    def columns(self, predictions: pa.Schema) -> Sequence[str]:
        """Return ``embedding`` and ``key``."""
        return ["embedding", "key"]

    def partial(self, piece: Piece) -> embeddings.EmbeddedPictures:
        """Return the pictures' embeddings and classes."""
        space = _space(piece.predictions.schema)
        assert space is not None
        rows: list[Any] = piece.predictions["embedding"].to_pylist()
        none = np.full(space.dimensions, np.nan, np.float32)
        vectors = np.array([none if row is None else row for row in rows], np.float32)
        labels: list[Any] = piece.truth["label"].to_pylist()
        keys: list[Any] = piece.predictions["key"].to_pylist()
        vectors = vectors.reshape(len(rows), space.dimensions)
        return embeddings.partial(vectors, labels, keys, space.metric)

    def merge(self, partials: Sequence[embeddings.EmbeddedPictures]) -> embeddings.EmbeddedPictures:
        """Return several partials as one."""
        return embeddings.merge(partials)

    def result(self, merged: embeddings.EmbeddedPictures, apply: Map) -> Evaluated:
        """Return the numbers of verification."""
        return embeddings.result(merged)


def _space(predictions: pa.Schema) -> EmbeddingSpace | None:
    if "embedding" not in predictions.names:
        return None
    return space_of(predictions.field("embedding"))
