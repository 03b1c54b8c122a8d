"""A job: closed, frozen models that are the same value in YAML, in Python and in ``_job/job.yaml``.

Everything is checked before anything runs, and all mistakes are told at once, each with its line.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import models_json_schema
from pydantic_core import InitErrorDetails, PydanticCustomError

from cnnbatch.config import plugins, templates, yaml
from cnnbatch.config.compute import Compute
from cnnbatch.config.input import Input
from cnnbatch.config.mistakes import Sentences
from cnnbatch.config.output import Evaluate, Output
from cnnbatch.config.overrides import Override, apply, overrides, read_value
from cnnbatch.config.schema import Schema, at
from cnnbatch.config.section import Section
from cnnbatch.config.study import Range, Study
from cnnbatch.config.train import Train
from cnnbatch.config.variations import FOLDER, Settings, combinations, ends, merged, names_of, nested
from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.sources.formats import format_names, known_format
from cnnbatch.storage import join, normalize, redact
from cnnbatch.storage.text import decoded
from cnnbatch.tasks import Task
from cnnbatch.tasks.registry import task_class, task_names
from cnnbatch.truth import SURE

SHORT = {"input": "url", "output": "url"}
"""Sections that may be given as one value, and the field that it stands for."""


def _resolve(value: Any) -> Any:
    """Turn the ``task`` section into the class that its name stands for."""
    if isinstance(value, Task):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("custom", "expected a section with name and the task's own fields")
    return _class_of(value).model_validate(value)


def _class_of(section: Mapping[str, Any]) -> type[Task]:
    name = section.get("name")
    if not isinstance(name, str):
        raise _mistake("name", f"expected the name of a task, one of {', '.join(task_names())}", name)
    try:
        return task_class(name)
    except UserError as error:
        raise _mistake("name", str(error), name) from None


def _with_known_format(input: Input) -> Input:
    try:
        known_format(input.format)
    except ValueError as error:
        raise _mistake("format", str(error), input.format) from None
    return input


def _mistake(field: str, text: str, got: Any) -> ValidationError:
    """Return the error of one field of a section."""
    kind = PydanticCustomError("custom", "{text}", {"text": text})
    return ValidationError.from_exception_data("", [InitErrorDetails(type=kind, loc=(field,), input=got)])


class _OverImages(Section):
    """What every job over images says."""

    kind: str
    task: Annotated[SerializeAsAny[Task], BeforeValidator(_resolve)]
    input: Annotated[Input, AfterValidator(_with_known_format)]
    compute: Compute = Compute()
    output: Output
    evaluate: Evaluate = Evaluate()
    max_failed: float = Field(0.01, ge=0, le=1, description="Share of failed images that is still a success.")

    @model_validator(mode="after")
    def _slices_are_kept(self) -> Self:
        if lacking := [name for name in self.evaluate.slices if name not in self.input.keep]:
            names = ", ".join(map(repr, lacking))
            raise ValueError(f"expected evaluate.slices among input.keep, but {names} is not kept")
        return self


class MapJob(_OverImages):
    """Apply one model to every image of a collection: images in, one row each out."""

    kind: Literal["map"] = "map"


class TrainJob(_OverImages):
    """Tune a network on labelled images, and test it on others."""

    kind: Literal["train"] = "train"
    train: Train = Train()
    lesson: bool = Field(
        False, description="A form that ends within ten minutes, and shows the method inside."
    )

    @model_validator(mode="after")
    def _task_trains(self) -> Self:
        if type(self.task).recipe is Task.recipe:
            raise ValueError(f"the task {self.task.name} does not train; expected one that does, as classify")
        return self


class StudyJob(_OverImages):
    """Train one template many times, told apart by what varies, and compare."""

    kind: Literal["study"] = "study"
    train: Train = Train()
    study: Study
    lesson: bool = Field(False, description="The form in study.lesson, of lessons.")

    @model_validator(mode="after")
    def _trials_train(self) -> Self:
        for lesson in (False, True) if self.study.lesson else (False,):
            check(in_force(self, lesson))
        return self


Job = MapJob | TrainJob | StudyJob

_KINDS: Mapping[str, type[Job]] = {"map": MapJob, "train": TrainJob, "study": StudyJob}


def load_job(name_or_path: str, changed: Sequence[str] | Mapping[str, Any] = ()) -> Job:
    """Read a job by its name in ``jobs/`` or by its path, with ``key=value`` overrides.

    Raises UserError with every mistake, each with file and line, the expected, what came, and
    the nearest known name.
    """
    path = _find(name_or_path)
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
    found = [*document.mistakes, *templates.without_lesson(document, changes, data)]
    found += Sentences(document, changes, data, {}).unclean()
    job: Job | None = None
    try:
        job = _KINDS.get(str(data.get("kind")), MapJob).model_validate(data)
    except ValidationError as error:
        found += Sentences(document, changes, data, _schema_for(data)).all(error.errors(include_url=False))
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
    schema = _schema_for(_changed(document, guessed, no_code_in))  # Which imports the task.
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


def to_yaml(job: Job) -> str:
    """Return ``job`` as YAML that `parse_job` reads back; local paths absolute, URLs without signatures."""
    return yaml.dump(_dump(job))


def why_not(data: Mapping[str, Any], error: ValidationError) -> str:
    """Return why values that stand in no file are no job, in words."""
    document = yaml.Document("", dict(data), {})
    sentences = Sentences(document, (), data, _schema_for(data))
    return "; ".join(sentences.by_path(error.errors(include_url=False)))


def fingerprint_fields(job: Job) -> dict[str, Any]:
    """Return the job's own part of what can change a row; versions, weights and precision come on top."""
    data = _dump(job)
    task = {name: value for name, value in data["task"].items() if name not in job.task.outside_fingerprint}
    of_input = ("url", "format", "key", "label", "truth", "split", "keep")
    chosen = {name: data["input"][name] for name in of_input}
    rare = ("subset", "classes", "suffixes")
    chosen |= {name: data["input"][name] for name in rare if data["input"][name]}
    chosen |= {} if job.input.min_score == SURE else {"min_score": job.input.min_score}
    return {"task": task, "input": chosen}


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
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def jobs_folder() -> pathlib.Path:
    """Return the folder of the jobs that come along: inside a wheel's package, beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    inside = package / "jobs"
    return inside if inside.is_dir() else package.parent / "jobs"


def job_names() -> list[str]:
    """Return the names that `load_job` knows, sorted."""
    return sorted(path.stem for path in jobs_folder().glob("*.yaml"))


def job_purpose(name: str) -> str:
    """Return the first comment line of the job called ``name``."""
    first = (jobs_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _find(name_or_path: str) -> pathlib.Path:
    names = job_names()
    if name_or_path in names:
        return jobs_folder() / f"{name_or_path}.yaml"
    path = pathlib.Path(name_or_path).expanduser()
    if os.path.isfile(path):  # Which, unlike Path.is_file, bears a name too long for any file.
        return path
    near = nearest(path.stem, names)
    raise UserError(
        f"expected the name of a job or a YAML file, got {name_or_path!r}, which is neither\n"
        f"  {f'did you mean {near}? ' if near else ''}known names: {', '.join(names)}"
    )


def _shown(path: pathlib.Path) -> str:
    """Return ``path`` as it reads best in a message: below the working directory, relative to it."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)


