"""``cnnbatch report``: the report of an output is written again."""

from __future__ import annotations

from cnnbatch.cli.command import OutputName, Plugins, give, leave_with


def report(
    output: OutputName,
    plugin: Plugins = None,
) -> None:
    """Write report.html again from what a job has left in OUT."""

    def action() -> int:
        from cnnbatch.launch import report
        from cnnbatch.storage import Storage, normalize

        give(plugin)
        report(normalize(output), Storage())
        return 0

    leave_with(action)
