"""The JSON schema of a job, by which editors complete one and mistakes are put into words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from cnnbatch.config import yaml
from cnnbatch.config.mistakes import Sentences
from cnnbatch.config.schema import branches
from cnnbatch.job.models import IndexJob, MapJob, StudyTemplate, TrainJob
from cnnbatch.job.task import class_of
from cnnbatch.sources.formats import format_names
from cnnbatch.tasks import Task
from cnnbatch.tasks.registry import task_class, task_names

_OPEN: Mapping[tuple[str, str], Callable[[], Sequence[str]]] = {("Input", "format"): format_names}
"""Fields, by their section, whose names are known only here: plug-ins bring some of them."""

INDEX = "index"
"""The kind of job that has no task."""


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
    index = IndexJob.model_json_schema()
    definitions = {**schema.pop("$defs"), **index.pop("$defs")}
    of_index = {"properties": {"kind": {"const": INDEX}}, "required": ["kind"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "if": of_index,
        "then": index,
        "else": schema,
        "$defs": definitions,
    }


def why_not(data: Mapping[str, Any], error: ValidationError) -> str:
    """Return why values that stand in no file are no job, in words."""
    document = yaml.Document("", dict(data), {})
    sentences = Sentences(document, (), data, schema_for(data))
    return "; ".join(sentences.by_path(error.errors(include_url=False)))


def schema_for(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with the one task that ``data`` names; with none where it names none."""
    if data.get("kind") == INDEX:
        return IndexJob.model_json_schema()
    section = data.get("task")
    try:
        return _schema({str(section.get("name")): class_of(section)} if isinstance(section, Mapping) else {})
    except ValidationError:
        return _schema({})


def _schema(tasks: Mapping[str, type[Task]]) -> dict[str, Any]:
    models: list[type[BaseModel]] = [TrainJob, StudyTemplate, *tasks.values()]
    places, shared = models_json_schema([(model, "validation") for model in models])
    definitions = shared["$defs"]
    for (section, field), names in _OPEN.items():
        for place in branches(definitions[section], shared):
            if field in place.get("properties", {}):
                place["properties"][field]["enum"] = [*names()]

    def definition(model: type[BaseModel]) -> dict[str, Any]:
        name = places[model, "validation"]["$ref"].rpartition("/")[2]
        return dict(definitions[name])

    job = definition(TrainJob)  # It has all that a map job has.
    kinds = [model.model_fields["kind"].default for model in (MapJob, TrainJob, StudyTemplate, IndexJob)]
    job["properties"] = {
        **job["properties"],
        "kind": {"enum": kinds, "default": "map"},
        "task": _section([_named(name, task, definition(task)) for name, task in tasks.items()]),
        "study": definition(StudyTemplate)["properties"]["study"],
    }
    return {**job, "$defs": definitions}


def _named(name: str, task: type[Task], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a task's fields with the name that it has in a job."""
    called = {"const": name, "description": (task.__doc__ or "").partition("\n")[0]}
    return {**schema, "properties": {**schema["properties"], "name": called}}


def _section(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"oneOf": tasks} if tasks else {"type": "object", "properties": {"name": {"type": "string"}}}