def _schema_for(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with the one task that ``data`` names; with none where it names none."""
    section = data.get("task")
    try:
        return _schema({str(section.get("name")): _class_of(section)} if isinstance(section, Mapping) else {})
    except ValidationError:
        return _schema({})


def _schema(tasks: Mapping[str, type[Task]]) -> dict[str, Any]:
    models: list[type[BaseModel]] = [TrainJob, StudyJob, *tasks.values()]
    places, shared = models_json_schema([(model, "validation") for model in models])
    definitions = shared["$defs"]
    input = next(form for form in definitions["Input"]["anyOf"] if "properties" in form)
    input["properties"]["format"]["enum"] = format_names()

    def definition(model: type[BaseModel]) -> dict[str, Any]:
        name = places[model, "validation"]["$ref"].rpartition("/")[2]
        return dict(definitions[name])

    job = definition(TrainJob)  # It has all that a map job has.
    choices = []
    for name, task in tasks.items():
        own = definition(task)
        own["properties"] = {
            **own["properties"],
            "name": {"const": name, "description": (task.__doc__ or "").partition("\n")[0]},
        }
        choices.append(own)
    one_of = {"oneOf": choices} if choices else {"type": "object", "properties": {"name": {"type": "string"}}}
    kind = {"enum": [*_KINDS], "default": "map"}
    study = definition(StudyJob)["properties"]["study"]
    job["properties"] = {**job["properties"], "kind": kind, "task": one_of, "study": study}
    return {**job, "$defs": definitions}


def _dump(job: Job) -> dict[str, Any]:
    """Return ``job`` as plain values; local paths absolute, no address with a secret."""
    data: dict[str, Any] = _redacted(job.model_dump(mode="json"))
    for section in SHORT:
        url = data[section]["url"]
        data[section]["url"] = normalize(url) if isinstance(url, str) else [normalize(one) for one in url]
    if data["input"]["inventory"]:
        data["input"]["inventory"] = normalize(data["input"]["inventory"])
    return data


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) and "://" in value else value


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


@dataclass(frozen=True)
class Trial:
    """One training of a study; ``run`` is its number among those that differ by seed and fold only."""

    name: str
    case: str
    settings: Settings
    run: int
    job: TrainJob


def in_force(job: StudyJob, lesson: bool) -> StudyJob:
    """Return the study as it is run; raises ValueError for a ``study.lesson`` that makes none of it."""
    if not lesson:
        return job
    data = merged(job.model_dump(mode="json"), job.study.lesson)
    if isinstance(data["study"], dict):
        data["study"]["lesson"] = {}
    try:
        return type(job).model_validate(data)
    except ValidationError as error:
        raise ValueError(f"study.lesson: {why_not(data, error)}") from None


def trials_of(job: StudyJob) -> list[Trial]:
    """Return the trainings of a study, case by case; raises ValueError for one that is no training."""
    study = job.study
    found = list(combinations(study, job.train.seed))
    names = names_of(found, bool(study.search))
    return [
        _trial(job, f"{name}-{run}" if study.runs > 1 else name, case, settings, run)
        for (case, settings), name in zip(found, names, strict=True)
        for run in range(study.runs)
    ]


def check(job: StudyJob) -> None:
    """Raise ValueError for a study of which a trial is no training; of a search the ends are tried."""
    if not job.study.search:
        trials_of(job)
        return
    first = {path: ends(drawn)[0] for path, drawn in job.study.search.items()}
    for case in job.study.cases or {"": {}}:
        for path, drawn in job.study.search.items():
            for end in ends(drawn):
                _trial(job, "end", case, {**first, path: end}, 0)


def _trial(job: StudyJob, name: str, case: str, settings: Settings, run: int) -> Trial:
    study = job.study
    data = job.model_dump(mode="json", exclude={"study"}) | {"kind": "train"}
    data = merged(data, study.cases.get(case, {}))
    for path, value in settings.items():
        data = merged(data, nested(path, value))
    own: dict[str, Any] = {"train": {"seed": data["train"]["seed"] + run}}
    if study.folds:
        own["input"] = {"subset": {"folds": study.folds, "fold": run % study.folds}}
    own["output"] = {"url": join(job.output.url, FOLDER, name)}
    data = merged(data, own)
    try:
        return Trial(name, case, settings, run, TrainJob.model_validate(data))
    except ValidationError as error:
        where = f"the case {case!r}" if case else "a trial"
        with_ = ", ".join(f"{path}={value}" for path, value in settings.items())
        raise ValueError(
            f"{where}{' with ' * bool(with_)}{with_} is no training: {why_not(data, error)}"
        ) from None
