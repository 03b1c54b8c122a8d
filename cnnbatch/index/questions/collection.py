"""The embeddings of a collection: those of an output that has them, else made by a map job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cnnbatch.config.compute import Compute
from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.index.embeddings import EmbeddedOutput, in_words, open_embedded, parts_of
from cnnbatch.index.photos import task_of
from cnnbatch.index.search import Index
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.output.folder import Output
from cnnbatch.sources.outputs import is_output
from cnnbatch.storage import Storage, redact


def embedded_collection(
    index: Index, input: Input, compute: Compute, to: Output, options: RunOptions
) -> EmbeddedOutput:
    """Return the embeddings of ``input`` as the index has them; of images they are made first, in ``to``.

    Raises UserError where there are none, or those of another network, by its hash.
    """
    storage = Storage(input.storage)
    if isinstance(input.url, str) and is_output(input.url, storage):
        return _require_same(index, open_embedded(input.url, storage, 0, ()))
    sections = {
        "task": dict(task_of(index.uri, index.manifest)),
        "input": input,
        "compute": compute,
        "output": {"url": to.uri, "storage": to.storage.options},
        "max_failed": 1.0,
    }
    run(MapJob.model_validate(sections), replace(options, only_rows=True))
    if not to.finished():
        raise UserError(f"{_named(input.url)} has no images\n  what to do: give a collection that has some")
    return _require_same(index, open_embedded(to.uri, to.storage, 0, ()))


def digests(embedded: EmbeddedOutput) -> dict[int, str]:
    """Return of each part of the embeddings what tells its present state from any other."""
    return parts_of(embedded.output)


def _require_same(index: Index, embedded: EmbeddedOutput) -> EmbeddedOutput:
    if embedded.space != index.space:
        raise UserError(
            f"{redact(embedded.output.uri)} has embeddings of {in_words(embedded.space)}, which can't be "
            f"compared with those of {in_words(index.space)}, which {redact(index.uri)} has\n"
            "  what to do: embed the pictures with the network of the index; given as images, they are"
        )
    return embedded


def _named(url: str | Sequence[str]) -> str:
    return redact(url) if isinstance(url, str) else f"{redact(url[0])} and {len(url) - 1} more"
