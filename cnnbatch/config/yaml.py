"""YAML text to plain values that remember their lines; YAML 1.2 scalars, so `no` is text and 1e-3 a number.

The trade-off: merge keys (`<<`), tags and timestamps are not read, in return every value is plain JSON. Size,
depth and what aliases make are bounded, so that no file costs more than a second or two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from cnnbatch.errors import UserError

Path = tuple[str | int, ...]

LONGEST_TEXT = 1 << 20
"""Characters of a job; the reader takes a second for 50 thousand values."""
DEEPEST = 64
"""Sections and lists inside each other; a job of a study needs nine."""
_MOST_VALUES = 50_000
_MOST_DIGITS = 100

_PREFIX = "tag:yaml.org,2002:"
_NULL = re.compile(r"(null|Null|NULL|~|)$")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
)
_HALF = re.compile("[\ud800-\udfff]")
_PLAIN = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}


class _Loader(yaml.SafeLoader):
    """Stops at what no job has: values by the ten thousands, or nested so deep that Python's stack ends."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._depth > DEEPEST or self._nodes > _MOST_VALUES:
            most = f"{DEEPEST} levels" if self._depth > DEEPEST else f"{_MOST_VALUES:,} values"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # PyYAML's own lack
            raise yaml.MarkedYAMLError(problem=f"it has more than {most}", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or our own reader would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        breaks = any(mark in text for mark in "\x85\u2028\u2029")  # line breaks of YAML 1.1, to be escaped
        return self.represent_scalar(_PREFIX + "str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_implicit_resolver(_PREFIX + "null", _NULL, [*"nN~", ""])
_Loader.add_implicit_resolver(_PREFIX + "bool", _BOOL, [*"tTfF"])
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


def parse_text(text: str, name: str) -> Document:
    """Read one YAML mapping; raises UserError with file and line where it is none, or too large for a job."""
    if len(text) > LONGEST_TEXT:
        raise UserError(
            f"{name}: expected a job, which has at most {LONGEST_TEXT:,} characters, got {len(text):,}"
        )
    with _reading(text, name, lambda path, text: False) as (reader, node):
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{name}: expected `key: value` lines, got {_kind(node)}")
        data = reader.value(node, ())
    return Document(name, data, reader.lines, reader.mistakes)


def parse_flow(text: str, as_text: Callable[[Path, str], bool]) -> list[Any] | dict[str, Any] | None:
    """Return the list or the section that ``text`` is in YAML's flow style; None where it is neither.

    ``as_text`` says of a place in it, and of what stands there, whether that is text whatever it looks like.
    Raises UserError for one with a key twice, or one that is too large for a job.
    """
    try:
        with _reading(text, "", as_text) as (reader, node):
            if not isinstance(node, yaml.CollectionNode) or not node.flow_style:
                return None
            value: list[Any] | dict[str, Any] = reader.value(node, ())
    except _NotYaml:
        return None
    if reader.mistakes:
        raise UserError(reader.mistakes[0].removeprefix(":1: "))
    return value


def plain_scalar(text: str) -> str | int | float | bool | None:
    """Return what ``text`` is as a plain scalar of YAML 1.2: null, true, false, a number, or itself."""
    tag = next((tag for tag, pattern in _PLAIN.items() if pattern.fullmatch(text)), "str")
    return _scalar(tag, text)


class _NotYaml(UserError):
    """The text is no YAML."""


@contextmanager
def _reading(
    text: str, name: str, as_text: Callable[[Path, str], bool]
) -> Iterator[tuple[_Reader, yaml.Node | None]]:
    """Give the one node of ``text`` and what reads it; raises UserError for whatever is wrong with it."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        yield _Reader(name, loader, as_text), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _NotYaml(f"{name}:{mark.line + 1 if mark else 1}: this is not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise _NotYaml(
            f"{name}: this is not YAML text: {error.reason} at character {error.position}"
        ) from None
    except (ValueError, OverflowError) as error:  # An escape for a character that is none.
        raise _NotYaml(f"{name}: this is not YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def dump(data: Mapping[str, Any]) -> str:
    """Write plain values as YAML that `parse_text` reads back unchanged, in the order given."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "an empty file"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r}"


@dataclass
class _Reader:
    """Builds plain values from YAML nodes and notes their lines."""

    name: str
    loader: _Loader
    as_text: Callable[[Path, str], bool]
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    around: list[yaml.Node] = field(default_factory=list)
    values: int = 0
    characters: int = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self.values += 1
        if self.values > _MOST_VALUES:
            raise self.error(node, f"its aliases make more than {_MOST_VALUES:,} values of it")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if node in self.around:
            raise self.error(node, "an alias may not contain itself")
        if len(path) > DEEPEST:
            raise self.error(node, f"its aliases make more than {DEEPEST} levels of it")
        if node.tag != _PREFIX + ("map" if isinstance(node, yaml.MappingNode) else "seq"):
            raise self.error(node, f"expected a plain value, got the YAML tag {node.tag}")
        self.around.append(node)
        value = self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self.sequence(node, path)
        self.around.pop()
        return value

    def error(self, node: yaml.Node, words: str) -> UserError:
        return UserError(f"{self.name}:{node.start_mark.line + 1}: {words}")

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.style is None and self.as_text(path, node.value):
            return self.text(node)
        tag = node.tag.removeprefix(_PREFIX)
        if tag == "str":
            return self.text(node)
        pattern = _PLAIN.get(tag)
        if pattern is None:
            raise self.error(node, f"expected a plain value, got the YAML tag {node.tag}")
        if not pattern.fullmatch(node.value):
            raise self.error(node, f"expected a value of the YAML tag !!{tag}, got {node.value[:80]!r}")
        try:
            return _scalar(tag, node.value)
        except UserError as error:
            raise self.error(node, str(error)) from None

    def text(self, node: yaml.ScalarNode) -> str:
        """Return a scalar's text, in which JSON may have written one character as two halves."""
        self.characters += len(node.value)
        if self.characters > LONGEST_TEXT:
            raise self.error(node, f"its aliases make more than {LONGEST_TEXT:,} characters of it")
        if not _HALF.search(node.value):
            return str(node.value)
        try:
            return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self.error(node, "expected Unicode, got half of a character (\\ud800 to \\udfff)") from None

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.text(key_node) if isinstance(key_node, yaml.ScalarNode) else ""
            if not key:
                raise self.error(key_node, "expected a name before the colon")
            line = key_node.start_mark.line + 1
            if key in values:
                self.mistakes.append(f"{self.name}:{line}: {dotted((*path, key))}: is there twice; keep one")
            self.lines[(*path, key)] = line
            values[key] = self.value(value_node, (*path, key))
        return values

    def sequence(self, node: yaml.Node, path: Path) -> list[Any]:
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]


def _scalar(tag: str, text: str) -> str | int | float | bool | None:
    """Return the value of a scalar whose text fits its tag; raises UserError for too long a number."""
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "float":
        return float(text)
    if tag == "int" and len(text) > _MOST_DIGITS:
        raise UserError(f"expected a number of at most {_MOST_DIGITS} digits, got one of {len(text):,}")
    return int(text) if tag == "int" else text


def dotted(path: Path) -> str:
    """Return ``path`` as people write it: ``input.url[2]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
