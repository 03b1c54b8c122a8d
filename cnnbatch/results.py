"""An output as a person has it in Python: what its reader gives, and its images with what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cnnbatch.index.search import is_index, open_index
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import require_whole
from cnnbatch.output.reader import Reader, open_as
from cnnbatch.storage import Storage, StorageOptions

if TYPE_CHECKING:
    from cnnbatch.report.pictures import Picture
    from cnnbatch.types import Source


class Result(Reader):
    """One output folder, read-only; `cnnbatch.open` makes it."""

    def _repr_html_(self) -> str:
        from cnnbatch.report import notebook_html

        return notebook_html(self)

    def source(self, storage: Storage | None = None) -> Source | None:
        """Return what the job's images are read with; None where its input can't be opened any more."""
        from cnnbatch.sources import source_of

        return source_of(self, storage)

    def show(self, key: str) -> Picture:
        """Return the image ``key``, small and upright, with what was predicted; a notebook displays it."""
        from cnnbatch.report.context import about_output
        from cnnbatch.report.pictures import Viewer
        from cnnbatch.report.prediction import prediction_of

        part, row = self.place(key)
        (values,), (ref,) = self.take(part, [row]), self.refs(part, [row])
        prediction = prediction_of(values, ref, about=about_output(self, self.storage))
        return Viewer(self.input_storage(), self.source()).picture(prediction, side=768)


def open(uri: str, storage: Storage | Mapping[str, Any] | None = None) -> Any:
    """Open the output at ``uri`` as a `Result`, or the index there as an `Index`; ``storage`` may be options.

    Raises UserError where there is neither, and where photos are being forgotten in an output.
    """
    if not isinstance(storage, Storage):
        storage = Storage(StorageOptions(**(storage or {})))
    if is_index(uri, storage):
        return open_index(uri, storage)
    result = open_as(Result, uri, storage)
    require_whole(Output(result.uri, storage))
    return result
