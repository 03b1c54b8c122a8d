"""Writes one part: row groups spooled to local disk, then one object, put whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.output.folder import FOOTER_KEY
from cnnbatch.storage import redact
from cnnbatch.truth import OBJECT_LABEL
from cnnbatch.types import FORGOTTEN, Failure, ImageRef

ERROR = pa.struct([("stage", pa.string()), ("code", pa.string()), ("message", pa.string())])
_FIELDS: list[pa.Field[Any]] = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("uri", pa.string()),
    pa.field("etag", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("error", ERROR),
    pa.field("vanished", pa.bool_(), nullable=False),
]
ENGINE_COLUMNS = pa.schema(_FIELDS)
SPOOL = "cnnbatch-spool-"


def part_schema(source: pa.Schema, keep: Sequence[str], task: pa.Schema) -> pa.Schema:
    """Return a part's columns: the engine's, those of the ``source`` that the job keeps, the task's.

    Objects that an earlier job found keep what it called them. Raises UserError where two share a name.
    """
    kept = [field for field in source if field.name in keep or field.name == OBJECT_LABEL]
    fields = [*ENGINE_COLUMNS, *kept, *(field.with_nullable(True) for field in task)]
    names = [field.name for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"input.keep: expected columns that the output has not yet, got {', '.join(twice)}\n"
            "  what to do: rename them in the list, or leave them out of keep"
        )
    return pa.schema(fields)


class Outcome:
    """What is known of one image when its row is written."""

    __slots__ = ("bytes", "failure", "ref", "size", "vanished")

    def __init__(self, ref: ImageRef, vanished: bool = False) -> None:
        self.ref = ref
        self.vanished = vanished
        self.bytes: int | None = None
        self.size: tuple[int, int] | None = None
        self.failure: Failure | None = None


def part_rows(
    outcomes: Sequence[Outcome], task_rows: pa.RecordBatch | None, schema: pa.Schema
) -> pa.RecordBatch:
    """Return one row an outcome, in order; ``task_rows`` holds those of the outcomes without failure."""
    arrays = _engine_arrays(outcomes)
    refs = [outcome.ref for outcome in outcomes]
    good = np.array([outcome.failure is None for outcome in outcomes], bool)
    places = np.where(good, np.cumsum(good) - 1, 0)
    positions = pa.array(places, pa.int64(), mask=~good)
    for field in list(schema)[len(ENGINE_COLUMNS) :]:
        if task_rows is not None and field.name in task_rows.schema.names:
            arrays.append(task_rows.column(field.name).take(positions).cast(field.type))
        else:
            arrays.append(pa.array([ref.columns.get(field.name) for ref in refs], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _engine_arrays(outcomes: Sequence[Outcome]) -> list[pa.Array[Any]]:
    sizes = [outcome.size or (None, None) for outcome in outcomes]
    errors = [
        None
        if failure is None
        else {"stage": failure.stage, "code": failure.code, "message": failure.message}
        for failure in (outcome.failure for outcome in outcomes)
    ]
    return [
        pa.array([outcome.ref.key for outcome in outcomes], pa.string()),
        pa.array([redact(outcome.ref.uri) or None for outcome in outcomes], pa.string()),
        pa.array([outcome.ref.etag for outcome in outcomes], pa.string()),
        pa.array([outcome.bytes for outcome in outcomes], pa.int64()),
        pa.array([width for _, width in sizes], pa.int32()),
        pa.array([height for height, _ in sizes], pa.int32()),
        pa.array(errors, ERROR),
        pa.array([outcome.vanished for outcome in outcomes], pa.bool_()),
    ]


def failures(errors: Any) -> dict[str, int]:
    """Return how many images failed by each code, as a column ``error`` says; what was forgotten has not."""
    codes: list[str | None] = pc.struct_field(errors, "code").to_pylist()
    return dict(Counter(code for code in codes if code not in (None, FORGOTTEN)))


def written_as(schema: pa.Schema) -> dict[str, Any]:
    """Return how the columns of a part are written, as options of `pyarrow.parquet.ParquetWriter`.

    Embeddings are plain: no compression, dictionary or statistics. They hardly shrink, and are read faster.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    found = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    paths = [found.column(number).path for number in range(len(found.names))]
    others = [path for path in paths if "embedding" not in path.split(".")]
    codecs = {path: "zstd" if path in others else "none" for path in paths}
    return {"compression": codecs, "use_dictionary": others, "write_statistics": others}


class PartSpool:
    """A part under way: a Parquet file in a temporary folder of this process, gone when the block ends."""

    def __init__(self, schema: pa.Schema) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"{SPOOL}{os.getpid()}-")
        self.file = Path(self._folder.name) / "part.parquet"
        self._writer = pq.ParquetWriter(self.file, schema, **written_as(schema))

    def write(self, rows: pa.RecordBatch) -> None:
        """Add ``rows`` as one row group; raises EnvironmentFault where the local disk is full."""
        try:
            self._writer.write_batch(rows)
        except OSError as error:
            raise _disk_fault(error, self.file) from error

    def finish(self, footer: Mapping[str, Any]) -> Path:
        """Close the file with ``footer`` as its metadata, and return its path."""
        try:
            self._writer.add_key_value_metadata({FOOTER_KEY.decode(): json.dumps(footer)})
            self._writer.close()
        except OSError as error:
            raise _disk_fault(error, self.file) from error
        return self.file

    def __enter__(self) -> PartSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
        except OSError:
            if error is None:
                raise
        finally:
            self._folder.cleanup()


def _disk_fault(error: OSError, file: Path) -> Exception:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        return error
    return EnvironmentFault(
        f"the local disk refused a row group of a part: {error.strerror} ({file.parent.parent})",
        "free some space there, or point TMPDIR at a larger disk",
    )


def sweep() -> None:
    """Remove the spools of processes of this host that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SPOOL}*"):
        process = folder.name.removeprefix(SPOOL).split("-")[0]
        if process.isdigit() and not _is_running(int(process)):
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
