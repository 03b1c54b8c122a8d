"""Finds a task by its name: a module beside this one, an installed package's, or ``mypackage.module:MyTask``.

Of this package's own nothing is registered: the class is the one in the module that carries the module's
name, so a file whose class is called differently stays invisible.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import cnnbatch.tasks
from cnnbatch.config.entries import Entries
from cnnbatch.config.plugins import load_object
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.tasks import Task


def task_names() -> list[str]:
    """Return the names of this package's own tasks and of those that installed packages bring, sorted."""
    return sorted(_tasks())


def task_class(name: str) -> type[Task]:
    """Return the class that ``task.name`` stands for.

    Raises:
        UserError: no such task, module or class, one that can't be imported, or a class that is no `Task`.
    """
    if ":" not in name:
        return _named(name)
    found = load_object(name, "task.name")
    if not isinstance(found, type) or not issubclass(found, Task):
        raise UserError(f"task.name: expected a subclass of cnnbatch.tasks.Task, {name!r} is {found!r}")
    return found


def _named(name: str) -> type[Task]:
    tasks = _tasks()
    if name in tasks:
        return tasks[name]
    if problem := tasks.problem(name):
        raise UserError(f"task.name: {problem}")
    known = sorted(tasks.names())
    near = meant(name, known)
    raise UserError(
        f"no task is called {name!r}{near}; known: {', '.join(known)}, or mypackage.module:MyTask"
    )


@cache
def _tasks() -> Entries[type[Task]]:
    return Entries("tasks", _own(), Task)


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
