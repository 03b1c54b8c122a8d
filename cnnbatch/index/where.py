"""``--where``: conditions on columns, as a person writes them, as an expression of Arrow's.

    country = 'DE' and (year in (2019, 2020) or year < 1950)

Nothing is evaluated but comparisons of a column with values of its own type.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*"|[^\W\d]\w*)"""
    r"""|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,))"""
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS = {"true": True, "false": False}
_MOST = 100_000
"""Characters of a condition."""
_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition and the columns that it names."""

    expression: pc.Expression
    columns: tuple[str, ...]


def parse_where(text: str, schema: pa.Schema) -> Condition:
    """Return a condition on the columns of ``schema``; raises UserError for what is none, with the place.

    A row whose value is null fulfils no comparison.
    """
    return _Parser(text, schema).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: int


class _Parser:
    """One condition, read from left to right: ``or`` binds weaker than ``and``."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema = text, schema
        self._tokens = self._read()
        self._next = 0
        self._columns: list[str] = []

    def whole(self) -> Condition:
        expression = self._any(0)
        if self._peek().kind != "end":
            self._refuse("and, or, or the end")
        return Condition(expression, tuple(dict.fromkeys(self._columns)))

    def _read(self) -> Sequence[_Token]:
        if len(self._text) > _MOST:
            raise UserError(f"where: expected at most {_MOST:,} characters, got {len(self._text):,}")
        tokens, place, end = [], 0, len(self._text.rstrip())
        while place < end:
            found = _TOKEN.match(self._text, place)
            if found is None:
                start = place + len(self._text[place:]) - len(self._text[place:].lstrip())
                raise self._mistake("a column, a sign or a value", start)
            kind = str(found.lastgroup)
            tokens.append(_Token(kind, found[kind], found.start(kind)))
            place = found.end()
        return [*tokens, _Token("end", "", len(self._text))]

    def _any(self, depth: int) -> pc.Expression:
        found = self._all(depth)
        while self._takes("or"):
            found = found | self._all(depth)
        return found

    def _all(self, depth: int) -> pc.Expression:
        found = self._one(depth)
        while self._takes("and"):
            found = found & self._one(depth)
        return found

    def _one(self, depth: int) -> pc.Expression:
        if depth >= _DEEPEST:
            self._refuse(f"at most {_DEEPEST} parentheses inside each other")
        if self._takes("("):
            found = self._any(depth + 1)
            self._require(")")
            return found
        return self._comparison()

    def _comparison(self) -> pc.Expression:
        column = self._column()
        kind = self._schema.field(column).type
        if self._takes("in"):
            self._require("(")
            values = [self._value(kind)]
            while self._takes(","):
                values.append(self._value(kind))
            self._require(")")
            return pc.field(column).isin(pa.array(values, kind))
        sign = self._peek()
        if sign.kind != "sign" or sign.text not in _COMPARISONS:
            self._refuse("one of = != < <= > >= in")
        self._next += 1
        compared: pc.Expression = _COMPARISONS[sign.text](pc.field(column), self._value(kind))
        return compared

    def _column(self) -> str:
        token = self._peek()
        if token.kind != "name" or token.text.lower() in ("and", "or", "in"):
            self._refuse("the name of a column")
        self._next += 1
        name = token.text
        if name.startswith('"'):
            name = name[1:-1].replace('""', '"')
        if name not in self._schema.names:
            near = nearest(name, self._schema.names)
            raise UserError(
                f"where: the index has no column {name!r}\n  what to do: "
                + (f"did you mean {near}? " if near else "")
                + f"take one of {', '.join(self._schema.names)}"
            )
        self._columns.append(name)
        return name

    def _value(self, kind: pa.DataType) -> pa.Scalar[Any]:
        """Return the value that comes next, in the type of its column."""
        token = self._peek()
        value: Any
        if token.kind == "text":
            value = token.text[1:-1].replace("''", "'")
        elif token.kind == "number":
            value = float(token.text) if re.search(r"[.eE]", token.text) else int(token.text)
        elif token.kind == "name" and token.text.lower() in _WORDS:
            value = _WORDS[token.text.lower()]
        else:
            self._refuse(f"a value of type {kind}, as in {_example(kind)}")
        if not _fits(value, kind):
            self._refuse(f"a value of type {kind}, as in {_example(kind)}")
        self._next += 1
        try:
            plain = pa.scalar(value)
            return plain.cast(kind) if pa.types.is_temporal(kind) else pa.scalar(value, kind)
        except (pa.ArrowException, OverflowError):
            self._next -= 1
            self._refuse(f"a value of type {kind}, as in {_example(kind)}")

    def _takes(self, text: str) -> bool:
        token = self._peek()
        found = token.kind in ("name", "sign") and token.text.lower() == text
        self._next += found
        return found

    def _require(self, text: str) -> None:
        if not self._takes(text):
            self._refuse(text)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _refuse(self, expected: str) -> NoReturn:
        raise self._mistake(expected, self._peek().place)

    def _mistake(self, expected: str, place: int) -> UserError:
        got = self._text[place : place + 20].strip()
        return UserError(
            f"where: expected {expected}, got {repr(got) if got else 'the end'} at character {place + 1} of "
            f"{self._text!r}\n  what to do: write conditions as in country = 'DE' and year in (2019, 2020)"
        )


def _fits(value: Any, kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_boolean(kind):
        return isinstance(value, bool)
    if types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool)
    if types.is_floating(kind) or types.is_decimal(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_temporal(kind)
    return text and isinstance(value, str)


def _example(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "true"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "2019"
    return "'2019-12-31'" if pa.types.is_temporal(kind) else "'DE'"
