"""A study as its trials: pure, so the same study is the same trainings whenever it goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from random import Random
from typing import Any

from cnnbatch.config.study import Range, Study

FOLDER = "trials"
_SHORT = ("input", "output")  # Sections that may be given as their url.
_AT_ENDS = (0.0, 1.0)

Settings = Mapping[str, Any]
"""What a trial has, by the paths of the fields that vary."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes``, section by section."""
    found = dict(base)
    for name, value in changes.items():
        value = {"url": value} if name in _SHORT and isinstance(value, str | list | tuple) else value
        inner = found.get(name)
        if isinstance(value, Mapping):
            found[name] = merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            found[name] = value
    return found


def combinations(study: Study, seed: int) -> Iterator[tuple[str, Settings]]:
    """Yield each case with what varies in it; what is searched is drawn by ``seed``."""
    for case in study.cases or ("",):
        if study.search:
            for number in range(study.trials):
                draw = Random(f"{seed} {case} {number}")
                yield case, {path: _drawn(drawn, draw) for path, drawn in study.search.items()}
        else:
            for values in product(*study.vary.values()):
                yield case, dict(zip(study.vary, values, strict=True))


def _drawn(drawn: Range | Sequence[Any], draw: Random) -> Any:
    return drawn.at(draw.random()) if isinstance(drawn, Range) else draw.choice(drawn)


def ends(drawn: Range | Sequence[Any]) -> Sequence[Any]:
    """Return the ends of a range, or the values of a list."""
    return [drawn.at(place) for place in _AT_ENDS] if isinstance(drawn, Range) else drawn


def names_of(combinations: Sequence[tuple[str, Settings]], numbered: bool) -> list[str]:
    """Return a folder's name for each combination, by what it has; by number where that tells too little."""
    words = [
        "-".join(filter(None, [_slug(case), *(() if numbered else map(_slug, settings.values()))]))
        for case, settings in combinations
    ]
    if not numbered and all(words) and len(set(words)) == len(words):
        return words
    width = len(str(len(words) - 1))
    return ["-".join(filter(None, [word, f"{number:0{width}}"])) for number, word in enumerate(words)]


def _slug(value: Any) -> str:
    """Return a value as a part of a folder's name; empty where it is no plain one."""
    if isinstance(value, Mapping | list | tuple):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return ``value`` as the field at the dotted ``path``."""
    name, _, rest = path.partition(".")
    return {name: nested(rest, value) if rest else value}
