"""Changes to a job as ``key=value``: where each goes, and what its text means.

The type of the field decides that, so that text stays text: a folder may be called ``photos #2``, ``2026``
or ``[a]``. The price: the schema of the job has to be known before a value can be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbatch.config.schema import Schema, at, branches, is_text
from cnnbatch.config.yaml import DEEPEST, Path, parse_flow, plain_scalar
from cnnbatch.errors import UserError
from cnnbatch.terminal import steering, unlike

Keys = tuple[str, ...]

_LONGEST_SHOWN = 200  # characters of an override in a message


@dataclass(frozen=True, slots=True)
class Override:
    """One ``key=value``: where it goes, its value, and its text for messages."""

    path: Keys
    value: Any
    text: str


def overrides(
    items: Sequence[str] | Mapping[str, Any], short: Mapping[str, str], read: Callable[[Keys, str], Any]
) -> tuple[list[Override], list[str]]:
    """Return the overrides and the mistakes among them; ``items`` are ``key=value`` texts or a mapping.

    ``read`` gives the value of a text, by the keys of its field. ``short`` names the sections that may be
    given as one value, and the field that it stands for: with ``{"input": "url"}`` both ``input=photos`` and
    ``input.limit=3`` apply, in any order. A mapping as value stands for its fields, one by one.
    """
    found: list[Override] = []
    wrong: list[str] = []
    for key, value, text in _pairs(items):
        keys = tuple(key.split("."))
        try:
            if not all(keys) or len(keys) > DEEPEST:
                raise UserError("expected key=value, as in input=photos")
            given = value if isinstance(items, Mapping) else _without_control(keys, read(keys, value))
            found += _leaves(keys, given, text, short)
        except UserError as error:
            wrong.append(f"override {_shortened(text)}: {error}")
    return found, wrong


def apply(data: Mapping[str, Any], changes: Iterable[Override], short: Mapping[str, str]) -> dict[str, Any]:
    """Return ``data`` with ``changes`` set in order, and its ``short`` sections written in full."""
    result = {key: _full(key, value, short) for key, value in data.items()}
    for change in changes:
        section = result
        for key in change.path[:-1]:
            inner = section.get(key)
            section[key] = dict(inner) if isinstance(inner, Mapping) else {}
            section = section[key]
        section[change.path[-1]] = change.value
    return result


def read_value(text: str, schema: Schema, root: Schema) -> Any:
    """Return what ``text`` is, given for a field of ``schema``, whose definitions ``root`` holds.

    For a field that takes text it is text as it stands, unless the field takes more and no file has that
    name: then ``[…]`` is a list and ``{…}`` a section where they are one by YAML, ``null`` or nothing stands
    for no value, and a number, true or false is one. For other fields it is what it is in YAML.

    Raises:
        UserError: a section has a key twice, a list or section is too large, or a number too long.
    """
    takes = list(branches(schema, root))
    if _is_only_text(takes) or (any(map(is_text, takes)) and os.path.lexists(os.path.expanduser(text))):
        return text
    if text[:1] in ("[", "{") and _takes(takes, "array" if text[0] == "[" else "object"):
        found = parse_flow(
            text, lambda path, inner: _stays_text(inner, list(branches(at(path, schema, root), root)))
        )
        if found is not None:
            return found
    value = text if _stays_text(text, takes) else plain_scalar(text.strip())
    return text if isinstance(value, str) else value


def _is_only_text(takes: Sequence[Schema]) -> bool:
    return bool(takes) and all(map(is_text, takes))


def _takes(takes: Sequence[Schema], kind: str) -> bool:
    """Say whether a value of this kind may stand here; where nothing is known, any may."""
    return any(branch.get("type", kind) == kind and not {"enum", "const"} & branch.keys() for branch in takes)


def _stays_text(text: str, takes: Sequence[Schema]) -> bool:
    """Say whether a scalar is text, by what may stand in its place."""
    if not any(map(is_text, takes)):
        return False
    value = plain_scalar(text)
    if value is None:
        return not (_takes(takes, "null") and text in ("", "null"))
    if isinstance(value, str):
        return True
    kinds = ["boolean"] if isinstance(value, bool) else ["number", "integer"]
    return not any(_takes(takes, kind) for kind in kinds)


def _pairs(items: Sequence[str] | Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    if isinstance(items, Mapping):
        yield from ((key, value, f"{key}={_words(value)}") for key, value in items.items())
        return
    for item in items:
        key, sign, value = item.partition("=")
        yield key if sign else "", value, item


def _without_control(keys: Keys, value: Any) -> Any:
    """Return a value of the command line. Raises UserError where it has characters that no name should."""
    for text in (*keys, *(text for _, text in texts(value))):
        if mark := steering(text):
            raise UserError(f"expected {unlike(mark)}; rename what is called so")
    return value


def texts(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield every text in a value, keys too, each with the place of its value."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield (*path, key), key
            yield from texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from texts(inner, (*path, index))


def _leaves(path: Keys, value: Any, text: str, short: Mapping[str, str]) -> Iterator[Override]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item, text, short)
        return
    if len(path) == 1 and path[0] in short:
        path = (path[0], short[path[0]])
    yield Override(path, value, _shortened(text))


def _full(key: str, value: Any, short: Mapping[str, str]) -> Any:
    if key in short and value is not None and not isinstance(value, Mapping):
        return {short[key]: value}
    return value


def _words(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # Of a number of thousands of digits.
        return "…"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
