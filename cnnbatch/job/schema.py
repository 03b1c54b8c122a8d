"""The JSON schema of a job, by which editors complete one and mistakes are put into words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from cnnbatch.config import yaml
from cnnbatch.config.mistakes import Sentences
from cnnbatch.config.schema import branches
from cnnbatch.job.models import (
    GroupJob,
    IdentifyJob,
    IndexJob,
    MapJob,
    SearchJob,
    StudyTemplate,
    TrainJob,
    VerifyJob,
)
from cnnbatch.job.task import class_of
from cnnbatch.sources.formats import format_names
from cnnbatch.tasks import Task
from cnnbatch.tasks.registry import task_class, task_names

_OPEN: Mapping[tuple[str, str], Callable[[], Sequence[str]]] = {("Input", "format"): format_names}
"""Fields, by their section, whose names are known only here: plug-ins bring some of them."""

_WITHOUT_TASK: Mapping[str, type[BaseModel]] = {
    str(model.model_fields["kind"].default): model
    for model in (IndexJob, GroupJob, SearchJob, IdentifyJob, VerifyJob)
}
"""The kinds of job that have no task."""


def job_schema() -> dict[str, Any]:
    """Return the JSON schema of a job, with every known task under ``task``."""
    schema = _schema({name: task_class(name) for name in task_names()})
    outside = {
        "title": "A task of another package",
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": r"^[\w.]+:\w+$"}},
        "required": ["name"],
    }
    schema["properties"]["task"]["oneOf"].append(outside)
    definitions = schema.pop("$defs")
    whole = schema
    for kind, model in _WITHOUT_TASK.items():
        of_kind = _of_fields(model)
        definitions |= of_kind.pop("$defs")
        asked = {"properties": {"kind": {"const": kind}}, "required": ["kind"]}
        whole = {"if": asked, "then": of_kind, "else": whole}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": definitions}


def why_not(data: Mapping[str, Any], error: ValidationError) -> str:
    """Return why values that stand in no file are no job, in words."""
    document = yaml.Document("", dict(data), {})
    sentences = Sentences(document, (), data, schema_for(data))
    return "; ".join(sentences.by_path(error.errors(include_url=False)))


def schema_for(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with the one task that ``data`` names; with none where it names none."""
    if (kind := str(data.get("kind"))) in _WITHOUT_TASK:
        return _of_fields(_WITHOUT_TASK[kind])
    section = data.get("task")
    try:
        return _schema({str(section.get("name")): class_of(section)} if isinstance(section, Mapping) else {})
    except ValidationError:
        return _schema({})


def _schema(tasks: Mapping[str, type[Task]]) -> dict[str, Any]:
    models: list[type[BaseModel]] = [TrainJob, StudyTemplate, *tasks.values()]
    places, shared = models_json_schema([(model, "validation") for model in models])
    definitions = shared["$defs"]
    _open(definitions)

    def definition(model: type[BaseModel]) -> dict[str, Any]:
        name = places[model, "validation"]["$ref"].rpartition("/")[2]
        return dict(definitions[name])

    job = definition(TrainJob)  # It has all that a map job has.
    with_task = [model.model_fields["kind"].default for model in (MapJob, TrainJob, StudyTemplate)]
    kinds = [*with_task, *_WITHOUT_TASK]
    job["properties"] = {
        **job["properties"],
        "kind": {"enum": kinds, "default": "map"},
        "task": _section([_named(name, task, definition(task)) for name, task in tasks.items()]),
        "study": definition(StudyTemplate)["properties"]["study"],
    }
    return {**job, "$defs": definitions}


def _of_fields(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a job without a task."""
    schema = model.model_json_schema()
    _open(schema["$defs"])
    return schema


def _open(definitions: dict[str, Any]) -> None:
    """Write the names that are known only here into the fields that take them."""
    for (section, field), names in _OPEN.items():
        for place in branches(definitions.get(section, {}), {"$defs": definitions}):
            if field in place.get("properties", {}):
                place["properties"][field]["enum"] = [*names()]


def _named(name: str, task: type[Task], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a task's fields with the name that it has in a job."""
    called = {"const": name, "description": (task.__doc__ or "").partition("\n")[0]}
    return {**schema, "properties": {**schema["properties"], "name": called}}


def _section(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"oneOf": tasks} if tasks else {"type": "object", "properties": {"name": {"type": "string"}}}
