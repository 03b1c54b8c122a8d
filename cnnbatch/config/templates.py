"""What a study says in its cases, its ranges and its lesson gives way to what the command line says.

All of these are changes to a job that come after it was read; so a field that a person gives would be lost to
them. It is taken out of them before, which also keeps the study in the output as it was run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cnnbatch.config.overrides import Override
from cnnbatch.config.yaml import Document

Path = tuple[str, ...]
_RANGES = ("vary", "search")


def without(data: Mapping[str, Any], paths: Iterable[Path], short: Mapping[str, str]) -> dict[str, Any]:
    """Return a job's fields, of its templates those that none of ``paths`` says; ``data`` stays as it is.

    ``short`` names the sections that may be given as one value, an address, and the field that it is. A
    person who gives another address gives another collection: what a template says of its own goes with it.
    """
    study = data.get("study")
    for path in paths:
        study = _study(study, path, short)
    return {**data, "study": study} if "study" in data else dict(data)


def has_lesson(data: Mapping[str, Any]) -> bool:
    """Return whether a job's fields are those of one that takes ``lesson``: a training, or some studies."""
    study = data.get("study")
    return data.get("kind") == "train" or (isinstance(study, Mapping) and bool(study.get("lesson")))


def without_lesson(
    document: Document, changes: Sequence[Override], data: dict[str, Any], others: Callable[[], Iterable[str]]
) -> Iterator[str]:
    """Take ``lesson`` out of a job's ``data`` where it asks for one that is not there; yield that mistake.

    ``others`` are the names of the jobs that have one.
    """
    if data.get("lesson") is not True or has_lesson(document.data) or has_lesson(data):
        return
    del data["lesson"]
    said = next((f"override {one.text}" for one in changes if one.path == ("lesson",)), None)
    place = said or f"{document.name}:{document.line(('lesson',))}"
    yield (
        f"{place}: this job has no lesson; expected one of kind train, or a study with study.lesson, "
        f"such as {', '.join(others())}"
    )


def _study(study: Any, path: Path, short: Mapping[str, str]) -> Any:
    """Return a ``study`` section whose templates leave the field at ``path`` to the job."""
    if not isinstance(study, Mapping):
        return study
    found = dict(study)
    if isinstance(cases := study.get("cases"), Mapping):
        found["cases"] = {name: _section(case, path, short) for name, case in cases.items()}
    for name in _RANGES:
        if isinstance(study.get(name), Mapping):
            found[name] = _ranges(study[name], path, short)
    if "lesson" in study:
        found["lesson"] = _lesson(study["lesson"], path, short)
    return found


def _lesson(lesson: Any, path: Path, short: Mapping[str, str]) -> Any:
    """Return a lesson, which has the fields of a study's job, without the one at ``path``."""
    if not isinstance(lesson, Mapping):
        return lesson
    found = dict(lesson)
    if isinstance(study := lesson.get("study"), Mapping):
        found["study"] = _study(study, path, short)
        if len(path) > 1 and path[0] == "study" and path[1] in _RANGES and path[1] in study:
            found["study"][path[1]] = _ranges(study[path[1]], path[2:], short)
    return _section(found, path, short)


def _section(section: Any, path: Path, short: Mapping[str, str]) -> Any:
    """Return a section that has the fields of a job, without the one at ``path``."""
    if not isinstance(section, Mapping) or not path or path[0] not in section:
        return section
    found = dict(section)
    if len(path) == 1 or path == (path[0], short.get(path[0])):
        del found[path[0]]
    else:
        found[path[0]] = _section(found[path[0]], path[1:], {})
    return found


def _ranges(ranges: Any, path: Path, short: Mapping[str, str]) -> Any:
    """Return values by the fields' paths, nested or dotted, without those of the field at ``path``."""
    if not isinstance(ranges, Mapping):
        return ranges
    found: dict[str, Any] = {}
    for name, values in ranges.items():
        parts = tuple(str(name).split("."))
        if parts[: len(path)] == path:
            continue
        if parts != path[: len(parts)]:
            found[name] = values
            continue
        left = _left(values, path[len(parts) :], path[-2:] == (parts[-1], short.get(parts[-1])))
        if left:
            found[name] = left
    return found


def _left(values: Any, inside: Path, is_address: bool) -> Any:
    """Return what is left of a field's values where one of its own fields, at ``inside``, is not to vary."""
    if isinstance(values, Mapping):
        return values if {"low", "high"} & values.keys() else _ranges(values, inside, {})
    if not isinstance(values, list | tuple) or is_address:
        return None
    kept = [_section(value, inside, {}) if isinstance(value, Mapping) else value for value in values]
    return kept if any(kept) else None
