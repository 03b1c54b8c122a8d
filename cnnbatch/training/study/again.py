"""A study's page written again, from its job and the records of its trials."""

from __future__ import annotations

from cnnbatch.job import StudyJob, cases_of, in_force, parse_job, trials_of
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.storage import NotFound, redact
from cnnbatch.storage.text import decoded
from cnnbatch.training.study.findings import find
from cnnbatch.training.study.page import write_study_report
from cnnbatch.training.study.predictions.cases import compared
from cnnbatch.training.study.predictions.page import write_page
from cnnbatch.training.study.record import read_record


def report_again(output: Output) -> str:
    """Write the page of a study's output; return its address."""
    given = _given(output)
    job = in_force(given, given.lesson)
    if job.train is None:
        write_page(output, compared(given, cases_of(job)))
        return output.path("report.html")
    found = (read_record(output, trial.name) for trial in trials_of(job))
    records = [record for record in found if record is not None]
    write_study_report(output, find(given, job, records, output))
    return output.path("report.html")


def _given(output: Output) -> StudyJob:
    """Return the study as it was given; raises UserError where its ``job.yaml`` is damaged."""
    uri = output.path("_job", "job.yaml")
    try:
        data = output.storage.read(uri)
    except NotFound:
        raise integrity.damaged(uri, "it is missing", integrity.PUT_BACK) from None
    with integrity.reading(uri):
        # Networks are not built here, so a trial's model may be what cannot be imported.
        job = parse_job(decoded(data), redact(uri), no_code_in=["task.name"])
        if not isinstance(job, StudyJob):
            raise ValueError(f"expected a study, got a job of kind {job.kind}")
        return job
