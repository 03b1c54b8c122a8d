"""YAML text to plain values that remember their lines; YAML 1.2 scalars, so `no` is text and 1e-3 a number.

The trade-off: merge keys (`<<`), tags and timestamps are not read, in return every value is plain JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cnnbatch.errors import UserError

Path = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or our own reader would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        breaks = any(mark in text for mark in "\x85\u2028\u2029")  # line breaks of YAML 1.1, to be escaped
        return self.represent_scalar(_PREFIX + "str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_implicit_resolver(_PREFIX + "null", re.compile(r"(null|Null|NULL|~|)$"), [*"nN~", ""])
_Loader.add_implicit_resolver(_PREFIX + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_PREFIX + "int", _INT, [*"-+0123456789"])
    _class.add_implicit_resolver(_PREFIX + "float", _FLOAT, [*"-+.0123456789"])


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed file: its values, the line of each, and what was already wrong with it."""

    name: str
    data: dict[str, Any]
    lines: Mapping[Path, int]
    mistakes: Sequence[str] = ()

    def line(self, path: Path) -> int:
        """Return the line of ``path``, or of the nearest section around it."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 1)


@dataclass(frozen=True, slots=True)
class Override:
    """One ``key=value``: where it goes, its value, and its text for messages."""

    path: tuple[str, ...]
    value: Any
    text: str


def parse(text: str, name: str) -> Document:
    """Read one YAML mapping; raises UserError with file and line where it is none."""
    loader = _Loader(text)
    reader = _Reader(name, loader)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{name}: expected `key: value` lines, got {_kind(node)}")
        data = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{name}:{mark.line + 1 if mark else 1}: this is not YAML: {error.problem}") from None
    finally:
        loader.dispose()
    return Document(name, data, reader.lines, reader.mistakes)


def parse_text(text: str, name: str) -> Document:
    """Read one YAML mapping as `parse` does; a character that YAML forbids is a UserError, too."""
    try:
        return parse(text, name)
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{name}: this is not YAML text: {error.reason} at character {error.position}"
        ) from None


def parse_value(text: str) -> Any:
    """Read the value of ``key=value``; what is no YAML (a glob such as ``*.jpg``) is taken as text."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Reader("", loader).value(node, ())
    except (yaml.YAMLError, UserError):
        return text
    finally:
        loader.dispose()


def dump(data: Mapping[str, Any]) -> str:
    """Write plain values as YAML that `parse_text` reads back unchanged, in the order given."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def overrides(
    items: Sequence[str] | Mapping[str, Any], short: Mapping[str, str]
) -> tuple[list[Override], list[str]]:
    """Return the overrides and the mistakes among them; ``items`` are ``key=value`` texts or a mapping.

    ``short`` names the sections that may be given as one value, and the field that it stands for:
    with ``{"input": "url"}`` both ``input=photos`` and ``input.limit=3`` apply, in any order. A
    mapping as value stands for its fields, one by one.
    """
    if isinstance(items, Mapping):
        given = [(key, value, f"{key}={value}") for key, value in items.items()]
        wrong = []
    else:
        parts = [(item, *item.partition("=")) for item in items]
        given = [
            (key, _from_text(key, value, short), item) for item, key, sign, value in parts if key and sign
        ]
        bad = [item for item, key, sign, _ in parts if not (key and sign)]
        wrong = [f"override {item}: expected key=value, as in input=photos" for item in bad]
    return [
        leaf for key, value, text in given for leaf in _leaves(tuple(key.split(".")), value, text, short)
    ], wrong


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


def _from_text(key: str, text: str, short: Mapping[str, str]) -> Any:
    value = parse_value(text)
    addresses = {*short, *(f"{section}.{field}" for section, field in short.items())}
    return (
        text if key in addresses and isinstance(value, int | float | None) else value
    )  # a folder may be called 2026


def _leaves(path: tuple[str, ...], value: Any, text: str, short: Mapping[str, str]) -> Iterator[Override]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item, text, short)
        return
    if len(path) == 1 and path[0] in short:
        path = (path[0], short[path[0]])
    yield Override(path, value, text)


def _full(key: str, value: Any, short: Mapping[str, str]) -> Any:
    if key in short and value is not None and not isinstance(value, Mapping):
        return {short[key]: value}
    return value


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "an empty file"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r}"


@dataclass
class _Reader:
    """Builds plain values from YAML nodes and notes their lines."""

    name: str
    loader: _Loader
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    around: list[yaml.Node] = field(default_factory=list)

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if node in self.around:
            raise UserError(f"{self.name}:{node.start_mark.line + 1}: an alias may not contain itself")
        self.around.append(node)
        value = self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self.sequence(node, path)
        self.around.pop()
        return value

    def scalar(self, node: yaml.ScalarNode) -> Any:
        match node.tag.removeprefix(_PREFIX):
            case "null":
                return None
            case "bool":
                return node.value.lower() == "true"
            case "int":
                return int(node.value)
            case "float":
                return float(node.value)
            case "str":
                return str(node.value)
        line = node.start_mark.line + 1
        raise UserError(f"{self.name}:{line}: expected a plain value, got the YAML tag {node.tag}")

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            if not key:
                raise UserError(f"{self.name}:{line}: expected a name before the colon")
            if key in values:
                self.mistakes.append(f"{self.name}:{line}: {dotted((*path, key))}: is there twice; keep one")
            self.lines[(*path, key)] = line
            values[key] = self.value(value_node, (*path, key))
        return values

    def sequence(self, node: yaml.Node, path: Path) -> list[Any]:
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]


def dotted(path: Path) -> str:
    """Return ``path`` as people write it: ``input.url[2]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
