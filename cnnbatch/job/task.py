"""The ``task:`` section of a job: the class that its name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from cnnbatch.errors import UserError
from cnnbatch.tasks import Task
from cnnbatch.tasks.registry import task_class, task_names


def task_of(value: Any) -> Any:
    """Return the ``task`` section as the class that its name stands for."""
    if isinstance(value, Task):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("custom", "expected a section with name and the task's own fields")
    return class_of(value).model_validate(value)


def class_of(section: Mapping[str, Any]) -> type[Task]:
    """Return the class of a ``task`` section; raises ValidationError where its name stands for none."""
    name = section.get("name")
    if not isinstance(name, str):
        raise mistake("name", f"expected the name of a task, one of {', '.join(task_names())}", name)
    try:
        return task_class(name)
    except UserError as error:
        raise mistake("name", str(error), name) from None


def mistake(field: str, text: str, got: Any) -> ValidationError:
    """Return the error of one field of a section, in words."""
    kind = PydanticCustomError("custom", "{text}", {"text": text})
    return ValidationError.from_exception_data("", [InitErrorDetails(type=kind, loc=(field,), input=got)])
