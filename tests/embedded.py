"""Outputs with embeddings, made without a network, and indexes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.index.run import index
from cnnbatch.inference.run import RunOptions, Summary
from cnnbatch.job import IndexJob
from cnnbatch.output.embeddings import EmbeddingSpace
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.truth import BOX
from tests.outputs import write_job, write_part

QUIET = RunOptions(quiet=True)
DIMENSIONS = 16
Vectors = NDArray[np.float32]
JOB = """\
kind: map
task: {name: embed, model: resnet18, weights: DEFAULT}
input: {url: %s, keep: [country, year]}
output: {url: %s}
"""


def space(dimensions: int = DIMENSIONS, weights: str = "0" * 64) -> EmbeddingSpace:
    return EmbeddingSpace("resnet18", weights, dimensions, "none", "cosine")


def people(count: int, seed: int = 0, dimensions: int = DIMENSIONS, each: int = 10) -> Vectors:
    """Return unit vectors (N, D) of people with ``each`` pictures, whose cosines are about 0.6."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((-(-count // each), dimensions))
    noise = rng.standard_normal((len(centres) * each, dimensions)) * 0.8
    vectors = np.repeat(centres, each, axis=0) + noise
    return np.asarray((vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[:count], np.float32)


def of_pictures(at: EmbeddingSpace) -> pa.Schema:
    kept = [pa.field("country", pa.string()), pa.field("year", pa.int32())]
    return pa.schema([*ENGINE_COLUMNS, *kept, at.field()])


def of_faces(at: EmbeddingSpace) -> pa.Schema:
    face = pa.struct([("label", pa.string()), ("score", pa.float32()), ("box", BOX), at.field()])
    kept = [pa.field("country", pa.string()), pa.field("year", pa.int32())]
    return pa.schema([*ENGINE_COLUMNS, *kept, pa.field("objects", pa.list_(face))])


def row(key: str, **more: Any) -> dict[str, Any]:
    """Return what a row has beside its embeddings; the country and the year follow from the key."""
    number = sum(key.encode())
    kept = {"country": ("DE", "FR", None)[number % 3], "year": 2015 + number % 8}
    return {"key": key, "uri": f"/photos/{key}", "vanished": False, **kept, **more}


def picture(key: str, vector: Any, **more: Any) -> dict[str, Any]:
    """Return the row of a picture that is embedded whole; None: it failed."""
    return row(key, embedding=None if vector is None else [float(one) for one in vector], **more)


def photo(key: str, vectors: Vectors | Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return the row of a photo with a face for each vector, from left to right."""
    faces = [
        {
            "label": "face",
            "score": 0.9,
            "box": {"x1": 10.0 * place, "y1": 5.0, "x2": 10.0 * place + 8, "y2": 13.0},
            "embedding": [float(one) for one in vector],
        }
        for place, vector in enumerate(vectors)
    ]
    return row(key, objects=faces, width=100, height=60, **more)


def write_pictures(folder: Path, vectors: Vectors, each: int = 25, name: str = "p") -> Path:
    """Write an output of pictures, ``each`` a part; return its folder."""
    write_job(folder, text=JOB)
    schema = of_pictures(space(vectors.shape[1]))
    rows = [picture(f"{name}{number:06}.jpg", vector) for number, vector in enumerate(vectors)]
    for part in range(-(-len(rows) // each)):
        write_part(folder, part, rows[part * each : (part + 1) * each], schema=schema)
    return folder


def job(outputs: Path | Sequence[Path], to: Path | str, **sections: Any) -> IndexJob:
    """Return a job with small segments, which this process makes."""
    urls = [str(one) for one in ([outputs] if isinstance(outputs, Path) else outputs)]
    how = {"segment_rows": 64, "exact_below": 512, **sections.pop("index", {})}
    compute = {"pool": "inline", **sections.pop("compute", {})}
    output = sections.pop("output", {"url": str(to)})
    return IndexJob.model_validate(
        {"input": {"url": urls, **sections}, "index": how, "compute": compute, "output": output}
    )


def build(outputs: Path | Sequence[Path], to: Path | str, **sections: Any) -> Summary:
    """Build an index, or add to it."""
    return index(job(outputs, to, **sections), QUIET)


def nearest(queries: Vectors, vectors: Vectors, k: int) -> NDArray[np.int64]:
    """Return by brute force the rows (Q, k) of the vectors that are most similar to each query, as stored."""
    stored = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    sought = queries / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    scores = sought.astype(np.float32).astype(np.float64) @ stored.astype(np.float16).astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
