"""Objects that a job names by address, ``mypackage.module:name``.

Importing one runs its module's code, so only the author of a job may name one, never a data file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

from cnnbatch.errors import UserError
from cnnbatch.mistakes import nearest


def meant(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known name nearest to ``name``, or an empty string."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def load_object(address: str, field: str) -> object:
    """Import what ``mypackage.module:name`` says; ``field`` is the job's field, for the message.

    Raises:
        UserError: the module, or the name in it, does not exist.
    """
    module_name, _, attribute = address.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{field}: {address!r} names the module {error.name!r}, which cannot be imported here\n"
            "  what to do: install its package, or add its folder to PYTHONPATH"
        ) from error
    except (TypeError, ValueError) as error:  # A relative module name, and an empty one.
        if module_name and not module_name.startswith("."):
            raise
        raise UserError(f"{field}: expected mypackage.module:name, got {address!r}") from error
    if not hasattr(module, attribute):
        raise UserError(f"{field}: {module_name} has no {attribute!r}{meant(attribute, vars(module))}")
    found: object = getattr(module, attribute)
    return found


def named_alike(classes: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the network's name of each class that it has, compared by letters and digits alone."""
    by_letters = {_letters(name): name for name in reversed(known)}
    return {name: by_letters[_letters(name)] for name in classes if _letters(name) in by_letters}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))
