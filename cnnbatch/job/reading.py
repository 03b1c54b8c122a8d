"""Reads a job: everything is checked before anything runs, and all mistakes are said at once, with lines."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cnnbatch.config import plugins, templates, yaml
from cnnbatch.config.mistakes import Sentences
from cnnbatch.config.overrides import Override, apply, overrides, read_value
from cnnbatch.config.schema import Schema, at
from cnnbatch.config.study import Range
from cnnbatch.errors import UserError
from cnnbatch.job.bundled import find_job, jobs_with_lesson
from cnnbatch.job.kinds import KINDS, Job
from cnnbatch.job.models import SHORT, MapJob
from cnnbatch.job.schema import schema_for
from cnnbatch.storage.text import decoded


def load_job(name_or_path: str, changed: Sequence[str] | Mapping[str, Any] = ()) -> Job:
    """Read a job by its name in ``jobs/`` or by its path, with ``key=value`` overrides.

    Raises UserError with every mistake, each with file and line, the expected, what came, and
    the nearest known name.
    """
    path = find_job(name_or_path)
    try:
        with path.open("rb") as file:
            text = decoded(file.read(yaml.LONGEST_TEXT + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a job: {error}") from None
    return parse_job(text, _shown(path), changed, plugins.fields_without_code(path))


def load_map_job(name_or_path: str, changed: Sequence[str] | Mapping[str, Any] = ()) -> MapJob:
    """Read a job as `load_job` does, for what only a map job has; raises UserError for another kind."""
    job = load_job(name_or_path, changed)
    if not isinstance(job, MapJob):
        raise UserError(
            f"{name_or_path}: expected a job of kind map, got one of kind {job.kind}; use cnnbatch run"
        )
    return job


def parse_job(
    text: str,
    name: str,
    changed: Sequence[str] | Mapping[str, Any] = (),
    no_code_in: Sequence[str] = (),
) -> Job:
    """Read a job from YAML ``text``; ``name`` stands for the file in messages. Raises as `load_job`.

    Of a text that is data, the fields ``no_code_in`` name no code by themselves; see `config.plugins`.
    """
    document = yaml.parse_text(text, name)
    texts = _plain(changed) if isinstance(changed, Mapping) else changed
    changes, wrong = _changes(document, texts, no_code_in)
    data = _changed(document, changes, no_code_in)
    found = [*document.mistakes, *templates.without_lesson(document, changes, data, jobs_with_lesson)]
    found += Sentences(document, changes, data, {}).unclean()
    job: Job | None = None
    try:
        job = KINDS.get(str(data.get("kind")), MapJob).model_validate(data)
    except ValidationError as error:
        found += Sentences(document, changes, data, schema_for(data)).all(error.errors(include_url=False))
    if found or wrong or job is None:
        mistakes = [*found, *wrong]
        count = "one mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise UserError("\n  ".join([f"{name}: {count} in the job; nothing was run", *mistakes]))
    return job


def _changed(
    document: yaml.Document, changes: Sequence[Override], no_code_in: Sequence[str]
) -> dict[str, Any]:
    """Return the values of a job with its changes; raises UserError for code that a data file alone names."""
    kept = templates.without(document.data, [one.path for one in changes], SHORT)
    data = apply(kept, changes, SHORT)
    plugins.require_given(data, document.name, no_code_in, [change.value for change in changes])
    return data


def _changes(
    document: yaml.Document, changed: Sequence[str] | Mapping[str, Any], no_code_in: Sequence[str]
) -> tuple[list[Override], list[str]]:
    """Return the overrides and the mistakes among them; the task that they name says what its fields take."""
    if isinstance(changed, Mapping):
        return overrides(changed, SHORT, lambda keys, text: text)
    guessed, _ = overrides(changed, SHORT, lambda keys, text: read_value(text, {}, {}))
    schema = schema_for(_changed(document, guessed, no_code_in))  # Which imports the task.
    return overrides(changed, SHORT, lambda keys, text: read_value(text, _field(keys, schema), schema))


def _field(keys: Sequence[str], schema: Schema) -> Schema:
    """Return what may stand at a field of a job; in a study also below what stands for fields of its own."""
    match keys:
        case ["study", "cases"]:
            return {"type": "object", "additionalProperties": schema}
        case ["study", "cases", _, *rest] | ["study", "lesson", *rest]:
            return _field(rest, schema)
        case ["study", "vary", _, *_]:
            return {"type": "array", "items": _field(keys[2:], schema)}
        case ["study", "search", _, *_] if keys[-1] not in Range.model_fields:
            return {"anyOf": [{"type": "array", "items": _field(keys[2:], schema)}, {"type": "object"}]}
    return at(keys, schema, schema)


def _shown(path: pathlib.Path) -> str:
    """Return ``path`` as it reads best in a message: below the working directory, relative to it."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a Python value as YAML would have given it: paths as text, models as mappings."""
    if depth > yaml.DEEPEST:
        raise UserError(f"expected a job, whose sections nest at most {yaml.DEEPEST} deep")
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    return str(value) if isinstance(value, pathlib.PurePath) else value
