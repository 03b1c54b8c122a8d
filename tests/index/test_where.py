"""Conditions on columns."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pytest

from cnnbatch.errors import UserError
from cnnbatch.index.where import parse_where

ROWS = pa.table(
    {
        "country": ["DE", "FR", None, "DE", "it's"],
        "year": pa.array([2019, 2020, 2019, None, 1940], pa.int32()),
        "share": pa.array([0.5, 1.0, 0.25, 2.0, None], pa.float32()),
        "old": [True, False, None, True, False],
        "day": [date(2019, 1, 2), date(2020, 5, 6), None, date(1999, 1, 1), date(2001, 1, 1)],
        "two words": [1, 2, 3, 4, 5],
    }
)


def chosen(text: str) -> list[int]:
    condition = parse_where(text, ROWS.schema)
    numbers = ROWS.select(condition.columns).append_column("n", pa.array(range(5)))
    found: list[int] = numbers.filter(condition.expression)["n"].to_pylist()  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("country = 'DE'", [0, 3]),
        ("country == 'DE' AND year in (2019, 2020)", [0]),
        ("country != 'DE'", [1, 4]),
        ("year < 1950 or country = 'FR'", [1, 4]),
        ("country = 'DE' and year = 2019 or country = 'FR'", [0, 1]),
        ("country = 'DE' and (year = 2019 or share > 1)", [0, 3]),
        ("country in ('DE', 'FR') and share >= 0.5 and share <= 1", [0, 1]),
        ("share = 1", [1]),
        ("share < 5e-1", [2]),
        ("country = 'it''s'", [4]),
        ("old = true", [0, 3]),
        ("day > '2000-01-01' and day <> '2001-01-01'", [0, 1]),
        ('"two words" in (2,5)', [1, 4]),
        ("((year=2019))", [0, 2]),
        ("year > -1", [0, 1, 2, 4]),
    ],
)
def test_a_condition_chooses_the_rows_that_fulfil_it(text: str, rows: list[int]) -> None:
    assert chosen(text) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("contry = 'DE'", r"no column 'contry'\n.*did you mean country\?"),
        ("country = DE", r"expected a value of type string, as in 'DE', got 'DE' at character 11"),
        ("year = 'x'", r"expected a value of type int32, as in 2019, got \"'x'\" at character 8"),
        ("year = 2.5", "expected a value of type int32"),
        ("year = 99999999999", "expected a value of type int32"),
        ("day = 'tomorrow'", "expected a value of type date32"),
        ("old = 1", "expected a value of type bool, as in true"),
        ("country 'DE'", "expected one of = != < <= > >= in, got \"'DE'\" at character 9"),
        ("country = 'DE' year = 2", "expected and, or, or the end, got 'year = 2' at character 16"),
        ("year in (2019", r"expected \), got the end at character 14"),
        ("year in ()", "expected a value of type int32"),
        ("(year = 2019", r"expected \), got the end"),
        ("", "expected the name of a column, got the end"),
        ("and", "expected the name of a column"),
        ("year = 2019; drop", "expected a column, a sign or a value, got '; drop' at character 12"),
        ("(" * 60 + "year = 1" + ")" * 60, "at most 50 parentheses"),
        ("year = 1 or " * 10_000, "at most 100,000 characters"),
        ("country = 'DE", 'expected a column, a sign or a value, got "\'DE" at character 11'),
    ],
)
def test_what_is_no_condition_is_refused_with_the_place(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_where(text, ROWS.schema)
