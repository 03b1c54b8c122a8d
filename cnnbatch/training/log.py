"""``metrics.parquet``: what a training has measured, a row a step; written in pieces while it goes on.

A piece is named by the step that it begins with, so one that was written after the newest checkpoint is
removed when the training goes on from there.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.training.messages import Position

_PIECES = ("_job", "training", "metrics")


def put_piece(output: Output, first: Position, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the rows of the steps from ``first`` on."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    output.storage.put(output.path(*_PIECES, f"{first.name}.parquet"), _bytes(table))


def drop_pieces(output: Output, since: Position) -> None:
    """Remove what was measured from ``since`` on."""
    for name in [*output.names("/".join(_PIECES))]:
        if name >= since.name:
            output.storage.delete(output.path(*_PIECES, name))


def put_metrics(output: Output) -> None:
    """Write ``metrics.parquet`` from the pieces that are there."""
    tables = []
    for name in sorted(output.names("/".join(_PIECES))):
        uri = output.path(*_PIECES, name)
        with output.storage.open(uri) as file, integrity.reading(uri, integrity.DELETE):
            tables.append(pq.read_table(file))
            whole = pa.concat_tables(tables, promote_options="permissive")
    if tables:
        output.storage.put(output.path("metrics.parquet"), _bytes(whole))


def _bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


_FOLDER = "tensorboard"


_TIMES = ("epoch", "step")


def put_events(output: Output, first: Position, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the rows of the steps from ``first`` on as scalars over the step."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="cnnbatch-events-") as folder:
        writer = SummaryWriter(folder)
        for row in rows:
            for name, value in row.items():
                if name not in _TIMES:
                    writer.add_scalar(name, value, int(row["step"]))
        writer.close()
        (file,) = Path(folder).iterdir()
        output.storage.put(output.path(_FOLDER, _name(first)), file.read_bytes())


def drop_events(output: Output, since: Position) -> None:
    """Remove what was measured from ``since`` on."""
    for name in [*output.names(_FOLDER)]:
        if name >= _name(since):
            output.storage.delete(output.path(_FOLDER, name))


def _name(first: Position) -> str:
    return f"events.out.tfevents.{first.name}"
