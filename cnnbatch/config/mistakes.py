"""What pydantic found wrong with a job, as sentences: where, what was expected, what came, the nearest name.

Expectations are read from the JSON schema, so a new field needs no words here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnnbatch.config.overrides import Override, texts
from cnnbatch.config.schema import Schema, at, branches
from cnnbatch.config.yaml import Document, Path, dotted
from cnnbatch.terminal import steering, unlike

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cnnbatch.config.overrides import apply, overrides, read_value
from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest

_LONGEST_NUMBER = 10**100
_OWN_WORDS = ("value_error", "assertion_error", "custom")


@dataclass(frozen=True, slots=True)
class Sentences:
    """Turns validation errors into one line each; ``data`` is what was validated."""

    document: Document
    changes: Sequence[Override]
    data: Mapping[str, Any]
    schema: Schema

    def all(self, errors: Iterable[ErrorDetails]) -> list[str]:
        """Return the mistakes in the order of the file, those of overrides last; one a place."""
        found = self._deepest(errors)
        lines = sorted((self._origin(path), path) for path in found)
        return [f"{self._shown(origin, path)}: {self._sentence(path, found[path])}" for origin, path in lines]

    def by_path(self, errors: Iterable[ErrorDetails]) -> list[str]:
        """Return the mistakes in values that stand in no file, each after its path."""
        found = self._deepest(errors).items()
        return [f"{dotted(path)}{': ' * bool(path)}{self._sentence(path, error)}" for path, error in found]

    def unclean(self) -> list[str]:
        """Return the mistakes in texts with control characters; line breaks and tabs are none."""
        found = []
        for path, text in texts(self.data):
            if mark := steering(text.replace("\n", "").replace("\t", "")):
                found.append(f"{self._shown(self._origin(path), path)}: expected {unlike(mark)}")
        return found

    def _deepest(self, errors: Iterable[ErrorDetails]) -> dict[Path, ErrorDetails]:
        """Return one mistake a place; of a place around another one only where it has words of its own."""
        found: dict[Path, ErrorDetails] = {}
        for error in sorted(errors, key=lambda error: error["type"] not in _OWN_WORDS):
            found.setdefault(self._place(error), error)
        return {
            path: error
            for path, error in found.items()
            if error["type"] in ("extra_forbidden", "missing", *_OWN_WORDS)
            or not any(other[: len(path)] == path and len(other) > len(path) for other in found)
        }

    def _place(self, error: ErrorDetails) -> Path:
        """Return where in ``data`` the error lies, without pydantic's marks of union members."""
        value: Any = self.data
        path: Path = ()
        for part in error["loc"]:
            if _has(value, part):
                value, path = value[part], (*path, part)
        return (*path, error["loc"][-1]) if error["type"] == "missing" else path

    def _origin(self, path: Path) -> tuple[int, int]:
        """Return (0, line) for the file, (1, index) for an override."""
        for index, change in reversed(list(enumerate(self.changes))):
            inside = path[: len(change.path)] == change.path
            around = change.path[: len(path)] == path and path not in self.document.lines
            if path and (inside or around):
                return 1, index
        return 0, self.document.line(path)

    def _shown(self, origin: tuple[int, int], path: Path) -> str:
        kind, number = origin
        head = f"override {self.changes[number].text}" if kind else f"{self.document.name}:{number}"
        said = not path or (kind and self.changes[number].text.startswith(f"{dotted(path)}="))
        return head if said else f"{head}: {dotted(path)}"

    def _sentence(self, path: Path, error: ErrorDetails) -> str:
        kind = error["type"]
        if kind == "extra_forbidden":
            return f"no such field; {self._proposal(path)}"
        if kind in _OWN_WORDS:
            return error["msg"].removeprefix("Value error, ").removeprefix(f"{dotted(path)}: ")
        expected = describe(self._at(path), self.schema)
        if kind == "missing":
            return (
                f"missing; expected {expected}; write it in the file or add {dotted(path)}=… to the command"
            )
        got = _value(self.data, path)
        return f"expected {expected}, got {_short(got)}{self._meant(path, got)}"

    def _meant(self, path: Path, got: Any) -> str:
        name = nearest(got, _literals(self._at(path), self.schema)) if isinstance(got, str) else None
        return f"; did you mean {name}?" if name else ""

    def _proposal(self, path: Path) -> str:
        siblings = list(_fields(self._at(path[:-1]), self.schema))
        name = str(path[-1])
        if near := nearest(name, siblings):
            return f"did you mean {dotted((*path[:-1], near))}?"
        elsewhere = {leaf: place for place, leaf in _leaves(self.schema, self.schema)}
        if near := nearest(name, elsewhere):
            return f"did you mean {elsewhere[near]}?"
        return f"known here: {', '.join(siblings) or 'nothing'}"

    def _at(self, path: Path) -> Schema:
        return at(path, self.schema, self.schema)


