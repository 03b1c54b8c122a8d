"""A job as plain values: as YAML that is read back, and as what can change a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnnbatch.config import yaml
from cnnbatch.job.kinds import ImageJob
from cnnbatch.job.models import SHORT, QuestionJob
from cnnbatch.storage import normalize, redact
from cnnbatch.tasks import Task
from cnnbatch.truth import SURE


def to_yaml(job: ImageJob | QuestionJob) -> str:
    """Return ``job`` as YAML that `parse_job` reads back; local paths absolute, URLs without signatures."""
    return yaml.dump(_dump(job))


_LATER = {"cut": "hash", "group": None}


def fingerprint_fields(job: ImageJob) -> dict[str, Any]:
    """Return the job's own part of what can change a row; versions, weights and precision come on top."""
    data = _dump(job)
    task = _that_count(job.task, data["task"])
    of_input = ("url", "format", "key", "label", "truth", "split", "keep")
    chosen = {name: data["input"][name] for name in of_input}
    rare = ("subset", "classes", "suffixes", "relabel", "ignore")
    chosen |= {name: data["input"][name] for name in rare if data["input"][name]}
    if job.input.subset is not None:  # What earlier versions don't say is left out where it is not said.
        said = chosen["subset"].items()
        chosen["subset"] = {
            name: value for name, value in said if name not in _LATER or value != _LATER[name]
        }
    chosen |= {} if job.input.min_score == SURE else {"min_score": job.input.min_score}
    return {"task": task, "input": chosen}


def _that_count(task: Task, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task that can change a row, and of a task inside it the same."""
    found = {}
    for name, value in fields.items():
        if name not in task.outside_fingerprint:
            inner = getattr(task, name)
            found[name] = _that_count(inner, value) if isinstance(inner, Task) else value
    return found


_ADDRESSES = (("input", "inventory"), ("evaluate", "truth"), ("identify", "gallery"), ("verify", "pairs"))


def _dump(job: ImageJob | QuestionJob) -> dict[str, Any]:
    """Return ``job`` as plain values; local paths absolute, no address with a secret."""
    data: dict[str, Any] = _redacted(job.model_dump(mode="json"))
    for section in data.keys() & SHORT:
        url = data[section]["url"]
        data[section]["url"] = normalize(url) if isinstance(url, str) else [normalize(one) for one in url]
    for section, name in _ADDRESSES:
        if data.get(section, {}).get(name):
            data[section][name] = normalize(data[section][name])
    return data


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) and "://" in value else value
