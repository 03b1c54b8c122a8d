"""The main path of an index job: what outputs have is brought into the index, then its state is replaced.

Objects are named by what they are made of and only added, so that the same command continues a build that was
killed; the manifest comes last. Of two commands at once the second is refused or, where it slipped through,
starts again from the state that the first has left.
"""

from __future__ import annotations

import time
from uuid import uuid4

from cnnbatch.errors import OutputHeld, UserError
from cnnbatch.index.building import Building, Built
from cnnbatch.index.calibrated import read_calibrated
from cnnbatch.index.figures import lines, put_evaluation
from cnnbatch.index.page import write_index_report
from cnnbatch.index.search import open_index
from cnnbatch.inference.run import RunOptions, Summary
from cnnbatch.job import IndexJob
from cnnbatch.output import lock, ownership
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen

TRIES = 3
"""How often a command starts again where another one has changed the index meanwhile."""


def index(job: IndexJob, options: RunOptions | None = None) -> Summary:
    """Build the index, or add to it what its outputs have by now; return what was done.

    Raises UserError, EnvironmentFault or OutputHeld: the index is then as it was, and the same call goes on.
    """
    options = options or RunOptions()
    began = time.monotonic()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    if ownership.holds_results(output):
        raise UserError(
            f"{redact(output.uri)} holds what another job has made\n"
            "  what to do: choose another place for the index"
        )
    with (
        Screen(options.quiet) as screen,
        lock.hold(output.storage, output.path("_job", "lock"), uuid4().hex),
    ):
        built = _built(job, screen)
        put_evaluation(output.uri, output.storage, built.manifest)
        if built.has_measured:
            screen.doing("writing the report")
            write_index_report(open_index(output.uri, output.storage))
    for line in lines(output.uri, built):
        screen.say(line)
    calibrated = read_calibrated(output.uri, output.storage, built.manifest.space)
    if calibrated is not None and (outgrown := calibrated.outgrown(built.manifest.live)) is not None:
        screen.say(f"  {outgrown}")
    return Summary(
        output=output.uri,
        images=built.added,
        total=built.manifest.live,
        failed={},
        seconds=round(time.monotonic() - began, 3),
        exit_status=0,
        found={"new": built.added, "gone": built.removed},
        paths={
            "index": redact(output.uri),
            "evaluation": redact(output.path("evaluation.json")),
            "report": redact(output.path("report.html")),
        },
    )


def _built(job: IndexJob, screen: Screen) -> Built:
    for _ in range(TRIES):
        built = Building(job, screen).build()
        if built is not None:
            return built
    raise OutputHeld(
        f"other commands have changed {redact(normalize(job.output.url))} {TRIES} times meanwhile\n"
        "  what to do: wait until they end; then give the same command again"
    )
