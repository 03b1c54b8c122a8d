"""Changes who is who in an index: one change at a time, on the state that is there now, or none."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from cnnbatch.errors import OutputHeld, UserError
from cnnbatch.index.manifest import commit
from cnnbatch.index.persons.record import Persons, put_persons, read_persons
from cnnbatch.index.search import Index, open_index
from cnnbatch.output import lock
from cnnbatch.storage import Storage, join, redact

Change = Callable[[Index, Persons | None], Persons]


def change(uri: str, to: Change, storage: Storage | None = None) -> Persons:
    """Make what ``to`` returns of who is who now the state of the index at ``uri``, and return it.

    The object comes first and the manifest last, so that a kill leaves the index as it was. Raises UserError
    as ``to`` does, and OutputHeld where another command works on the index.
    """
    index = open_index(uri, storage)
    with lock.hold(index.storage, join(index.uri, "_job", "lock"), uuid4().hex):
        index.refresh()
        before = read_persons(index.uri, index.storage, index.manifest)
        after = to(index, before)
        if before is not None and after.faces.equals(before.faces) and after.said == before.said:
            return before
        stored = put_persons(index.uri, index.storage, after)
        state = index.manifest.model_copy(update={"persons": stored})
        if commit(index.uri, index.storage, state, index.etag) is None:
            raise OutputHeld(
                f"{redact(index.uri)} was changed meanwhile\n  what to do: give the same command again"
            )
    return after


def require_persons(index: str, storage: Storage, persons: Persons | None) -> Persons:
    """Return the persons of an index; raises UserError where nobody has grouped it."""
    if persons is None:
        raise UserError(
            f"the faces of {redact(index)} are not grouped into persons yet\n"
            f"  what to do: give cnnbatch group {redact(index)}"
        )
    return persons
