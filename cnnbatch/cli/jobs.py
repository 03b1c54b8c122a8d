"""``cnnbatch jobs`` and ``cnnbatch schema``: the jobs that come along, and what a job may say."""

from __future__ import annotations

import json

from cnnbatch.cli.command import leave_with
from cnnbatch.terminal import say


def jobs() -> None:
    """List the jobs that come along, ready to run by name."""

    def action() -> int:
        from cnnbatch.job import job_names, job_purpose

        names = job_names()
        width = max(map(len, names), default=0)
        for name in names:
            say(f"{name:{width}}  {job_purpose(name)}")
        return 0

    leave_with(action)


def schema() -> None:
    """Print the JSON schema of a job, so that an editor completes and checks it."""

    def action() -> int:
        from cnnbatch.job import job_schema

        say(json.dumps(job_schema(), indent=2))
        return 0

    leave_with(action)
