"""``cnnbatch report``: the report of an output is written again."""

from __future__ import annotations

from cnnbatch.cli.command import OutputName, Plugins, give, leave_with
from cnnbatch.cli.index import Allowed


def report(
    output: OutputName,
    allow: Allowed = None,
    plugin: Plugins = None,
) -> None:
    """Write report.html again from what a job has left in OUT, which may be an index."""

    def action() -> int:
        from cnnbatch.launch import report
        from cnnbatch.storage import Storage, normalize

        give(plugin)
        report(normalize(output), Storage(), allow=[one.value for one in allow or ()])
        return 0

    leave_with(action)
