"""Convolutional networks over whole image collections; importing this costs nothing until a call is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnbatch.inference.run import Summary
    from cnnbatch.storage import Storage

__all__ = ["__version__", "open", "run"]
__version__ = "0.1.0"


def run(
    job: str | Path,
    *,
    retry_failed: bool = False,
    new: bool = False,
    prune: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> Summary:
    """Run ``job``, a YAML file or the name of one in ``jobs/``; the same as ``cnnbatch run``.

    ``overrides`` change its fields: ``input="photos"``, ``input__limit=100`` or
    ``input={"url": "photos", "limit": 100}``. ``retry_failed``, ``new`` and ``prune`` are the options of
    these names. Raises UserError for a mistake in the job and
    EnvironmentFault for what the machine or the storage refuses.
    """
    from cnnbatch.inference.run import RunOptions
    from cnnbatch.job import load_job
    from cnnbatch.launch import launch

    options = RunOptions(retry_failed=retry_failed, new=new, prune=prune, quiet=quiet)
    return launch(load_job(str(job), dict(_paths(overrides))), options)


def open(uri: str | Path, storage: Storage | Mapping[str, Any] | None = None) -> Any:
    """Open the output or the index at ``uri`` (any URL) for reading; imports neither torch nor Ray.

    An output is a `cnnbatch.results.Result`, an index a `cnnbatch.index.search.Index`, which has ``search``.

    ``storage`` holds options such as ``{"endpoint": "http://localhost:9000"}``. Raises UserError
    where there is neither.
    """
    from cnnbatch.results import open as open_result

    return open_result(str(uri), storage)


def _paths(overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted paths: of ``input__limit=1`` and ``input={"limit": 1}`` alike ``("input.limit", 1)``."""
    for name, value in overrides.items():
        path = name.replace("__", ".")
        if isinstance(value, Mapping) and "." not in path:
            yield from ((f"{path}.{field}", inner) for field, inner in value.items())
        else:
            yield path, value
