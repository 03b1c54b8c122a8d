"""One segment: an immutable Parquet file of a few thousand embeddings, with what is known of each.

Vectors lie once, as float16 of length 1, and neither they nor their codes are compressed, since they do not
shrink. No statistics are kept of them, which would hold vectors a second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.truth import BOX

VECTOR = "vector"
CODE = "code"
BYTES = (VECTOR, CODE)
"""The columns that are read as arrays and never as values."""

_ABOUT = b"cnnbatch"
_FIELDS: list[pa.Field[Any]] = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("output", pa.int32(), nullable=False),
    pa.field("part", pa.int32(), nullable=False),
    pa.field("row", pa.int32(), nullable=False),
    pa.field("box", BOX),
]
ROW = pa.schema(_FIELDS)
"""What every row has: ``id``, the key of the picture or ``KEY#i`` of its i-th face; ``key``, the picture's;
the number of its ``output`` in the manifest, the ``part`` there and the ``row`` in that; and of a face its
``box``, in pixels of the upright original."""


def schema_of(kept: pa.Schema, dimensions: int, code_bytes: int = 0) -> pa.Schema:
    """Return the columns of a segment; without a codebook ``code_bytes`` are 0, and there are no codes."""
    fields = [*ROW, *kept, pa.field(VECTOR, pa.binary(2 * dimensions), nullable=False)]
    codes = [pa.field(CODE, pa.binary(code_bytes), nullable=False)] if code_bytes else []
    return pa.schema(fields + codes)


def with_vectors(rows: pa.Table, vectors: NDArray[np.float16], codes: NDArray[np.uint8] | None) -> pa.Table:
    """Return rows with their vectors (N, D) and codes (N, C)."""
    table = rows.append_column(pa.field(VECTOR, pa.binary(vectors.shape[1] * 2), False), _column(vectors))
    if codes is None:
        return table
    return table.append_column(pa.field(CODE, pa.binary(codes.shape[1]), False), _column(codes))


def vectors_of(segment: pa.Table) -> NDArray[np.float16]:
    """Return the vectors of a segment, (N, D) float16."""
    return _array(segment, VECTOR).view(np.float16)


def codes_of(segment: pa.Table) -> NDArray[np.uint8] | None:
    """Return the codes of a segment, (N, C) uint8; None where there are none."""
    return _array(segment, CODE) if CODE in segment.column_names else None


def saying(segment: pa.Table, about: Mapping[str, Any]) -> pa.Table:
    """Return a segment that says ``about`` itself, which are JSON values."""
    return segment.replace_schema_metadata({_ABOUT: json.dumps(about, sort_keys=True).encode()})


def written(segment: pa.Table) -> bytes:
    """Return a segment as a file; the same segment gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(segment, sink, row_group_size=max(1, segment.num_rows), **written_as(segment.schema))
    return sink.getvalue().to_pybytes()


def written_as(schema: pa.Schema) -> dict[str, Any]:
    """Return how the columns of a segment are written, as options of `pyarrow.parquet.ParquetWriter`."""
    others = [name for name in schema.names if name not in BYTES]
    codecs = dict.fromkeys(others, "zstd") | dict.fromkeys(BYTES, "none")
    return {"compression": codecs, "use_dictionary": others, "write_statistics": others}


def read(data: bytes) -> pa.Table:
    """Return the segment that a file holds."""
    return pq.read_table(pa.BufferReader(data), use_threads=False)


def about(segment: pa.Table) -> dict[str, Any]:
    """Return what a segment says about itself."""
    said: dict[str, Any] = json.loads((segment.schema.metadata or {}).get(_ABOUT, b"{}"))
    return said


def checksum(data: bytes) -> str:
    """Return what tells an object from any other: its SHA-256."""
    return hashlib.sha256(data).hexdigest()


def name_of(contents: Any) -> str:
    """Return the name of an object by what it is made of, JSON values: the same in every run."""
    return checksum(json.dumps(contents, sort_keys=True).encode())[:32]


def _column(values: NDArray[Any]) -> pa.Array[Any]:
    """Return the rows of an array (N, D) as N values of one length."""
    flat = np.ascontiguousarray(values)
    width = flat.itemsize * flat.shape[1]
    kind: Any = pa.binary(width)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(cast(Any, flat))])


def _array(segment: pa.Table, name: str) -> NDArray[np.uint8]:
    column: Any = segment[name].combine_chunks()
    width = column.type.byte_width
    data = column.buffers()[1]
    if not len(column):
        return np.empty((0, width), np.uint8)
    flat = np.frombuffer(data, np.uint8, len(column) * width, column.offset * width)
    return flat.reshape(len(column), width)
