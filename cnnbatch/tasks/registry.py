"""Finds a task by its name: a module beside this one, or ``mypackage.module:MyTask``.

Nothing is registered: the class is the one in the module that carries the module's name, so a file
whose class is called differently stays invisible.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import cnnbatch.tasks
from cnnbatch.config.plugins import load_object
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.tasks import Task


def task_names() -> list[str]:
    """Return the names of this package's own tasks, sorted."""
    return sorted(_own())


def task_class(name: str) -> type[Task]:
    """Return the class that ``task.name`` stands for.

    Raises:
        UserError: no such task, module or class, or a class that is not a `Task`.
    """
    if ":" not in name:
        if name not in _own():
            known = ", ".join(task_names())
            raise UserError(
                f"no task is called {name!r}{meant(name, _own())}; known: {known}, or mypackage.module:MyTask"
            )
        return _own()[name]
    found = load_object(name, "task.name")
    if not isinstance(found, type) or not issubclass(found, Task):
        raise UserError(f"task.name: expected a subclass of cnnbatch.tasks.Task, {name!r} is {found!r}")
    return found


@cache
def _own() -> dict[str, type[Task]]:
    names = [module.name for module in pkgutil.iter_modules(cnnbatch.tasks.__path__)]
    return {name: found for name in names if (found := _task_of(name)) is not None}


def _task_of(name: str) -> type[Task] | None:
    """Return the `Task` of ``cnnbatch.tasks.NAME`` that is called as its module, if it has one."""
    module = importlib.import_module(f"cnnbatch.tasks.{name}")
    wanted = name.replace("_", "")
    return next(
        (
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Task) and value.__name__.lower() == wanted
        ),
        None,
    )
