"""From a job of any kind to its end, and from any output to its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnbatch.errors import UserError
from cnnbatch.index.manifest import NAME as MANIFEST
from cnnbatch.inference.run import RunOptions, Summary, run
from cnnbatch.job import GroupJob, IdentifyJob, IndexJob, Job, SearchJob, StudyJob, TrainJob, VerifyJob
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import require_whole
from cnnbatch.output.reader import Reader
from cnnbatch.report import write_report
from cnnbatch.storage import redact

if TYPE_CHECKING:
    from collections.abc import Collection

    from cnnbatch.report.page import Begin
    from cnnbatch.storage import Allowed, Storage


def launch(job: Job, options: RunOptions | None = None) -> Summary:
    """Run ``job`` to its end and return what it did; raises as `run.run` does."""
    if isinstance(job, TrainJob):
        from cnnbatch.training.run import train

        return train(job, options)
    if isinstance(job, IndexJob):
        from cnnbatch.index.run import index

        return index(job, options)
    if isinstance(job, GroupJob):
        from cnnbatch.index.persons.run import group

        return group(job, options)
    if isinstance(job, SearchJob | IdentifyJob):
        from cnnbatch.index.questions.run import ask

        return ask(job, options)
    if isinstance(job, VerifyJob):
        from cnnbatch.index.questions.verify import compare

        return compare(job, options)
    if isinstance(job, StudyJob):
        return _study(job, options)
    return run(job, options)


def _study(job: StudyJob, options: RunOptions | None) -> Summary:
    if job.train is None:
        from cnnbatch.training.study.predictions.run import study_predictions

        return study_predictions(job, options)
    from cnnbatch.training.study.run import study

    return study(job, options)


def report(
    output: str,
    storage: Storage,
    begin: Begin = lambda total: lambda pictures: None,
    allow: Collection[Allowed] = (),
) -> str:
    """Write the report of an output of any kind, or of an index, anew; return its address.

    See `write_report`, and `cnnbatch.index.page.write_index_report` for ``allow``.
    """
    folder = Output(output, storage)
    require_whole(folder)
    if storage.exists(folder.path(MANIFEST)):
        from cnnbatch.index.page import write_index_report
        from cnnbatch.index.search import open_index

        return write_index_report(open_index(output, storage), allow)
    if folder.decided("study") is not None:
        from cnnbatch.training.study.again import report_again

        return report_again(folder)
    if Reader(output, storage).settings.get("kind") == "verify":
        raise UserError(
            f"{redact(folder.uri)} has pairs, of which there is no report\n"
            "  what to do: read its predictions/ and evaluation.json"
        )
    return write_report(output, storage, begin)
