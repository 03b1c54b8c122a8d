"""Takes what was forgotten out of a part, its ground truth and its assets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.output import integrity, plan
from cnnbatch.output.assets import assets_without_row
from cnnbatch.output.folder import read_footer
from cnnbatch.output.forgotten_rows import blanked_truth, forgotten_places, shard_without
from cnnbatch.output.part import PartSpool, failures
from cnnbatch.output.rewriting import Command, Touched, sha256
from cnnbatch.output.truth_file import truth_file
from cnnbatch.storage import NotFound
from cnnbatch.types import Shard


@dataclass(slots=True)
class RewrittenShard:
    """The objects of a shard that have lost something, and by place the HMACs of its forgotten images."""

    touched: list[Touched] = field(default_factory=list)
    places: Mapping[int, str] = field(default_factory=dict)


def rewrite_shard(command: Command, index: int, planned: Sequence[Shard] = ()) -> RewrittenShard:
    """Take what a command forgets out of all that an output has of shard ``index``.

    ``planned`` is the shard as it may have been when its part was made, the likeliest last; none: no plan
    tells. The part comes first, since the plan has the keys until it is done.
    """
    uri, storage = command.output.part(index), command.output.storage
    try:
        etag = storage.head(uri).etag or ""
    except NotFound:
        return _without_part(command, planned[-1]) if planned else RewrittenShard()
    _, footer = read_footer(storage, uri)
    marks: Mapping[str, str] = footer.get("forgotten") or {}
    if command.name not in marks and not _is_concerned(command, uri):
        return RewrittenShard()
    data = storage.read(uri)
    with integrity.reading(uri, integrity.MAKE_AGAIN):
        file = pq.ParquetFile(pa.BufferReader(data))
        rows = file.read()
    touched = [Touched(uri, marks[command.name], sha256(data))] if command.name in marks else []
    if not touched and (new := command.forgetting.part(rows)) is not None:
        footer |= _said_anew(footer, new, planned)
        footer["forgotten"] = {**marks, command.name: sha256(data)}
        rows, groups = new, [file.metadata.row_group(one).num_rows for one in range(file.num_row_groups)]
        with PartSpool(rows.schema.remove_metadata()) as spool:
            for batch in _in_groups(rows, groups):
                spool.write(batch)
            written = spool.finish(footer)
            touched = [Touched(uri, sha256(data), sha256(written.read_bytes()))]
            command.replace(uri, written, etag)
    touched += _assets(command, index, rows) if touched else []
    keys: list[Any] = rows["key"].to_pylist()
    return _with_truth(command, index, touched, keys, forgotten_places(rows))


def _is_concerned(command: Command, uri: str) -> bool:
    """Say whether a part has anything that is forgotten; reads no more than its keys."""
    with command.output.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
        return command.forgetting.concerns(pq.read_table(file, columns=["key", "error"]))


def _said_anew(footer: Mapping[str, Any], rows: pa.Table, planned: Sequence[Shard]) -> dict[str, Any]:
    """Return what the footer of a part says of ``rows``: failures, and the digest of the shard's refs."""
    said: dict[str, Any] = {"receipt": {**footer["receipt"], "failed": failures(rows["error"])}}
    if planned:
        made = next((one for one in planned if plan.digest(one) == footer["digest"]), planned[0])
        said["digest"] = plan.digest(shard_without(made, forgotten_places(rows)))
    return said


def _in_groups(rows: pa.Table, groups: Sequence[int]) -> list[pa.RecordBatch]:
    """Return rows as they are written, a batch for each group of so many rows."""
    batches, start = [], 0
    for count in groups:
        batches += rows.slice(start, count).combine_chunks().to_batches()
        start += count
    return batches


def _assets(command: Command, index: int, rows: pa.Table) -> list[Touched]:
    """Return the assets of a shard that are to go, since no row names them."""
    uris = [command.output.path(*one.split("/")) for one in assets_without_row(command.output, index, rows)]
    return [Touched(uri, sha256(command.output.storage.read(uri)), None) for uri in uris]


def _without_part(command: Command, shard: Shard) -> RewrittenShard:
    """Do what `rewrite_shard` does of a shard that has no part, but perhaps a ground truth already."""
    refs = command.forgetting.shard(shard).refs
    places = {place: ref.key for place, ref in enumerate(refs) if ref.is_forgotten}
    return _with_truth(command, shard.index, [], [ref.key for ref in refs], places)


def _with_truth(
    command: Command, index: int, touched: list[Touched], keys: Sequence[str], places: Mapping[int, str]
) -> RewrittenShard:
    """Take it out of a shard's ground truth, too: the job's own, and that by which it was last judged."""

    def change(truth: pa.Table) -> pa.Table | None:
        if truth.num_rows != len(keys):
            raise ValueError(f"expected {len(keys):,} rows, as its part has, got {truth.num_rows:,}")
        new = blanked_truth(command.forgetting.truth(truth, keys), places)
        return None if new.equals(truth) else new

    judged_by = command.output.path("evaluation", "truth", f"part-{index:08}.parquet")
    for uri in (command.output.truth(index), judged_by):
        touched += command.rewrite_table(uri, change, truth_file)
    return RewrittenShard(touched, places)
