"""What a run did, counted and said."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from cnnbatch import terminal
from cnnbatch.inference import fingerprint
from cnnbatch.inference.driver.planner import Planner
from cnnbatch.inference.driver.pools import HANDFUL
from cnnbatch.job import MapJob
from cnnbatch.output.evaluation import Evaluation, headlines, notes
from cnnbatch.output.failures import failed_images
from cnnbatch.output.folder import Output
from cnnbatch.output.plan_pages import left_out_of
from cnnbatch.output.reader import Reader
from cnnbatch.report.lines import result_lines
from cnnbatch.report.ways import ran_by
from cnnbatch.sources.files.left_out import in_words
from cnnbatch.storage import redact
from cnnbatch.terminal.screen import EXAMPLES, Screen

TOO_MANY = "more failures than max_failed allows; the same command with --retry-failed tries those again"
MOST_NOTES = 3
_PLACES = {"predictions": "predictions", "evaluation": "evaluation.json", "report": "report.html"}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did: ``images`` were predicted now, ``total`` are planned, ``failed`` counts codes.

    ``found`` counts what its listing found: ``new``, ``changed`` and ``vanished`` images. ``failed_in_all``
    counts the codes of all rows, ``paths`` say where what it made lies.
    """

    output: str
    images: int
    total: int
    failed: Mapping[str, int]
    seconds: float
    exit_status: int
    found: Mapping[str, int] = field(default_factory=dict)
    failed_in_all: Mapping[str, int] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return all of it as a line of JSON; the exit status is called ``status``."""
        fields = asdict(self) | {"output": redact(self.output)}
        return json.dumps({"status": fields.pop("exit_status"), **fields})


def summarize(job: MapJob, output: Output, planner: Planner, screen: Screen, judges_all: bool) -> Summary:
    """Return what the run did; all rows are judged by ``max_failed``, or those that were predicted now."""
    rows, failed_in_all = _failed_in_all(output)
    if not judges_all:
        rows = screen.done
    failed = sum((failed_in_all if judges_all else screen.failed).values())
    found: dict[str, int] = {
        name: planner.found[name] for name in ("new", "changed", "vanished") if name in planner.found
    }
    return Summary(
        output=output.uri,
        images=screen.done,
        total=planner.images,
        failed=dict(screen.failed),
        seconds=round(screen.seconds, 3),
        exit_status=1 if failed > job.max_failed * rows else 0,
        found=found,
        failed_in_all=failed_in_all,
    )


def _failed_in_all(output: Output) -> tuple[int, dict[str, int]]:
    """Return the number of rows, and of failures by code, of all parts; kept until more is predicted."""
    kept = output.decided("failed")
    if kept is None:
        result = Reader(output.uri, output.storage)
        kept = output.decide(
            "failed", {"rows": len(result), "failed": dict(sorted(result.failures().items()))}
        )
    return kept["rows"], kept["failed"]


def places(output: Output, names: Mapping[str, str] = _PLACES) -> dict[str, str]:
    """Return the addresses of those files and folders of an output that are there."""
    found = {name: output.path(place) for name, place in names.items()}
    there = {name for name, uri in found.items() if name == "predictions" or output.storage.exists(uri)}
    return {name: redact(uri) for name, uri in found.items() if name in there}


def record(output: Output, started: datetime) -> dict[str, Any]:
    """Return what the record of a run holds beside its summary: when, and by what."""
    made = output.decided("identity") or {}
    return {
        "started": started.isoformat(timespec="microseconds"),
        "model": made.get("task.model", made.get("task.name")),
        "weights": made.get("weights"),
        "precision": made.get("precision"),
        "versions": fingerprint.versions(),
    }


def say_summary(summary: Summary, evaluation: Evaluation | None, output: Output, screen: Screen) -> None:
    """Say what the run did, how good it is, and for a handful of images what was seen in each."""
    say = screen.say
    if "changed" in summary.found:  # The input was looked at again.
        words = [f"{count:,} {name}" for name, count in summary.found.items() if count]
        say(f"the input has {', '.join(words) or 'nothing new'}")
    if left_out := left_out_of(output):
        say(f"left out, since they are no images: {in_words(left_out)} (cnnbatch describe, input.suffixes)")
    if not summary.images:
        say(f"nothing to do: all {summary.total:,} images are in {redact(output.path('predictions'))}")
        _say_failed(summary, output, screen)
        if summary.exit_status:
            say(TOO_MANY)
        return
    if summary.total <= HANDFUL:
        for line in result_lines(output.uri, output.storage):
            say(line)
    rate = summary.images / max(summary.seconds, 1e-3)
    whole = f" of {summary.total:,}" if summary.total > summary.images else ""
    cost = f"{summary.seconds:.1f} s ({rate:,.1f} images/s, start-up included)"
    say(f"{summary.images:,}{whole} images in {cost}")
    _say_failed(summary, output, screen)
    for line in _judged_lines(evaluation):
        say(line)
    if ways := ran_by(output):
        say(f"  ran by: {ways} (see the report)")
    _say_places(output, screen)
    if summary.exit_status:
        say(TOO_MANY)


def _say_places(output: Output, screen: Screen) -> None:
    """Say where the rows are, and the report where there is one."""
    found = places(output)
    for name, called in (("predictions", "rows:"), ("report", "report:")):
        if name in found:
            screen.say(f"  {called:7} {found[name]}")


def _judged_lines(evaluation: Evaluation | None) -> Iterator[str]:
    """Yield how good the predictions are, and what was counted beside it."""
    if evaluation is not None:
        yield from (f"  {line}" for line in headlines(evaluation))
        for note in notes(evaluation, MOST_NOTES):
            yield f"  note:   {note}"


def _say_failed(summary: Summary, output: Output, screen: Screen) -> None:
    """Say how many images failed in this run, which for instance, and how many in all."""
    for code, count in sorted(summary.failed.items()):
        screen.say(f"  failed: {count:,} {code}")
    if summary.failed and summary.total > HANDFUL:  # Of a handful each image was said.
        result = Reader(output.uri, output.storage)
        for one in islice(failed_images(result, screen.failed_in), EXAMPLES):
            screen.say(terminal.line(f"    {one.key}: {one.message}"))
    if summary.failed_in_all:
        count = sum(summary.failed_in_all.values())
        screen.say(
            f"  failed in all: {count:,} of {summary.total:,}; cnnbatch failed "
            f"{shlex.quote(redact(output.uri))} lists them"
        )
