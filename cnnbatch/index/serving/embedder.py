"""Photos as vectors, by the network of an index, which stays loaded: many photos together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index.embeddings import embedding_column, flat_embeddings
from cnnbatch.index.manifest import Manifest
from cnnbatch.index.photos import require_same, task_of
from cnnbatch.index.serving.questions import Photo
from cnnbatch.inference.driver.inline import until_done
from cnnbatch.inference.driver.retries import Attempts
from cnnbatch.inference.messages import Fault, LoadOrder, Work, as_error
from cnnbatch.inference.worker_process import WorkerProcess
from cnnbatch.job import MapJob
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage, redact
from cnnbatch.types import Content, Failure, ImageRef, Shard

HANG_S = 60.0
"""How long a batch may make no progress before its process ends, and another one takes its place."""


@dataclass(frozen=True, slots=True)
class EmbeddedPhoto:
    """A photo: its ``row`` of predictions, and of each face, or of the whole, its box and vector (F, D)."""

    name: str
    row: Mapping[str, Any]
    boxes: Sequence[Mapping[str, float] | None]
    vectors: NDArray[np.float16]

    @property
    def error(self) -> Mapping[str, str] | None:
        """Why it could not be read, decoded or embedded: stage, code and message."""
        found: Mapping[str, str] | None = self.row["error"]
        return found


class PhotoEmbedder:
    """The network of the index at ``uri``, on ``cpus``; one thread at a time uses it.

    Raises UserError where the network is another one than that of the index, and as a worker that loads.
    """

    def __init__(self, uri: str, manifest: Manifest, cpus: int, own_process: bool = False) -> None:
        self._folder = TemporaryDirectory(prefix="cnnbatch-serve-")
        self._photos = _PhotosInMemory()
        self._process = WorkerProcess()
        job = _job(task_of(uri, manifest), self._folder.name, cpus)
        output = Output(self._folder.name, Storage())
        ready = self._process.load(LoadOrder(job, self._photos, output, not own_process, None))
        if isinstance(ready, Fault):
            raise as_error(ready)
        found = embedding_column(self._rows(()).schema)
        if found is None:
            raise UserError(f"the job of {redact(uri)} gives no embeddings\n  what to do: build it anew")
        self.column, space = found
        require_same(uri, space, manifest.embedding_space)
        self._dimensions = space.dimensions

    def embed(self, photos: Sequence[Photo]) -> list[EmbeddedPhoto]:
        """Return the embeddings of photos; one that can't be read, or fails alone, has its error.

        Raises EnvironmentFault.
        """
        table = self._rows(photos)
        found = flat_embeddings(table, self.column, self._dimensions)
        ends = np.searchsorted(found.parents, np.arange(len(photos) + 1))
        boxes = found.boxes.to_pylist()
        return [
            EmbeddedPhoto(photo.name, row, boxes[start:stop], found.vectors[start:stop])
            for photo, row, start, stop in zip(photos, table.to_pylist(), ends, ends[1:], strict=False)
        ]

    def close(self) -> None:
        """End its threads."""
        self._process.close()
        self._folder.cleanup()

    def _rows(self, photos: Sequence[Photo]) -> pa.Table:
        self._photos.hold(photos)
        refs = tuple(ImageRef(str(place), photo.name) for place, photo in enumerate(photos))
        try:
            return until_done(self._process, Work(Shard(0, refs)), Attempts(), self._process.rows)
        finally:
            self._photos.hold(())


class _PhotosInMemory:
    """A source of photos that clients sent, whose keys are their numbers."""

    columns = pa.schema([])
    truth_schema = None

    def __init__(self) -> None:
        self._held: Sequence[Photo] = ()

    def hold(self, photos: Sequence[Photo]) -> None:
        """Take these photos in place of those before."""
        self._held = photos

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """List nothing: what is embedded is named by who asks."""
        return iter(())

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give the files of photos."""
        for ref in shard.refs:
            yield partial(_data_of, self._held[int(ref.key)])

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return no ground truth."""
        return None


def _data_of(photo: Photo) -> bytes:
    return photo.data


def _job(task: Mapping[str, Any], folder: str, cpus: int) -> MapJob:
    compute = {"pool": "inline", "cpus_per_worker": cpus, "batch_timeout_s": HANG_S}
    sections = {"input": {"url": folder}, "compute": compute, "output": {"url": folder}}
    return MapJob.model_validate({"task": dict(task), **sections})
