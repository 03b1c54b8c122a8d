"""Whose word is enough to run code: the person's, or that of an installed package; never a data file's.

A job may name code of other packages, ``mypackage.module:name``. Where the job itself is data, such as the
``_job/job.yaml`` of an output, a name counts only if an installed package has it among its entry points, or
the person has given it besides. A trained folder's ``model.json`` names only what is installed so.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnbatch.config.entries import GROUP, points
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.storage import redact

CODE_FIELDS = ("task.name", "task.model")
"""The fields of a job that name code; a study may also have them in its cases, its ranges and its lesson.

A task of several networks has sections of its own, such as ``task.detect``, whose fields name code, too.
"""

_CODE = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
_given: set[str] = set()


def is_code(name: str) -> bool:
    """Say whether a name is the address of something to import, ``mypackage.module:name``."""
    return _CODE.fullmatch(name) is not None


def installed() -> frozenset[str]:
    """Return the addresses of all installed packages' entry points of the group."""
    return frozenset(f"{one.module}:{one.attr}" for one in points())


def give(addresses: Iterable[str]) -> None:
    """Take the addresses that a person gives as ``--plugin``, and import each, so that a typing error shows.

    Raises:
        UserError: one is not ``mypackage.module:name``, or there is nothing of that name.
    """
    for address in addresses:
        if not is_code(address):
            raise UserError(f"--plugin: expected mypackage.module:name, got {address!r}")
        load_object(address, "--plugin")
        _given.add(address)


def fields_without_code(job: Path) -> Sequence[str]:
    """Return which fields of a job's file may name no code: those of an output's own record may not."""
    return CODE_FIELDS if "_job" in {*job.absolute().parts, *job.resolve().parts} else ()


def require_given(job: Mapping[str, Any], file: str, fields: Sequence[str], said: Sequence[Any]) -> None:
    """Refuse a job whose ``fields`` name code on a data file's word alone; ``said`` are a person's values.

    Raises:
        UserError: it does; nothing was imported.
    """
    for field, name in _leaves(job):
        if (
            isinstance(name, str)
            and _names_code(field, fields)
            and ":" in name
            and name not in said
            and name not in _given | installed()
        ):
            raise UserError(
                f"{redact(file)} names code to run, {name!r} in {field.removeprefix('.')}, and lies in an "
                "output, whose files are data\n"
                f"  what to do: where you trust that code, give --plugin {name}, or install a package that "
                f"has it among its entry points ({GROUP})"
            )


def _names_code(field: str, fields: Sequence[str]) -> bool:
    """Say whether the field of a job is one of ``fields``, or the same in a section below."""
    parts = [one.partition(".") for one in fields]
    return any(re.search(rf"\.{section}\.(\w+\.)*{last}$", field) for section, _, last in parts)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all plain values with their dotted paths; the values of a list have the list's path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value


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
