"""A Parquet file that a command writes: never in place of another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def require_new(to: str) -> None:
    """Insist that nothing is at an address yet, before anything is computed; raises UserError."""
    from cnnbatch.errors import UserError
    from cnnbatch.storage import Storage, normalize

    if Storage().exists(normalize(to)):
        raise UserError(f"{to} is there already\n  what to do: give the name of a new file")


def put_table(to: str, table: pa.Table) -> None:
    """Write a table to an address at which nothing is yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cnnbatch.storage import Storage, normalize

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    Storage().create(normalize(to), sink.getvalue().to_pybytes())
