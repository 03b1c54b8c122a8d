"""Photos to search for: embedded by the job that made the embeddings of the index, so that they compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.index.build import rows_of
from cnnbatch.index.embeddings import EmbeddedRows, counts, in_words, open_embedded, parts_of
from cnnbatch.index.manifest import NAME, Manifest
from cnnbatch.index.plan import Piece
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.output import failures
from cnnbatch.output.embeddings import EmbeddingSpace
from cnnbatch.output.reader import open_output
from cnnbatch.sources.outputs import is_output
from cnnbatch.storage import Storage, join, normalize, redact

Photos = str | Path | Sequence[str | Path]


def embed_photos(uri: str, manifest: Manifest, photos: Photos) -> EmbeddedRows:
    """Return the embeddings of photos as the index at ``uri`` has them, of all faces where it has faces.

    The key of each is its address. Raises UserError for a photo that can't be read, or that has no face.
    """
    chosen: Sequence[str | Path] = [photos] if isinstance(photos, str | Path) else photos
    addresses = [*dict.fromkeys(normalize(str(one)) for one in chosen)]
    with embedded(task_of(uri, manifest), addresses) as folder:
        require_read(folder)
        found, uris = _rows(uri, manifest, folder)
    found = replace(found, rows=_by_address(found.rows, uris))
    if without := sorted({*uris.values()} - {*found.rows["key"].to_pylist()}):
        raise UserError(
            f"no face was found in {', '.join(without)}\n"
            "  what to do: leave that photo out, or give one in which the face is larger"
        )
    return found


def embed_all(uri: str, manifest: Manifest, addresses: Sequence[str]) -> tuple[EmbeddedRows, Sequence[str]]:
    """Return the embeddings of all photos at addresses, or of one folder, as the index at ``uri`` has them.

    An output that has their embeddings is taken as it is. The keys of a folder's photos are their paths below
    it. Also returns the keys of photos that have none, since they have no face or can't be read.
    """
    if len(addresses) == 1 and is_output(addresses[0], Storage()):
        found, uris = _rows(uri, manifest, normalize(addresses[0]))
    else:
        with embedded(task_of(uri, manifest), [normalize(one) for one in addresses]) as folder:
            found, uris = _rows(uri, manifest, folder)
    return found, sorted({*uris} - {*map(str, found.rows["key"].to_pylist())})


@contextmanager
def embedded(task: Mapping[str, Any], addresses: Sequence[str]) -> Iterator[str]:
    """Give the folder of a finished output of a map job with this ``task`` for the pictures at addresses."""
    url = addresses[0] if len(addresses) == 1 else [*addresses]
    with TemporaryDirectory(prefix="cnnbatch-search-") as folder:
        sections = {"input": {"url": url}, "compute": {"pool": "inline"}, "output": {"url": folder}}
        job = MapJob.model_validate({"task": dict(task), "max_failed": 1.0, **sections})
        run(job, RunOptions(quiet=True, only_rows=True))
        yield folder


def _rows(uri: str, manifest: Manifest, folder: str) -> tuple[EmbeddedRows, Mapping[str, str]]:
    """Return the embeddings of an output, and the addresses of all its pictures by their keys."""
    output = open_embedded(folder, Storage(), 0, ())
    require_same(uri, output.space, manifest.embedding_space)
    pieces = tuple(
        Piece(0, part, digest, range(len(counts(output, part))))
        for part, digest in sorted(parts_of(output.output).items())
    )
    found = rows_of([output], pieces)
    return found, {row["key"]: row["uri"] for row in open_output(folder).arrow(["key", "uri"]).to_pylist()}


def _by_address(rows: pa.Table, uris: Mapping[str, str]) -> pa.Table:
    """Return rows whose keys are addresses, and whose ids begin with them."""
    places = rows.select(["id", "key"]).to_pylist()
    keys = [uris[one["key"]] for one in places]
    ids = [key + one["id"].removeprefix(one["key"]) for key, one in zip(keys, places, strict=True)]
    rows = rows.set_column(0, rows.schema.field("id"), pa.array(ids, pa.string()))
    return rows.set_column(1, rows.schema.field("key"), pa.array(keys, pa.string()))


def require_same(uri: str, found: EmbeddingSpace, expected: EmbeddingSpace) -> None:
    """Insist on embeddings of the space that the index at ``uri`` has; raises UserError for another."""
    if found != expected:
        raise UserError(
            f"{redact(uri)} has embeddings of {in_words(expected)}, and the network of its job gives "
            f"those of {in_words(found)}\n  what to do: put the weights back by which the index was made"
        )


def task_of(uri: str, manifest: Manifest) -> Mapping[str, Any]:
    """Return the task by which the first output of an index was embedded; raises UserError without one."""
    task = next((one.task for one in manifest.outputs if one.task), None)
    if task is None:
        raise UserError(
            f"{redact(uri)} does not say by which job its pictures were embedded\n"
            "  what to do: embed the photos, and search for the vectors by cnnbatch.open(INDEX).search"
        )
    plugins.require_given({"task": task}, join(uri, NAME), plugins.CODE_FIELDS, ())
    return task


def require_read(folder: str) -> None:
    """Insist on an output without failures; raises UserError with the reasons of those that there are."""
    lines = [*failures.lines(open_output(folder))]
    if lines:
        words = "\n  ".join(lines)
        raise UserError(f"photos that can't be read:\n  {words}\n  what to do: leave them out")
