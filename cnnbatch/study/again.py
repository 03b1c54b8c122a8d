"""A study's page written again, from its job and the records of its trials."""

from __future__ import annotations

from cnnbatch.job import StudyJob, parse_job
from cnnbatch.output import Output
from cnnbatch.report.study import write_study_report
from cnnbatch.study.findings import find
from cnnbatch.study.trials import in_force, trials_of


def report_again(output: Output) -> str:
    """Write the page of a study's output; return its address."""
    given = parse_job(output.storage.read(output.path("_job", "job.yaml")).decode(), "_job/job.yaml")
    assert isinstance(given, StudyJob)
    job = in_force(given, given.lesson)
    kept = (output.decided(f"trials/{trial.name}") for trial in trials_of(job))
    write_study_report(output, find(given, job, [row for row in kept if row is not None], output))
    return output.path("report.html")
