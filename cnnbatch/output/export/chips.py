"""The aligned faces of an output as files, named as their pictures: what a training of faces reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from cnnbatch.errors import UserError
from cnnbatch.output.chosen_faces import chosen_faces
from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import Tree, path_of, require_free, require_unique
from cnnbatch.output.export.predictions import Predictions
from cnnbatch.storage import Storage, redact

_THREADS = 8
_COLUMNS = ("key", "error", "vanished", "width", "height", "objects")


class Chips(ExportFormat):
    """A JPEG file of each face, as it was embedded."""

    kinds = ("objects",)
    one_by_one = ()
    failed = "they have no face"

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write ``KEY.jpg``, the face of each picture that counts, or ``KEY/NUMBER.jpg`` where all do.

        Raises UserError where the output has no crops.
        """
        if not predictions.has("crop"):
            raise UserError(
                f"--format chips needs the aligned faces, which {redact(predictions.uri)} does not have\n"
                "  what to do: run the job faces with task.crop=true"
            )
        require_free(storage, to)
        require_unique(predictions.keys, _path, "")
        with Tree(storage, to) as tree, ThreadPoolExecutor(_THREADS, "chips") as pool:
            for part in predictions.parts:
                for batch in predictions.batches(_COLUMNS, part):
                    codes, rows = predictions.count(batch), batch.to_pylist()
                    good = [row for row, code in zip(rows, codes, strict=True) if _is_there(row, code)]
                    files = [one for row in good for one in _files(predictions, row)]
                    read = pool.map(predictions.output.asset, [address for _, address in files])
                    for (name, _), data in zip(files, read, strict=True):
                        tree.write(name, data)
                    predictions.counts.objects += len(files)


def _is_there(row: Mapping[str, Any], code: str | None) -> bool:
    return code is None and not row["vanished"]


def _files(predictions: Predictions, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of a picture's files with the addresses of its faces; counts a picture without one."""
    which, path = predictions.options.face, _path(row["key"])
    faces = chosen_faces(row, which)
    predictions.counts.faceless += not faces
    for number, face in faces:
        yield f"{path}/{number}.jpg" if which == "all" else f"{path}.jpg", face["crop"]


_path = partial(path_of, folder="")