def describe(schema: Schema, root: Schema) -> str:
    """Return in words what ``schema`` accepts; ``root`` holds its definitions."""
    words: list[str] = []
    for branch in branches(schema, root):
        word = _describe_one(branch, root)
        words += [] if word in words else [word]
    return _either(words) if words else "a value"


def _describe_one(schema: Schema, root: Schema) -> str:
    if "enum" in schema:
        return _either([str(value) for value in schema["enum"]])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        return f"a list{_bounds(schema)} of {describe(schema.get('items', {}), root)}"
    if kind == "object":
        names = list(schema.get("properties", {}))
        return (
            f"a section with {', '.join(names)}" if 0 < len(names) <= 8 else "a section of `key: value` lines"
        )
    plain = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    return plain.get(str(kind), "a value") + _bounds(schema)


def _bounds(schema: Schema) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    said = [f"{word} {_plain(schema[key])}" for key, word in words.items() if key in schema]
    said += ["not empty"] if schema.get("minLength") or schema.get("minItems") else []
    return f" ({' and '.join(said)})" if said else ""


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _fields(schema: Schema, root: Schema) -> dict[str, Schema]:
    return {
        key: value for branch in branches(schema, root) for key, value in branch.get("properties", {}).items()
    }


def _leaves(schema: Schema, root: Schema, around: Path = ()) -> Iterator[tuple[str, str]]:
    """Yield (dotted place, name) of every field below the top."""
    for name, inner in _fields(schema, root).items():
        if around:
            yield dotted((*around, name)), name
        if len(around) < 2:
            yield from _leaves(inner, root, (*around, name))


def _literals(schema: Schema, root: Schema) -> list[str]:
    values = [
        value
        for branch in branches(schema, root)
        for value in (*branch.get("enum", ()), *([branch["const"]] if "const" in branch else []))
    ]
    return [value for value in values if isinstance(value, str)]


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _value(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a section with {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, int) and abs(value) >= _LONGEST_NUMBER:
        return "a number of a hundred digits or more"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"


M = TypeVar("M", bound=BaseModel)


def read_fields(model: type[M], given: Mapping[str, Any], texts: Sequence[str], what: str) -> M:
    """Return a ``model`` of the ``given`` values and those of the texts, which win.

    Raises:
        UserError: every mistake, each with the expected, what came, and the nearest known name; it begins
            with ``what``.
    """
    schema = model.model_json_schema()
    changes, wrong = overrides(
        texts, {}, lambda keys, text: read_value(text, at(keys, schema, schema), schema)
    )
    data = {**apply({}, changes, {}), **given}
    found = None
    try:
        found = model.model_validate(data)
    except ValidationError as error:
        sentences = Sentences(Document("", {}, {}), changes, data, schema)
        wrong = [*sentences.all(error.errors(include_url=False)), *wrong]
    if found is None or wrong:
        count = "one mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        raise UserError("\n  ".join([f"{count} in {what}", *wrong]))
    return found
