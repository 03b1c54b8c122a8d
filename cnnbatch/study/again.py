"""A study's page written again, from its job and the records of its trials."""

from __future__ import annotations

from cnnbatch.errors import UserError
from cnnbatch.job import StudyJob, parse_job
from cnnbatch.output import Output
from cnnbatch.report.study import write_study_report
from cnnbatch.storage import redact
from cnnbatch.study.findings import find
from cnnbatch.study.trials import in_force, trials_of


def report_again(output: Output) -> str:
    """Write the page of a study's output; return its address."""
    place = output.path("_job", "job.yaml")
    try:
        text = output.storage.read(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{redact(place)} is not the job that was written there: {error}") from None
    given = parse_job(text, redact(place), no_code_in=["task.name"])  # Networks are not built here.
    if not isinstance(given, StudyJob):
        raise UserError(
            f"{redact(place)}: expected a job of kind study, got one of kind {given.kind}\n"
            "  what to do: put back the job that made this output"
        )
    job = in_force(given, given.lesson)
    kept = (output.decided(f"trials/{trial.name}") for trial in trials_of(job))
    write_study_report(output, find(given, job, [row for row in kept if row is not None], output))
    return output.path("report.html")
