"""From a job of any kind to its end."""

from __future__ import annotations

from cnnbatch.job import Job, StudyJob, TrainJob
from cnnbatch.run import RunOptions, Summary, run


def launch(job: Job, options: RunOptions | None = None) -> Summary:
    """Run ``job`` to its end and return what it did; raises as `run.run` does."""
    if isinstance(job, TrainJob):
        from cnnbatch.training.run import train

        return train(job, options)
    if isinstance(job, StudyJob):
        from cnnbatch.study.run import study

        return study(job, options)
    return run(job, options)
