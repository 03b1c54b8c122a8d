"""Where images come from: a source streams refs in a stable order and reads any shard of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from cnnbatch.config.input import Input
    from cnnbatch.output.reader import Reader
    from cnnbatch.storage import Allowed, Storage
    from cnnbatch.types import Source


def open_source(input: Input, storage: Storage) -> Source:
    """Return the source that a job's ``input`` section describes; a mistake in it is a `UserError`."""
    from cnnbatch.sources.formats import open_format

    return open_format(input, storage)


def source_of(
    output: Reader, storage: Storage | None = None, allow: Collection[Allowed] | None = None
) -> Source | None:
    """Return what an output's images are read with; None where its job's input can't be opened any more.

    ``allow`` is what lists may name, in place of what that job allows them.
    """
    from cnnbatch.config.input import Input
    from cnnbatch.errors import EnvironmentFault, UserError
    from cnnbatch.storage import OutOfReach

    try:
        chosen = Input.model_validate(output.pictures.settings.get("input"))
        if allow is not None:
            chosen = chosen.model_copy(update={"allow": tuple(allow)})
        return open_source(chosen, storage or output.input_storage())
    except (UserError, EnvironmentFault, OutOfReach, ValueError):
        return None
