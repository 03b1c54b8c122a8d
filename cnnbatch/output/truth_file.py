"""A part's ground truth as a Parquet file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_MAPS = 64  # in a row group: who shows a few of them reads no others


def truth_file(truth: pa.Table) -> bytes:
    """Return a ground truth as a file; maps, which are compressed already, in small groups of rows."""
    maps = [field.name for field in truth.schema if pa.types.is_large_binary(field.type)]
    others = [name for name in truth.schema.names if name not in maps]
    options: dict[str, Any] = {"row_group_size": _MAPS, "use_dictionary": others} if maps else {}
    if maps:
        options["compression"] = {name: "NONE" if name in maps else "SNAPPY" for name in truth.schema.names}
    sink = pa.BufferOutputStream()
    pq.write_table(truth, sink, **options)
    return sink.getvalue().to_pybytes()
