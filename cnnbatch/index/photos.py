"""Photos to search for: embedded by the job that made the embeddings of the index, so that they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

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
from cnnbatch.storage import Storage, join, normalize, redact

Photos = str | Path | Sequence[str | Path]


def embed_photos(uri: str, manifest: Manifest, photos: Photos) -> EmbeddedRows:
    """Return the embeddings of photos as the index at ``uri`` has them, of all faces where it has faces.

    The key of each is its address. Raises UserError for a photo that can't be read, or that has no face.
    """
    chosen: Sequence[str | Path] = [photos] if isinstance(photos, str | Path) else photos
    addresses = [*dict.fromkeys(normalize(str(one)) for one in chosen)]
    with TemporaryDirectory(prefix="cnnbatch-search-") as folder:
        run(_job(uri, manifest, addresses, folder), RunOptions(quiet=True, only_rows=True))
        _require_read(folder)
        embedded = open_embedded(folder, Storage(), 0, ())
        _require_same(uri, embedded.space, manifest.embedding_space)
        pieces = tuple(
            Piece(0, part, digest, range(len(counts(embedded, part))))
            for part, digest in sorted(parts_of(embedded.output).items())
        )
        found = rows_of([embedded], pieces)
        uris = {row["key"]: row["uri"] for row in open_output(folder).arrow(["key", "uri"]).to_pylist()}
    found = replace(found, rows=_by_address(found.rows, uris))
    if without := sorted({*uris.values()} - {*found.rows["key"].to_pylist()}):
        raise UserError(
            f"no face was found in {', '.join(without)}\n"
            "  what to do: leave that photo out, or give one in which the face is larger"
        )
    return found


def _by_address(rows: pa.Table, uris: Mapping[str, str]) -> pa.Table:
    """Return rows whose keys are addresses, and whose ids begin with them."""
    places = rows.select(["id", "key"]).to_pylist()
    keys = [uris[one["key"]] for one in places]
    ids = [key + one["id"].removeprefix(one["key"]) for key, one in zip(keys, places, strict=True)]
    rows = rows.set_column(0, rows.schema.field("id"), pa.array(ids, pa.string()))
    return rows.set_column(1, rows.schema.field("key"), pa.array(keys, pa.string()))


def _require_same(uri: str, found: EmbeddingSpace, expected: EmbeddingSpace) -> None:
    if found != expected:
        raise UserError(
            f"{redact(uri)} has embeddings of {in_words(expected)}, and the network of its job gives "
            f"those of {in_words(found)}\n  what to do: put the weights back by which the index was made"
        )


def _job(uri: str, manifest: Manifest, addresses: Sequence[str], folder: str) -> MapJob:
    """Return the job that embeds photos as the first output of the index was."""
    task = next((one.task for one in manifest.outputs if one.task), None)
    if task is None:
        raise UserError(
            f"{redact(uri)} does not say by which job its pictures were embedded\n"
            "  what to do: embed the photos, and search for the vectors by cnnbatch.open(INDEX).search"
        )
    plugins.require_given({"task": task}, join(uri, NAME), plugins.CODE_FIELDS, ())
    sections = {"input": {"url": [*addresses]}, "compute": {"pool": "inline"}, "output": {"url": folder}}
    return MapJob.model_validate({"task": task, "max_failed": 1.0, **sections})


def _require_read(folder: str) -> None:
    """Raise UserError for photos that failed, with the reasons."""
    lines = [*failures.lines(open_output(folder))]
    if lines:
        words = "\n  ".join(lines)
        raise UserError(f"photos that can't be searched for:\n  {words}\n  what to do: leave them out")
