"""The report: one self-contained page that a person looks at, made from what a job has left in its output.

It asks the network for nothing when opened, so its pictures are small and few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnbatch.output.reader import Reader
    from cnnbatch.report.page import Begin
    from cnnbatch.storage import Storage


def write_report(output: str, storage: Storage, begin: Begin = lambda total: lambda pictures: None) -> str:
    """Write ``report.html`` into the output folder ``output``, replacing an older one; return its URI.

    ``begin`` is called with how many pictures there will be, what it returns with how many more were read.
    Raises UserError for the output of a study, whose page `cnnbatch.launch.report` writes.
    """
    from cnnbatch.errors import UserError
    from cnnbatch.output.folder import Output
    from cnnbatch.output.reader import Reader
    from cnnbatch.report.page import page_html
    from cnnbatch.storage import join, redact

    if Output(output, storage).decided("study") is not None:
        raise UserError(f"{redact(output)} is a study\n  what to do: call cnnbatch.launch.report")
    result = Reader(output, storage)
    uri = join(result.uri, "report.html")
    storage.put(uri, page_html(result, storage, begin).encode())
    return uri


def preload() -> None:
    """Import what `write_report` needs, while there is nothing else to do."""
    from importlib import import_module

    import pyarrow as pa

    import_module("cnnbatch.report.page")
    pa.array([{}])  # With the first of these pyarrow imports pandas, where that is installed.


def notebook_html(result: Reader) -> str:
    """Return a few pictures and the counts of ``result`` as a fragment of HTML."""
    from cnnbatch.report.page import fragment_html

    return fragment_html(result)
